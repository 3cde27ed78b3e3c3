"""Mirrored and multi-scale passes: where keypoints land, and what is asked of the network."""

import argparse
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="several passes run on weights, in torch")

from ehrnet_model.inference.runtime import ModelInfo  # noqa: E402
from ehrnet_model.network.passes import PassesRuntime  # noqa: E402
from ehrnet_model.skeleton import COCO_17  # noqa: E402
from ehrnet_model.variants import VARIANTS  # noqa: E402

SIDE = 64


class OneBlob(torch.nn.Module):
    """A network trained to perfection on one convention of targets: it finds the blob's centre.

    Every heatmap has its peak where that convention puts the target, left keypoints twice as high
    as right ones; the tag is the column, so that a mirrored image has another one.
    """

    def __init__(self, coordinates):
        super().__init__()
        self.coordinates = coordinates
        self.chance = torch.Generator().manual_seed(0)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        self.register_buffer("std", std.view(1, 3, 1, 1))
        height = [2.0 if name.startswith("left") else 1.0 for name in COCO_17.names]
        self.register_buffer("height", torch.tensor(height).view(1, -1, 1, 1))

    def maps(self, x, y, stride, side):
        if self.coordinates == "reference":
            x, y = torch.floor(x / stride), torch.floor(y / stride)
        else:
            # Cell 0 of the half-size map is at pixel 0.5 of the input, or at 0.
            start = 0.5 if self.coordinates == "pixel-centre" else 1.0
            x, y = (x + start) / stride - 0.5, (y + start) / stride - 0.5
        cells = torch.arange(side // stride, dtype=torch.float32)
        square = (cells[None] - x) ** 2 + (cells[:, None] - y) ** 2
        # Real maps have no two equal neighbours.
        noise = 1e-3 * torch.rand(square.shape, generator=self.chance)
        return self.height * (torch.exp(-square / (2 * 2.0**2)) + noise)[None, None]

    def forward(self, image):
        self.chance.manual_seed(0)
        light = torch.relu((image * self.std + self.mean).mean(1)[0])
        side = light.shape[0]
        place = torch.arange(side, dtype=torch.float32)
        x = (light.sum(0) * place).sum() / light.sum()
        y = (light.sum(1) * place).sum() / light.sum()
        low = self.maps(x, y, 4, side)
        return torch.cat([low, torch.full_like(low, float(x))], 1), self.maps(x, y, 2, side)


def blob(x, y, scale):
    """uint8 (1, H, W, 3) of the scene at a scale; x, y at scale 1, pixel centres whole numbers."""
    place = np.arange(round(SIDE * scale))
    x, y = (x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5
    square = (place[None] - x) ** 2 + (place[:, None] - y) ** 2
    light = 255 * np.exp(-square / (2 * (5 * scale) ** 2))
    return np.repeat(light.round().astype(np.uint8)[None, ..., None], 3, 3)


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5), (1.0, 0.5, 2.0)])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("coordinates", ["pixel-centre", "reference", "first-pixel"])
def test_positions_have_no_bias(coordinates, mirror, scales):
    info = ModelInfo("H-4", -4, coordinates=coordinates)
    runtime = PassesRuntime(OneBlob(coordinates), info)
    # One spot for each eighth of the coarsest cell.
    offsets = (np.arange(32) + 0.5) / 32 * 8
    places = np.stack([28 + offsets, 28 + np.roll(offsets, 13)], 1)
    found = []
    for x, y in places:
        peaks = runtime.several([blob(x, y, s) for s in scales], mirror)
        found.append(peaks[0, 0, 0, 1:3])
    error = np.array(found) - places
    if coordinates == "pixel-centre":
        assert np.abs(error).max() < 0.15
    assert np.abs(error.mean(0)).max() < 0.15, error.mean(0)


def test_one_pass_is_what_the_runtime_itself_gives():
    runtime = PassesRuntime(OneBlob("pixel-centre"), ModelInfo("H-4", -4))
    image = blob(30.3, 31.8, 1)
    np.testing.assert_array_equal(runtime.several([image], False), runtime(image))


def test_mirrored_maps_come_back_swapped_and_tags_stay_those_of_the_image():
    runtime = PassesRuntime(OneBlob("pixel-centre"), ModelInfo("H-4", -4))
    x = 24.0
    peaks = runtime.several([blob(x, 32, 1)], True)[0]
    # Left and right maps of heights 2 and 1: their mean with the swapped ones is 1.5.
    names = np.array(COCO_17.names)
    sided = np.char.startswith(names, "left") | np.char.startswith(names, "right")
    np.testing.assert_allclose(peaks[sided, 0, 0], 1.5, rtol=0.05)
    np.testing.assert_allclose(peaks[~sided, 0, 0], 1.0, rtol=0.05)
    # The mirrored image's tag is another one, SIDE - 1 - x; the mean of both says nothing about x.
    np.testing.assert_allclose(peaks[:, 0, 3], x, atol=0.1)


def test_evaluate_counts_every_pass(data_set, tmp_path):
    from ehrnet_model.network.checkpoint import CheckpointMeta, save_checkpoint
    from ehrnet_model.network.torch_runtime import random_network
    from ehrnet_ros.cli import evaluate

    network, _ = random_network(-4)
    weights, out = tmp_path / "h4.safetensors", tmp_path / "measures.json"
    save_checkpoint(weights, network.state_dict(), CheckpointMeta("H-4"))
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    arguments = ["--annotations", data_set / "truth.json.gz", "--images", data_set / "images.zip"]
    arguments += ["--model", weights, "--flip", "--scales", "0.5", "1", "--size", "64x128"]
    arguments += ["--json", out]
    assert evaluate.run(parser.parse_args([str(a) for a in arguments])) == 0
    measures = json.loads(out.read_text())
    cost = VARIANTS["H-4"].cost
    macs = 2 * (cost((64, 128)).macs + cost((32, 64)).macs)
    assert measures["gmacs"] == pytest.approx(macs / 1e9)
    assert measures["mirror"] is True and measures["scales"] == [1.0, 0.5]


@pytest.mark.parametrize("views", [1, 2])
def test_second_looks_after_several_passes(tmp_path, views):
    import dot_data
    import dots

    from ehrnet_model.evaluation.coco import load_annotations
    from ehrnet_model.evaluation.measure import Settings, evaluate
    from ehrnet_model.evaluation.pictures import ImageFiles
    from ehrnet_model.inference.decode import DecodeOptions

    people = np.stack([dots.figure((150, 240), 260), dots.figure((470, 230), 220)])
    pictures = {"two.png": (dots.draw_people((480, 640), people), people)}
    folder = dot_data.write_data_set(tmp_path, pictures)
    files = ImageFiles([folder / "images.zip"])
    annotations = load_annotations(folder / "truth.json.gz")
    runtime = PassesRuntime(dots.make_dots_network(), ModelInfo("H-4", -4, input_size=384))
    options = DecodeOptions(second_look=5, second_look_size=256, second_look_views=views)
    settings = Settings("4:3", scales=(1.0, 1.25))
    measures, _ = evaluate(runtime, options, annotations, files, settings)
    assert measures["second_looks_per_image"] == 2
    if views == 1:  # dots tell left from right by colour, not as networks do, in a mirror
        assert measures["AP"] == pytest.approx(1)
    cost = VARIANTS["H-4"].cost
    # Windows are seen at their own size only.
    macs = cost((384, 512)).macs + cost((480, 640)).macs + 2 * views * cost((256, 256)).macs
    assert measures["gmacs"] == pytest.approx(macs / 1e9)
