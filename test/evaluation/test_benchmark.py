"""``ehrnet benchmark``: rows of what ran, from real meters where there are some."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import shutil
import time
from pathlib import Path

import dots
import pytest
from stand_in_builder import StandInBuilder

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation import benchmark
from ehrnet_model.evaluation.power import PowerMeter
from ehrnet_model.inference.decode import DecodeOptions
from ehrnet_model.inference.models import PACKAGE_FOLDER
from ehrnet_model.inference.runtime import model_info
from ehrnet_ros.cli import benchmark as command


@pytest.fixture
def home(dots_model: Path, tmp_path: Path, monkeypatch) -> Path:
    """A user whose only models are H-4 and its float16 twin; nothing came with the package."""
    monkeypatch.setattr("ehrnet_model.inference.models.PACKAGE_FOLDER", tmp_path / "shipped")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = tmp_path / "ehrnet" / "models"
    folder.mkdir(parents=True)
    shutil.copy(dots_model, folder / "H-4.onnx")
    shutil.copy(dots_model, folder / "H-4.fp16.onnx")
    return tmp_path / "ehrnet"


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([*arguments, "--frames", "3", "--threads", "1"]))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_row_says_what_ran_and_how_fast(name, home, capsys) -> None:
    pytest.importorskip(name)
    assert run("--runtime", name, "--size", "square", "96x128") == 0
    result = json.loads((home / "benchmark.json").read_text())
    assert result["machine"]["cores"] > 0 and len(result["date"]) == 10
    square, small = result["rows"]
    assert (square["variant"], square["phi"], square["runtime"]) == ("H-4", -4, name)
    assert (square["size"], square["input"]) == ("square", "384x384")
    assert (small["size"], small["input"]) == ("96x128", "96x128")
    for row in (square, small):
        assert 0 < row["network_ms"] <= row["pipeline_ms"] <= row["pipeline_p95_ms"]
        assert row["fps"] == pytest.approx(1000 / row["pipeline_ms"], rel=0.01)
        assert row["network_fps"] >= row["fps"]
        assert (row["ap"], row["ae"], row["person_ms"]) == (None, None, None)
        assert Path(row["model"]).is_file()
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and "384x384" in out[2]


def test_tensorrts_engines_are_built_before_they_are_measured(home, capsys, monkeypatch) -> None:
    """Else a Jetson's table, and phi:=auto with it, would know its CPU alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(benchmark, "installed_runtimes", lambda: ["onnxruntime", "tensorrt"])
    monkeypatch.setattr("ehrnet_model.inference.sizes.NAMED_SIZES", ("square", "4:3"))
    builder = StandInBuilder()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    model = str(home / "models" / "H-4.onnx")
    args = parser.parse_args(["--all", "--model", model, "--frames", "3", "--threads", "1"])
    assert command.run(args, builder) == 0
    # Its rows themselves need TensorRT, which is told, and the others go on.
    rows = json.loads((home / "benchmark.json").read_text())["rows"]
    assert [row["runtime"] for row in rows] == ["onnxruntime"] * 4
    assert capsys.readouterr().err.count("runtime tensorrt is not available") == 4
    assert builder.builds == 2, "one for each size; both files are the same"


def test_what_each_person_looked_at_again_costs(
    home, tmp_path, dots_model, capsys, monkeypatch
) -> None:
    model = dots.with_decode(dots_model, tmp_path / "t.onnx", second_look=4, second_look_size=256)
    assert run("--model", str(model), "--runtime", "onnxruntime", "--size", "square", "96x128") == 0
    square, small = json.loads((home / "benchmark.json").read_text())["rows"]
    assert square["person_ms"] > 0 and small["person_ms"] > 0
    counts, real = [], benchmark.look

    def counted(image, rgb, windows, engine):
        counts.append(len(windows))
        return real(image, rgb, windows, engine)

    monkeypatch.setattr(benchmark, "look", counted)
    many = dots.with_decode(model, tmp_path / "m.onnx", second_look_views=3)
    assert run("--model", str(many), "--runtime", "onnxruntime", "--size", "96x128") == 0
    assert set(counts) == {3}
    assert "each person ms" in capsys.readouterr().out


def test_all_takes_every_precision_size_and_runtime_and_goes_on(home, capsys, monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "installed_runtimes", lambda: ["onnxruntime", "tensorrt"])
    monkeypatch.setattr(command, "_model", only_h4(home))
    assert run("--all", "--json", str(home / "mine.json")) == 0
    rows = json.loads((home / "mine.json").read_text())["rows"]
    assert len(rows) == 2 * 3
    assert {Path(row["model"]).name for row in rows} == {"H-4.onnx", "H-4.fp16.onnx"}
    assert {row["size"] for row in rows} == {"square", "4:3", "16:9"}
    err = capsys.readouterr().err
    assert "runtime tensorrt is not available" in err and "no weights for phi -2" in err
    assert not (home / "benchmark.json").exists()


def test_rows_add_up_and_ctrl_c_keeps_what_was_measured(home, capsys, monkeypatch) -> None:
    def rows() -> list[dict]:
        return json.loads((home / "benchmark.json").read_text())["rows"]

    assert run("--size", "96x128") == 0
    (first,) = rows()
    real, sizes = benchmark.measure, []

    def measure(*arguments):
        sizes.append(arguments[2])
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(benchmark, "measure", measure)
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):
        run("--size", "128x96", "96x128", "square")
    again, other = rows()
    assert (again["size"], other["size"]) == ("96x128", "128x96")
    assert again["pipeline_ms"] != first["pipeline_ms"] and again["date"] == other["date"]
    out = capsys.readouterr().out
    assert "| 128x96" in out and "| preview" in out and "square" not in out
    # A file of another version or machine is not added to.
    for text in ("[", json.dumps({"machine": {"processor": "", "cores": 0}, "rows": [again]})):
        (home / "benchmark.json").write_text(text)
        assert run("--size", "96x96") == 0
        assert [row["size"] for row in rows()] == ["96x96"]


def test_trained_weights_come_before_random_ones(home, monkeypatch) -> None:
    asked: list[int] = []

    def model(phi: int, folder: Path) -> Path:
        asked.append(phi)
        raise EhrnetError("nothing is measured here")

    monkeypatch.setattr(command, "_model", model)
    assert run("--phi", "0", "-4") == 1
    assert asked == [-4, 0]


def only_h4(home: Path):
    """Without the untrained stand-ins, whose export takes long."""

    def model(phi: int, folder: Path) -> Path:
        from ehrnet_model.inference.models import find_model

        return find_model(phi)

    return model


def test_a_variant_without_weights_is_timed_with_untrained_ones(
    tmp_path, monkeypatch, capsys
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    monkeypatch.setattr("ehrnet_model.inference.models.PACKAGE_FOLDER", tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    info = model_info(command._model(-4, tmp_path))
    assert (info.variant, info.quality) == ("H-4", "random")
    assert "no weights of H-4 here: an untrained model is made" in capsys.readouterr().err


def test_efficiency_is_ap_times_frames_per_second_and_watt(home, tmp_path, monkeypatch) -> None:
    """The paper's H0: AP 64.8, 22.95 FPS at 15 W is 1.53 FPS/W and Æ 99.1."""
    info = model_info(home / "models" / "H-4.onnx")
    measures = {
        "weights_sha256": info.weights_sha256,
        "precision": "fp32",
        "input_sizes": ["384x384"],
        "AP": 0.648,
    }
    (tmp_path / "ap.json").write_text(json.dumps({**measures, "mirror": False, "scales": [1]}))
    (tmp_path / "mirror.json").write_text(json.dumps({**measures, "mirror": True, "AP": 0.7}))
    (tmp_path / "half.json").write_text(json.dumps({**measures, "precision": "fp16", "AP": 0.7}))

    class FifteenWatts(PowerMeter):
        def __exit__(self, *exception) -> None:
            self.watts, self.source = 15.0, "a test"

    monkeypatch.setattr(benchmark, "PowerMeter", FifteenWatts)
    files = [str(tmp_path / f"{name}.json") for name in ("mirror", "half", "ap")]
    run("--size", "square", "4:3", "--evaluation", *files)
    square, other = json.loads((home / "benchmark.json").read_text())["rows"]
    assert square["ap"] == 0.648 and square["power_source"] == "a test"
    assert square["fps_per_watt"] == pytest.approx(square["fps"] / 15, rel=0.01)
    assert square["ae"] == pytest.approx(64.8 * square["fps"] / 15, rel=0.01)
    assert (other["ap"], other["ae"]) == (None, None), "the AP is of another size"


def test_the_shipped_model_brings_its_ap() -> None:
    model = PACKAGE_FOLDER / "H-4.onnx"
    known, info = benchmark.shipped_evaluation(model), model_info(model)
    found = [
        benchmark.known_ap(known, dataclasses.replace(info, precision=precision), size)
        for precision in ("fp32", "fp16")  # INT8 depends on the pictures it was calibrated on
        for size in ("square", "4:3", "16:9")
    ]
    assert all(ap is not None and 0.01 < ap < 1 for ap in found), found
    assert benchmark.known_ap(known, info, "96x64") is None
    assert benchmark.known_ap(known, dataclasses.replace(info, weights_sha256="0"), "4:3") is None
    other = dataclasses.replace(info, decode={**info.decode, "keypoint_threshold": 0.123})
    assert benchmark.known_ap(known, other, "4:3") is None
    assert benchmark.shipped_evaluation(model.with_name("H0.onnx")) == []


@pytest.mark.parametrize("text", ["{}", "[]", '{"AP": 1}', "[1]"])
def test_an_evaluation_that_is_none(text, home, tmp_path) -> None:
    (tmp_path / "ap.json").write_text(text)
    with pytest.raises(EhrnetError, match="not a result of `ehrnet evaluate --json`"):
        run("--evaluation", str(tmp_path / "ap.json"))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY" + bytes(5000), b"{" * 5000])
def test_an_evaluation_that_is_no_text_is_not_shown(content, home, tmp_path) -> None:
    (tmp_path / "ap.json").write_bytes(content)
    with pytest.raises(EhrnetError, match="ap.json cannot be read as JSON") as refused:
        run("--evaluation", str(tmp_path / "ap.json"))
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


def test_why_no_evaluation_fits(home, tmp_path) -> None:
    """The first that fits counts, packed too; else one sentence says of each what does not."""
    model = home / "models" / "H-4.onnx"
    info = model_info(model)
    right = {
        "weights_sha256": info.weights_sha256,
        "precision": "fp32",
        "input_sizes": ["384x384"],
        "AP": 0.5,
    }
    changes = {
        "other weights": {"weights_sha256": "0"},
        "precision fp16, not fp32": {"precision": "fp16"},
        "input sizes 384x512, 512x384, not 384x384": {"input_sizes": ["384x512", "512x384"]},
        "mirrored passes": {"mirror": True},
        "several scales": {"scales": [1.0, 0.5]},
        "other decode options (max_people)": {
            "decode": {**DecodeOptions.from_dict(info.decode).to_dict(), "max_people": 7}
        },
        "no AP": {"AP": None},
    }
    path = tmp_path / "ap.json.gz"

    def reason(*results: dict) -> str:
        path.write_bytes(gzip.compress(json.dumps(results).encode()))
        return benchmark.why_none_fits([path], info, "square")

    for words, change in changes.items():
        assert reason({**right, **change}) == f"no AP, since {path} has {words}"
    both = {**right, "mirror": True, "precision": "fp16"}
    assert reason(both) == f"no AP, since {path} has precision fp16, not fp32 and mirrored passes"
    assert reason(both, {**right, "AP": None}) == f"no AP, since {path} has no AP"
    assert reason(both, right) == "" and benchmark.why_none_fits([], info, "square") == ""
    assert benchmark.known_ap([path], info, "square") == 0.5


def test_an_evaluation_that_does_not_fit_is_not_passed_over(home, tmp_path, capsys) -> None:
    info = model_info(home / "models" / "H-4.onnx")
    result = {"weights_sha256": info.weights_sha256, "input_sizes": ["96x128"], "AP": 0.5}
    (tmp_path / "ap.json").write_text(json.dumps(result))
    run("--size", "96x128", "96x96", "--evaluation", str(tmp_path / "ap.json"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "no AP" in line]
    assert lines == [
        f"H-4.onnx 96x96: no AP, since {tmp_path}/ap.json has input sizes 96x128, not 96x96"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "none.jpg"], "picture none.jpg cannot be read"),
        (["--size", "100x100"], "multiples of 32"),
        (["--runtime", "abacus"], "'abacus' is unknown"),
        (["--model", "none.onnx"], "none.onnx"),
        (["--json", "none/x.json"], "there is no folder none"),
        (["--phi", "-4", "1"], "phi 1 does not exist"),
        (["--phi", "-4", "--model", "x.onnx"], "--phi and --model x.onnx name two models"),
    ],
)
def test_wrong_use(arguments, message, home, monkeypatch) -> None:
    monkeypatch.chdir(home)
    with pytest.raises(EhrnetError, match=message):
        run(*arguments)


def test_where_no_result_can_be_kept_nothing_is_measured(home, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/none")
    monkeypatch.setattr("ehrnet_ros.cli.benchmark._rows", lambda *_: pytest.fail("it measures"))
    with pytest.raises(EhrnetError, match="/proc takes no file of yours"):
        run()


def test_weights_run_on_torch_only(home, tmp_path) -> None:
    (tmp_path / "w.safetensors").write_bytes(bytes(64))
    with pytest.raises(EhrnetError, match="w.safetensors holds weights, which run on `torch` only"):
        run("--model", str(tmp_path / "w.safetensors"))


def test_no_frames(home, dots_model) -> None:
    import numpy as np

    image = np.zeros((480, 640, 3), np.uint8)
    with pytest.raises(EhrnetError, match="--frames 1 or more"):
        benchmark.measure(dots_model, "onnxruntime", "square", 1, image, 0)


# Power -------------------------------------------------------------------------------------------


def jetson(sys: Path, **rails: tuple[int, int]) -> None:
    """Files as the kernel's ina3221 driver shows them: millivolts and milliamperes by rail."""
    folder = sys / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    folder.mkdir(parents=True)
    for number, (name, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        (folder / f"in{number}_label").write_text(name + "\n")
        (folder / f"in{number}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{number}_input").write_text(f"{milliamperes}\n")


def test_a_jetsons_supply(tmp_path) -> None:
    jetson(tmp_path, VDD_IN=(5000, 2000), VDD_CPU_GPU_CV=(5000, 1000), VDD_SOC=(5000, 300))
    with PowerMeter(tmp_path) as meter:
        pass
    assert (meter.watts, meter.source) == (10.0, "board (VDD_IN)")


@pytest.mark.parametrize(
    "names",
    [("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")],
)
def test_a_board_without_a_total_is_the_sum_of_its_rails(names, tmp_path) -> None:
    rails = dict(zip(names, ((20000, 500), (20000, 100), (5000, 600)), strict=True))
    jetson(tmp_path, OTHER=(9000, 9000), **rails)
    with PowerMeter(tmp_path) as meter:
        pass
    assert meter.watts == pytest.approx(15.0)
    assert meter.source == f"board ({' + '.join(names)})"


def test_the_processors_energy_counter(tmp_path) -> None:
    packages = [tmp_path / f"class/powercap/intel-rapl:{i}" for i in (0, 1)]
    core = packages[0] / "intel-rapl:0:0"
    for folder in (*packages, core):
        folder.mkdir(parents=True)
        (folder / "energy_uj").write_text("1000000\n")
    before = time.monotonic()
    with PowerMeter(tmp_path) as meter:
        started = time.monotonic()
        time.sleep(0.05)
        for folder in packages:
            (folder / "energy_uj").write_text("3000000\n")  # 2 J each
        seconds = time.monotonic() - started
    assert meter.source == "processor (RAPL)"
    assert 4 / (time.monotonic() - before) <= meter.watts <= 4 / seconds
    with PowerMeter(tmp_path) as meter:
        (packages[0] / "energy_uj").write_text("5\n")
    assert meter.watts is None, "the counter began again"


def test_without_a_meter_nothing_is_claimed(tmp_path) -> None:
    with PowerMeter(tmp_path) as meter:
        pass
    assert (meter.watts, meter.source) == (None, "")
