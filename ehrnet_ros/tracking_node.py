"""TrackingNode: any PoseArray in, the same people with lasting ids out.

For poses of a node that does not track, or from a bag. Each frame_id is a camera with a tracker of
its own; all of them take ids from one row of numbers. Of several cameras, each one's markers have
namespaces of their own, such as ``bones/front``, and the CameraInfo serves the one it is of.

Latched beside them is what they mean: the ``skeleton_info`` beside the poses that come in; until
that is heard, the keypoints of COCO, which all poses here have, and nothing of a model.
"""

from __future__ import annotations

import collections
import itertools
import math
import sys
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, OrderedDict, Set, Tuple

from ehrnet_msgs.msg import PoseArray, SkeletonInfo
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.options import check_options, option
from ehrnet_model.inference.tracker import PoseTracker, TrackOptions
from ehrnet_model.skeleton import COCO_17
from ehrnet_ros.health import Repeated
from ehrnet_ros.pose_msgs import (
    Lens,
    MarkerLifetime,
    from_pose_array,
    to_markers,
    to_pose_array,
    to_skeleton_info,
)
from ehrnet_ros.small_node import SILENT_S, Input, SmallNode, latched_qos, run

_REPEAT_S = 30.0
_CAMERAS = 32  # trackers kept; beyond, the one unused for longest goes


@dataclass(frozen=True)
class MarkerOptions:
    """How skeletons are shown that have no depth."""

    marker_depth: float = option(
        1.0, 0.01, 1000.0, "[m] distance from the camera of the plane of the skeletons in RViz."
    )
    marker_line_width: float = option(0.01, 0.0001, 10.0, "[m] width of the bones in RViz.")
    nominal_fov_deg: float = option(
        60.0, 1.0, 179.0, "[degrees] horizontal field of view assumed while there is no CameraInfo."
    )

    def __post_init__(self) -> None:
        check_options(self)


class TrackingNode(SmallNode):
    """The node ``tracking``. Raises EhrnetError for wrong parameters."""

    called = "tracking"
    kinds = (TrackOptions, MarkerOptions)
    what = "Poses in, the same people with lasting ids out."
    example = "-p track_lost_s:=2.0 -r poses:=/pose/poses"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._ids = itertools.count()
        self._trackers: OrderedDict[str, PoseTracker] = collections.OrderedDict()
        self._camera_info: Optional[CameraInfo] = None
        self._shown: Dict[str, Set[Tuple[str, int]]] = {}
        self._sizes: Dict[str, Tuple[Tuple[int, int], float]] = {}
        self._mixed = Repeated(_REPEAT_S)
        self._lifetime = MarkerLifetime()
        self._poses = self.create_publisher(PoseArray, "~/poses", 10)
        self._markers = self.create_publisher(MarkerArray, "~/markers", 1)
        self._info = self.create_publisher(SkeletonInfo, "~/skeleton_info", latched_qos())
        self._on_info(
            to_skeleton_info(
                COCO_17,
                model="",
                runtime="",
                phi=0,
                input_hw=(0, 0),
                min_keypoint_score=0.0,
                stamp=self.get_clock().now().to_msg(),
            )
        )
        self.hear_beside_poses("skeleton_info", SkeletonInfo, self._on_info)

    def inputs(self) -> List[Input]:
        """Poses; a CameraInfo for the markers."""
        return [
            Input("poses", PoseArray, self._on_poses, 10, needed=True),
            Input("camera_info", CameraInfo, self._on_camera_info, 1, needed=False, once=True),
        ]

    def outputs(self) -> List[Any]:
        """Poses and markers."""
        return [self._poses, self._markers]

    def _on_info(self, msg: SkeletonInfo) -> None:
        msg.header.stamp = self.get_clock().now().to_msg()
        self._info.publish(msg)
        self._shown_from = float(msg.min_keypoint_score)

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self._camera_info = msg

    def _on_poses(self, msg: PoseArray) -> None:
        try:
            tracker = self._tracker(msg.header.frame_id)
            image_hw = msg.height, msg.width
            self._notice_mixture(msg.header.frame_id, image_hw)
            poses = tracker.update(from_pose_array(msg), self.stamp_s(msg.header), image_hw)
            poses = poses.best_first()
        except (EhrnetError, ValueError) as error:  # people of unequal numbers of keypoints
            self.refuse(str(error))
            return
        self._poses.publish(to_pose_array(poses, msg.header, image_hw, self.age_ms(msg.header)))
        self.count_published()
        if self._markers.get_subscription_count() and min(image_hw) > 0:
            options = self.options(MarkerOptions)
            info, frame_id = self._camera_info, msg.header.frame_id
            alone = len(self._trackers) == 1
            if info is not None and not alone and info.header.frame_id != frame_id:
                info = None  # of another camera
            markers = to_markers(
                poses.above(self._shown_from),
                msg.header,
                Lens.known_or_nominal(info, image_hw, options.nominal_fov_deg),
                COCO_17,
                depth=options.marker_depth,
                line_width=options.marker_line_width,
                lifetime=self._lifetime(msg.header),
            )
            self._markers.publish(markers if alone else self._beside_others(markers, frame_id))

    def _notice_mixture(self, frame_id: str, image_hw: Tuple[int, int]) -> None:
        """Says so where two cameras seem to share a frame_id: nobody's track outlasts an image."""
        now = time.monotonic()
        before, changed = self._sizes.get(frame_id, (image_hw, -math.inf))
        if image_hw == before:
            self._sizes[frame_id] = before, changed
            return
        self._sizes[frame_id] = image_hw, now
        text = (
            f"Poses of images of {before[1]}x{before[0]} and of {image_hw[1]}x{image_hw[0]} pixels "
            f"come by turns in the frame '{frame_id}', so nobody keeps an id: give each camera a "
            "frame_id of its own."
        )
        if now - changed < SILENT_S and self._mixed.should_say(frame_id):
            self.get_logger().warning(text)

    def _beside_others(self, msg: MarkerArray, frame_id: str) -> MarkerArray:
        """The markers of one camera of several, which must not clear those of the others."""
        _, *markers = msg.markers
        for marker in markers:
            marker.ns = f"{marker.ns}/{frame_id}"
        shown = {(marker.ns, marker.id) for marker in markers}
        for namespace, number in self._shown.get(frame_id, set()) - shown:
            gone = Marker(header=Header(frame_id=frame_id), ns=namespace, id=number)
            gone.action = Marker.DELETE
            markers.append(gone)
        self._shown[frame_id] = shown
        return MarkerArray(markers=markers)

    def _tracker(self, frame_id: str) -> PoseTracker:
        tracker = self._trackers.pop(frame_id, None)
        if tracker is None:
            tracker = PoseTracker(ids=self._ids)
        self._trackers[frame_id] = tracker
        if len(self._trackers) > _CAMERAS:
            gone = self._trackers.popitem(last=False)[0]
            self._shown.pop(gone, None)
            self._sizes.pop(gone, None)
        tracker.options = self.options(TrackOptions)
        return tracker


def main(args: Optional[List[str]] = None) -> int:
    """Runs the node until SIGINT or SIGTERM. 0 then; 2 when it could not start."""
    return run(TrackingNode, args)


if __name__ == "__main__":
    sys.exit(main())
