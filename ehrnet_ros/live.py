"""A live view in Foxglove: image, skeletons on it and latency, by a WebSocket server in the node.

Foxglove (app or browser) opens ``ws://localhost:PORT``. The server listens on this machine only:
from elsewhere, `ssh -L PORT:localhost:PORT robot`. It asks nobody who they are: any program of this
machine, a web page in its browser among them, can look on. What nobody looks at is not computed.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Dict, List, Tuple

import cv2

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.poses import Poses, Timings
from ehrnet_model.skeleton import SkeletonInfo as KeypointSet
from ehrnet_ros.image_msgs import Picture
from ehrnet_ros.pose_msgs import COLORS

_QUALITY = 85
_PATIENCE_S = 1.0
_NUMBERS = ("letterbox_ms", "engine_ms", "decode_ms", "age_ms", "people")


class LiveView:
    """The server, until it is closed.

    Args:
        port: where it listens on this machine.
        name: how it calls itself.

    Raises:
        EhrnetError: foxglove-sdk is not installed or the port is taken.

    """

    def __init__(self, port: int, name: str) -> None:
        try:
            import foxglove
        except ImportError as error:
            raise EhrnetError(
                f"Parameter live_view_port needs foxglove-sdk, which cannot be imported ({error}): "
                "`pip install foxglove-sdk`, or set it to 0."
            ) from None
        # A context of its own: two nodes in one process do not show each other's topics.
        self._context = foxglove.Context()
        for again in (True, True, False):
            try:
                # A slow viewer misses images instead of getting late ones.
                self._server = foxglove.start_server(
                    name=name,
                    host="127.0.0.1",
                    port=port,
                    context=self._context,
                    message_backlog_size=8,
                )
                break
            except (OSError, RuntimeError, ValueError) as error:
                if again:  # one that was closed a moment ago may not have let go of it yet
                    time.sleep(0.05)
                    continue
                raise EhrnetError(
                    f"The live view cannot listen on port {port} ({error}): set live_view_port to "
                    "one that is free, or to 0 for none."
                ) from None
        self.port: int = self._server.port
        self._views: List[CameraView] = []

    def add_camera(self, prefix: str) -> CameraView:
        """The channels of a camera, such as ``/pose/image``; the prefix ends in a slash."""
        view = CameraView(self._context, prefix)
        self._views.append(view)
        return view

    def close(self) -> None:
        """Takes the channels away and ends the server; who does not read is not waited for.

        The port is free afterwards. A server waits until its last message is written, for ever
        where a viewer's machine sleeps behind an open connection.
        """
        for view in self._views:
            view.close()
        stopping = threading.Thread(target=self._server.stop, name="live view's end", daemon=True)
        stopping.start()
        stopping.join(_PATIENCE_S)


class CameraView:
    """Three channels of one camera: ``image`` (JPEG), ``skeletons`` and ``latency``."""

    def __init__(self, context: Any, prefix: str) -> None:
        import foxglove
        from foxglove.channels import CompressedImageChannel, ImageAnnotationsChannel

        self._image = CompressedImageChannel(f"{prefix}image", context=context)
        self._skeletons = ImageAnnotationsChannel(f"{prefix}skeletons", context=context)
        schema: Dict[str, Any] = {
            "type": "object",
            "title": "ehrnet.Latency",
            "properties": {name: {"type": "number"} for name in _NUMBERS},
        }
        self._latency = foxglove.Channel(f"{prefix}latency", schema=schema, context=context)

    def listeners(self) -> int:
        """How many of the channels somebody looks at."""
        return sum(channel.has_sinks() for channel in self._channels())

    def publish(
        self,
        poses: Poses,
        picture: Picture,
        header: Any,
        keypoints: KeypointSet,
        timings: Timings,
        age_ms: float,
    ) -> None:
        """Shows one image and what was found in it.

        Args:
            poses: in pixels of the image.
            picture: the image.
            header: its header: what is shown has its stamp, so that Foxglove puts it together.
            keypoints: gives the bones.
            timings: what each stage took.
            age_ms: age of the image, NaN where it has no stamp.

        """
        stamp = max(header.stamp.sec, 0), header.stamp.nanosec  # times before 1970 are none
        time_ns = stamp[0] * 10**9 + stamp[1] or time.time_ns()
        if self._image.has_sinks():
            image = _to_image(picture, stamp, header.frame_id)
            self._image.log(image, log_time=time_ns)
        if self._skeletons.has_sinks():
            self._skeletons.log(_to_annotations(poses, stamp, keypoints), log_time=time_ns)
        if self._latency.has_sinks():
            values = (timings.letterbox_ms, timings.engine_ms, timings.decode_ms, age_ms)
            numbers = dict(zip(_NUMBERS, (*values, len(poses))))
            # JSON has no NaN.
            known = {name: value for name, value in numbers.items() if value == value}
            self._latency.log(known, log_time=time_ns)

    def close(self) -> None:
        """Takes the channels away."""
        for channel in self._channels():
            channel.close()

    def _channels(self) -> Tuple[Any, ...]:
        return self._image, self._skeletons, self._latency


def _to_image(picture: Picture, stamp: Tuple[int, int], frame_id: str) -> Any:
    from foxglove.messages import CompressedImage, Timestamp

    _, data = cv2.imencode(".jpg", picture.bgr(), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return CompressedImage(
        timestamp=Timestamp(*stamp), frame_id=frame_id, data=data.tobytes(), format="jpeg"
    )


def _to_annotations(poses: Poses, stamp: Tuple[int, int], keypoints: KeypointSet) -> Any:
    """Bones, keypoints and, of tracked people, ids; each person in a colour of its own."""
    from foxglove.messages import (
        Color,
        ImageAnnotations,
        Point2,
        PointsAnnotation,
        PointsAnnotationType,
        TextAnnotation,
        Timestamp,
    )

    points, texts = [], []
    # Here 0 is the edge of the first pixel, with us its centre.
    xy = poses.xy + 0.5
    for i in range(len(poses)):
        identity = int(poses.id[i])
        red, green, blue = COLORS[(identity if identity >= 0 else i) % len(COLORS)]
        color = Color(r=red, g=green, b=blue, a=1.0)
        present = {
            j: Point2(x=float(x), y=float(y)) for j, (x, y) in enumerate(xy[i]) if x == x and y == y
        }
        bones = [
            present[end] for edge in keypoints.edges if set(edge) <= present.keys() for end in edge
        ]
        for kind, ends, thickness in (
            (PointsAnnotationType.LineList, bones, 2.0),
            (PointsAnnotationType.Points, list(present.values()), 6.0),
        ):
            points.append(
                PointsAnnotation(type=kind, points=ends, outline_color=color, thickness=thickness)
            )
        if identity >= 0 and present:
            x0, y0 = (float(value) + 0.5 for value in poses.bbox[i, :2])
            position = Point2(x=x0, y=y0)
            texts.append(
                TextAnnotation(
                    position=position, text=str(identity), font_size=16.0, text_color=color
                )
            )
    return ImageAnnotations(timestamp=Timestamp(*stamp), points=points, texts=texts)
