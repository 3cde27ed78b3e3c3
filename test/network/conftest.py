"""The rule that gives every tensor of the published networks deterministic values."""

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

try:
    import torch
except ImportError:  # then only the tests of the table run
    torch = None

FACTS = Path(__file__).parents[1] / "facts"


def uniform(name, count):
    """float64 in [0, 1) from NumPy's raw PCG64 stream, which is stable across versions."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count)
    return (np.asarray(raw, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def value(key, shape):
    """The tensor for a key of the published code."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    u = uniform(key, int(np.prod(shape))).reshape(shape)
    if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
        v = 0.75 + 0.5 * u
    elif key.endswith(("running_mean", "bias")):
        v = 0.2 * (u - 0.5)
    else:
        v = (2 * u - 1) * np.sqrt(3 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(v.astype(np.float32)))


def read_facts(name):
    path = FACTS / name
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(text)


@pytest.fixture(scope="session")
def facts():
    """Reads a JSON file of test/facts by name."""
    return read_facts


@pytest.fixture(scope="session")
def reference_state():
    """Gives a published state_dict by variant name, filled by the rule."""
    keys = read_facts("reference_keys.json.gz")

    def make(name, classes=None, only=""):
        state = {}
        for key, shape in keys[name]:
            if not key.startswith(only):
                continue
            if classes is not None and key.startswith("classifier."):
                shape = [classes, *shape[1:]]
            state[key] = value(key, tuple(shape))
        return state

    return make


@pytest.fixture(scope="session")
def golden_input():
    """The input image by height and width, float32 (1, 3, H, W)."""

    def make(height, width):
        x = 4 * uniform("input", 3 * height * width) - 2
        return torch.from_numpy(x.astype(np.float32).reshape(1, 3, height, width))

    return make


@pytest.fixture(scope="session")
def sample():
    """Values of a tensor at the recorded places: ``sample(tensor, name, count)``."""

    def take(tensor, name, count):
        flat = tensor.detach().double().reshape(-1).numpy()
        return flat[np.floor(uniform(f"sample:{name}", count) * flat.size).astype(int)]

    return take
