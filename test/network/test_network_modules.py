"""Shapes, padding, training behaviour and deployability of the networks."""

import io
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network needs torch")

from ehrnet_model.network.backbone import Backbone  # noqa: E402
from ehrnet_model.network.blocks import ConvNorm, MBConv  # noqa: E402
from ehrnet_model.network.checkpoint import build  # noqa: E402
from ehrnet_model.network.efficienthrnet import EfficientHRNet  # noqa: E402
from ehrnet_model.variants import VARIANTS  # noqa: E402


@pytest.mark.parametrize("height, width", [(32, 32), (64, 96), (160, 32)])
def test_outputs_have_a_quarter_and_half_of_the_size(height, width):
    lowres, highres = build("H-4").eval()(torch.zeros(2, 3, height, width))
    assert lowres.shape == (2, 34, height // 4, width // 4)
    assert highres.shape == (2, 17, height // 2, width // 2)


def test_fresh_network_starts_near_zero_and_not_at_it():
    torch.manual_seed(0)
    network = build("H-4")
    with torch.no_grad():
        lowres, highres = network.train()(torch.randn(2, 3, 64, 64))
    for out in (lowres, highres):
        assert 1e-5 < float(out.std()) < 0.1
    fan_out = 9 * network.variant.branch_widths[0]
    weight = network.stages[0].entries[0].conv.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", VARIANTS)
def test_taps_are_the_last_of_their_resolution(name):
    variant = VARIANTS[name]
    with torch.device("meta"):
        taps = Backbone(variant)(torch.empty(1, 3, 64, 96))
    assert [tuple(t.shape[1:]) for t in taps] == [
        (c, 64 // s, 96 // s) for c, s in zip(variant.tap_channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_same_padding_puts_the_odd_cell_right_and_below(kernel, stride):
    layer = ConvNorm(1, 1, kernel, stride, same=True).eval()
    torch.nn.init.ones_(layer.conv.weight)
    image = np.arange(1.0, 81.0).reshape(8, 10)
    # By definition: cell i of the output sums the window that starts at i * stride - before.
    before, after = (kernel - stride) // 2, kernel - stride - (kernel - stride) // 2
    padded = np.pad(image, (before, after))
    expected = [
        [padded[y : y + kernel, x : x + kernel].sum() for x in range(0, 10, stride)]
        for y in range(0, 8, stride)
    ]
    with torch.no_grad():
        got = layer(torch.tensor(image, dtype=torch.float32)[None, None])[0, 0]
    np.testing.assert_allclose(got, np.array(expected) / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_drop_connect_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    block = MBConv(8, 8, 3, 1, 6, drop_connect=0.25)
    x = torch.randn(1, 8, 4, 4).expand(4000, 8, 4, 4).contiguous()
    with torch.no_grad():
        change = (block(x) - x).flatten(1).abs().amax(1)
        assert 0.22 < float((change == 0).float().mean()) < 0.28
        full = block.project(block.squeeze(block.depthwise(block.expand(x))))
        kept = block(x) - x
        scale = kept.flatten(1)[kept.flatten(1).abs().amax(1) > 0].mean(0) / full.flatten(1)[0]
    assert float(scale.median()) == pytest.approx(1 / 0.75, rel=1e-3)
    block.eval()
    assert torch.equal(block(x[:2]), block(x[:2]))
    assert MBConv(8, 16, 3, 1, 6).residual is False


def test_drop_connect_is_that_of_the_whole_backbone():
    network = EfficientHRNet(VARIANTS["H-4"], drop_connect=0.1)
    rates = {m.drop_connect for m in network.modules() if isinstance(m, MBConv)}
    assert rates == {0.1}


def test_every_parameter_learns_in_bfloat16_and_channels_last():
    torch.manual_seed(0)
    network = EfficientHRNet(VARIANTS["H-4"], drop_connect=0.0)
    network.to(memory_format=torch.channels_last).train()
    x = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        lowres, highres = network(x)
    assert lowres.is_contiguous(memory_format=torch.channels_last)
    (lowres.float().square().mean() + highres.float().square().mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_exported_graph_computes_no_shapes():
    onnx = pytest.importorskip("onnx", reason="writing ONNX needs onnx")
    network, buffer = build("H-4").eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, 64, 96),),
            buffer,
            opset_version=17,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}},
        )
    kinds = {node.op_type for node in onnx.load_model_from_string(buffer.getvalue()).graph.node}
    assert kinds == {
        *("Conv", "ConvTranspose", "BatchNormalization", "Relu", "Sigmoid", "Mul", "Add", "Pad"),
        *("GlobalAveragePool", "Resize", "Concat", "Constant", "Identity"),
    }
