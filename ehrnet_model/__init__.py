"""EfficientHRNet: what is computed. No ROS, and nothing heavy on import."""

import os

from ehrnet_model.errors import EhrnetError
from ehrnet_model.skeleton import COCO_17, SkeletonInfo
from ehrnet_model.variants import VARIANTS, Variant

__version__ = "0.1.0"

__all__ = ["COCO_17", "VARIANTS", "EhrnetError", "SkeletonInfo", "Variant", "__version__"]

# From 1.29 on ONNX Runtime reports models and machine to its maker unless told not to, and it looks
# once, when it is imported: so here. Who wants the reports sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
