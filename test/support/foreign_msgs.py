"""Builds the messages of other packages that are not on every machine, from their definitions.

Field by field as in vision_msgs 4.1 and hri_msgs 2.0 of ROS 2; only what is used here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POINTS = (
    "NOSE NECK RIGHT_SHOULDER RIGHT_ELBOW RIGHT_WRIST LEFT_SHOULDER LEFT_ELBOW LEFT_WRIST "
    "RIGHT_HIP RIGHT_KNEE RIGHT_ANKLE LEFT_HIP LEFT_KNEE LEFT_ANKLE "
    "LEFT_EYE RIGHT_EYE LEFT_EAR RIGHT_EAR"
)
PACKAGES = {
    "vision_msgs": {
        "Point2D": ["float64 x", "float64 y"],
        "Pose2D": ["vision_msgs/Point2D position", "float64 theta"],
        "BoundingBox2D": ["vision_msgs/Pose2D center", "float64 size_x", "float64 size_y"],
        "ObjectHypothesis": ["string class_id", "float64 score"],
        "ObjectHypothesisWithPose": [
            "ObjectHypothesis hypothesis",
            "geometry_msgs/PoseWithCovariance pose",
        ],
        "Detection2D": [
            "std_msgs/Header header",
            "ObjectHypothesisWithPose[] results",
            "BoundingBox2D bbox",
            "string id",
        ],
        "Detection2DArray": ["std_msgs/Header header", "Detection2D[] detections"],
    },
    "hri_msgs": {
        "NormalizedPointOfInterest2D": ["float32 x", "float32 y", "float32 c"],
        "Skeleton2D": [
            "std_msgs/Header header",
            *(f"uint8 {name} = {number}" for number, name in enumerate(POINTS.split())),
            "NormalizedPointOfInterest2D[18] skeleton",
        ],
        "IdsList": ["std_msgs/Header header", "string[] ids"],
    },
}


def environment() -> dict[str, str]:
    """Variables for a process that is to import all of PACKAGES; builds them where they are new.

    Libraries in lib, modules three folders further down, where the linker was told they are: as
    colcon lays them out. The process has to be started with these variables, since the loader
    reads LD_LIBRARY_PATH only then.
    """
    key = hashlib.sha256(
        b"".join(path.read_bytes() for path in (Path(__file__), ROOT / "tools" / "build_msgs.py"))
        + f"{sys.prefix} {sys.version}".encode()
    ).hexdigest()[:16]
    done = ROOT / "build" / "foreign_msgs" / key
    if not done.is_dir():
        part = done.with_name(f".{key}.{os.getpid()}")
        for package in PACKAGES:
            _build(package, part)
        try:
            part.rename(done)
        except OSError:  # somebody else was as fast
            shutil.rmtree(part)
    values = {"PYTHONPATH": _modules(done), "LD_LIBRARY_PATH": done / "lib"}
    return {
        name: os.pathsep.join(filter(None, (os.environ.get(name), str(path))))
        for name, path in values.items()
    }


def _modules(folder: Path) -> Path:
    return folder / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"


def _build(package: str, folder: Path) -> None:
    root = folder / "source" / package
    (root / "msg").mkdir(parents=True)
    for name, lines in PACKAGES[package].items():
        (root / "msg" / f"{name}.msg").write_text("\n".join([*lines, ""]))
    (root / "package.xml").write_text(
        f"<package><name>{package}</name><version>0.0.0</version>"
        "<depend>std_msgs</depend><depend>geometry_msgs</depend></package>"
    )
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import build_msgs
    finally:
        sys.path.pop(0)
    wheel = build_msgs.build(root, folder / "work" / package)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            top, _, rest = name.partition(".data/data/")
            path = folder / rest if rest else _modules(folder) / top
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))
    shutil.rmtree(folder / "work")
