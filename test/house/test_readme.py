"""The README says what the code says."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ehrnet_ros.cli import _parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_generated_sections_are_current():
    pytest.importorskip("rclpy", reason="the parameters' declaration needs rclpy")
    done = subprocess.run(
        [sys.executable, "tools/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_card_keeps_what_the_table_of_weights_needs(tmp_path):
    data = ROOT / "ehrnet_model" / "data"
    rows = json.loads((data / "H-4.evaluations.json").read_text())
    more = dict.fromkeys(("AP75", "APm", "APl", "AR", "false_positives_per_person_free_image"), 0.0)
    spans = {"from": 0.0, "to": 0.4, "right": None}, {"from": 0.4, "to": None, "right": 0.625}
    more = {**more, "by_score": spans, "std_fit": 1.25}
    files = []
    for number, row in enumerate([*rows, {**rows[-1], "images": 7}]):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps({**row, **more}))
    sizes = [f for f, row in zip(files, rows, strict=False) if len(row["input_sizes"]) == 1]
    card = [f for f in files if f not in sizes]
    command = [sys.executable, "tools/model_card.py", str(data / "H-4.onnx"), "--sizes", *sizes]
    command += ["--evaluations", *card, "--names", *"abc", "-o", tmp_path / "H-4.md"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert json.loads((tmp_path / "H-4.evaluations.json").read_text()) == rows
    said = (tmp_path / "H-4.md").read_text()
    assert "On the 131 images, as shipped, are right: 0.62 from 0.4 on. Errors" in said
    assert "keypoints are 1.25 times their std." in said


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_pip_beside_ros_keeps_numpy_below_2_and_works_on_ubuntu_24_04():
    (part,) = re.findall(r"\n## On a machine with ROS 2\n(.*?)\n### ", README, re.S)
    (line,) = [line for line in part.splitlines() if "pip install" in line]
    assert line.startswith('PIP_BREAK_SYSTEM_PACKAGES=1 pip install --user "numpy<2" onnxruntime')


def test_lines_with_rviz_name_the_frame_of_the_images():
    lines = [line for line in README.splitlines() if "rviz:=true" in line]
    assert lines and all("rviz_frame:=" in line for line in lines)


def commands(text):
    """The words of every `ehrnet` command in shell blocks, but for those that end in `...`."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("#")[0].split(";"):
                words = shlex.split(command)
                if words[:1] == ["ehrnet"] and words[-1] != "...":
                    yield words[1:]


def test_its_commands_are_ones_and_training_reads_what_it_wrote_before():
    assert all(_parser(words).parse_args(words).verb for words in commands(README))
    training = README.split("## Training and measuring")[1].split("\n## ")[0]
    written = set()
    for words in commands(training):
        args = _parser(words).parse_args(words)
        read = [getattr(args, name, None) for name in ("model", "weights", "tuned", "start")]
        read += [name for name, _ in getattr(args, "pack", [])] + getattr(args, "measures", [])
        assert {str(path) for path in read if path} <= written, words
        written |= {str(getattr(args, name, None)) for name in ("out", "json")}
        if args.verb == "train":
            written.add(f"{args.out}/H{args.phi}.safetensors")
    assert {"tuned.json", "H-4.onnx", "h4.json"} <= written


def test_python_in_it_compiles_and_its_imports_exist():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 2
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("ehrnet_model"):
                module = __import__(node.module, fromlist=[a.name for a in node.names])
                assert all(hasattr(module, a.name) for a in node.names)
