"""Kernels, MACs and bytes behind docs/performance.md."""

import re
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the network needs torch")

from ehrnet_model.network.checkpoint import build  # noqa: E402
from ehrnet_model.network.kernels import kernels  # noqa: E402
from ehrnet_model.variants import VARIANTS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text()


@pytest.fixture(scope="module")
def fused():
    with torch.device("meta"):
        return kernels(build("H-4"), (384, 384))


@pytest.fixture(scope="module")
def roofline():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import roofline

        yield roofline
    finally:
        sys.path.remove(str(ROOT / "tools"))


@pytest.mark.parametrize("level", ["alone", "exported"])
def test_joining_loses_no_arithmetic(fused, level):
    with torch.device("meta"):
        found = kernels(build("H-4"), (384, 384), level)
    assert len(found) > len(fused)
    for each in (found, fused):
        assert sum(kernel.macs() for kernel in each) == VARIANTS["H-4"].cost().macs


def test_bytes_of_one_residual_convolution(fused):
    """14 channels of 96 x 96 cells: reads two maps, 14 x 14 x 9 weights, 14 biases, writes one."""
    place = "stages.0.fusions.0.branches.0.0.second.conv"
    (kernel,) = [k for k in fused if k.place == place]
    assert kernel.kinds == ("conv", "norm", "add", "activation")
    assert kernel.traffic(2) == 2 * (3 * 14 * 96 * 96 + 14 * 14 * 9 + 14)
    assert kernel.traffic(1, align=8) == 3 * 16 * 96 * 96 + 16 * 16 * 9 + 16
    assert kernel.macs(8) == 16 * 16 * 9 * 96 * 96


def test_time_of_one_kernel(fused, roofline):
    """The transposed convolution on the Xavier NX: 48 > 14 channels, 96 x 96 to 192 x 192."""
    (cost,) = [c for c in roofline.floor(fused, roofline.XAVIER) if "deconv" in c.kernel.kinds]
    macs = 48 * 14 * 16 * 96 * 96
    moved = 2 * (48 * 96 * 96 + 14 * 192 * 192 + 48 * 14 * 16 + 14)
    assert cost.compute_ms == pytest.approx(2 * macs / 6.76e12 * 1e3)
    assert cost.memory_ms == pytest.approx(moved / 59.7e9 * 1e3)
    assert cost.ms == max(cost.compute_ms, cost.memory_ms)


def test_quantised_branches_read_bytes_between_floats(fused, roofline):
    """In the exported INT8 graph a block's sum stays in 16-bit floats."""
    place = "stages.0.fusions.0.branches.0.0.second.conv"
    costs = roofline.floor(fused, roofline.XAVIER, "exported int8")
    (cost,) = [c for c in costs if c.kernel.place == place]
    area, parameters = 14 * 96 * 96, 14 * 14 * 9 + 14
    # reads: 8 bits into the convolution, 16 into the sum; writes both for the next block
    assert cost.memory_ms == pytest.approx(((1 + 2 + 1 + 2) * area + parameters) / 59.7e9 * 1e3)


def test_an_unknown_operation_is_not_counted_as_nothing():
    with pytest.raises(ValueError, match="Softmax"):
        kernels(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Softmax(1)), (8, 8))


def test_the_page_is_of_this_network(roofline):
    printed = dict(re.findall(r"^\| (H-?\d) \| \d+ \| (\d+\.\d{3}) \|", PAGE, re.M))
    assert printed == {name: f"{v.cost().macs / 1e9:.3f}" for name, v in VARIANTS.items()}
    assert "| " + " | ".join(roofline.network_row("H-4")) + " |" in PAGE
