"""Image and CompressedImage to arrays and back. The only file that knows encodings.

Encodings are those of sensor_msgs/image_encodings plus ``i420``. Most are read as a view of the
message's own buffer. 16-bit samples are scaled by 1/257, so that full range stays full range; YUV
means BT.601 with limited range, as OpenCV and cv_bridge read it. An encoding that is not known here
goes to cv_bridge, where one can be imported.
"""

from __future__ import annotations

import array
from typing import Any, Callable, Dict, NamedTuple, Tuple

import cv2
import numpy as np
from sensor_msgs.msg import Image

from ehrnet_model.errors import EhrnetError


class ImageError(EhrnetError):
    """A message that holds no picture: names what is wrong with it."""


class Picture(NamedTuple):
    """A colour picture.

    Attributes:
        array: (height, width, 3) uint8. May be a view of the message and have padded rows.
        order: ``bgr`` or ``rgb``, the order of the last axis.

    """

    array: np.ndarray
    order: str

    def bgr(self) -> np.ndarray:
        """The same picture in OpenCV's order; a copy only where the order differs."""
        return self.array if self.order == "bgr" else cv2.cvtColor(self.array, cv2.COLOR_RGB2BGR)


_GRID = 64  # a picture is judged by so many of its rows and columns
_BLACK = 15  # samples up to this show nothing
_LIT = 0.01  # share of the samples that have to show something


def shows_nothing(picture: Picture) -> str:
    """Why nobody can be seen in a picture, in a sentence; empty where somebody may be."""
    height, width = picture.array.shape[:2]
    few = picture.array[:: 1 + (height - 1) // _GRID, :: 1 + (width - 1) // _GRID]
    if np.count_nonzero(few > _BLACK) < _LIT * few.size:
        return (
            f"Images are nearly black: hardly a sample exceeds {_BLACK} of 255. Look at the lens "
            "cap and the exposure, and of mono16 whether the camera fills all 16 bits."
        )
    if np.all(few == few[0, 0]):
        return "Images are of a single colour: look at the camera, or at its driver's format."
    return ""


# Channel order, channels and bytes per sample of the encodings that are plain interleaved samples.
_COLOR: Dict[str, Tuple[str, int, int]] = {
    "bgr8": ("bgr", 3, 1),
    "8UC3": ("bgr", 3, 1),
    "rgb8": ("rgb", 3, 1),
    "bgra8": ("bgra", 4, 1),
    "8UC4": ("bgra", 4, 1),
    "rgba8": ("rgba", 4, 1),
    "mono8": ("gray", 1, 1),
    "8UC1": ("gray", 1, 1),
    "bgr16": ("bgr", 3, 2),
    "rgb16": ("rgb", 3, 2),
    "bgra16": ("bgra", 4, 2),
    "rgba16": ("rgba", 4, 2),
    "mono16": ("gray", 1, 2),
}
# OpenCV names a mosaic by the 2x2 square that starts at the second row and column.
_BAYER = {
    "bayer_rggb": cv2.COLOR_BayerBG2BGR,
    "bayer_bggr": cv2.COLOR_BayerRG2BGR,
    "bayer_gbrg": cv2.COLOR_BayerGR2BGR,
    "bayer_grbg": cv2.COLOR_BayerGB2BGR,
}
_YUV422 = {
    "uyvy": cv2.COLOR_YUV2BGR_UYVY,
    "yuv422": cv2.COLOR_YUV2BGR_UYVY,
    "yuyv": cv2.COLOR_YUV2BGR_YUY2,
    "yuv422_yuy2": cv2.COLOR_YUV2BGR_YUY2,
}
_YUV420 = {
    "nv12": cv2.COLOR_YUV2BGR_NV12,
    "nv21": cv2.COLOR_YUV2BGR_NV21,
    "i420": cv2.COLOR_YUV2BGR_I420,
    "yuv420": cv2.COLOR_YUV2BGR_I420,
}
_DEPTH = ("16UC1", "16SC1", "32FC1", "64FC1", "32SC1")

KNOWN_ENCODINGS: Tuple[str, ...] = (
    *_COLOR,
    *(name + bits for name in _BAYER for bits in ("8", "16")),
    *_YUV422,
    *_YUV420,
    "nv24",
)


def to_picture(msg: Any) -> Picture:
    """The colour picture of a sensor_msgs/Image.

    Raises:
        ImageError: empty, ``step`` or ``data`` too short for the size, an odd size where colour is
            shared by neighbours, a depth image, or an encoding that nothing here can read.

    """
    if msg.width == 0 or msg.height == 0:
        raise ImageError(f"The image is empty: its size is {msg.width}x{msg.height}.")
    encoding = msg.encoding
    if encoding in _COLOR:
        order, channels, size = _COLOR[encoding]
        return _color(_samples(msg, channels, size), order)
    if encoding[:10] in _BAYER and encoding[10:] in ("8", "16"):
        mosaic = _samples(msg, 1, len(encoding) - 10)
        return Picture(_demosaic(mosaic, encoding[:10]), "bgr")
    if encoding in _YUV422:
        _require_even(msg, rows=False)
        return Picture(cv2.cvtColor(_samples(msg, 2, 1), _YUV422[encoding]), "bgr")
    if encoding in _YUV420:
        return _yuv420(msg)
    if encoding == "nv24":
        return _nv24(msg)
    if encoding in _DEPTH:
        raise ImageError(
            f"Encoding {encoding} is depth, not a colour image: remap `image` to the colour stream."
        )
    return _by_cv_bridge(msg)


def to_picture_compressed(msg: Any) -> Picture:
    """The colour picture of a sensor_msgs/CompressedImage (JPEG, PNG, TIFF, whatever OpenCV reads).

    Pixels are taken as stored: an EXIF rotation is ignored, because CameraInfo knows nothing of it.

    Raises:
        ImageError: empty, depth, or not decodable.

    """
    text = msg.format
    if is_depth(msg):
        raise ImageError(
            f"Compressed format '{text}' is depth: remap `image/compressed` to the colour stream."
        )
    data = np.frombuffer(msg.data, np.uint8)
    if not data.size:
        raise ImageError("The compressed image is empty: it has no data.")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(data, flags)
    except cv2.error:
        image = None
    if image is None:
        head = data[:4].tobytes().hex()
        raise ImageError(
            f"The compressed image (format '{text}', {data.size} bytes, starts with {head}) "
            "is broken or of a kind that OpenCV does not decode."
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"The compressed image (format '{text}') has samples of type {image.dtype}, not 8 or "
            "16 bits: it is no camera's picture."
        )
    # "bgr8; jpeg compressed bgr8": what the camera gave, the codec, what was handed to the codec.
    # For PNG of a mosaic and for every TIFF image_transport leaves the last out: it is the first.
    given, _, packed = text.rpartition(";")
    codec, _, stored = packed.partition("compressed")
    stored = stored.strip()
    if not stored and codec.strip() in ("png", "tiff"):
        stored = given.strip()
    if stored[:10] in _BAYER:
        gray = np.ascontiguousarray(image[..., 0])  # a mosaic is stored as one channel
        return Picture(_demosaic(gray, stored[:10]), "bgr")
    # image_transport hands rgb to a codec that takes it for bgr when it is told so.
    return _color(image, "rgb" if stored.startswith("rgb") else "bgr")


def to_depth(msg: Any) -> np.ndarray:
    """The depth image of a sensor_msgs/Image, as REP-118 has it: units by encoding.

    Returns:
        (height, width) uint16 millimetres (16UC1 and mono16) or float32 metres (32FC1), in any
        byte order.

    Raises:
        ImageError: empty, ``step`` or ``data`` too short for the size, or no depth.

    """
    if msg.width == 0 or msg.height == 0:
        raise ImageError(f"The depth image is empty: its size is {msg.width}x{msg.height}.")
    if msg.encoding in ("16UC1", "mono16"):
        return _samples(msg, 1, 2)
    if msg.encoding == "32FC1":
        row = 4 * msg.width
        rows = _plane(_buffer(msg, msg.height, row), msg.height, row, msg.step)
        dtype = np.dtype(">f4" if msg.is_bigendian else "<f4")
        return np.ascontiguousarray(rows).view(dtype)
    raise ImageError(
        f"Encoding {msg.encoding} is no depth, which is 16UC1 (millimetres) or 32FC1 (metres): "
        "remap `depth_image` to the depth image that is aligned to the colour camera."
    )


def is_depth(msg: Any) -> bool:
    """Whether an Image or CompressedImage says that it holds distances, not colours."""
    if hasattr(msg, "encoding"):
        return msg.encoding in _DEPTH
    return "compressedDepth" in msg.format or msg.format.split(";")[0].strip() in _DEPTH


def to_image(picture: np.ndarray, header: Any, encoding: str = "bgr8") -> Image:
    """A sensor_msgs/Image of a (height, width, 3) or (height, width) uint8 array."""
    contiguous = np.ascontiguousarray(picture)
    height, width = contiguous.shape[:2]
    # The only type that rclpy takes over without looking at every byte: 0.4 ms instead of 700.
    data = array.array("B")
    data.frombytes(contiguous.data)
    msg = Image()
    msg.header = header
    msg.height, msg.width = height, width
    msg.encoding = encoding
    msg.is_bigendian = 0
    msg.step = contiguous.nbytes // height
    msg.data = data
    return msg


def _buffer(msg: Any, rows: int, row_bytes: int) -> np.ndarray:
    """All bytes of a message that has ``rows`` rows of ``step`` bytes; checks both."""
    what = f"{msg.width}x{msg.height} {msg.encoding}"
    if msg.step < row_bytes:
        raise ImageError(
            f"The image is inconsistent: step {msg.step} is less than the {row_bytes} bytes of one "
            f"row of {what}."
        )
    data = np.frombuffer(msg.data, np.uint8)
    if data.size < rows * msg.step:
        raise ImageError(
            f"The image is inconsistent: {data.size} bytes of data, but {what} with step "
            f"{msg.step} has {rows * msg.step}."
        )
    return data


def _plane(data: np.ndarray, rows: int, row_bytes: int, step: int) -> np.ndarray:
    """(rows, row_bytes) view of bytes, without the padding at the end of each row."""
    return np.lib.stride_tricks.as_strided(data, (rows, row_bytes), (step, 1))


def _samples(msg: Any, channels: int, sample_bytes: int) -> np.ndarray:
    """(height, width, channels) or, for one channel, (height, width) view; uint8 or uint16."""
    row = msg.width * channels * sample_bytes
    rows = _plane(_buffer(msg, msg.height, row), msg.height, row, msg.step)
    shape: Tuple[int, ...] = (msg.height, msg.width)
    if channels > 1:
        shape += (channels,)
    if sample_bytes == 1:
        return np.lib.stride_tricks.as_strided(
            rows, shape, (msg.step, channels, 1)[: len(shape)], writeable=False
        )
    dtype = np.dtype(">u2" if msg.is_bigendian else "<u2")
    # Rows may start at odd addresses: copied into an aligned array of this machine's byte order.
    return np.ascontiguousarray(rows).view(dtype).astype(np.uint16).reshape(shape)


def _color(samples: np.ndarray, order: str) -> Picture:
    if samples.dtype == np.uint16:
        samples = _to_8_bit(samples)
    if order == "gray":
        return Picture(cv2.cvtColor(samples, cv2.COLOR_GRAY2BGR), "bgr")
    if order == "bgra":
        return Picture(cv2.cvtColor(samples, cv2.COLOR_BGRA2BGR), "bgr")
    if order == "rgba":
        return Picture(cv2.cvtColor(samples, cv2.COLOR_RGBA2BGR), "bgr")
    return Picture(samples, order)


def _to_8_bit(samples: np.ndarray) -> np.ndarray:
    """Round(v / 257): 0 stays 0 and 65535 becomes 255. No value lies half-way."""
    return cv2.convertScaleAbs(samples, alpha=1 / 257)


def _demosaic(mosaic: np.ndarray, pattern: str) -> np.ndarray:
    if mosaic.shape[0] < 3 or mosaic.shape[1] < 3:
        raise ImageError(
            f"A Bayer image needs at least 3x3 pixels, this one has "
            f"{mosaic.shape[1]}x{mosaic.shape[0]}."
        )
    color = cv2.cvtColor(mosaic, _BAYER[pattern])
    return _to_8_bit(color) if color.dtype == np.uint16 else color


def _require_even(msg: Any, rows: bool) -> None:
    if msg.width % 2 or (rows and msg.height % 2):
        raise ImageError(
            f"Encoding {msg.encoding} shares colour between neighbours and needs an even size, "
            f"this image has {msg.width}x{msg.height}."
        )


def _yuv420(msg: Any) -> Picture:
    """A plane of brightness, then colour at half size; ``height`` is that of the brightness."""
    _require_even(msg, rows=True)
    rows = msg.height * 3 // 2
    data = _buffer(msg, rows, msg.width)
    code = _YUV420[msg.encoding]
    if code != cv2.COLOR_YUV2BGR_I420 or msg.step == msg.width:
        return Picture(cv2.cvtColor(_plane(data, rows, msg.width, msg.step), code), "bgr")
    if msg.step % 2:
        raise ImageError(f"Encoding {msg.encoding} needs an even step, this image has {msg.step}.")
    # The colour planes have rows of step / 2: convert with the padding, then cut it off.
    padded = cv2.cvtColor(_plane(data, rows, msg.step, msg.step), code)
    return Picture(padded[:, : msg.width], "bgr")


def _nv24(msg: Any) -> Picture:
    """A plane of brightness, then U and V of every pixel in rows of 2 * step bytes."""
    height, width, step = msg.height, msg.width, msg.step
    data = _buffer(msg, height * 3, width)
    uv = _plane(data[height * step :], height, 2 * width, 2 * step).reshape(height, width, 2)
    # Each pixel twice, as YUYV: OpenCV then computes it with its own colours unshared.
    twice = np.empty((height, width, 4), np.uint8)
    twice[..., 0] = twice[..., 2] = _plane(data, height, width, step)
    twice[..., 1], twice[..., 3] = uv[..., 0], uv[..., 1]
    color = cv2.cvtColor(twice.reshape(height, 2 * width, 2), cv2.COLOR_YUV2BGR_YUY2)
    return Picture(np.ascontiguousarray(color[:, ::2]), "bgr")


def _cv_bridge() -> Callable[[Any], np.ndarray]:
    """cv_bridge's conversion to bgr8. Raises ImportError (or worse, beside a foreign NumPy)."""
    from cv_bridge import CvBridge

    bridge = CvBridge()
    return lambda msg: bridge.imgmsg_to_cv2(msg, desired_encoding="bgr8")


def _by_cv_bridge(msg: Any) -> Picture:
    unknown = f"Encoding '{msg.encoding}' is not known to ehrnet_ros"
    try:
        convert = _cv_bridge()
    except Exception as error:  # a cv_bridge built for another NumPy raises more than ImportError
        raise ImageError(
            f"{unknown} and cv_bridge, which might, cannot be imported ({error}): use one of "
            f"{', '.join(KNOWN_ENCODINGS)}."
        ) from None
    try:
        image = convert(msg)
    except Exception as error:  # CvBridgeError, cv2.error, ValueError, by encoding and version
        raise ImageError(f"{unknown} and cv_bridge cannot convert it: {error}.") from None
    return Picture(image, "bgr")
