"""Images and CameraInfo with every kind of nonsense in them, and which images still hold a picture.

What is readable is decided here by a table of its own, not by the code under test.
"""

from __future__ import annotations

import array
import math
import random
from typing import Any

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, Image

# Encoding: bytes per pixel in a row, rows per pixel row, least side, and whether width and height
# have to be even.
READABLE: dict[str, tuple[int, float, int, bool, bool]] = {
    **{name: (3, 1, 1, False, False) for name in ("bgr8", "rgb8", "8UC3")},
    **{name: (4, 1, 1, False, False) for name in ("bgra8", "rgba8", "8UC4")},
    **{name: (1, 1, 1, False, False) for name in ("mono8", "8UC1")},
    **{name: (6, 1, 1, False, False) for name in ("bgr16", "rgb16")},
    **{name: (8, 1, 1, False, False) for name in ("bgra16", "rgba16")},
    "mono16": (2, 1, 1, False, False),
    **{f"bayer_{p}8": (1, 1, 3, False, False) for p in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{p}16": (2, 1, 3, False, False) for p in ("rggb", "bggr", "gbrg", "grbg")},
    **{name: (2, 1, 1, True, False) for name in ("uyvy", "yuyv", "yuv422", "yuv422_yuy2")},
    **{name: (1, 1.5, 1, True, True) for name in ("nv12", "nv21", "i420", "yuv420")},
    "nv24": (1, 3, 1, False, False),
}
_OTHERS = ("", "h264", "16UC1", "32FC1", "8UC2", "bayer_", "bayer_rggb12", "BGR8", "mono8 ", "\x00")
_SIDES = (0, 1, 2, 3, 4, 5, 16, 33, 64, 127, 240, 321)
_LONG = (4000, 20_000, 70_000)  # one pixel wide or high
_NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-300, 1e300, 1.0, 500.0)


def fuzzed_image(rng: random.Random, number: int) -> Image:
    """An image whose parts fit each other, or one or two of them do not."""
    msg = Image()
    msg.header.frame_id = f"fuzz {number}"
    # Of no time, a usual one, the far past and future, and no time at all.
    seconds = rng.choice((0, 1_700_000_000, -(2**31), 2**31 - 1))
    msg.header.stamp = Time(sec=seconds, nanosec=rng.choice((0, number, 999_999_999, 2**32 - 1)))
    names = tuple(READABLE)
    msg.encoding = rng.choice(names if rng.random() < 0.85 else _OTHERS)
    msg.width, msg.height = rng.choice(_SIDES), rng.choice(_SIDES)
    if rng.random() < 0.1:
        sides = [1, rng.choice(_LONG)]
        rng.shuffle(sides)
        msg.width, msg.height = sides
    msg.is_bigendian = rng.choice((0, 0, 1, 255))
    pixel, rows, *_ = READABLE.get(msg.encoding, (3, 1))
    msg.step = msg.width * pixel + rng.choice((0, 0, 0, 1, 7, 64))
    size = math.ceil(msg.height * rows) * msg.step
    msg.data = array.array("B", rng.randbytes(size))
    for _ in range(rng.choice((0, 0, 1, 2))):
        _break(rng, msg)
    return msg


def _break(rng: random.Random, msg: Image) -> None:
    large = (2**31, 2**32 - 1, 65_536)
    part = rng.choice(("width", "height", "step", "data", "encoding"))
    if part == "data":
        size = len(msg.data)
        keep = rng.choice((0, 1, size - 1, size // 2, size + 1, 2 * size))
        msg.data = (msg.data + msg.data)[: max(0, keep)]
    elif part == "encoding":
        msg.encoding = rng.choice((*READABLE, *_OTHERS))
    else:
        value = getattr(msg, part)
        options = (0, 1, max(0, value - 1), value + 1, value * 2, *large)
        setattr(msg, part, rng.choice(options))


def is_readable(msg: Image) -> bool:
    """Whether the parts of an image fit each other, by the meaning of its encoding."""
    if msg.encoding not in READABLE:
        return False
    pixel, rows, least, even_width, even_height = READABLE[msg.encoding]
    if min(msg.width, msg.height) < least:
        return False
    if (even_width and msg.width % 2) or (even_height and msg.height % 2):
        return False
    if msg.step < msg.width * pixel:
        return False
    if msg.encoding in ("i420", "yuv420") and msg.step != msg.width and msg.step % 2:
        return False  # its planes of colour have rows of half a step
    return len(msg.data) >= msg.step * int(msg.height * rows)


def fuzzed_info(rng: random.Random) -> CameraInfo:
    """A CameraInfo of numbers that are none, zeros and extremes."""
    info: Any = CameraInfo()
    info.width, info.height = rng.choice(_SIDES), rng.choice(_SIDES)
    info.k = [rng.choice(_NUMBERS) for _ in range(9)]
    info.p = [rng.choice(_NUMBERS) for _ in range(12)]
    info.d = [rng.choice(_NUMBERS) for _ in range(rng.choice((0, 4, 5, 8)))]
    info.distortion_model = rng.choice(("", "plumb_bob", "fisheye"))
    info.binning_x = rng.choice((0, 1, 2, 2**32 - 1))
    info.roi.width = rng.choice((0, 1, 640, 2**32 - 1))
    info.roi.x_offset = rng.choice((0, 1, 2**32 - 1))
    return info
