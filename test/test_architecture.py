"""Which folder may import what, read from the sources; and that the light parts stay light."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROS = (
    "rclpy", "launch", "launch_ros", "ament_index_python", "cv_bridge", "rosbag2_py",
    "sensor_msgs", "std_msgs", "geometry_msgs", "visualization_msgs", "diagnostic_msgs",
    "lifecycle_msgs", "rcl_interfaces", "builtin_interfaces", "ehrnet_msgs",
)  # fmt: skip
TORCH = ("torch", "torchvision")
ENGINES = ("onnxruntime", "openvino", "tensorrt")
ABOVE = ("ehrnet_ros",)
ROOMS = ("inference", "network", "evaluation", "training")

# Folder or file -> what nothing in it imports, however late. Rooms of ehrnet_model by name.
FORBIDDEN = {
    "ehrnet_model": (*ROS, *ABOVE),
    "ehrnet_model/inference": (*TORCH, "network", "evaluation", "training"),
    "ehrnet_model/evaluation": (*TORCH, *ENGINES, "network", "training"),
    "ehrnet_model/network": ("evaluation", "training"),
    # fetching works where nothing else does
    "ehrnet_model/download.py": (*TORCH, *ENGINES, *ROOMS, "numpy", "cv2", "tqdm"),
    "ehrnet_model/published.py": (*TORCH, *ENGINES, *ROOMS, "numpy", "cv2", "tqdm"),
    "ehrnet_ros": (*TORCH, *ENGINES, "network", "evaluation", "training", "ehrnet_ros.cli"),
    "ehrnet_msgs": ("ehrnet_model", "ehrnet_ros"),
    "launch": ("ehrnet_model", "ehrnet_ros"),
}
# The roof: may import everyone, inside the verb.
EXEMPT = {"ehrnet_ros": "ehrnet_ros/cli"}

# What only these files import.
ONLY = {
    # export proves with it that the file it wrote is the same network, and quantises with it
    "onnxruntime": (
        "ehrnet_model/inference/onnx_runtime.py",
        "ehrnet_model/network/export.py",
        "ehrnet_model/network/precision.py",
    ),
    "openvino": ("ehrnet_model/inference/openvino_runtime.py",),
    "tensorrt": ("ehrnet_model/inference/tensorrt_runtime.py",),
    "cv_bridge": ("ehrnet_ros/image_msgs.py",),
    "onnx": ("ehrnet_model/network",),
    "pycocotools": ("ehrnet_model/evaluation/coco.py",),
    "matplotlib": ("ehrnet_model/evaluation/plot.py",),
    "rosbags": ("ehrnet_ros/bag.py",),
    "foxglove": ("ehrnet_ros/live.py",),
    "vision_msgs": ("ehrnet_ros/other_msgs.py",),
    "hri_msgs": ("ehrnet_ros/other_msgs.py",),
}

# What importing these must not bring along.
LIGHT = {
    "ehrnet_model": ("numpy", "cv2", *TORCH),
    "ehrnet_ros.cli": ("numpy", "cv2", "rosbags", "tqdm", *TORCH, *ROS),
}


def sources(top: str) -> list[Path]:
    path = ROOT / top
    found = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [p for p in found if "__pycache__" not in p.parts]


def imports(path: Path) -> dict[str, int]:
    """Every module a file imports anywhere, with a line of it; rooms also under their own name."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(ROOT)}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                found.setdefault(".".join(parts[:end]), node.lineno)
            if parts[0] == "ehrnet_model" and len(parts) > 1 and parts[1] in ROOMS:
                found.setdefault(parts[1], node.lineno)
    return found


@pytest.mark.parametrize("top", FORBIDDEN)
def test_arrows_go_one_way(top: str) -> None:
    exempt = EXEMPT.get(top)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(top)
        if exempt is None or not path.is_relative_to(ROOT / exempt)
        for name, line in imports(path).items()
        if name in FORBIDDEN[top]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle() -> None:
    """However late an import is made: nothing has to be read twice to be understood."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for top in ("ehrnet_model", "ehrnet_ros", "tools", "benchmarks")
        for path in sources(top)
    }
    needs = {name: set(imports(path)) & set(files) - {name} for name, path in files.items()}
    while free := [name for name, wanted in needs.items() if not wanted & set(needs)]:
        for name in free:
            del needs[name]
    assert not needs, f"in circles, or above one: {sorted(needs)}"


@pytest.mark.parametrize("package", ONLY)
def test_vendors_stay_in_their_file(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{imports(path)[package]}"
        for top in ("ehrnet_model", "ehrnet_ros")
        for path in sources(top)
        if package in imports(path)
        and not any(path.is_relative_to(ROOT / place) for place in ONLY[package])
    ]
    assert not wrong, f"{package} is imported outside {', '.join(ONLY[package])}: {wrong}"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("module", LIGHT)
def test_light_imports(module: str) -> None:
    code = f"import sys, {module}\nprint(sorted(set(sys.modules) & set({LIGHT[module]!r})))"
    done = run_python(code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_imports_nothing_heavy() -> None:
    heavy = LIGHT["ehrnet_ros.cli"]
    code = (
        "import sys\nfrom ehrnet_ros.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set(sys.modules) & set({heavy!r})))"
    )
    done = run_python(code)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_inference_without_torch_and_ros() -> None:
    """Every module of the inference room imports where neither can; cv2 and NumPy are enough."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sources("ehrnet_model/inference")
        if path.stem != "__init__"
    ]
    code = (
        "import sys, importlib\n"
        f"for name in {(*TORCH, *ROS, *ENGINES, 'onnx', 'scipy')!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print('all')"
    )
    done = run_python(code)
    assert done.stdout.strip() == "all", done.stderr


def test_folders_that_must_not_become_packages() -> None:
    """An __init__.py would hide ROS's launch, Python's test or the built messages."""
    for top in ("launch", "test", "config", "ehrnet_msgs", "ehrnet_model/data"):
        found = [p for p in (ROOT / top).rglob("__init__.py")] if (ROOT / top).exists() else []
        assert not found, found


def test_one_version() -> None:
    import xml.etree.ElementTree as ET

    from ehrnet_model import __version__

    for name in ("package.xml", "ehrnet_msgs/package.xml"):
        assert ET.parse(ROOT / name).getroot().findtext("version") == __version__, name


def test_package_xml_names_what_is_imported() -> None:
    import xml.etree.ElementTree as ET

    root = ET.parse(ROOT / "package.xml").getroot()
    declared = {e.text for tag in ("depend", "exec_depend") for e in root.findall(tag)}
    used = {
        name
        for top in ("ehrnet_ros", "launch")
        for path in sources(top)
        for name in imports(path)
        if name in ROS
    }
    assert used - {"ehrnet_msgs"} <= declared  # ehrnet_msgs is part of this build


def test_extras_bring_what_verbs_need(monkeypatch: pytest.MonkeyPatch) -> None:
    from ehrnet_ros.cli import VERBS
    from ehrnet_ros.cli.packages import NEEDED

    setuptools = pytest.importorskip("setuptools")
    said: dict[str, dict[str, list[str]]] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **words: said.update(words))
    runpy.run_path(str(ROOT / "setup.py"))
    brought = {
        extra: {re.split("[<>=;]", line)[0] for line in lines}
        for extra, lines in said["extras_require"].items()
    }
    for verb, (extra, packages) in NEEDED.items():
        assert verb in VERBS and set(packages) <= brought[extra], verb
    assert {"torch", "safetensors"} <= brought["export"]  # weights where others take a graph
    for extra in ("export", "evaluate"):  # one line brings all of training and measuring
        assert brought[extra] <= brought["train"]
    # As old as training takes it, and no older.
    pytest.importorskip("torch")
    from ehrnet_model.training.hardware import OLDEST_TORCH

    assert f"torch>={'.'.join(map(str, OLDEST_TORCH))}" in said["extras_require"]["train"]


@pytest.mark.parametrize(
    ("words", "absent", "line"),
    [
        (["tune", "--annotations", "a", "--images", "i"], "pycocotools, tqdm", "'.[evaluate]'"),
        (
            ["evaluate", "--annotations", "a", "--images", "i", "--model", "m.safetensors"],
            "pycocotools, tqdm, torch, safetensors",
            "'.[evaluate,export]'",
        ),
        (["train", "--out", "o", "--pack", "p"], "torch, safetensors, tqdm", "'.[train]'"),
        (["plot", "accuracy", "-o", "a.png"], "matplotlib", "'.[plot]'"),
    ],
)
def test_all_that_a_verb_lacks_is_told_at_once(words, absent, line, monkeypatch, capsys) -> None:
    from ehrnet_ros.cli import main

    for name in ("pycocotools", "tqdm", *TORCH, "safetensors", "onnx", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"ehrnet: `ehrnet {words[0]}` needs {absent}, which " in said and line in said


@pytest.mark.parametrize(
    "words",
    [
        ["export", "--phi", "-4", "--random", "-o", "m.onnx"],
        ["plot", "accuracy", "-o", "a.png"],
        ["benchmark", "--model", "m.safetensors"],
        ["get-weights", "-o", "m.onnx"],
    ],
)
def test_an_old_python_is_told_by_verbs_that_need_a_later_one(
    words, monkeypatch, tmp_path, capsys
) -> None:
    from ehrnet_ros.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "needs Python 3.10 or later, and this is 3.8.18" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("verb", ["bag", "demo", "doctor", "variants", "build-engine"])
def test_an_old_python_is_enough_on_a_robot(verb, monkeypatch) -> None:
    from ehrnet_ros.cli import packages

    monkeypatch.setattr(packages, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    assert packages.lacking_for(verb, ["m.onnx"]) == ""


def test_no_place_of_one_machine() -> None:
    """No file of the repository names a folder that exists on its author's machine only."""
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+|tmp/pytest)/")
    wrong = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        made = ("build", "install", "log", "dist", "demo_out", "runs")
        if parts[0].startswith(".") or parts[0] in made or parts[0].endswith(".egg-info"):
            continue
        if path.suffix in (".py", ".md", ".xml", ".txt", ".yaml", ".toml", ".cfg", ".sh", ".rviz"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if pattern.search(line):
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not wrong, "\n".join(wrong)
