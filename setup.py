"""The way without ROS: `pip install .` gives ehrnet_model and the command `ehrnet`.

colcon uses CMakeLists.txt instead; test/house/test_colcon.py compares what both install.
"""

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
(VERSION,) = re.findall(
    r'^__version__ = "(.+)"$', (HERE / "ehrnet_model/__init__.py").read_text(), re.MULTILINE
)

TORCH = ["torch>=2.1", "safetensors>=0.4"]
EXPORT = TORCH + ["onnx>=1.15", "tqdm>=4.60"]
EVALUATE = ["pycocotools>=2.0.7", "tqdm>=4.60"]
LIVE = ["foxglove-sdk>=0.30"]
BAG = ["rosbags>=0.11", "tqdm>=4.60"]
OPENVINO = ["openvino>=2023.3"]
PLOT = ["matplotlib>=3.6"]
# See ehrnet_model/training/hardware.py.
TRAIN = ["torch>=2.6", "tensorboard"]

setup(
    name="ehrnet_ros",
    version=VERSION,
    description="2D poses of several people by EfficientHRNet: inference, training, export, ROS 2",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.8",
    # By name: launch/, test/ and ehrnet_msgs/ must never become Python packages.
    packages=find_packages(
        include=["ehrnet_model", "ehrnet_model.*", "ehrnet_ros", "ehrnet_ros.*"]
    ),
    package_data={"ehrnet_model": ["data/*", "py.typed"], "ehrnet_ros": ["py.typed"]},
    install_requires=[
        "numpy>=1.21",
        # Headless: nothing here opens a window, and this one needs no X or GL libraries.
        "opencv-python-headless>=4.5.4",
        "tqdm>=4.60",
        # The last releases for old Pythons have no upper limit of their own: pip picks by wheel.
        'onnxruntime>=1.15; python_version < "3.13"',
        'onnxruntime>=1.20; python_version >= "3.13"',
    ],
    extras_require={
        "export": EXPORT,
        "evaluate": EVALUATE,
        "train": [*EXPORT, *EVALUATE, *TRAIN],
        "openvino": OPENVINO,
        "plot": PLOT,
        "bag": BAG,
        "live": LIVE,
        "dev": [
            *EXPORT,
            *EVALUATE,
            *OPENVINO,
            *PLOT,
            *BAG,
            *LIVE,
            "hypothesis",
            "mcap-ros2-support",
            "mypy",
            "pytest",
            "ruff",
            "websockets",
        ],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/ehrnet_ros"]),
        ("share/ehrnet_ros", ["package.xml"]),
        ("share/ehrnet_ros/launch", sorted(glob("launch/*.launch.py"))),
        ("share/ehrnet_ros/config", sorted(glob("config/*"))),
        ("lib/ehrnet_ros", ["resource/ehrnet", *sorted(glob("resource/*_node"))]),
    ],
)
