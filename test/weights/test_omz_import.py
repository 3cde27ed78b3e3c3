"""The Open Model Zoo's networks become our H-2-omz; OpenVINO, which they are made for, is judge.

Random weights on the published topology: see test/support/omz_files.py.
"""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network needs torch")
pytest.importorskip("safetensors", reason="checkpoints need safetensors")

from omz_files import write_pair  # noqa: E402

from ehrnet_model.errors import EhrnetError  # noqa: E402
from ehrnet_model.inference.reference import find_peaks  # noqa: E402
from ehrnet_model.network.checkpoint import build, load_network  # noqa: E402
from ehrnet_model.network.omz import import_omz, read_state  # noqa: E402
from ehrnet_model.network.openvino_ir import read_graph  # noqa: E402
from ehrnet_model.variants import RELATED, VARIANTS  # noqa: E402


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def state(pair: tuple[Path, Path]) -> dict:
    return read_state(read_graph(*pair))


@pytest.mark.parametrize("size_hw", [(288, 288), (352, 352), (448, 448), (256, 384)])
def test_same_maps_as_openvino(size_hw, tmp_path) -> None:
    """The three published sizes and one that is not square, in float32."""
    openvino = pytest.importorskip("openvino", reason="the original runs in OpenVINO")
    xml, weights = write_pair(tmp_path, size_hw, seed=size_hw[0])
    original = openvino.Core().compile_model(
        str(xml), "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    )
    image = np.random.default_rng(1).integers(0, 256, (3, *size_hw), np.uint8)
    marked, embeddings = (out[0] for out in original({0: image[None].astype(np.float32)}).values())

    network = build("H-2-omz").eval()
    network.load_state_dict(read_state(read_graph(xml, weights)))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    rgb = (image[::-1].transpose(1, 2, 0) / 255 - mean) / std
    with torch.inference_mode():
        low, high = network(torch.from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float32)))
    enlarged = torch.nn.functional.interpolate(low, scale_factor=2.0, mode="bilinear")[0].numpy()
    heat, tags = np.maximum(enlarged[:17] + high[0].numpy(), 0) / 2, enlarged[17:]
    assert 0.2 < heat.std() < 20 and 0.2 < tags.std() < 20
    # What is no maximum of its surroundings is negated there.
    np.testing.assert_allclose(np.abs(marked), heat, atol=2e-5 * heat.std())
    np.testing.assert_allclose(embeddings[..., 0], tags, atol=2e-5 * tags.std())


def test_every_value_of_the_file_is_used(pair, state) -> None:
    """8,150,414 values: weights and biases, but for the image's mean and three factors."""
    folded = sum(
        v.numel()
        for key, v in state.items()
        if key.endswith(("conv.weight", "norm.bias")) or "squeeze" in key or "head" in key
    )
    assert folded == 8_150_414 - 3 - 3
    entries = {key: v for key, v in state.items() if "entries" in key and "conv.bias" in key}
    assert len(entries) == 4 and not any(value.any() for value in entries.values())


def test_cost_is_what_the_publisher_says() -> None:
    """8.1506 M parameters and 14.3253 G operations at 448, two per multiply-accumulate.

    The publisher counts 2 % more operations than convolutions alone have.
    """
    variant = RELATED["H-2-omz"]
    cost = variant.cost((448, 448))
    # Folded, a normalisation is one bias per channel, and takes in that of its convolution.
    folded = [layer.outputs * (1 + layer.bias) for layer in variant.layers() if layer.norm]
    assert cost.params - sum(folded) == 8_150_414 - 3 - 3
    assert cost.params - sum(folded) == pytest.approx(8.1506e6, rel=1e-4)
    assert 0.96 < 2 * cost.macs / 14.3253e9 < 1.0
    assert variant.phi == VARIANTS["H-2"].phi


def test_half_precision_files_are_read_too(state, tmp_path) -> None:
    """The same weights behind conversions, rounded to half precision."""
    half = read_state(read_graph(*write_pair(tmp_path, precision="FP16")))
    assert half.keys() == state.keys()
    for key, value in state.items():
        if not key.startswith("backbone.stem"):
            torch.testing.assert_close(half[key], value, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        half["backbone.stem.conv.weight"], state["backbone.stem.conv.weight"], rtol=1e-3, atol=1e-4
    )


def _rewritten(pair, folder: Path, change) -> tuple[Path, Path]:
    tree = ET.parse(pair[0])
    change(tree.getroot())
    out = folder / "changed.xml"
    tree.write(out)
    return out, pair[1]


def test_order_numbers_and_names_of_layers_do_not_matter(pair, state, tmp_path) -> None:
    def change(root: ET.Element) -> None:
        layers, edges = root.find("layers"), root.find("edges")
        rng = random.Random(3)
        numbers = [layer.get("id") for layer in layers]
        new = dict(zip(numbers, rng.sample(numbers, len(numbers))))
        for layer in layers:
            layer.set("id", new[layer.get("id")])
            layer.set("name", f"name {layer.get('id')}")
        sums = [layer.get("id") for layer in layers if layer.get("type") in ("Add", "Multiply")]
        for edge in edges:
            edge.set("from-layer", new[edge.get("from-layer")])
            edge.set("to-layer", new[edge.get("to-layer")])
        swapped = set(rng.sample(sums, len(sums) // 2))  # a + b is b + a
        for edge in edges:
            if edge.get("to-layer") in swapped:
                edge.set("to-port", {"0": "1", "1": "0"}[edge.get("to-port")])
        for part in (layers, edges):
            mixed = list(part)
            rng.shuffle(mixed)
            part[:] = mixed

    again = read_state(read_graph(*_rewritten(pair, tmp_path, change)))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "kind, constant_first", [("Multiply", False), ("Multiply", True), ("Divide", False)]
)
def test_an_image_that_is_scaled_in_the_graph(kind, constant_first, pair, state, tmp_path):
    """Another release may keep the scale out of the first convolution."""
    rgb_gain = np.float32([0.5, 1.0, 2.0])
    blob = tmp_path / "x.bin"
    stored = rgb_gain[::-1] if kind == "Multiply" else 1 / rgb_gain[::-1]
    data = pair[1].read_bytes()
    blob.write_bytes(data + stored.tobytes())

    def change(root: ET.Element) -> None:
        layers, edges = root.find("layers"), root.find("edges")
        mean = next(x for x in layers if x.get("type") == "Subtract")
        after = [e for e in edges if e.get("from-layer") == mean.get("id")]
        const = ET.SubElement(layers, "layer", id="90001", name="scale", type="Const")
        where = {"offset": str(len(data)), "size": "12", "shape": "1,3,1,1"}
        ET.SubElement(const, "data", {"element_type": "f32", **where})
        ET.SubElement(layers, "layer", id="90002", name="scaled", type=kind)
        for edge in after:
            edge.set("from-layer", "90002")
        for port, source in enumerate((mean.get("id"), "90001")):
            to = {"to-layer": "90002", "to-port": str(1 - port if constant_first else port)}
            ET.SubElement(edges, "edge", {"from-layer": source, "from-port": "0", **to})

    xml, _ = _rewritten(pair, tmp_path, change)
    scaled = read_state(read_graph(xml, blob))
    key = "backbone.stem.conv.weight"
    expected = state[key] * torch.from_numpy(rgb_gain)[:, None, None]
    torch.testing.assert_close(scaled[key], expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(scaled[k], v) for k, v in state.items() if "stem" not in k)


def _attribute(kind: str, name: str, value: str):
    def change(root: ET.Element) -> None:
        layer = next(x for x in root.iter("layer") if x.get("type") == kind)
        layer.find("data").set(name, value)

    return change


def _kind(kind: str, other: str):
    def change(root: ET.Element) -> None:
        next(x for x in root.iter("layer") if x.get("type") == kind).set("type", other)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _attribute("Convolution", "strides", "1, 1"),
        _attribute("GroupConvolution", "pads_begin", "0, 0"),
        _attribute("Interpolate", "mode", "linear"),
        _attribute("Concat", "axis", "2"),
        _kind("ReLU", "Elu"),
        _kind("Swish", "Mish"),
        _kind("Sigmoid", "HardSigmoid"),
        _kind("ReduceMean", "ReduceMax"),
        _kind("Subtract", "Power"),
        _kind("ConvolutionBackpropData", "Convolution"),
        lambda root: root.find("layers").clear(),
        lambda root: root.find("edges").clear(),
        lambda root: root.remove(root.find("edges")),
    ],
)
def test_other_networks_are_refused_and_nothing_is_written(change, pair, tmp_path) -> None:
    xml, weights = _rewritten(pair, tmp_path, change)
    with pytest.raises(EhrnetError, match="changed.xml"):
        import_omz(xml, weights, tmp_path / "out.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["changed.xml"]


@pytest.mark.parametrize("text", [b"", b"no xml", b"<net/>", b"<!DOCTYPE a [<!ENTITY b 'c'>]><a/>"])
def test_files_that_are_no_network_are_refused(text, pair, tmp_path) -> None:
    xml = tmp_path / "x.xml"
    xml.write_bytes(text)
    with pytest.raises(EhrnetError, match="does not describe"):
        read_graph(xml, pair[1])
    with pytest.raises(EhrnetError, match="cannot be read"):
        read_graph(pair[0], tmp_path / "absent.bin")


def test_weights_that_end_early_or_are_not_finite_are_refused(pair, tmp_path) -> None:
    data = pair[1].read_bytes()
    short = tmp_path / "short.bin"
    short.write_bytes(data[: len(data) // 2])
    with pytest.raises(EhrnetError, match="same release"):
        read_state(read_graph(pair[0], short))
    broken = tmp_path / "broken.bin"
    middle = len(data) // 2 // 4 * 4
    broken.write_bytes(data[:middle] + np.float32(np.nan).tobytes() * 64 + data[middle + 256 :])
    with pytest.raises(EhrnetError, match="broken"):
        read_state(read_graph(pair[0], broken))


def test_the_checkpoint_says_what_it_is(pair, state, tmp_path) -> None:
    out = tmp_path / "H-2.safetensors"
    import_omz(*pair, out, {"source": "a test"})
    network, meta = load_network(out)
    loaded = network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert (meta.variant, meta.phi, meta.input_size) == ("H-2-omz", -2, 448)
    assert meta.coordinates == "first-pixel" and meta.quality == "imported"
    assert "Apache-2.0" in meta.licence and meta.recipe == {"source": "a test"}
    with pytest.raises(EhrnetError, match="holds weights of H-2-omz, but H-2 is wanted"):
        load_network(out, "H-2")


def test_positions_are_read_as_the_publisher_reads_them() -> None:
    """A symmetric top in cell (7, 5) of the half-size map is at twice that, without half a cell."""
    y, x = np.mgrid[:16, :16]
    high = np.exp(-((x - 7.0) ** 2 + (y - 5.0) ** 2) / 8).astype(np.float32)
    maps = np.broadcast_to(high, (17, 16, 16))
    peaks = find_peaks(np.zeros((34, 8, 8), np.float32), maps, "first-pixel")
    np.testing.assert_allclose(peaks[:, 0, 1:3], [[14, 10]] * 17)
