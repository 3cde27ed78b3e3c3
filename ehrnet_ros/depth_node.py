"""DepthNode: a PoseArray, the aligned depth image and its CameraInfo in; people in metres out.

Poses and depth belong together by the stamps of their images, whichever comes first. Picture and
depth image have to be rectified, as drivers give them aligned: metres come from the CameraInfo's P.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from ehrnet_msgs.msg import PoseArray, PoseArray3D, SkeletonInfo
from sensor_msgs.msg import CameraInfo, Image
from visualization_msgs.msg import MarkerArray

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.depth import DepthOptions, lift
from ehrnet_model.inference.options import check_options, option
from ehrnet_model.inference.poses import Poses
from ehrnet_model.skeleton import COCO_17
from ehrnet_ros.image_msgs import to_depth
from ehrnet_ros.matching import StampMatcher
from ehrnet_ros.pose_msgs import (
    SAME_ASPECT,
    Lens,
    MarkerLifetime,
    from_pose_array,
    to_markers_3d,
    to_pose_array_3d,
)
from ehrnet_ros.small_node import SILENT_S, Input, SmallNode, run


@dataclass(frozen=True)
class MatchOptions:
    """Which depth image belongs to which poses, and how the result is shown."""

    stamp_slop_s: float = option(
        0.02, 0.0, 10.0, "[s] how far the stamps of poses and depth image may be apart."
    )
    depth_images: int = option(
        30, 1, 1000, "So many depth images are kept until their poses arrive, and the other way."
    )
    marker_line_width: float = option(0.02, 0.0001, 10.0, "[m] width of the bones in RViz.")

    def __post_init__(self) -> None:
        check_options(self)


class Counted(NamedTuple):
    """How many poses had had no depth image and how many one, at a time by time.monotonic()."""

    missed: int
    paired: int
    since: float


class DepthNode(SmallNode):
    """The node ``depth``. Raises EhrnetError for wrong parameters."""

    called = "depth"
    kinds = (DepthOptions, MatchOptions)
    what = "Poses, the aligned depth image and its CameraInfo in; people in metres out."
    example = "-r poses:=/pose/poses -r depth_image:=/camera/depth -r camera_info:=/camera/info"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._matcher = StampMatcher()
        self._counted = Counted(0, 0, -math.inf)
        self._paired = 0
        self._camera_info: Optional[CameraInfo] = None
        self._lifetime = MarkerLifetime()
        self._poses = self.create_publisher(PoseArray3D, "~/poses", 10)
        self._markers = self.create_publisher(MarkerArray, "~/markers", 1)
        self._shown_from = 0.0
        self.hear_beside_poses("skeleton_info", SkeletonInfo, self._on_info)

    def inputs(self) -> List[Input]:
        """Poses, depth images and what the camera is like."""
        return [
            Input("poses", PoseArray, self._on_poses, 10, needed=True),
            Input("depth_image", Image, self._on_depth, 5, True, like=("depth", "aligned")),
            Input("camera_info", CameraInfo, self._on_camera_info, 1, True, once=True),
        ]

    def outputs(self) -> List[Any]:
        """Poses and markers."""
        return [self._poses, self._markers]

    def values(self) -> Dict[str, str]:
        """How many poses had no depth image."""
        return {"poses without a depth image": str(self._matcher.missed)}

    def forget(self) -> None:
        """Depth images of long ago belong to nothing that will come."""
        self._matcher.clear()
        self._counted = Counted(0, 0, -math.inf)

    def _on_info(self, msg: SkeletonInfo) -> None:
        self._shown_from = float(msg.min_keypoint_score)

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self._camera_info = msg

    def _on_poses(self, msg: PoseArray) -> None:
        self._set_matcher()
        self._lift_all(self._matcher.first(_nanoseconds(msg), msg))

    def _on_depth(self, msg: Image) -> None:
        self._set_matcher()
        self._lift_all(self._matcher.second(_nanoseconds(msg), msg))

    def _set_matcher(self) -> None:
        options = self.options(MatchOptions)
        self._matcher.slop_ns = int(options.stamp_slop_s * 1e9)
        self._matcher.kept = options.depth_images

    def _lift_all(self, pairs: List[Tuple[PoseArray, Image]]) -> None:
        for poses, depth in pairs:
            try:
                self._lift(poses, depth)
            except (EhrnetError, ValueError) as error:  # people of unequal numbers of keypoints
                self.refuse(str(error))
        self._paired += len(pairs)
        self._judge_misses()

    def _judge_misses(self) -> None:
        """Says so where many of the last seconds' poses had no depth image."""
        before, now = self._counted, time.monotonic()
        # Without any depth image the watch speaks; and what was long ago says nothing of now.
        if not self._matcher.has_seconds or not now - before.since <= 2 * SILENT_S:
            self._counted = Counted(self._matcher.missed, self._paired, now)
            return
        if now - before.since <= SILENT_S:
            return
        missed, paired = self._matcher.missed - before.missed, self._paired - before.paired
        self._counted = Counted(self._matcher.missed, self._paired, now)
        if missed <= paired:
            return
        if self._matcher.late_ns:
            why = (
                f"Poses come {self._matcher.late_ns / 1e9:.2g} s after the last depth image that "
                "is still kept: give the parameter depth_images a larger number."
            )
        elif self._matcher.early_ns:
            why = (
                f"Depth images come more than {self._matcher.early_ns / 1e9:.2g} s after their "
                "poses: give the parameter depth_images a larger number, so many poses wait, too."
            )
        elif paired:
            why = (
                f"{100 * missed / (missed + paired):.0f} % of the poses have no depth image of "
                "their stamp: depth images come too seldom or are lost. The parameter "
                "stamp_slop_s allows stamps that differ."
            )
        else:
            why = (
                "No depth image has the stamp of these poses: are both of one camera? The "
                "parameter stamp_slop_s allows stamps that differ."
            )
        self.refuse(why, missed)

    def _lift(self, msg: PoseArray, depth: Image) -> None:
        info = self._camera_info
        if info is None:
            raise EhrnetError(
                f"there is no CameraInfo on {self.resolve_topic_name('camera_info')} yet."
            )
        image = to_depth(depth)
        if msg.header.frame_id != depth.header.frame_id:
            raise EhrnetError(
                f"the poses are in frame '{msg.header.frame_id}' and the depth image in "
                f"'{depth.header.frame_id}': give the depth image that is aligned to the picture."
            )
        poses = from_pose_array(msg)
        there = _in_image(poses, (msg.height, msg.width), (image.shape[0], image.shape[1]))
        topic = self.resolve_topic_name("camera_info")
        if info.header.frame_id not in ("", msg.header.frame_id):
            raise EhrnetError(
                f"the CameraInfo on {topic} is of frame '{info.header.frame_id}' and the poses are "
                f"in '{msg.header.frame_id}': give that of the picture."
            )
        try:
            lens = Lens.from_camera_info(info, (image.shape[0], image.shape[1]))
        except EhrnetError as error:
            raise EhrnetError(f"the CameraInfo on {topic} is of no use: {error}") from None
        camera = np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]])
        xyz = lift(there, image, camera, self.options(DepthOptions))
        self._poses.publish(to_pose_array_3d(poses, xyz, msg.header, self.age_ms(msg.header)))
        self.count_published()
        if self._markers.get_subscription_count():
            unsure = poses.score < self._shown_from
            markers = to_markers_3d(
                np.where(unsure[..., None], np.nan, xyz),
                poses,
                msg.header,
                COCO_17,
                line_width=self.options(MatchOptions).marker_line_width,
                lifetime=self._lifetime(msg.header),
            )
            self._markers.publish(markers)


def _nanoseconds(msg: Any) -> int:
    return int(msg.header.stamp.sec * 10**9 + msg.header.stamp.nanosec)


def _in_image(poses: Poses, from_hw: Tuple[int, int], to_hw: Tuple[int, int]) -> Poses:
    """Poses in pixels of an image of the same view in another size. Raises EhrnetError."""
    if from_hw == to_hw:
        return poses
    if 0 in from_hw or abs(from_hw[0] * to_hw[1] / (from_hw[1] * to_hw[0]) - 1) > SAME_ASPECT:
        raise EhrnetError(
            f"the picture has {from_hw[1]}x{from_hw[0]} pixels and the depth image "
            f"{to_hw[1]}x{to_hw[0]}: give the depth image that is aligned to the picture."
        )
    scale = np.array([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]])
    # Pixel edges scale, centres do not.
    xy = (poses.xy + 0.5) * scale - 0.5
    return Poses.build(xy, poses.score, poses.std * scale.mean(), poses.person_score)


def main(args: Optional[List[str]] = None) -> int:
    """Runs the node until SIGINT or SIGTERM. 0 then; 2 when it could not start."""
    return run(DepthNode, args)


if __name__ == "__main__":
    sys.exit(main())
