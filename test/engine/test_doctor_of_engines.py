"""``ehrnet doctor`` on models, engines and the GPU."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from permissions import bound
from stand_in_builder import StandInBuilder

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference import gpu_report
from ehrnet_model.inference.answers import answers_file
from ehrnet_model.inference.engine import ensure_engine
from ehrnet_ros.cli import doctor


def report(capsys) -> tuple[int, dict[str, dict]]:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    code = doctor.run(parser.parse_args(["--json"]))
    return code, {f["name"]: f for f in json.loads(capsys.readouterr().out)}


def test_a_model_is_held_to_its_answers(model, capsys) -> None:
    _, found = report(capsys)
    assert found["model H-4"]["state"] == "ok"
    assert "same: " in found["model H-4"]["text"] and "12 people" in found["model H-4"]["text"]


def test_a_model_that_answers_otherwise_is_a_fault(model, capsys) -> None:
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(str(model))
    for tensor in proto.graph.initializer:
        if tuple(tensor.dims) == (17, 3, 1, 1):
            array = onnx.numpy_helper.to_array(tensor)[::-1].copy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, str(model))
    code, found = report(capsys)
    assert code == 1
    assert found["model H-4"]["state"] == "fault" and "differs: " in found["model H-4"]["text"]


def test_a_model_without_answers_is_unchecked(model, capsys) -> None:
    answers_file(model).unlink()
    _, found = report(capsys)
    assert found["model H-4"]["state"] == "ok"
    assert "unchecked: " in found["model H-4"]["text"]


def in_process(before: str, *words: str) -> subprocess.CompletedProcess:
    """Doctor as a process that permissions bind, of the packages that take no time."""
    code = (
        f"import os, signal, sys\n{before}\nfrom ehrnet_ros.cli import doctor, main\n"
        "doctor.PACKAGES = doctor.PACKAGES[:4]\n"
        f"sys.exit(main(['doctor', *{words!r}]))"
    )
    return subprocess.run([*bound(), sys.executable, "-c", code], capture_output=True, text=True)


def test_a_model_that_cannot_be_read_is_one_fault_among_the_findings(model) -> None:
    ensure_engine(model, (384, 384), StandInBuilder("8.6.1"))
    model.chmod(0)
    done = in_process("sys.modules['openvino'] = sys.modules['tensorrt'] = None", "--json")
    assert done.returncode == 1, done.stderr
    found = {f["name"]: f for f in json.loads(done.stdout)}
    assert found["model H-4"]["state"] == "fault"
    assert "Permission denied" in found["model H-4"]["text"]
    assert "engine H-4" in found  # what comes after it is told, too


def test_what_cannot_be_looked_at_hides_nothing_else(model, capsys, monkeypatch) -> None:
    def lost() -> list:
        raise EhrnetError("the driver is gone.")

    monkeypatch.setattr(doctor, "PACKAGES", doctor.PACKAGES[:3])
    monkeypatch.setattr(doctor, "_gpu", lost)
    code, found = report(capsys)
    assert code == 1 and found["gpu"] == {
        "name": "gpu",
        "state": "fault",
        "text": "the driver is gone.",
    }
    assert found["model H-4"]["state"] == "ok"


def test_ctrl_c_amid_an_import_is_no_diagnosis() -> None:
    """As in C, where the exception that Ctrl-C is by default comes out as another one."""
    before = (
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'openvino':\n"
        "            try: os.kill(os.getpid(), signal.SIGINT)\n"
        "            except KeyboardInterrupt: raise ImportError('initialization failed')\n"
        "sys.meta_path.insert(0, Stop())"
    )
    done = in_process(before)
    assert (done.returncode, done.stderr) == (130, "")
    assert "cv2" in done.stdout and "openvino" not in done.stdout


def test_an_engine_of_another_machine_is_told_with_the_remedy(model, capsys, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    ensure_engine(model, (384, 384), StandInBuilder("8.6.1"))
    _, found = report(capsys)
    engine = found["engine H-4"]
    assert engine["state"] == "optional"
    assert engine["text"].startswith("fp32, 384x384, TensorRT 8.6.1; ")
    assert "tensorrt is not available" in engine["text"]


@pytest.mark.parametrize("gpu", ["17000000.gpu", "17000000.gv11b", "gpu-gpc-0"])
def test_a_jetsons_mode_and_clock(gpu: str, tmp_path: Path) -> None:
    """Files as on an Orin NX with JetPack 6; the GPU's folder also as on Xavier and Thor."""
    for name, text in {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n...\n< POWER_MODEL ID=2 NAME=15W >\n",
        "var/lib/nvpmodel/status": "pmode:0002",
        f"sys/class/devfreq/{gpu}/cur_freq": "306000000",
        f"sys/class/devfreq/{gpu}/max_freq": "918000000",
        "sys/class/devfreq/other.dma/cur_freq": "1",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    facts = dict(gpu_report.jetson_facts(tmp_path))
    assert facts["L4T"] == "R36.4.3"
    assert facts["power mode"].startswith("15W (mode 2);")
    assert facts["GPU clock"].startswith("306 of at most 918 MHz;")
    (tmp_path / "etc/nvpmodel.conf").unlink()
    assert dict(gpu_report.jetson_facts(tmp_path))["power mode"].startswith("unnamed (mode 2)")


def test_where_there_is_no_jetson_nothing_is_said(tmp_path: Path) -> None:
    assert gpu_report.jetson_facts(tmp_path) == []


@pytest.mark.parametrize(
    ("version", "jetson", "numpy", "words"),
    [
        ("8.5.2.2", True, "1.23.5", ["before 10", "before 8.6"]),
        ("8.5.2.2", True, "1.24.0", ["before 10", "before 8.6", "trt.nptype"]),
        ("8.4.1.5", True, "1.23.5", ["older than 8.5.2", "before 10", "before 8.6"]),
        ("8.6.1", False, "2.0.0", ["before 10"]),
        ("10.3.0", True, "2.0.0", []),
        ("10.16.1.11", True, "2.0.0", []),
        ("11.1.0", False, "2.0.0", []),
        ("11.4.0.106", True, "2.0.0", ["in groups", "do not support JetPack"]),
        ("11.4.0.106", False, "2.0.0", ["in groups"]),
        ("11.4.1", True, "2.0.0", ["in groups"]),
    ],
)
def test_traps_of_a_version(version, jetson, numpy, words) -> None:
    found = gpu_report.traps(version, jetson, numpy)
    assert len(found) == len(words)
    for text, word in zip(found, words):
        assert word in text
