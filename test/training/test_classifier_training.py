"""Training of classifiers: real digits, exact resume, picture folders, CIFAR-100's pickles."""

import dataclasses
import os
import pickle
import struct
import tarfile

import cv2
import numpy as np
import pytest
import torch

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.checkpoint import load_classifier
from ehrnet_model.training.classifier import (
    AugmentOptions,
    ClassifierOptions,
    ClassifierTrainer,
    augmented,
    centred,
)
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.pictures import open_pictures
from ehrnet_model.training.sampler import SampleOptions
from ehrnet_model.training.states import load_state, save_state
from ehrnet_model.training.trainer import Trainer
from ehrnet_ros.cli import main

STILL = AugmentOptions(rotate=0.0, area=1.0, aspect=1.0, colour=0.0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Folder of 1,797 digits that people wrote, as scikit-learn ships them: 8x8 grey values."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")
    folder = tmp_path_factory.mktemp("digits")
    data = datasets.load_digits()
    for i, (image, label) in enumerate(zip(data.images, data.target)):
        place = folder / ("val" if i % 5 == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        grey = np.round(image * 255 / 16).astype(np.uint8)
        cv2.imwrite(str(place / f"{i}.png"), np.repeat(grey[..., None], 3, 2))
    return folder


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Run folder of the command on the digits."""
    out = tmp_path_factory.mktemp("run")
    words = ["--size", "32", "--epochs", "3", "--warmup-epochs", "1", "--drop-epochs", "2"]
    words += ["--batch", "64", "--drop-connect", "0", "--dropout", "0", "--device", "cpu"]
    words += ["--augment", "rotate=10", "area=0.7", "aspect=1.2", "colour=0.2"]
    assert main(["train-classifier", "--data", str(digits), "--out", str(out), *words]) == 0
    return out


def test_digits_are_learnt_within_three_epochs(trained):
    """Chance is one in ten, five in ten; 0.89 and 0.99 where this was written."""
    network, meta = load_classifier(trained / "B-4.safetensors", "B-4")
    assert network.classes == 10 and meta.input_size == 32 and meta.skeleton == ""
    assert meta.metrics["top1"] > 0.6 and meta.metrics["top5"] > 0.9
    assert meta.metrics["pictures"] == 360
    rows = (trained / "evaluations.csv").read_text().splitlines()
    assert rows[0] == "step,epoch,top1,top5" and len(rows) == 1 + 3 + 1
    assert float(rows[-1].split(",")[2]) == pytest.approx(meta.metrics["top1"], abs=1e-5)
    assert (trained / "log.csv").read_text().startswith("step,epoch,seconds,lr,loss,top1_train\n")


def test_what_was_measured_is_what_the_weights_say(trained, digits):
    """Counted here once more, picture by picture."""
    network, meta = load_classifier(trained / "B-4.safetensors")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    right = within = total = 0
    for label in range(10):
        for file in sorted((digits / "val" / str(label)).iterdir()):
            picture = cv2.resize(cv2.imread(str(file)), (32, 32), interpolation=cv2.INTER_LINEAR)
            x = torch.from_numpy(((picture / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
            with torch.no_grad():
                order = network(x)[0].argsort(descending=True).tolist()
            right, within, total = (
                right + (order[0] == label),
                within + (label in order[:5]),
                total + 1,
            )
    assert right / total == pytest.approx(meta.metrics["top1"], abs=0.006)
    assert within / total == pytest.approx(meta.metrics["top5"], abs=0.006)


def test_a_classifier_starts_a_pose_network(trained, pack_file, tmp_path):
    weights = trained / "B-4.safetensors"
    still = SampleOptions(background=0.0, mosaic=0.0, rotate=0.0, colour=0.0, grey=0.0, group=0.0)
    options = TrainOptions(
        packs=((str(pack_file), 1.0),), steps=2, windows=((64, 2, 1.0),), holdout=0.0, bf16=False,
        sample=still, backbone=str(weights),
    )  # fmt: skip
    trainer = Trainer(options, tmp_path / "pose")
    backbone = trainer.network.backbone.state_dict()
    for key, value in load_classifier(weights)[0].backbone.state_dict().items():
        torch.testing.assert_close(backbone[key], value, rtol=0, atol=0)
    trainer.run()
    trainer.save_weights(tmp_path / "w.safetensors", {}, {})
    with pytest.raises(EhrnetError, match="holds weights of B-4, but B-3 is wanted"):
        Trainer(dataclasses.replace(options, phi=-3), tmp_path / "other")
    pose = dataclasses.replace(options, backbone=str(tmp_path / "w.safetensors"))
    with pytest.raises(EhrnetError, match="H-4"):
        Trainer(pose, tmp_path / "third")


def test_runs_from_before_backbones_could_be_named_go_on(pack_file, tmp_path):
    options = TrainOptions(
        packs=((str(pack_file), 1.0),), steps=2, windows=((64, 2, 1.0),), holdout=0.0, bf16=False
    )
    Trainer(options, tmp_path).run(steps=1)
    state = load_state(tmp_path / "state.pt")
    del state["config"]["backbone"]
    save_state(state, tmp_path / "state.pt")
    assert Trainer(options, tmp_path).step == 1


def test_only_one_start_may_be_named(trained, pack_file, tmp_path, capsys):
    words = [
        "--pack",
        str(pack_file),
        "--out",
        str(tmp_path / "x"),
        "--backbone",
        "a",
        "--lite0",
        "b",
    ]
    assert main(["train", *words]) == 2
    assert "name one of them" in capsys.readouterr().err and not (tmp_path / "x").exists()


# Small runs


@pytest.fixture
def colours(tmp_path):
    """Folder with three classes of noisy colours: four pictures each to learn, two to measure."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, colour in enumerate(((200, 30, 30), (30, 200, 30), (30, 30, 200))):
            folder = tmp_path / "colours" / split / f"class {label}"
            folder.mkdir(parents=True)
            for i in range(count):
                picture = rng.normal(colour, 20, (40, 48, 3)).clip(0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{i}.png"), picture)
    return tmp_path / "colours"


def small(colours, **more):
    return ClassifierOptions(str(colours), size=32, epochs=2, batch=4, log_steps=2, **more)


class _Stop(Exception):
    pass


def test_an_interrupted_run_ends_like_an_uninterrupted_one(colours, tmp_path):
    options = small(colours, save_seconds=0.0, augment=AugmentOptions(mirror=0.5))
    whole = ClassifierTrainer(options, tmp_path / "whole")
    assert whole.total_steps == 6
    whole.run()

    def stop(steps):
        if parts.step == 4:
            raise _Stop

    parts = ClassifierTrainer(options, tmp_path / "parts")
    with pytest.raises(_Stop):
        parts.run(advance=stop)
    assert load_state(tmp_path / "parts/state.pt")["step"] == 3
    torch.manual_seed(99)  # whatever happened in between
    again = ClassifierTrainer(options, tmp_path / "parts", workers=3)
    assert again.step == 3
    again.run()
    for (name, one), two in zip(
        whole.network.state_dict().items(), again.network.state_dict().values()
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)
    assert whole.measure() == again.measure()


def test_a_folder_of_another_run_is_refused(colours, tmp_path):
    ClassifierTrainer(small(colours), tmp_path / "run").run(steps=1)
    with pytest.raises(EhrnetError, match=r"other options \(lr, seed\)"):
        ClassifierTrainer(small(colours, lr=0.1, seed=3), tmp_path / "run")
    (tmp_path / "run/state.pt").write_bytes(b"PK\x03\x04 not much")
    with pytest.raises(EhrnetError, match="not a training state"):
        ClassifierTrainer(small(colours), tmp_path / "run")


def test_without_a_run_there_is_nothing_to_measure(colours, tmp_path, capsys):
    words = ["--data", str(colours), "--out", str(tmp_path / "none"), "--measure-only"]
    assert main(["train-classifier", *words, "--device", "cpu"]) == 2
    assert "none holds no run" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_every_picture_is_learnt_from_once_per_epoch(colours, tmp_path):
    trainer = ClassifierTrainer(small(colours), tmp_path / "run")
    orders = []
    for epoch in range(2):
        parts = [trainer._numbers(3 * epoch + i) for i in range(3)]
        assert {e for e, _ in parts} == {epoch}
        orders.append(np.concatenate([numbers for _, numbers in parts]).tolist())
        assert sorted(orders[-1]) == list(range(12))
    assert orders[0] != orders[1]


def test_initial_weights_are_xaviers(colours, tmp_path):
    network = ClassifierTrainer(small(colours), tmp_path / "run").network
    for layer in (network.head.conv, network.linear, network.backbone.stages[5][1].expand.conv):
        fan = (layer.weight.shape[0] + layer.weight.shape[1]) * layer.weight[0, 0].numel()
        assert layer.weight.abs().max() <= (6 / fan) ** 0.5
        assert layer.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    "epoch, rate",
    [(0, 1e-4), (2.5, 0.02505), (5, 0.05), (34.9, 0.05), (35, 0.005), (65, 5e-4), (199, 5e-8)],
)
def test_the_papers_schedule(epoch, rate):
    assert ClassifierOptions("data").rate(epoch) == pytest.approx(rate)


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"batch": 1}, {"drop_epochs": 0}, {"lr": -1.0}, {"lr": np.nan}]
    + [{"dropout": 1.0}, {"momentum": 1.0}, {"log_steps": 0}],
)
def test_impossible_options_are_refused(change):
    (name,) = change
    with pytest.raises(EhrnetError, match=f"{name} .* is not possible: give a number"):
        ClassifierOptions("data", **change)


def test_a_network_that_does_not_exist_and_too_small_pictures_are_refused():
    with pytest.raises(EhrnetError, match="phi 1 does not exist"):
        ClassifierOptions("data", phi=1)
    with pytest.raises(EhrnetError, match="pictures of 16 pixels are too small"):
        ClassifierOptions("data", size=16)


@pytest.mark.parametrize(
    "change", [{"rotate": -5.0}, {"area": 0.0}, {"aspect": 0.5}, {"colour": 2.0}, {"mirror": -1.0}]
)
def test_impossible_views_are_refused(change):
    (name,) = change
    with pytest.raises(EhrnetError, match=f"{name} .* is not possible: give a number"):
        AugmentOptions(**change)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lr", "-1"], "lr -1 is not possible: give a number above 0."),
        (["--augment", "rotate=-5"], "rotate -5 is not possible: give a number of 0 or more."),
    ],
)
def test_the_command_refuses_what_cannot_be(colours, tmp_path, capsys, words, said):
    where = ["--data", str(colours), "--out", str(tmp_path / "none"), "--device", "cpu"]
    assert main(["train-classifier", *where, "--epochs", "1", *words]) == 2
    assert capsys.readouterr().err == f"ehrnet: {said}\n" and not (tmp_path / "none").exists()


def test_the_state_of_a_classifier_is_none_of_a_pose_network(colours, pack_file, tmp_path):
    ClassifierTrainer(small(colours), tmp_path / "cls").run(steps=1)
    options = TrainOptions(packs=((str(pack_file), 1.0),), holdout=0.0)
    words = "state.pt is not the state of a pose network's run: .* to --backbone"
    with pytest.raises(EhrnetError, match=words):
        Trainer(options, tmp_path / "cls")
    state = str(tmp_path / "cls/state.pt")
    with pytest.raises(EhrnetError, match=words):
        Trainer(dataclasses.replace(options, start=state), tmp_path / "other")


# Views


def test_views_without_variation_are_the_picture():
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3), np.uint8), (0, 0), 3)
    for size in (64, 128, 32):
        expected = cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)
        view = augmented(picture, size, STILL, rng)
        assert np.abs(view.astype(int) - expected).mean() < 1.5
    np.testing.assert_array_equal(centred(picture, 64), picture)
    assert np.abs(centred(picture, 56).astype(int) - picture[4:60, 4:60]).max() <= 1
    mirrored = augmented(picture, 64, dataclasses.replace(STILL, mirror=1.0), rng)
    assert np.abs(mirrored.astype(int) - picture[:, ::-1]).max() <= 1


def test_large_pictures_are_averaged_not_sampled():
    """Stripes one pixel wide become their mean."""
    picture = np.zeros((512, 512, 3), np.uint8)
    picture[:, ::2] = 200
    assert (
        np.abs(augmented(picture, 32, STILL, np.random.default_rng(0)).astype(int) - 100).max() <= 1
    )
    assert np.abs(centred(picture, 32).astype(int) - 100).max() <= 15


def test_views_stay_inside_and_vary():
    """A picture with a mark at its middle: the mark stays in view, its place and colour vary."""
    picture = np.full((60, 90, 3), 100, np.uint8)
    cv2.circle(picture, (45, 30), 5, (250, 250, 250), -1)
    places, levels = [], []
    for seed in range(60):
        view = augmented(picture, 32, AugmentOptions(area=0.5), np.random.default_rng(seed))
        assert view.shape == (32, 32, 3) and view.dtype == np.uint8
        bright = np.argwhere(view[..., 0] > view[..., 0].min() + 40)
        assert len(bright)
        places.append(bright.mean(0))
        levels.append(np.median(view))
    assert (np.std(places, 0) > 0.7).all() and np.std(levels) > 5


# Data sets


def test_folders_that_are_no_data_set(colours, tmp_path):
    with pytest.raises(EhrnetError, match="there is no"):
        open_pictures(tmp_path / "absent")
    with pytest.raises(EhrnetError, match="is no data set"):
        open_pictures(tmp_path)
    (colours / "val/class 9").mkdir()
    with pytest.raises(EhrnetError, match="class 9 holds no pictures"):
        open_pictures(colours)
    (colours / "val/class 0/0.png").rename(colours / "val/class 9/0.png")
    with pytest.raises(EhrnetError, match="class 9 is in one only"):
        open_pictures(colours)


def test_a_damaged_picture_is_named(colours, tmp_path):
    file = colours / "train/class 1/2.png"
    for data in (b"", file.read_bytes()[:30]):
        file.write_bytes(data)
        with pytest.raises(EhrnetError, match="2.png does not decode"):
            ClassifierTrainer(small(colours), tmp_path / "run").run()


def _array(rows):
    """A uint8 matrix as Python 2 and NumPy wrote it, opcode by opcode."""
    data = rows.tobytes()
    shape = b"M" + struct.pack("<H", rows.shape[0]) + b"M" + struct.pack("<H", rows.shape[1])
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR("
        b"K\x01(" + shape + b"tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    )  # fmt: skip


def _python2(entries):
    """A dictionary as Python 2 pickled it: text is bytes."""
    out = b"\x80\x02}("
    for key, value in entries.items():
        out += b"U" + bytes([len(key)]) + key.encode()
        if isinstance(value, np.ndarray):
            out += _array(value)
        else:
            out += b"]("
            for item in value:
                text = isinstance(item, str)
                out += b"U" + bytes([len(item)]) + item.encode() if text else b"K" + bytes([item])
            out += b"e"
    return out + b"u."


def _modern(entries):
    return pickle.dumps(entries, protocol=2)


def _bytes_names(entries):
    return {k: [n.encode() if isinstance(n, str) else n for n in v] if k.startswith("fine_label_n")
            else v for k, v in entries.items()}  # fmt: skip


NAMES = [f"thing {i}" for i in range(100)]


def cifar(folder, write):
    """CIFAR-100's files with few pictures; what they hold."""
    rng = np.random.default_rng(4)
    expected = {}
    folder.mkdir(parents=True)
    (folder / "meta").write_bytes(write(_bytes_names({"fine_label_names": NAMES})))
    for name, count in (("train", 300), ("test", 20)):
        rows = rng.integers(0, 256, (count, 3072), np.uint8)
        labels = rng.integers(0, 100, count).tolist()
        entries = {"data": rows, "fine_labels": labels, "coarse_labels": [1] * count}
        (folder / name).write_bytes(write(entries))
        expected[name] = rows, labels
    return expected


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_as_python_3_pickles_it(packed, tmp_path):
    _check_cifar(tmp_path, _modern, packed)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_as_it_is_published(packed, tmp_path):
    """Pickles of Python 2, written here opcode by opcode."""

    def write(entries):
        return _python2(
            {k: [n.decode() if isinstance(n, bytes) else n for n in v]
             if isinstance(v, list) else v for k, v in entries.items()}
        )  # fmt: skip

    _check_cifar(tmp_path, write, packed)


def _check_cifar(tmp_path, write, packed):
    folder = tmp_path / "cifar-100-python"
    expected = cifar(folder, write)
    path = tmp_path
    if packed:
        path = tmp_path / "cifar-100-python.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, folder.name)
    for split, name in zip(open_pictures(path), ("train", "test")):
        rows, labels = expected[name]
        assert split.classes == tuple(NAMES) and split.labels.tolist() == labels
        for i in (0, len(labels) - 1):
            picture = split.picture(i)
            assert picture.shape == (32, 32, 3)
            np.testing.assert_array_equal(picture.transpose(2, 0, 1).ravel(), rows[i])


class _Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_that_want_more_are_not_run(tmp_path):
    folder = tmp_path / "cifar-100-python"
    cifar(folder, _modern)
    good = (folder / "train").read_bytes()
    rows = np.zeros((2, 3072), np.uint8)
    trace = tmp_path / "trace"
    bad = [
        pickle.dumps({"data": _Harm(trace), "fine_labels": [1, 2]}),
        pickle.dumps(_Harm(trace), protocol=0),
        pickle.dumps({"data": rows.astype(object), "fine_labels": [1, 2]}),
        pickle.dumps({"data": rows.astype(np.float32), "fine_labels": [1, 2]}),
        pickle.dumps({"data": rows, "fine_labels": [1, 100]}),
        pickle.dumps({"data": rows, "fine_labels": [1, -1]}),
        pickle.dumps({"data": rows, "fine_labels": [1, 2, 3]}),
        pickle.dumps({"data": rows[:, :100], "fine_labels": [1, 2]}),
        pickle.dumps({"data": [1, 2], "fine_labels": [1, 2]}),
        pickle.dumps({"data": rows[:0], "fine_labels": []}),
        pickle.dumps([1, 2]),
        _python2({"data": rows, "fine_labels": [1, 2]}).replace(b"u1K", b"O8K"),
        b"cos\nsystem\n(S'mkdir " + str(trace).encode() + b"'\ntR.",
        b"cbuiltins\neval\n(V1\ntR.",
        b"Poutside\n.",
        b"",
        b"\x80",
        good[: len(good) // 2],
        good[:-10],
    ]
    for data in bad:
        (folder / "train").write_bytes(data)
        with pytest.raises(EhrnetError, match="train"):
            open_pictures(tmp_path)
    assert not trace.exists()


def test_archives_that_are_something_else(tmp_path):
    path = tmp_path / "cifar-100-python.tar.gz"
    for data in (b"", b"no archive"):
        path.write_bytes(data)
        with pytest.raises(EhrnetError, match="not CIFAR-100's"):
            open_pictures(path)
    with tarfile.open(path, "w:gz") as archive:  # a link out of the archive
        for name in ("meta", "train", "test"):
            link = tarfile.TarInfo(f"cifar-100-python/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(link)
    with pytest.raises(EhrnetError, match="not CIFAR-100's"):
        open_pictures(path)
