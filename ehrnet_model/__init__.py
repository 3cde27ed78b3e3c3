"""EfficientHRNet: what is computed. No ROS, and nothing heavy on import."""

from ehrnet_model.errors import EhrnetError
from ehrnet_model.skeleton import COCO_17, SkeletonInfo
from ehrnet_model.variants import VARIANTS, Variant

__version__ = "0.1.0"

__all__ = ["COCO_17", "VARIANTS", "EhrnetError", "SkeletonInfo", "Variant", "__version__"]
