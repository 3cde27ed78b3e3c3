"""Poses to PoseArray, PoseArray3D, SkeletonInfo and MarkerArray, and PoseArray back to Poses."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import numpy as np
from builtin_interfaces.msg import Duration
from ehrnet_msgs.msg import (
    Keypoint,
    Keypoint3D,
    PoseArray,
    PoseArray3D,
    Skeleton,
    Skeleton3D,
    SkeletonInfo,
)
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.poses import Poses, opacity
from ehrnet_model.skeleton import SkeletonInfo as KeypointSet

# [s] RViz takes markers away by itself when no newer ones come.
_LEAST_LIFETIME_S, _MOST_LIFETIME_S = 0.5, 5.0
# Shapes of images of one view may differ by rounding.
SAME_ASPECT = 0.02
# Neighbours differ strongly, on light and on dark ground (red, green, blue 0..1).
COLORS = (
    (0.12, 0.75, 0.95),
    (1.00, 0.50, 0.05),
    (0.30, 0.85, 0.30),
    (0.95, 0.25, 0.45),
    (0.65, 0.45, 1.00),
    (0.95, 0.85, 0.15),
    (0.10, 0.80, 0.65),
    (0.90, 0.55, 0.85),
)


def to_pose_array(
    poses: Poses, header: Any, image_hw: Tuple[int, int], latency_ms: float = math.nan
) -> PoseArray:
    """One message for one image, with the image's own header.

    Args:
        poses: in pixels of the image.
        header: of the image, taken over as it is.
        image_hw: height and width of the image in pixels.
        latency_ms: age of the image now.

    """
    msg = PoseArray()
    msg.header = header
    msg.height, msg.width = image_hw
    msg.latency_ms = latency_ms
    # tolist() once: element by element, numpy scalars are several times as slow.
    xy, score, std = poses.xy.tolist(), poses.score.tolist(), poses.std.tolist()
    bbox = poses.bbox.astype(np.float32, copy=False)
    skeletons = []
    for i, (identity, person_score) in enumerate(
        zip(poses.id.tolist(), poses.person_score.tolist())
    ):
        skeleton = Skeleton()
        skeleton.id = identity
        skeleton.score = person_score
        skeleton.bbox = bbox[i]
        skeleton.keypoints = [
            Keypoint(x=x, y=y, score=s, std=d) for (x, y), s, d in zip(xy[i], score[i], std[i])
        ]
        skeletons.append(skeleton)
    msg.skeletons = skeletons
    return msg


def from_pose_array(msg: PoseArray, num_keypoints: int = 17) -> Poses:
    """The poses of a message.

    Args:
        msg: any PoseArray.
        num_keypoints: J of the result where the message holds nobody.

    """
    people = msg.skeletons
    if not people:
        return Poses.empty(num_keypoints)
    values = np.array(
        [[(k.x, k.y, k.score, k.std) for k in person.keypoints] for person in people], np.float32
    ).reshape(len(people), -1, 4)  # people without keypoints, too
    return Poses(
        xy=values[..., :2],
        score=values[..., 2],
        std=values[..., 3],
        person_score=np.array([person.score for person in people], np.float32),
        bbox=np.array([person.bbox for person in people], np.float32),
        id=np.array([person.id for person in people], np.int32),
    )


def to_pose_array_3d(
    poses: Poses, xyz: np.ndarray, header: Any, latency_ms: float = math.nan
) -> PoseArray3D:
    """One message for one PoseArray.

    Args:
        poses: the people of the PoseArray.
        xyz: (P, J, 3) metres in the optical frame, NaN where there is no depth.
        header: of the PoseArray, taken over as it is.
        latency_ms: age of the image now.

    """
    msg = PoseArray3D()
    msg.header = header
    msg.latency_ms = latency_ms
    rows = zip(poses.id.tolist(), poses.person_score.tolist(), xyz.tolist(), poses.score.tolist())
    msg.skeletons = [
        Skeleton3D(
            id=identity,
            score=person_score,
            keypoints=[Keypoint3D(x=x, y=y, z=z, score=s) for (x, y, z), s in zip(points, scores)],
        )
        for identity, person_score, points, scores in rows
    ]
    return msg


def to_skeleton_info(
    keypoints: KeypointSet,
    *,
    model: str,
    runtime: str,
    phi: int,
    input_hw: Tuple[int, int],
    min_keypoint_score: float,
    stamp: Any,
) -> SkeletonInfo:
    """What the skeletons of a PoseArray topic mean; ``input_hw`` is (0, 0) where it is free."""
    msg = SkeletonInfo()
    msg.header.stamp = stamp
    msg.model = model
    msg.runtime = runtime
    msg.phi = phi
    msg.input_height, msg.input_width = input_hw
    msg.skeleton = keypoints.name
    msg.names = list(keypoints.names)
    msg.edges = [index for edge in keypoints.edges for index in edge]
    msg.sigmas = list(keypoints.sigmas)
    msg.min_keypoint_score = min_keypoint_score
    return msg


@dataclass(frozen=True)
class Lens:
    """A pinhole: where a pixel of a rectified picture looks. Distortion is not undone.

    Attributes:
        fx, fy: focal lengths in pixels.
        cx, cy: principal point in pixels, pixel centres at whole numbers.

    """

    fx: float
    fy: float
    cx: float
    cy: float

    @staticmethod
    def nominal(image_hw: Tuple[int, int], fov_deg: float) -> Lens:
        """A lens that sees ``fov_deg`` degrees from the left to the right edge of the image."""
        height, width = image_hw
        focal = width / 2 / math.tan(math.radians(fov_deg) / 2)
        return Lens(focal, focal, (width - 1) / 2, (height - 1) / 2)

    @staticmethod
    def known_or_nominal(info: Any, image_hw: Tuple[int, int], fov_deg: float) -> Lens:
        """That of a CameraInfo which is there (else None) and of use, else a nominal one."""
        with contextlib.suppress(EhrnetError):
            if info is not None:
                return Lens.from_camera_info(info, image_hw)
        return Lens.nominal(image_hw, fov_deg)

    @staticmethod
    def from_camera_info(info: Any, image_hw: Tuple[int, int]) -> Lens:
        """The lens of a sensor_msgs/CameraInfo, scaled to the image.

        That of the rectified picture, P; K where P is empty. Towards the edges of a picture that is
        not rectified directions are wrong, but RViz too lays P over whatever picture it shows.

        CameraInfo describes the full sensor; binning and region of interest are undone as
        sensor_msgs says: the region is cut out first, then binned.

        Raises:
            EhrnetError: it is not calibrated, or of an image of another shape.

        """
        k, p = info.k, info.p
        fx, fy, cx, cy = (p[0], p[5], p[2], p[6]) if p[0] > 0 else (k[0], k[4], k[2], k[5])
        positive = fx > 0 and fy > 0 and info.width and info.height
        if not positive or not np.isfinite((fx, fy, cx, cy)).all():
            raise EhrnetError("it has no focal length: calibrate the camera.")
        roi = info.roi
        width = roi.width or info.width
        height = roi.height or info.height
        sx, sy = image_hw[1] / width, image_hw[0] / height
        if abs(sx / sy - 1) > SAME_ASPECT:
            raise EhrnetError(
                f"it is of {width}x{height} pixels and the image has {image_hw[1]}x{image_hw[0]}: "
                "give the CameraInfo of these images."
            )
        return Lens(
            fx * sx,
            fy * sy,
            # Pixel edges scale, centres do not: half a pixel out and in again.
            (cx - roi.x_offset + 0.5) * sx - 0.5,
            (cy - roi.y_offset + 0.5) * sy - 0.5,
        )


class MarkerLifetime:
    """How long RViz shows the markers of an image: beyond the next one, if it takes as long.

    Of several cameras, told apart by their frames, each has its own pace.
    """

    def __init__(self) -> None:
        self._last_s: Dict[str, float] = {}

    def __call__(self, header: Any) -> float:
        """Seconds, for the markers of the image with this header."""
        stamp_s = header.stamp.sec + header.stamp.nanosec / 1e9
        since_s = stamp_s - self._last_s.get(header.frame_id, stamp_s)
        self._last_s[header.frame_id] = stamp_s
        return min(max(_LEAST_LIFETIME_S, 3 * since_s), _MOST_LIFETIME_S)


def to_markers(
    poses: Poses,
    header: Any,
    lens: Lens,
    keypoints: KeypointSet,
    *,
    depth: float,
    line_width: float,
    lifetime: float,
) -> MarkerArray:
    """Skeletons for RViz, flat on a plane ``depth`` metres in front of the camera.

    Args:
        poses: in pixels of the image.
        header: of the image; its frame is the optical frame (x right, y down, z forward).
        lens: from pixels to directions.
        keypoints: gives the bones.
        depth: metres.
        line_width: metres; joints are twice as thick.
        lifetime: seconds after which RViz forgets the markers, should the node end.

    """
    x = (poses.xy[..., 0] - lens.cx) / lens.fx * depth
    y = (poses.xy[..., 1] - lens.cy) / lens.fy * depth
    return to_markers_3d(
        np.stack([x, y, np.full_like(x, depth)], 2),
        poses,
        header,
        keypoints,
        line_width=line_width,
        lifetime=lifetime,
    )


def to_markers_3d(
    xyz: np.ndarray,
    poses: Poses,
    header: Any,
    keypoints: KeypointSet,
    *,
    line_width: float,
    lifetime: float,
) -> MarkerArray:
    """Skeletons for RViz where the people are.

    The first marker clears what was shown before, so that nobody stays who left; then per person
    bones (LINE_LIST), joints (SPHERE_LIST) and, with a track identity, a label. The identity is the
    markers' id; those without have negative ones. Doubtful keypoints shine through.

    Args:
        xyz: (P, J, 3) metres in the frame of the header; a keypoint with NaN is left out.
        poses: the P people's track identities and keypoint scores.
        header: of the image.
        keypoints: gives the bones.
        line_width: metres; joints are twice as thick.
        lifetime: seconds after which RViz forgets the markers, should the node end.

    """
    markers: List[Marker] = [_marker(header, "", 0, Marker.CUBE)]
    markers[0].action = Marker.DELETEALL
    seconds = int(lifetime)
    duration = Duration(sec=seconds, nanosec=int((lifetime - seconds) * 1e9))
    present = np.isfinite(xyz).all(2)
    for i in range(len(xyz)):
        identity = int(poses.id[i])
        number = identity if identity >= 0 else -1 - i
        color = COLORS[(identity if identity >= 0 else i) % len(COLORS)]
        points = {
            j: Point(x=float(xyz[i, j, 0]), y=float(xyz[i, j, 1]), z=float(xyz[i, j, 2]))
            for j in np.flatnonzero(present[i]).tolist()
        }
        bones = _marker(header, "bones", number, Marker.LINE_LIST)
        bones.scale.x = line_width
        edges = [edge for edge in keypoints.edges if set(edge) <= points.keys()]
        bones.points = [points[end] for edge in edges for end in edge]
        bones.colors = [_shade(color, poses.score[i, list(edge)]) for edge in edges for _ in edge]
        joints = _marker(header, "joints", number, Marker.SPHERE_LIST)
        joints.scale.x = joints.scale.y = joints.scale.z = 2 * line_width
        joints.points = list(points.values())
        joints.colors = [_shade(color, poses.score[i, j]) for j in points]
        person = [marker for marker in (bones, joints) if marker.points]
        if identity >= 0 and points:
            top = min(points.values(), key=lambda point: point.y)
            label = _marker(header, "labels", number, Marker.TEXT_VIEW_FACING)
            label.text = str(identity)
            label.scale.z = 8 * line_width
            label.pose.position = Point(x=top.x, y=top.y - 8 * line_width, z=top.z)
            person.append(label)
        for marker in person:
            marker.color = _shade(color, 1.0)
            marker.lifetime = duration
        markers += person
    msg = MarkerArray()
    msg.markers = markers
    return msg


def _shade(color: Tuple[float, float, float], score: Any) -> ColorRGBA:
    """The colour of what hangs on keypoints of such a score, or on several of such scores."""
    red, green, blue = color
    return ColorRGBA(r=red, g=green, b=blue, a=opacity(np.min(score)))


def _marker(header: Any, namespace: str, identity: int, kind: int) -> Marker:
    marker = Marker()
    marker.header = header
    marker.ns = namespace
    marker.id = identity
    marker.type = kind
    marker.action = Marker.ADD
    marker.pose.orientation.w = 1.0
    return marker
