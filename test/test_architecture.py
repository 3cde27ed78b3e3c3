"""The house stands: which room imports what, what stays light, and what must not lie where."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = {"ehrnet_model", "ehrnet_model.variants", "ehrnet_model.skeleton", "ehrnet_model.errors"}
ROS = {
    "ament_index_python",
    "builtin_interfaces",
    "cv_bridge",
    "diagnostic_msgs",
    "ehrnet_msgs",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "lifecycle_msgs",
    "rcl_interfaces",
    "rclpy",
    "sensor_msgs",
    "std_msgs",
    "visualization_msgs",
}
ENGINES = {"onnxruntime", "openvino", "tensorrt"}

# Room -> the rooms of our own that it may import. Rooms are cut by what they need, so that the
# arrows are rules about folders.
ARROWS = {
    "ehrnet_model": set(),
    "ehrnet_model.inference": {"ehrnet_model.inference"},
    "ehrnet_model.evaluation": {"ehrnet_model.evaluation", "ehrnet_model.inference"},
    "ehrnet_model.network": {"ehrnet_model.network", "ehrnet_model.inference"},
    "ehrnet_model.training": {
        "ehrnet_model.training",
        "ehrnet_model.evaluation",
        "ehrnet_model.network",
        "ehrnet_model.inference",
    },
    "ehrnet_ros": {"ehrnet_ros", "ehrnet_msgs", "ehrnet_model.inference"},
    "ehrnet_ros.cli": {
        "ehrnet_ros.cli",
        "ehrnet_ros",
        "ehrnet_msgs",
        "ehrnet_model.training",
        "ehrnet_model.evaluation",
        "ehrnet_model.network",
        "ehrnet_model.inference",
    },
    "launch": set(),
}
# Room -> foreign packages that it never imports.
FORBIDDEN = {
    "ehrnet_model": ROS | ENGINES | {"torch", "onnx", "cv2"},
    "ehrnet_model.inference": ROS | {"torch", "onnx"},
    "ehrnet_model.evaluation": ROS | {"torch", "onnx"},
    "ehrnet_model.network": ROS,
    "ehrnet_model.training": ROS,
    "ehrnet_ros": ENGINES | {"torch", "onnx", "launch", "launch_ros"},
    "ehrnet_ros.cli": set(),
    "launch": {"rclpy", "torch", "numpy", "cv2"},
}
# Foreign package -> the files that may import it, on top or anywhere.
ONLY_IN = {
    "tensorrt": "ehrnet_model/inference/tensorrt_runtime.py",
    "openvino": "ehrnet_model/inference/openvino_runtime.py",
    "cv_bridge": "ehrnet_ros/image_msgs.py",
}


class Import(NamedTuple):
    """One imported module: where, its full name, whether it is imported when the file is."""

    file: str
    line: int
    module: str
    on_top: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def _python_files() -> list[Path]:
    folders = ("ehrnet_model", "ehrnet_ros", "launch")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def _imports(path: Path) -> Iterator[Import]:
    """Every import of a file, also those in functions; `from a import b` gives a.b if a module."""
    name = str(path.relative_to(ROOT))

    def walk(node: ast.AST, on_top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(name, child.lineno, alias.name, on_top)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name}:{child.lineno}: import by full name"
                assert child.module is not None
                for alias in child.names:
                    inner = f"{child.module}.{alias.name}"
                    ours = child.module.split(".")[0] in ("ehrnet_model", "ehrnet_ros")
                    found = inner if ours and _is_module(inner) else child.module
                    yield Import(name, child.lineno, found, on_top)
            yield from walk(child, on_top and not isinstance(child, ast.FunctionDef))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def _room(module: str) -> str:
    """The room a module of ours lies in: the longest folder name that the table knows."""
    while module not in ARROWS and "." in module:
        module = module.rpartition(".")[0]
    return module


ALL = [(path, list(_imports(path))) for path in _python_files()]


def test_there_is_something_to_look_at():
    """A table over nothing would always be green."""
    assert len(ALL) > 20 and sum(len(imports) for _, imports in ALL) > 100
    seen = {_room(_module_name(path)) for path, _ in ALL}
    assert seen == set(ARROWS)


def test_arrows_point_one_way():
    """Each room imports only the rooms below it."""
    wrong = []
    for path, imports in ALL:
        room = _room(_module_name(path))
        for item in imports:
            if item.module.split(".")[0] not in ("ehrnet_model", "ehrnet_ros", "ehrnet_msgs"):
                continue
            if item.module in BASE and room != "launch":
                continue
            if (_room(item.module) or item.module) not in ARROWS[room]:
                wrong.append(str(item))
    assert not wrong, "\n".join(wrong)


def test_rooms_import_no_foreign_package_they_must_do_without():
    """No ROS in ehrnet_model, no torch in inference and evaluation, no engine in the node."""
    wrong = []
    for path, imports in ALL:
        forbidden = FORBIDDEN[_room(_module_name(path))]
        wrong += [str(item) for item in imports if item.module.split(".")[0] in forbidden]
    assert not wrong, "\n".join(wrong)


def test_vendor_packages_have_one_door():
    """TensorRT, OpenVINO and cv_bridge are each imported by one file."""
    wrong = [
        str(item)
        for _, imports in ALL
        for item in imports
        if ONLY_IN.get(item.module.split(".")[0], item.file) != item.file
    ]
    assert not wrong, "\n".join(wrong)


def test_engines_are_imported_when_asked_for():
    """Importing inference loads no engine: each is imported by the constructor that needs it."""
    heavy = ENGINES | {"onnx", "scipy"}
    wrong = [
        str(item)
        for path, imports in ALL
        for item in imports
        if item.on_top
        and item.module.split(".")[0] in heavy
        and _room(_module_name(path)) != "ehrnet_model.training"
    ]
    assert not wrong, "\n".join(wrong)


def test_verbs_import_inside_run():
    """A verb's module is loaded for the help: it starts with nothing but the standard library."""
    light = set(sys.stdlib_module_names) | {"ehrnet_model.errors", "ehrnet_ros.cli"}
    wrong = [
        str(item)
        for path, imports in ALL
        if _room(_module_name(path)) == "ehrnet_ros.cli"
        for item in imports
        if item.on_top and item.module not in light and item.module.split(".")[0] not in light
    ]
    assert not wrong, "\n".join(wrong)


def _blocked(modules: set[str], program: str) -> subprocess.CompletedProcess[str]:
    """Runs a program where none of these packages can be imported."""
    block = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {sorted(modules)!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Wall())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", block + program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_inference_needs_neither_torch_nor_ros():
    """Every module of the base, inference and evaluation imports where both cannot be."""
    rooms = ("ehrnet_model", "ehrnet_model.inference", "ehrnet_model.evaluation")
    modules = [_module_name(path) for path, _ in ALL]
    modules = [module for module in modules if _room(module) in rooms]
    program = "".join(f"import {module}\n" for module in modules)
    result = _blocked(ROS | {"torch"}, program)
    assert result.returncode == 0, result.stderr


def test_pose_from_picture_without_torch_and_ros(dots_model):
    """A picture goes through PoseEstimator where neither torch nor rclpy can be imported."""
    pytest.importorskip("onnxruntime", reason="the picture is computed with onnxruntime")
    program = f"""
import numpy
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.runtime import open_runtime
estimator = PoseEstimator(open_runtime({str(dots_model)!r}, "onnxruntime"))
print(len(estimator(numpy.zeros((120, 160, 3), numpy.uint8))))
"""
    result = _blocked(ROS | {"torch", "onnx"}, "from pathlib import Path\n" + program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0"


def test_base_and_help_are_light():
    """`import ehrnet_model` and `ehrnet --help` need nothing that has to be installed."""
    heavy = ROS | ENGINES | {"torch", "onnx", "numpy", "cv2", "safetensors", "scipy"}
    result = _blocked(heavy, "import ehrnet_model\n")
    assert result.returncode == 0, result.stderr
    result = _blocked(heavy, "from ehrnet_ros.cli import main\nmain(['--help'])\n")
    assert result.returncode == 0, result.stderr
    assert "doctor" in result.stdout


@pytest.mark.parametrize("folder", ["launch", "config", "test", "ehrnet_msgs"])
def test_no_package_where_it_would_hide_another(folder):
    """An __init__.py there would hide ROS's launch, Python's test or the built messages."""
    assert (ROOT / folder).is_dir()
    found = [str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("__init__.py")]
    assert not found


def _tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git work tree: which files belong to the project is not known")
    names = listed.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_names_one_machine():
    """Nothing in the tree depends on where somebody has put it."""
    pattern = re.compile(r"(?<![\w.$}{~])/(?:work|root|home/\w+|Users/\w+)/[\w.]")
    wrong = []
    for path in _tracked_files():
        content = path.read_bytes()
        if b"\0" in content[:8192] or path.suffix in (".onnx", ".gz", ".safetensors", ".png"):
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if pattern.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def test_test_files_have_unique_names():
    """Reports name a test by its file: two of one name cannot be told apart."""
    names = [path.name for path in (ROOT / "test").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
