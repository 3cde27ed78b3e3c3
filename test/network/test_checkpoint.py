"""Checkpoints: what is written comes back, and what is not right is refused with a reason."""

import argparse
import dataclasses
import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="the network needs torch")
pytest.importorskip("safetensors", reason="checkpoints need safetensors")

from ehrnet_model.errors import EhrnetError  # noqa: E402
from ehrnet_model.network.checkpoint import (  # noqa: E402
    CheckpointMeta,
    build,
    from_reference,
    import_checkpoint,
    load_checkpoint,
    load_classifier,
    load_network,
    read_foreign,
    recognise,
    reference_names,
    save_checkpoint,
    weights_sha256,
)
from ehrnet_model.variants import VARIANTS  # noqa: E402
from ehrnet_ros.cli import import_checkpoint as verb  # noqa: E402
from ehrnet_ros.cli import main  # noqa: E402

ALL = [*VARIANTS, *(variant.backbone_name for variant in VARIANTS.values())]


@pytest.fixture(scope="module")
def published(reference_state):
    """The published H-4 with golden values."""
    return reference_state("H-4")


@pytest.fixture
def saved(tmp_path):
    """A file of ours, its network and its description."""
    torch.manual_seed(0)
    network = build("H-4")
    path = tmp_path / "H-4.safetensors"
    meta = save_checkpoint(
        path,
        network.state_dict(),
        CheckpointMeta(
            "H-4",
            weights_name="test",
            quality="preview",
            decode={"score_threshold": 0.25},
            metrics={"ap": 0.5},
            recipe={"epochs": 3},
            licence="Apache-2.0",
        ),
    )
    return path, network, meta


def test_round_trip_keeps_every_bit_and_the_description(saved):
    path, network, meta = saved
    state, read = load_checkpoint(path, "H-4")
    assert read == meta and read.phi == -4
    assert read.decode == {"score_threshold": 0.25} and read.licence == "Apache-2.0"
    assert read.weights_sha256 == weights_sha256(network.state_dict()) and read.version
    expected = network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    again, _ = load_network(path, "H-4")
    assert not again.training
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x)[1], network.eval()(x)[1])


def test_hash_does_not_depend_on_layout_or_order(saved):
    state = saved[1].state_dict()
    other = dict(reversed(state.items()))
    key = "head_low.weight"
    other[key] = other[key].to(memory_format=torch.channels_last)
    assert weights_sha256(other) == weights_sha256(state)
    other[key] = other[key] + 1e-6
    assert weights_sha256(other) != weights_sha256(state)


def test_saving_replaces_whole_files_and_leaves_nothing_beside(saved, tmp_path):
    path, network, meta = saved
    save_checkpoint(path, network.state_dict(), dataclasses.replace(meta, weights_name="second"))
    assert load_checkpoint(path)[1].weights_name == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with pytest.raises(EhrnetError, match="cannot write"):
        save_checkpoint(tmp_path / "absent" / "x.safetensors", network.state_dict(), meta)


def test_classifier_round_trip(tmp_path):
    network = build("B-4", classes=7).eval()
    path = tmp_path / "b.safetensors"
    save_checkpoint(path, network.state_dict(), CheckpointMeta("B-4", skeleton=""))
    again, meta = load_classifier(path)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), network(x)) and again.classes == 7
    with pytest.raises(EhrnetError, match="not a pose network"):
        load_network(path)


def test_classifier_and_pose_network_share_backbone_keys():
    pose = {k: v.shape for k, v in build("H-3").backbone.state_dict().items()}
    assert pose == {k: v.shape for k, v in build("B-3").backbone.state_dict().items()}


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "H-9"},
        {"quality": "superb"},
        {"coordinates": "corner"},
        {"skeleton": "spider-8"},
        {"variant": "B-4"},
    ],
)
def test_description_is_checked(change):
    with pytest.raises(EhrnetError):
        CheckpointMeta(**{"variant": "H-4", **change})


def test_another_variant_is_refused_by_name(saved):
    with pytest.raises(EhrnetError, match="holds weights of H-4, but H-3 is wanted"):
        load_checkpoint(saved[0], "H-3")


def test_missing_file_is_named(tmp_path):
    for read in (load_checkpoint, read_foreign):
        with pytest.raises(EhrnetError, match="there is no file"):
            read(tmp_path / "nothing.safetensors")
        with pytest.raises(EhrnetError, match="is a folder: name a file in it"):
            read(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 1000, 60_000, 5_000_000, -1])
def test_truncated_file_is_refused(saved, size):
    path = saved[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(EhrnetError, match="truncated or damaged"):
        load_checkpoint(path)


def test_flipped_bit_is_noticed(saved):
    path = saved[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(EhrnetError, match="hash"):
        load_checkpoint(path)


def _with_header(path, change):
    """Rewrite the description inside a file of ours."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def test_foreign_and_future_descriptions_are_refused(saved):
    path = saved[0]
    original = path.read_bytes()
    for change, message in (
        (lambda m: m.pop("ehrnet"), "without our description"),
        (lambda m: m.update(ehrnet="{"), "without our description"),
        (lambda m: m.update(ehrnet="[]"), "without our description"),
        (lambda m: m.update(ehrnet='{"format": 1}'), "which variant"),
        (lambda m: m.update(ehrnet='{"format": 1, "variant": "X"}'), "'X' does not exist"),
        (lambda m: m.update(ehrnet='{"format": 2}'), "update"),
    ):
        path.write_bytes(original)
        _with_header(path, change)
        with pytest.raises(EhrnetError, match=message):
            load_checkpoint(path)


def test_description_may_hold_fields_of_a_later_version(saved):
    path = saved[0]

    def add(metadata):
        entries = json.loads(metadata["ehrnet"])
        metadata["ehrnet"] = json.dumps({**entries, "colour": "blue"})

    _with_header(path, add)
    assert load_checkpoint(path)[1] == saved[2]


def test_weights_that_do_not_fit_are_named(saved, tmp_path):
    state = saved[1].state_dict()
    state["head_low.weight"] = state["head_low.weight"][:5]
    del state["head_high.bias"]
    path = tmp_path / "bad.safetensors"
    save_checkpoint(path, state, saved[2])
    with pytest.raises(EhrnetError, match=r"(?s)head_high.bias.*head_low.weight, \(5, 14, 1, 1\)"):
        load_network(path)


# The published code's files


@pytest.mark.parametrize("name", ALL)
def test_names_cover_both_sides_exactly(name, facts):
    """Every key of ours has one of theirs with the same shape, and none of theirs is left."""
    with torch.device("meta"):
        ours = build(name).state_dict()
    names = reference_names(name)
    theirs = dict(map(tuple, facts("reference_keys.json.gz")[name]))
    mapped = {}
    for key, tensor in ours.items():
        module, leaf = key.rsplit(".", 1)
        mapped[f"{names[module]}.{leaf}"] = list(tensor.shape)
    assert len(mapped) == len(ours)
    assert mapped == theirs


def _prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def _with_tags(state):
    """Two of the published configurations give the second output 17 tags as well."""
    keys = ("final_layers.1.weight", "final_layers.1.bias")
    return {**state, **{k: torch.cat((state[k], torch.ones_like(state[k]))) for k in keys}}


def _half(state):
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def _training(state):
    return {
        "epoch": 3,
        "model": "name",
        "state_dict": _prefixed(state, "module."),
        "best_state_dict": state,
        "perf": 3,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.001}]},
    }


HEAD = {"features.11.1.weight": torch.zeros(872, 216, 1, 1), "classifier.1.bias": torch.zeros(10)}
CONTAINERS = {
    "flat": lambda s: s,
    "training checkpoint": _training,
    "best_state_dict": lambda s: {"epoch": 3, "best_state_dict": s},
    "model": lambda s: {"model": s, "epoch": 1},
    "module": lambda s: _prefixed(s, "module."),
    "half precision wrapper": lambda s: _prefixed(_half(s), "1."),
    "both prefixes": lambda s: _prefixed(s, "module.1."),
    "both prefixes, other order": lambda s: _prefixed(s, "1.module."),
    "no counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "with a classifier": lambda s: {**s, **HEAD},
    "tags on both outputs": _with_tags,
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_known_container_gives_the_same_weights(container, published, tmp_path):
    path = tmp_path / "model_best.pth.tar"
    torch.save(CONTAINERS[container](published), path)
    state = from_reference(read_foreign(path), "H-4")
    expected = from_reference(published, "H-4")
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        close = {"rtol": 1e-3, "atol": 1e-3} if "half" in container else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(state[key], value, **close)


def test_old_torch_files_and_safetensors_are_read(published, tmp_path):
    from safetensors.torch import save_file

    torch.save(published, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(published, tmp_path / "new.safetensors")
    for name in ("old.pth", "new.safetensors"):
        read = read_foreign(tmp_path / name)
        assert all(torch.equal(read[key], value) for key, value in published.items())


def test_import_writes_a_checkpoint_of_ours(published, tmp_path):
    source, out = tmp_path / "pose_h4.pth.tar", tmp_path / "H-4.safetensors"
    torch.save(published, source)
    written = import_checkpoint(source, "H-4", out)
    network, meta = load_network(out, "H-4")
    assert meta == written
    assert (meta.quality, meta.coordinates) == ("imported", "reference")
    assert "CC BY-NC" in meta.licence and meta.recipe["imported_from"] == "pose_h4.pth.tar"
    key = "final_layers.0.weight"
    assert torch.equal(network.state_dict()["head_low.weight"], published[key])


def test_command_recognises_the_variant(published, tmp_path, capsys):
    source, out = tmp_path / "x.pth", tmp_path / "x.safetensors"
    torch.save(published, source)
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    assert verb.run(parser.parse_args([str(source), "-o", str(out)])) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n" and "H-4" in captured.err
    assert load_checkpoint(out)[1].variant == "H-4"


def test_classifier_with_other_classes_is_imported(reference_state, tmp_path):
    state = reference_state("B-4", classes=100)
    assert recognise(state) == "B-4"
    torch.save(state, tmp_path / "b.pth")
    import_checkpoint(tmp_path / "b.pth", "B-4", tmp_path / "b.safetensors")
    assert load_classifier(tmp_path / "b.safetensors")[0].classes == 100


def test_first_missing_unknown_and_misshapen_key_is_named(published):
    first = "trans2_branch1.0.weight"
    for change, message in (
        (lambda s: s.pop(first), rf"1 missing \(first: {first}\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unknown \(first: extra\)"),
        (lambda s: s.update({first: torch.zeros(2, 2)}), rf"{first}, \(2, 2\) instead of \(14, 14"),
    ):
        state = dict(published)
        change(state)
        with pytest.raises(EhrnetError, match=message):
            from_reference(state, "H-4")


def test_values_that_are_not_finite_are_refused(published):
    state = dict(published)
    state["final_layers.0.bias"] = torch.full((34,), float("nan"))
    with pytest.raises(EhrnetError, match=r"final_layers\.0\.bias .* not finite"):
        from_reference(state, "H-4")


def test_wrong_variant_is_told_the_right_one_and_nothing_is_written(published, tmp_path):
    torch.save(published, tmp_path / "x.pth")
    with pytest.raises(EhrnetError, match="They fit H-4"):
        import_checkpoint(tmp_path / "x.pth", "H-3", tmp_path / "x.safetensors")
    with pytest.raises(EhrnetError, match="does not exist"):
        import_checkpoint(tmp_path / "x.pth", "H-7", tmp_path / "x.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pth"]


class _Touch:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("way", ["torch", "pickle"])
def test_foreign_code_is_not_run(way, tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"state_dict": {"a": torch.zeros(1)}, "x": _Touch(trace)}
    if way == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(EhrnetError):
        read_foreign(path)
    with pytest.raises(EhrnetError):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("version", ["2.1.0", "2.5.1+cu121", "2.9.1", "2.10.0a0+git1"])
def test_pytorch_that_is_known_to_run_code_opens_no_foreign_pickle(version, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    content = {"a": torch.zeros(1)}
    torch.save(content, tmp_path / "x.pth")
    save_file(content, tmp_path / "x.safetensors")
    monkeypatch.setattr(torch, "__version__", version)
    assert list(read_foreign(tmp_path / "x.safetensors")) == ["a"]
    if version.startswith("2.10"):
        assert list(read_foreign(tmp_path / "x.pth")) == ["a"]
    else:
        with pytest.raises(EhrnetError, match="can run code in PyTorch " + re.escape(version)):
            read_foreign(tmp_path / "x.pth")


def _damaged(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_is_refused_or_harmless(zipped, tmp_path):
    """Of both formats PyTorch has had; whatever it raises becomes one error of ours."""
    rng = random.Random(zipped)
    content = {"state_dict": {f"a{i}": torch.randn(3, 4) for i in range(5)}, "epoch": 3}
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    path, refused = tmp_path / "x.pth", 0
    for _ in range(300):
        path.write_bytes(_damaged(buffer.getvalue(), rng))
        for read in (read_foreign, load_checkpoint):
            try:
                read(path)
            except EhrnetError:
                refused += 1
    assert refused > 300


REFUSED_TENSORS = {
    "sparse": lambda t: t.to_sparse(),
    "one value for all": lambda t: t.flatten()[:1].clone().expand(t.shape),
    "without data": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "whole numbers": lambda t: t.to(torch.int32),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "not finite": lambda t: t * float("inf"),
    "no axis": lambda t: t.sum(),
}


@pytest.mark.parametrize("kind", REFUSED_TENSORS)
@pytest.mark.parametrize("key", ["classifier.1.bias", "classifier.1.weight", "features.0.1.weight"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_weights_are_refused(kind, key, reference_state, tmp_path):
    state = reference_state("B-4")
    state[key] = REFUSED_TENSORS[kind](state[key])
    source = tmp_path / "x.pth"
    torch.save(state, source)
    with pytest.raises(EhrnetError):
        import_checkpoint(source, "B-4", tmp_path / "x.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pth"]


def test_a_head_that_is_no_matrix_is_refused(published):
    for key in ("final_layers.1.weight", "final_layers.1.bias"):
        with pytest.raises(EhrnetError, match="another shape"):
            from_reference({**published, key: torch.tensor(1.0)}, "H-4")


def test_a_classifier_of_endless_classes_costs_no_memory(reference_state, tmp_path):
    """One stored value may claim to be a matrix of any size."""
    state = reference_state("B-4")
    huge = 10**9
    state["classifier.1.weight"] = torch.zeros(1).expand(huge, 872)
    state["classifier.1.bias"] = torch.zeros(1).expand(huge)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(EhrnetError, match="not a plain tensor"):
        import_checkpoint(tmp_path / "x.pth", "B-4", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("classifier.1.bias"),
        lambda s: s.pop("features.0.1.weight"),
        lambda s: s.update({"classifier.1.bias": torch.zeros(7)}),
        lambda s: s.update(extra=torch.zeros(1)),
        lambda s: s.update({"features.0.1.weight": torch.zeros(24, 3, 5, 5)}),
    ],
)
def test_classifiers_that_do_not_fit_are_refused(change, reference_state, tmp_path):
    state = reference_state("B-4")
    change(state)
    torch.save(state, tmp_path / "x.pth")
    for name in ("B-4", "B-3", None):
        with pytest.raises(EhrnetError):
            import_checkpoint(tmp_path / "x.pth", name, tmp_path / "x.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pth"]


def test_classifier_of_another_variant_is_told_apart(reference_state, tmp_path):
    torch.save(_training(reference_state("B-4", classes=100)), tmp_path / "x.pth")
    with pytest.raises(EhrnetError, match="They fit B-4: say --variant B-4"):
        import_checkpoint(tmp_path / "x.pth", "B-2", tmp_path / "x.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pth"]
    meta = import_checkpoint(tmp_path / "x.pth", None, tmp_path / "x.safetensors")
    assert (meta.variant, meta.skeleton) == ("B-4", "")


def test_backbone_of_a_pose_file_is_not_taken_for_a_classifier(published, tmp_path):
    torch.save(published, tmp_path / "x.pth")
    with pytest.raises(EhrnetError, match="They fit H-4"):
        import_checkpoint(tmp_path / "x.pth", "B-4", tmp_path / "x.safetensors")


def test_related_networks_have_no_published_code(published, tmp_path):
    torch.save(published, tmp_path / "x.pth")
    with pytest.raises(EhrnetError, match="get-weights"):
        import_checkpoint(tmp_path / "x.pth", "H-2-omz", tmp_path / "x.safetensors")


def test_target_must_be_named_as_what_it_is(published, tmp_path):
    source = tmp_path / "x.pth"
    torch.save(published, source)
    before = source.read_bytes()
    with pytest.raises(EhrnetError, match="safetensors"):
        import_checkpoint(source, "H-4", source)
    assert source.read_bytes() == before


def test_full_disk_keeps_the_previous_file(saved, published, tmp_path):
    """A process that may not write so much: the same failing write as on a full disk."""
    path = saved[0]
    before = path.read_bytes()
    source = tmp_path / "x.pth"
    torch.save(published, source)
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "from ehrnet_ros.cli import main\n"
        f"sys.exit(main(['import-checkpoint', {str(source)!r}, '-o', {str(path)!r}, '--replace']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "cannot write" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([path.name, "x.pth"])


def test_files_without_weights_are_refused(published, saved, tmp_path):
    path = tmp_path / "x.pth"
    for content in ({}, [1, 2], {"epoch": 1}, {"state_dict": {}}, torch.zeros(3), "text"):
        torch.save(content, path)
        with pytest.raises(EhrnetError, match="no weights found"):
            read_foreign(path)
    for data in (b"", b"hello", b"<html>not found</html>", b"PK\x03\x04broken"):
        path.write_bytes(data)
        with pytest.raises(EhrnetError):
            read_foreign(path)
    buffer = io.BytesIO()
    torch.save(published, buffer)
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(EhrnetError, match="damaged"):
        read_foreign(path)
    with pytest.raises(EhrnetError, match="import-checkpoint"):
        load_checkpoint(path)
    with pytest.raises(EhrnetError, match="ours already"):
        read_foreign(saved[0])


def test_what_is_there_is_not_written_over(reference_state, tmp_path, monkeypatch, capsys):
    from safetensors.torch import save_file

    source, other = tmp_path / "x.safetensors", tmp_path / "other.safetensors"
    save_file(reference_state("B-4"), source)
    before = source.read_bytes()
    other.write_bytes(b"mine")
    (tmp_path / "link.safetensors").symlink_to(source)

    def convert(*words):
        code = main(["import-checkpoint", str(source), *map(str, words)])
        return code, capsys.readouterr().err

    with monkeypatch.context() as patch:  # none of it needs PyTorch, which takes a while to import
        patch.setitem(sys.modules, "ehrnet_model.network.checkpoint", None)
        for out in (source, tmp_path / "link.safetensors"):
            for more in ([], ["--replace"]):
                code, said = convert("-o", out, *more)
                assert code == 2 and "is the file to convert" in said
        code, said = convert("-o", other)
        assert code == 2 and f"another file {other}: say --replace" in said
        code, said = convert("-o", tmp_path / "none" / "x.safetensors")
        assert code == 2 and "there is no folder" in said
    assert source.read_bytes() == before and other.read_bytes() == b"mine"
    assert convert("-o", other, "--replace")[0] == 0
    assert load_checkpoint(other)[1].variant == "B-4" and source.read_bytes() == before


def test_a_file_that_is_none_is_told_before_pytorch_is_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ehrnet_model.network.checkpoint", None)
    for file, said in ((tmp_path / "none.pth", "there is no file"), (tmp_path, "is a folder")):
        assert main(["import-checkpoint", str(file), "-o", str(tmp_path / "x.safetensors")]) == 2
        assert said in capsys.readouterr().err


def test_ctrl_c_amid_the_import_of_pytorch_ends_it(tmp_path):
    """Also where the import swallows the exception that Ctrl-C is by default."""
    (tmp_path / "x.pth").write_bytes(b"x")
    code = (
        "import os, signal, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'ehrnet_model.network.checkpoint':\n"
        "            try: os.kill(os.getpid(), signal.SIGINT)\n"
        "            except KeyboardInterrupt: pass\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from ehrnet_ros.cli import main\n"
        "sys.exit(main(['import-checkpoint', 'x.pth', '-o', 'x.safetensors']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_weights_that_are_not_finite_are_told_from_weights_that_do_not_fit(
    reference_state, tmp_path
):
    state = reference_state("B-4")
    state["features.0.1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "x.pth")
    for variant in (None, "B-4"):
        with pytest.raises(EhrnetError, match="features.0.1.weight in .* that are not finite"):
            import_checkpoint(tmp_path / "x.pth", variant, tmp_path / "x.safetensors")


def test_a_torchscript_program_is_named(tmp_path, recwarn):
    class Network(torch.nn.Module):
        def forward(self, x):
            return x

    torch.jit.trace(Network(), torch.zeros(1)).save(str(tmp_path / "x.pt"))
    recwarn.clear()
    with pytest.raises(EhrnetError, match="is a TorchScript program, .* bare state_dict"):
        read_foreign(tmp_path / "x.pt")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("said", "passed_on"),
    [
        ("Bad v2.5. Re-running with `weights_only` set to `False` may.", r"Bad v2\.5"),
        ("[enforce fail at container.cc:180] . no folder in it: a.npy", "no folder in it: a.npy"),
        ("unexpected EOF.", "unexpected EOF"),
        ("", "RuntimeError"),
    ],
)
def test_of_what_pytorch_says_only_the_first_sentence_is_passed_on(
    said, passed_on, tmp_path, monkeypatch
):
    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pth")

    def load(*given, **more):
        raise RuntimeError(said)

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(EhrnetError, match=rf"damaged \({passed_on}\): fetch it again\.$"):
        read_foreign(tmp_path / "x.pth")


def test_no_variant_is_guessed_for_a_pytorch_file(published, tmp_path):
    torch.save(published, tmp_path / "x.pth")
    with pytest.raises(EhrnetError, match="import-checkpoint .*x.pth -o OUT"):
        load_checkpoint(tmp_path / "x.pth")
    with pytest.raises(EhrnetError, match="x.pth --variant H-4 -o OUT"):
        load_checkpoint(tmp_path / "x.pth", "H-4")
