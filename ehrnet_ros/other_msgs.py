"""Poses as messages of other packages, for nodes that know those and not ours.

vision_msgs/Detection2DArray: a box per person. hri_msgs/Skeleton2D (REP-155, ROS4HRI): one message
a person, on a topic of the person's own. Neither package is needed unless its output is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any, Collection, Dict, List, Tuple

import numpy as np
from std_msgs.msg import Header

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.poses import Poses
from ehrnet_model.skeleton import SkeletonInfo as KeypointSet


def _messages(package: str, parameter: str) -> Any:
    try:
        return importlib.import_module(f"{package}.msg")
    except ImportError as error:
        apt = f"ros-$ROS_DISTRO-{package.replace('_', '-')}"
        raise EhrnetError(
            f"Parameter {parameter} needs {package}, which cannot be imported ({error}): "
            f"`sudo apt install {apt}`, or set it to false."
        ) from None


def _no_events() -> Any:
    """Nothing for the executor to wait for: such a publisher may come and go in any thread."""
    try:
        from rclpy.event_handler import PublisherEventCallbacks
    except ImportError:  # Humble
        from rclpy.qos_event import PublisherEventCallbacks
    return PublisherEventCallbacks(use_default_callbacks=False)


def to_detections(poses: Poses, header: Any) -> Any:
    """The people as vision_msgs/Detection2DArray: class ``person``, the box around the keypoints.

    Args:
        poses: in pixels of the image.
        header: of the image, for the array and for every detection.

    Raises:
        EhrnetError: vision_msgs is not installed.

    """
    msgs = _messages("vision_msgs", "detections")
    array = msgs.Detection2DArray()
    array.header = header
    detections = []
    for identity, score, (x0, y0, x1, y1) in zip(
        poses.id.tolist(), poses.person_score.tolist(), poses.bbox.tolist()
    ):
        hypothesis = msgs.ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = "person"
        hypothesis.hypothesis.score = score
        detection = msgs.Detection2D()
        detection.header = header
        detection.results = [hypothesis]
        detection.bbox.center.position.x = (x0 + x1) / 2
        detection.bbox.center.position.y = (y0 + y1) / 2
        detection.bbox.size_x = x1 - x0
        detection.bbox.size_y = y1 - y0
        detection.id = str(identity) if identity >= 0 else ""
        detections.append(detection)
    array.detections = detections
    return array


def to_skeleton_2d(
    poses: Poses, person: int, header: Any, image_hw: Tuple[int, int], keypoints: KeypointSet
) -> Any:
    """One person as hri_msgs/Skeleton2D.

    Keypoints find their place by name, since hri_msgs numbers left eyes and ears before right ones,
    other than the OpenPose list that it follows. The neck is half-way between the shoulders, with
    the lower of their scores. Positions are shares of the image from its left and upper edge (the
    centre of the first pixel is half a pixel in); an absent keypoint is 0, 0 with confidence 0.

    Args:
        poses: in pixels of the image.
        person: whose skeleton.
        header: of the image.
        image_hw: height and width of the image in pixels.
        keypoints: the names of the keypoints.

    Raises:
        EhrnetError: hri_msgs is not installed.

    """
    msgs = _messages("hri_msgs", "bodies")
    places = {name: index for index, name in enumerate(keypoints.names)}
    shares = (poses.xy[person] + 0.5) / np.array(image_hw[::-1], np.float32)
    shares = np.clip(shares, 0, 1)
    scores = poses.score[person]
    msg = msgs.Skeleton2D()
    msg.header = header
    points = [msgs.NormalizedPointOfInterest2D() for _ in range(18)]
    named = {name: (shares[index], scores[index]) for name, index in places.items()}
    left, right = named.get("left_shoulder"), named.get("right_shoulder")
    if left is not None and right is not None:
        named["neck"] = ((left[0] + right[0]) / 2, min(left[1], right[1]))
    for name, (share, score) in named.items():
        number = getattr(msgs.Skeleton2D, name.upper(), None)
        if number is not None and score > 0:
            points[number].x, points[number].y = (float(value) for value in share)
            points[number].c = float(min(score, 1.0))
    msg.skeleton = points
    return msg


class OtherOutputs:
    """The publishers of one camera for other packages' messages, from configure to cleanup.

    ``detections`` in the camera's own namespace; bodies where REP-155 has them,
    ``humans/bodies/tracked`` and ``humans/bodies/<id>/skeleton2d``, below the node's namespace.
    A topic of a body exists while the body is in the image. With tracking, people are bodies as
    soon as they have an id. Without it a body's id is its place in the image's list, and means
    nothing from image to image.

    Args:
        node: owns the publishers.
        prefix: of the camera's topics, such as ``~/``.
        detections: whether to publish vision_msgs/Detection2DArray.
        bodies: whether to publish hri_msgs/Skeleton2D.
        camera: in front of bodies' ids, where there are several cameras.

    Raises:
        EhrnetError: a package that is asked for is not installed.

    """

    def __init__(
        self, node: Any, prefix: str, detections: bool, bodies: bool, camera: str = ""
    ) -> None:
        self._node = node
        self._camera = f"{camera}_" if camera else ""
        self._detections: Any = None
        self._tracked: Any = None
        self._bodies: Dict[str, Any] = {}
        vision = _messages("vision_msgs", "detections") if detections else None
        self._hri: Any = _messages("hri_msgs", "bodies") if bodies else None
        if vision is not None:
            self._detections = node.create_publisher(
                vision.Detection2DArray, f"{prefix}detections", 10
            )
        if self._hri is not None:
            self._tracked = node.create_publisher(self._hri.IdsList, "humans/bodies/tracked", 10)

    def listeners(self) -> int:
        """How many subscriptions there are to detections and to the list of bodies.

        Bodies' own topics do not count: they may go in another thread meanwhile, and there are none
        before there are images.
        """
        return sum(publisher.get_subscription_count() for publisher in self._lasting())

    def publish(
        self,
        poses: Poses,
        header: Any,
        image_hw: Tuple[int, int],
        keypoints: KeypointSet,
        tracking: bool,
    ) -> None:
        """Sends what follows from one image to those who listen; makes nothing for nobody."""
        if self._detections is not None and self._detections.get_subscription_count():
            self._detections.publish(to_detections(poses, header))
        if self._hri is None:
            return
        people = {
            # A topic's name part does not begin with a digit.
            f"body_{self._camera}{identity if tracking else person}": person
            for person, identity in enumerate(poses.id.tolist())
            if identity >= 0 or not tracking
        }
        self._keep(people)
        for name, person in people.items():
            if name not in self._bodies:
                self._bodies[name] = self._node.create_publisher(
                    self._hri.Skeleton2D,
                    f"humans/bodies/{name}/skeleton2d",
                    1,
                    event_callbacks=_no_events(),
                )
            if self._bodies[name].get_subscription_count():
                skeleton = to_skeleton_2d(poses, person, header, image_hw, keypoints)
                self._bodies[name].publish(skeleton)
        self._tracked.publish(self._hri.IdsList(header=header, ids=list(people)))

    def nobody(self) -> None:
        """Takes bodies back of which no image will tell that they left. Not beside publish()."""
        if self._bodies:
            self._keep(())
            header = Header(stamp=self._node.get_clock().now().to_msg())
            self._tracked.publish(self._hri.IdsList(header=header))

    def destroy(self) -> None:
        """Takes the topics away."""
        self._keep(())
        for publisher in self._lasting():
            self._node.destroy_publisher(publisher)
        self._detections = self._tracked = self._hri = None

    def _keep(self, names: Collection[str]) -> None:
        for name in set(self._bodies) - set(names):
            self._node.destroy_publisher(self._bodies.pop(name))

    def _lasting(self) -> List[Any]:
        both = (self._detections, self._tracked)
        return [publisher for publisher in both if publisher is not None]
