"""Windows drawn on a device against the reference that draws them one by one."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrnet_model.errors import EhrnetError
from ehrnet_model.training.batches import STD, collate
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.painter import Painter
from ehrnet_model.training.plans import halve
from ehrnet_model.training.sampler import SampleOptions, Sampler
from ehrnet_model.training.windows import draw

CPU = torch.device("cpu")


KINDS = {
    "single": SampleOptions(background=0.1, mosaic=0.0, pair=0.0, grey=0.2, fill=(0.5, 1.0)),
    "mosaic": SampleOptions(background=0.2, mosaic=1.0),
    "pair": SampleOptions(background=0.0, mosaic=0.0, pair=1.0),
    "grey": SampleOptions(background=0.5, grey=1.0, colour=1.0),
    "published": SampleOptions(published=True),
    "turned": SampleOptions(rotate=1.0, rotation=180.0, max_zoom=8.0),
    "cut": SampleOptions(cut=1.0, background=0.0, mosaic=0.2, rotate=0.5, fill=(0.2, 1.0)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 160])
def test_both_ways_draw_the_same(sampler, painter, packs, kind, size):
    plans = [sampler.plan(100 * size + i, size, KINDS[kind]) for i in range(16)]
    batch = painter.gather(plans)
    drawn, wanted = painter(batch), collate([draw(plan, packs) for plan in plans])
    pictures = painter.pictures(batch).numpy().astype(int)
    apart = np.abs(pictures - np.stack([draw(plan, packs).picture for plan in plans]))
    # A border meets the picture within one pixel, where a small difference of place shows most.
    assert np.quantile(apart, 0.999) <= 2 and apart.mean() < 0.1
    scale = 1 / (255 * torch.tensor(STD))
    same = torch.from_numpy(apart).permute(0, 3, 1, 2) == 0
    assert (drawn.images - wanted.images)[same].abs().max() < 1e-5
    assert (drawn.images - wanted.images).abs().max() <= (apart.max() + 1e-3) * scale.max()
    for name in ("low", "high"):
        torch.testing.assert_close(getattr(drawn, name), getattr(wanted, name), atol=1e-4, rtol=0)
    for name in ("low_mask", "high_mask"):
        assert torch.equal(getattr(drawn, name).float(), getattr(wanted, name)), name
    for name in ("tag_index", "tag_person", "image_of_person"):
        torch.testing.assert_close(getattr(drawn, name), getattr(wanted, name), atol=0, rtol=0)


def test_the_plans_here_show_everything_that_labels_can_say(sampler, painter):
    """Else the comparison above would compare nothing."""
    plans = [sampler.plan(i, 64, KINDS["single"]) for i in range(80)]
    batch = painter.gather(plans)
    assert batch.silent.any() and batch.grey.any() and (batch.table != batch.table[0]).any()
    assert (batch.state == -1).any() and (batch.state == 1).any()
    shares = batch.high_plane.float().mean((1, 2))
    assert (shares < 0.5).any() and ((shares > 0.5) & (shares < 1)).any() and (shares == 1).any()
    halvings = batch.source.numpy() - np.concatenate(
        [[painter.directory.first[p.pack][p.image]] for w in plans for p in w.scenes]
    )
    assert halvings.max() >= 2
    cut = [sampler.plan(i, 64, KINDS["cut"]) for i in range(40)]
    parts = [scene.part for plan in cut for scene in plan.scenes if scene.part]
    limits = painter.gather(cut).limits.numpy()
    assert (limits[:, :2].max(0) > 0).all() and len(np.unique(limits[:, 2:])) > 20
    assert min(part[2] for part in parts) < max(part[2] for part in parts)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**6), st.sampled_from(sorted(KINDS)))
def test_tags_and_people_are_the_same_for_any_window(sampler, painter, packs, number, kind):
    plans = [sampler.plan(number + i, 96, KINDS[kind]) for i in range(2)]
    batch, wanted = painter.gather(plans), collate([draw(plan, packs) for plan in plans])
    for name in ("tag_index", "tag_person", "image_of_person"):
        torch.testing.assert_close(getattr(batch, name), getattr(wanted, name), atol=0, rtol=0)


def test_halvings_lie_where_the_directory_says(painter, packs):
    directory = painter.directory
    values = painter.pixels[:, None].view(torch.uint8).numpy()[:, :3]
    for number, pack in enumerate(packs):
        for image in range(len(pack)):
            level, picture = int(directory.first[number][image]), pack.picture(image)
            for _ in range(3):
                h, w = picture.shape[:2]
                assert (directory.height[level], directory.width[level]) == (h, w)
                start = int(directory.start[level])
                held = values[start : start + h * w].reshape(h, w, 3)
                np.testing.assert_array_equal(held, picture)
                picture, level = halve(picture), level + 1


def test_batches_without_people_are_drawn(packs, painter):
    alone = Sampler([(packs[0], 1.0)], holdout=0.0)
    plans = [alone.plan(i, 64, SampleOptions(background=1.0, mosaic=0.0)) for i in range(40)]
    empty = [p for p in plans if p.scenes[0].image == 4][:2]
    assert len(empty) == 2
    batch = painter(painter.gather(empty))
    assert not batch.low.any() and batch.high_mask.all() and len(batch.image_of_person) == 0


def test_everything_is_drawn_where_the_plans_are(sampler, packs):
    """The meta device refuses to mix with tensors made elsewhere."""
    meta = torch.device("meta")
    painter = Painter(packs, meta)
    plans = [sampler.plan(i, 64, KINDS[kind]) for i, kind in enumerate(KINDS)]
    batch = painter(painter.gather(plans).to(meta))
    assert {t.device for t in vars(batch).values()} == {meta}
    assert batch.images.shape == (len(KINDS), 3, 64, 64) and batch.high.shape[:2] == (
        len(KINDS),
        17,
    )
    for name in ("images", "low", "high", "low_mask", "high_mask"):
        assert getattr(batch, name).is_contiguous(memory_format=torch.channels_last), name


def test_pictures_that_do_not_fit_are_refused(packs, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(EhrnetError, match="do not fit.*--windows-on host"):
        Painter(packs, CPU)


# What some plans decided when runs that still go on were begun.
PLANS = {
    0: (
        [3, 0, 2, 0],
        [
            [-0.909707, 0.0, 51.844188, 0.0, 0.909707, -35.325007],
            [-0.695802, 0.0, 70.061695, 0.0, 0.695802, 4.946468],
            [-0.489602, 0.0, 72.21693, 0.0, 0.489602, 5.144455],
            [-0.332012, 0.07, 48.406012, 0.07, 0.332012, 9.36888],
        ],
        [154.044, 131.289, 139.068, 122.427],
    ),
    1: (
        [0, 1, 1, 1],
        [
            [-0.422488, -0.032162, 58.76795, -0.032162, 0.422488, 3.627602],
            [-0.515843, -0.004786, 82.196228, -0.004786, 0.515843, 12.824678],
            [-0.440528, 0.046708, 59.961839, 0.046708, 0.440528, 11.813614],
            [-0.738123, 0.0, 92.549824, 0.0, 0.738123, 2.304268],
        ],
        [149.402, 140.922, 157.142, 127.016],
    ),
    2: (
        [3, 1, 1, 0],
        [
            [0.932196, -0.0, -10.014847, 0.0, 0.932196, 28.699523],
            [-0.528464, 0.172935, 67.291963, 0.172935, 0.528464, -2.39638],
            [0.214548, 0.107203, -3.067636, -0.107203, 0.214548, 32.961744],
            [0.355964, 0.006201, 2.552153, -0.006201, 0.355964, 3.537275],
        ],
        [152.324, 109.43, 94.53, 107.471],
    ),
    7: ([2], [[1.046138, 0.221965, -33.662196, -0.221965, 1.046138, 26.537099]], [132.085]),
    1000000: (
        [2, 2],
        [
            [-0.632213, 0.0, 115.666871, 0.0, 0.632213, 43.356317],
            [-0.382754, 0.13325, 85.741049, 0.13325, 0.382754, 36.076239],
        ],
        [136.745, 135.999],
    ),
}


@pytest.mark.parametrize("number", PLANS)
def test_plans_stay_what_they_were(pack_file, number):
    sampler = Sampler([(Pack(pack_file), 1.0)], seed=3, holdout=0.0)
    options = SampleOptions(
        mosaic=0.3,
        pair=0.3,
        upper_body=0.35,
        head=0.1,
        fill=(0.5, 1.0),
        group=0.15,
        rotate=0.6,
        colour=0.5,
        grey=0.1,
    )
    plan = sampler.plan(number, 128, options)
    images, matrices, tables = PLANS[number]
    assert [scene.image for scene in plan.scenes] == images
    found = [scene.matrix.ravel() for scene in plan.scenes]
    np.testing.assert_allclose(found, matrices, rtol=1e-6, atol=1e-6)
    # The table's last digit may turn with the platform's exp and power.
    means = [scene.table.mean() for scene in plan.scenes]
    np.testing.assert_allclose(means, tables, atol=0.01)
