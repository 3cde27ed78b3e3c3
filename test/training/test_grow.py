"""A network grown from a smaller one: the same function, and room to learn."""

import copy

import pytest
import torch

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.training.grow import grow
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.trainer import Trainer
from ehrnet_model.variants import VARIANTS


def small(pack_file, **more):
    packs = ((str(pack_file), 1.0),)
    return TrainOptions(packs=packs, steps=6, windows=((64, 2, 1.0),), holdout=0.0, **more)


@pytest.fixture(scope="module")
def lived_in():
    """H-4 with weights and statistics as of one that was trained: nothing is 0 or 1."""
    torch.manual_seed(1)
    network = EfficientHRNet(VARIANTS["H-4"], drop_connect=0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "running_var" in name or name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.normal_(0, 0.1)
            elif name.startswith("head"):
                tensor.normal_(0, 0.1)
    return network


@pytest.mark.parametrize("name", ["H-4", "H-3", "H0"])
@pytest.mark.parametrize("training", [False, True])
def test_a_grown_network_says_the_same(lived_in, name, training):
    source = copy.deepcopy(lived_in).double().train(training)
    torch.manual_seed(2)
    network = EfficientHRNet(VARIANTS[name], drop_connect=0).double().train(training)
    grow(network, source.variant, source.state_dict())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for mine, theirs in zip(network(images), source(images), strict=True):
            assert theirs.std() > 0.01
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_what_was_added_learns(lived_in):
    """No number of the larger network is cut off from the loss for good."""
    torch.manual_seed(2)
    network = EfficientHRNet(VARIANTS["H-3"], drop_connect=0).double().train()
    grow(network, lived_in.variant, lived_in.state_dict())
    before = {k: v.clone() for k, v in network.named_parameters()}
    optimiser = torch.optim.SGD(network.parameters(), 0.01)
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    for _ in range(3):  # the first moves the zeros, the second what lies behind them
        optimiser.zero_grad()
        low, high = network(images)
        (((low - 1) ** 2).mean() + ((high - 1) ** 2).mean()).backward()
        optimiser.step()
    moved = {k: (v != before[k]).double().mean() for k, v in network.named_parameters()}
    # Biases before a normalisation have no effect in any network.
    still = {k: share for k, share in moved.items() if k.endswith("weight") and share < 0.9}
    assert not still


def test_a_run_starts_from_a_smaller_variant(pack_file, tmp_path):
    first = Trainer(small(pack_file), tmp_path / "small")
    first.run(steps=2)
    weights = tmp_path / "H-4.safetensors"
    first.save_weights(weights, {}, {})
    for start in (weights, tmp_path / "small/state.pt"):
        folder = tmp_path / f"from-{start.suffix[1:]}"
        larger = Trainer(small(pack_file, phi=-3, start=str(start)), folder)
        images = torch.randn(1, 3, 64, 64)
        expected, given = first.averaged(), larger.averaged()
        with torch.no_grad():
            for mine, theirs in zip(given(images), expected(images), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
        assert larger.config["started_from"]["images_seen"] == first.images
    larger.run(steps=1)
    larger.save_weights(tmp_path / "H-3.safetensors", {}, {})
    with pytest.raises(EhrnetError, match="H-3, from which H-4 cannot start"):
        Trainer(small(pack_file, start=str(tmp_path / "H-3.safetensors")), tmp_path / "back")


def test_a_network_with_less_room_is_refused(lived_in):
    network = EfficientHRNet(VARIANTS["H-3"], drop_connect=0)
    with pytest.raises(ValueError, match="does not fit"):
        grow(lived_in, network.variant, network.state_dict())
