import importlib.util
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from ehrnet_model.skeleton import COCO_17
from ehrnet_model.training import losses
from ehrnet_model.training.labels import POSITIVE, ImageLabels
from ehrnet_model.training.losses import heatmap_loss, place_loss, tag_loss
from ehrnet_model.training.plans import published_affine
from ehrnet_model.training.sides import side_loss
from ehrnet_model.training.targets import (
    heatmaps,
    loss_mask,
    loss_plane,
    tag_places,
    to_cells,
    to_pixels,
)
from ehrnet_model.training.windows import move

_spec = importlib.util.spec_from_file_location("_figures", Path(__file__).with_name("conftest.py"))
_figures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_figures)
uniform = _figures.uniform


def golden_joints():
    u = uniform("train:joints", 5 * 17 * 3).reshape(5, 17, 3)
    xy = 38 * u[..., :2] - 3
    xy = np.where((xy > -1) & (xy < 0), xy - 1, xy)
    return np.trunc(xy), np.floor(3 * u[..., 2]).astype(int)


def test_whole_numbered_centres_give_the_published_targets(golden):
    xy, v = golden_joints()
    maps = heatmaps(xy, v > 0, (32, 32))
    want = golden["heatmap_target"]
    np.testing.assert_allclose(maps.sum((1, 2)), want["channel_sum"], rtol=1e-5)
    np.testing.assert_allclose(maps.ravel()[want["index"]], want["value"], atol=1e-6)
    assert np.count_nonzero(maps) == want["nonzero"]


def test_tag_places_are_the_published_ones(golden):
    xy, v = golden_joints()
    index, person = tag_places(xy, v > 0, (32, 32))
    want = golden["joints_generator"]
    assert np.bincount(person, minlength=5).tolist() == want["visible_per_person"]
    first = [i for i, present in want["first_person"] if present]
    assert index[person == 0].tolist() == first


def test_heatmap_loss_is_the_published_one(golden):
    xy, v = golden_joints()
    target = torch.from_numpy(heatmaps(xy, v > 0, (32, 32)))[None]
    predicted = torch.from_numpy(2 * uniform("train:pred", 17 * 32 * 32) - 1).float()
    mask = torch.from_numpy((uniform("train:mask", 32 * 32) > 0.2).reshape(32, 32)).float()
    loss = heatmap_loss(predicted.reshape(1, 17, 32, 32), target, mask)
    assert float(loss) == pytest.approx(golden["heatmap_loss"]["value"], rel=1e-5)


@pytest.mark.parametrize("people", [0, 1, 2, 5])
def test_tag_loss_is_the_published_one(golden, people):
    xy, v = golden_joints()
    index, person = tag_places(xy[:people], v[:people] > 0, (32, 32))
    tags = torch.from_numpy(4 * uniform("train:tags", 17 * 32 * 32) - 2).float()
    pull, push = tag_loss(
        tags.reshape(1, 17, 32, 32),
        torch.from_numpy(index),
        torch.from_numpy(person),
        torch.zeros(people, dtype=torch.long),
    )
    want = golden["ae_loss"]["persons"][str(people)]
    assert float(pull) == pytest.approx(want["pull"], rel=1e-5, abs=1e-9)
    assert float(push) == pytest.approx(want["push"], rel=1e-5, abs=1e-9)


def test_tag_loss_of_a_batch_is_the_mean_of_its_images():
    rng = np.random.default_rng(0)
    tags = torch.from_numpy(rng.normal(size=(3, 2, 4, 4))).float()
    places = {0: [[1, 5, 20], [7, 9]], 1: [], 2: [[3, 30], [2, 4, 6], [31]]}
    index, person, owner, singles = [], [], [], []
    for n, people in places.items():
        local_index, local_person = [], []
        for p, cells in enumerate(people):
            local_index += cells
            local_person += [p] * len(cells)
            index += [n * 32 + c for c in cells]
            person += [len(owner)] * len(cells)
            owner.append(n)
        singles.append(
            tag_loss(
                tags[n : n + 1],
                torch.tensor(local_index, dtype=torch.long),
                torch.tensor(local_person, dtype=torch.long),
                torch.zeros(len(people), dtype=torch.long),
            )
        )
    pull, push = tag_loss(tags, torch.tensor(index), torch.tensor(person), torch.tensor(owner))
    assert float(pull) == pytest.approx(float(sum(s[0] for s in singles)) / 3, rel=1e-5)
    assert float(push) == pytest.approx(float(sum(s[1] for s in singles)) / 3, rel=1e-5)


def test_place_loss_is_the_divergence_of_the_distributions_around_each_person():
    """Against scipy's, keypoint by keypoint, over cells counted out by hand."""
    rng = np.random.default_rng(1)
    predicted, target = rng.random((2, 2, 3, 24, 32))
    mask = np.ones(target.shape, np.uint8)
    mask[1, :, :4] = 0
    low_shape = 2, 3, 12, 16
    # image, keypoint, row, column in low maps; the second person has one keypoint only
    people = [[(0, 0, 4, 6), (0, 2, 8, 8)], [(1, 1, 1, 15)]]
    # Rows 8..16 give 8/4 + 4 more, columns 12..16 give 4/4 + 4; one cell gives 4.
    regions = [(slice(2, 23), slice(7, 22)), (slice(0, 7), slice(26, 32))]
    want, index, person = 0.0, [], []
    for number, keypoints in enumerate(people):
        for place in keypoints:
            index.append(int(np.ravel_multi_index(place, low_shape)))
            person.append(number)
            rows, columns = regions[number]
            where = (*place[:2], rows, columns)
            inside = mask[where] > 0
            truth = scipy.special.softmax(7 * target[where][inside])
            guess = scipy.special.softmax(7 * predicted[where][inside])
            want += scipy.stats.entropy(truth, guess)

    def measured(maps):
        return place_loss(
            maps,
            torch.from_numpy(target).float(),
            torch.from_numpy(mask),
            torch.tensor(index),
            torch.tensor(person),
            len(people),
            7.0,
        )

    maps = torch.from_numpy(predicted).float()
    assert float(measured(maps)) == pytest.approx(want / target.size, rel=1e-4)
    last = maps.contiguous(memory_format=torch.channels_last)
    assert float(measured(last)) == pytest.approx(want / target.size, rel=1e-4)
    # Heights do not matter, only where the map is high.
    lower = (torch.from_numpy(target).float() - 0.4).requires_grad_()
    loss = measured(lower)
    assert loss.item() == pytest.approx(0, abs=1e-8)
    loss.backward()
    assert float(lower.grad.abs().max()) < 1e-8


def test_place_loss_gives_cells_outside_nothing(monkeypatch):
    """Value and gradient are those of cells as good as infinitely low, without their slowness."""
    rng = np.random.default_rng(2)
    predicted, target = rng.random((2, 2, 17, 64, 64)) * 1.5 - 0.5
    mask = torch.from_numpy(rng.random((2, 17, 64, 64)) < 0.9)
    index, person = marks((0, 0, 3, 4, 4), (0, 0, 9, 9, 12), (1, 1, 0, 25, 20), (1, 1, 16, 28, 31))

    def measured():
        maps = torch.from_numpy(predicted).float().requires_grad_()
        loss = place_loss(maps, torch.from_numpy(target).float(), mask, index, person, 2, 10.0)
        loss.backward()
        return loss.detach(), maps.grad

    assert losses._NOWHERE > np.log(np.finfo(np.float32).tiny)  # not where exponentials are slow
    value, gradient = measured()
    monkeypatch.setattr(losses, "_NOWHERE", -1e4)
    value_low, gradient_low = measured()
    assert value > 0 and gradient.abs().max() > 0
    torch.testing.assert_close(value, value_low, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, gradient_low, rtol=1e-5, atol=1e-12)


def test_place_loss_of_nobody_and_of_masked_people_is_zero():
    maps, none = torch.rand(1, 2, 8, 8), torch.zeros(0, dtype=torch.long)
    assert float(place_loss(maps, maps * 0, maps * 0 + 1, none, none, 0, 10.0)) == 0
    one = torch.zeros(1, dtype=torch.long)
    assert float(place_loss(maps, maps * 0, maps * 0, one, one, 1, 10.0)) == 0


def marks(*keypoints, side=32):
    """Flat places and owners of (image, person, joint, x, y)."""
    index = [((n * 17 + j) * side + y) * side + x for n, _, j, x, y in keypoints]
    return torch.tensor(index), torch.tensor([person for _, person, *_ in keypoints])


def learnt_scores(index, person, people, steps=300):
    """Where features end that nothing but the loss of sides moves, and the loss they end with."""
    features = torch.zeros(2, 17, 32, 32, requires_grad=True)
    optimiser = torch.optim.SGD([features], lr=3.0)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = side_loss(features, index, person, people)
        loss.backward()
        optimiser.step()
    # All that moves is a multiple of one vector: its sign tells the side.
    moved = features.detach()
    direction = moved[0, :, 3, 20]
    return torch.einsum("nchw,c->nhw", moved, direction), float(loss.detach())


def test_side_loss_parts_features_along_left_and_right_limbs():
    index, person = marks(
        *((0, 0, 5, 20, 3), (0, 0, 11, 20, 13), (0, 0, 6, 10, 3), (0, 0, 12, 10, 13)),
        *((1, 1, 14, 4, 4), (1, 1, 16, 4, 24), (1, 1, 3, 9, 9)),
    )
    nothing = torch.zeros(2, 17, 32, 32)
    assert side_loss(nothing, index, person, 2) == pytest.approx(np.log(2))
    scores, loss = learnt_scores(index, person, 2)
    assert loss < 0.1
    left, right, other = scores[0, 3:14, 20], scores[0, 3:14, 10], scores[1, 4:25, 4]
    assert (left[[0, 3, 7, 10]] > 0).all() and (right[[0, 3, 7, 10]] < 0).all()
    assert other[0] < 0 and other[20] < 0  # a limb whose other side is not labelled
    assert (scores != 0).sum() == 8 * 3  # nowhere else, not at a single keypoint's either
    assert scores[1, 9, 9] == 0


def test_side_loss_does_not_ask_what_cannot_be_told_apart():
    same, person = marks((0, 0, 13, 8, 8), (0, 0, 14, 8, 8), (0, 0, 15, 8, 20), (0, 0, 16, 8, 20))
    features = torch.randn(1, 17, 32, 32, requires_grad=True)
    assert side_loss(features, same, person, 1) == 0
    near, person = marks((0, 0, 13, 8, 8), (0, 0, 14, 9, 8), (0, 0, 15, 8, 20), (0, 0, 16, 9, 20))
    side_loss(features, near, person, 1).backward()
    assert features.grad.abs().sum() > 0
    empty = torch.zeros(0, dtype=torch.long)
    assert side_loss(features, empty, empty, 0) == 0


@pytest.mark.parametrize("stride", [2, 4])
def test_sub_pixel_peak_is_centred_where_the_keypoint_is(stride):
    place = np.array([[[41.3, 50.8]]])
    maps = heatmaps(to_cells(place, stride), np.ones((1, 1), bool), (96 // stride, 96 // stride))
    y, x = np.mgrid[: 96 // stride, : 96 // stride]
    centre = np.array([(maps[0] * x).sum(), (maps[0] * y).sum()]) / maps.sum()
    np.testing.assert_allclose(to_pixels(centre, stride), place[0, 0], atol=0.05)


def test_mask_leaves_out_what_is_unknown_and_keeps_what_is_known():
    cells = np.array([[[10.0, 10], [20, 10], [25, 25]]])
    states = np.array([[1, -1, 0]])
    box = np.array([[8.0, 8], [30, 8], [30, 30], [8, 30]])
    none = np.empty((0, 4, 2))
    mask = loss_mask(cells, states, loss_plane(none, None, None, (32, 32)), [2])
    assert mask[0].all()
    assert mask[1, 10, 20] == 0 and mask[1, 10, 5] == 1
    assert not mask[2].any()
    mask = loss_mask(cells, states, loss_plane(box[None], None, None, (32, 32)), [])
    assert mask[0, 10, 10] == 1 and mask[0, 28, 28] == 0 and mask[0, 2, 2] == 1
    mask = loss_mask(cells, states, loss_plane(none, box[None], None, (32, 32)), [])
    assert mask[2, 20, 20] == 1 and mask[2, 2, 2] == 0
    assert not loss_plane(none, None, box - 100, (32, 32)).any()
    frame = loss_plane(box[None] + 5, None, box, (32, 32))
    assert frame[10, 10] == 1 and frame[2, 2] == 0 and frame[20, 20] == 0


def test_published_windows_are_cut_by_the_published_matrices(golden):
    for case in golden["train_affine"]:
        matrix = published_affine(
            case["image_hw"], case["aug_scale"], case["rot_deg"], case["translate"], case["out"]
        )
        np.testing.assert_allclose(matrix, case["matrix"], rtol=1e-8, atol=1e-7)
        arguments = (case[k] for k in ("image_hw", "aug_scale", "rot_deg", "translate", "out"))
        mirrored = published_affine(*arguments, mirror=True)
        point = np.array([37.0, 91.0, 1.0])
        x, y = matrix @ point
        np.testing.assert_allclose(mirrored @ point, [case["out"] - 1 - x, y])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("stride", [2, 4])
def test_published_cells_are_those_of_the_matrix_of_their_resolution(golden, stride, mirror):
    """One matrix per resolution, flipped there, cut down to whole cells."""
    case = golden["train_affine"][3]
    arguments = case["image_hw"], case["aug_scale"], case["rot_deg"], case["translate"]
    (small,) = (
        np.array(other["matrix"])
        for other in golden["train_affine"][3:6]
        if other["out"] == 512 // stride
    )
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, :, :2] = np.random.default_rng(0).uniform(250, 380, (17, 2))
    keypoints[0, :, 2] = POSITIVE
    none = np.zeros((0, 4), np.float32)
    labels = ImageLabels(keypoints, np.ones((1, 4)), np.ones(1), np.ones(1, bool), none)
    matrix = published_affine(*arguments, 512, mirror)
    marks = move(labels, case["image_hw"], matrix, mirror, published=True)
    want = keypoints[0, :, :2] @ small[:, :2].T + small[:, 2]
    if mirror:
        want[:, 0] = 512 // stride - 1 - want[:, 0]
        want = want[list(COCO_17.flip)]
    np.testing.assert_array_equal(marks.places(stride)[0], np.floor(want))
    inside = marks.plane(stride, (512 // stride, 512 // stride))
    assert 0.5 < inside.mean() < 1  # turned by 17.5 degrees, corners of the window see padding
