"""Encodings, pixel by pixel against OpenCV on plain arrays: padded rows, both byte orders."""

import array
import re
import sys
import types

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("sensor_msgs.msg", reason="needs the ROS 2 message packages")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from ehrnet_ros.image_msgs import (  # noqa: E402
    KNOWN_ENCODINGS,
    ImageError,
    Picture,
    shows_nothing,
    to_image,
    to_picture,
    to_picture_compressed,
)

RNG = np.random.default_rng(7)


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def message(encoding, rows, height, width, pad=0, big_endian=False):
    """An Image of an array of rows, each followed by ``pad`` bytes of rubbish."""
    if rows.dtype == np.uint16:
        rows = rows.astype(">u2" if big_endian else "<u2")
    data = rows.reshape(len(rows), -1).view(np.uint8)
    padded = np.concatenate([data, noise(len(rows), pad)], 1)
    return Image(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=padded.shape[1],
        data=array.array("B", padded.tobytes()),
    )


def scaled(samples):
    """16 to 8 bit, in whole numbers: the nearest of 256 levels."""
    return ((samples.astype(np.int64) + 128) // 257).astype(np.uint8)


def gray(array_):
    return np.stack([array_] * 3, -1)


INTERLEAVED = {
    # encoding: channels, dtype, what the samples are as BGR
    "bgr8": (3, np.uint8, lambda a: a),
    "8UC3": (3, np.uint8, lambda a: a),
    "rgb8": (3, np.uint8, lambda a: a[..., ::-1]),
    "bgra8": (4, np.uint8, lambda a: a[..., :3]),
    "8UC4": (4, np.uint8, lambda a: a[..., :3]),
    "rgba8": (4, np.uint8, lambda a: a[..., 2::-1]),
    "mono8": (1, np.uint8, lambda a: gray(a[..., 0])),
    "8UC1": (1, np.uint8, lambda a: gray(a[..., 0])),
    "bgr16": (3, np.uint16, scaled),
    "rgb16": (3, np.uint16, lambda a: scaled(a)[..., ::-1]),
    "bgra16": (4, np.uint16, lambda a: scaled(a)[..., :3]),
    "rgba16": (4, np.uint16, lambda a: scaled(a)[..., 2::-1]),
    "mono16": (1, np.uint16, lambda a: gray(scaled(a)[..., 0])),
}
# OpenCV names a mosaic by the square that starts at its second row and column.
BAYER = {
    "bayer_rggb": cv2.COLOR_BayerBG2BGR,
    "bayer_bggr": cv2.COLOR_BayerRG2BGR,
    "bayer_gbrg": cv2.COLOR_BayerGR2BGR,
    "bayer_grbg": cv2.COLOR_BayerGB2BGR,
}


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 32])
@pytest.mark.parametrize("encoding", INTERLEAVED)
def test_interleaved_encodings(encoding, pad, big_endian):
    channels, dtype, as_bgr = INTERLEAVED[encoding]
    samples = noise(13, 11, channels, dtype=dtype)
    picture = to_picture(message(encoding, samples, 13, 11, pad, big_endian))
    assert picture.array.dtype == np.uint8
    np.testing.assert_array_equal(picture.bgr(), as_bgr(samples))


def test_16_bit_levels_all():
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = to_picture(message("mono16", samples, 256, 256))
    np.testing.assert_array_equal(picture.bgr()[..., 0], scaled(samples))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", BAYER)
def test_bayer(pattern, bits):
    mosaic = noise(12, 10, dtype=np.uint8 if bits == 8 else np.uint16)
    expected = cv2.cvtColor(mosaic, BAYER[pattern])
    expected = expected if bits == 8 else scaled(expected)
    for pad in (0, 3):
        picture = to_picture(
            message(f"{pattern}{bits}", mosaic, 12, 10, pad, big_endian=bits == 16)
        )
        np.testing.assert_array_equal(picture.bgr(), expected)


@pytest.mark.parametrize("pattern", BAYER)
def test_bayer_colours_are_what_the_name_says(pattern):
    bgr = {"b": 20, "g": 120, "r": 220}
    cell = np.array([bgr[c] for c in pattern[-4:]], np.uint8).reshape(2, 2)
    picture = to_picture(message(pattern + "8", np.tile(cell, (4, 4)), 8, 8))
    np.testing.assert_array_equal(picture.bgr()[2:-2, 2:-2].reshape(-1, 3), [[20, 120, 220]] * 16)


YUV422 = {
    "uyvy": cv2.COLOR_YUV2BGR_UYVY,
    "yuv422": cv2.COLOR_YUV2BGR_UYVY,
    "yuyv": cv2.COLOR_YUV2BGR_YUYV,
    "yuv422_yuy2": cv2.COLOR_YUV2BGR_YUYV,
}


@pytest.mark.parametrize("pad", [0, 2, 7])
@pytest.mark.parametrize("encoding", YUV422)
def test_yuv422(encoding, pad):
    samples = noise(9, 10, 2)
    picture = to_picture(message(encoding, samples, 9, 10, pad))
    np.testing.assert_array_equal(picture.bgr(), cv2.cvtColor(samples, YUV422[encoding]))


@pytest.mark.parametrize("pad", [0, 2, 31])
@pytest.mark.parametrize(
    "encoding, code", [("nv12", cv2.COLOR_YUV2BGR_NV12), ("nv21", cv2.COLOR_YUV2BGR_NV21)]
)
def test_two_plane_yuv420(encoding, code, pad):
    rows = noise(12, 10)
    picture = to_picture(message(encoding, rows, 8, 10, pad))
    np.testing.assert_array_equal(picture.bgr(), cv2.cvtColor(rows, code))


@pytest.mark.parametrize("pad", [0, 6])
@pytest.mark.parametrize("encoding", ["i420", "yuv420"])
def test_three_plane_yuv420(encoding, pad):
    y, u, v = noise(8, 10), noise(4, 5), noise(4, 5)
    packed = np.concatenate([y.ravel(), u.ravel(), v.ravel()]).reshape(12, 10)
    expected = cv2.cvtColor(packed, cv2.COLOR_YUV2BGR_I420)
    step = 10 + pad
    planes = [np.pad(y, ((0, 0), (0, pad)))] + [np.pad(c, ((0, 0), (0, pad // 2))) for c in (u, v)]
    data = b"".join(plane.tobytes() for plane in planes)
    msg = Image(height=8, width=10, encoding=encoding, step=step, data=array.array("B", data))
    np.testing.assert_array_equal(to_picture(msg).bgr(), expected)


@pytest.mark.parametrize("pad", [0, 5])
def test_nv24_has_the_colours_of_nv12_where_both_can_say_them(pad):
    """Chroma constant over each 2x2 square: then the half-size colours of NV12 lose nothing."""
    y, uv = noise(8, 10), noise(4, 5, 2)
    nv12 = np.concatenate([y, uv.reshape(4, 10)])
    expected = cv2.cvtColor(nv12, cv2.COLOR_YUV2BGR_NV12)
    full = uv.repeat(2, 0).repeat(2, 1).reshape(8, 20)
    luma, chroma = np.pad(y, ((0, 0), (0, pad))), np.pad(full, ((0, 0), (0, 2 * pad)))
    rows = np.concatenate([luma, chroma.reshape(16, 10 + pad)])
    msg = Image(height=8, width=10, encoding="nv24", step=10 + pad, data=rows.tobytes())
    np.testing.assert_array_equal(to_picture(msg).bgr(), expected)


def test_every_encoding_named_by_sensor_msgs_is_read_or_refused_with_a_reason():
    named = (
        "rgb8 rgba8 rgb16 rgba16 bgr8 bgra8 bgr16 bgra16 mono8 mono16 "
        "bayer_rggb8 bayer_bggr8 bayer_gbrg8 bayer_grbg8 "
        "bayer_rggb16 bayer_bggr16 bayer_gbrg16 bayer_grbg16 "
        "uyvy yuv422 yuyv yuv422_yuy2 nv12 nv21 nv24 8UC1 8UC3 8UC4"
    ).split()
    assert set(named) <= set(KNOWN_ENCODINGS)
    for encoding in KNOWN_ENCODINGS:
        data = bytes(8 * 8 * 8)
        msg = Image(height=8, width=8, encoding=encoding, step=64, data=data * 3)
        assert to_picture(msg).array.shape == (8, 8, 3)


def test_plain_pictures_are_views_not_copies():
    for encoding in ("bgr8", "rgb8"):
        msg = message(encoding, noise(6, 5, 3), 6, 5, pad=4)
        picture = to_picture(msg)
        assert np.shares_memory(picture.array, np.frombuffer(msg.data, np.uint8))
        assert not picture.array.flags.writeable


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    pad=st.integers(0, 40),
    encoding=st.sampled_from(sorted(INTERLEAVED)),
    big_endian=st.booleans(),
)
def test_any_size_and_padding(height, width, pad, encoding, big_endian):
    channels, dtype, as_bgr = INTERLEAVED[encoding]
    samples = noise(height, width, channels, dtype=dtype)
    picture = to_picture(message(encoding, samples, height, width, pad, big_endian))
    np.testing.assert_array_equal(picture.bgr(), as_bgr(samples))


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(0, 2**32 - 1) | st.integers(0, 12),
    width=st.integers(0, 2**32 - 1) | st.integers(0, 12),
    step=st.integers(0, 2**32 - 1) | st.integers(0, 60),
    encoding=st.sampled_from([*KNOWN_ENCODINGS, "16UC1", "32FC1", "", "jpeg", "bayer_", "bgr8 "]),
    size=st.integers(0, 600),
    big_endian=st.integers(0, 255),
)
def test_any_header_gives_a_picture_of_its_size_or_a_reason(
    height, width, step, encoding, size, big_endian
):
    msg = Image(height=height, width=width, step=step, encoding=encoding, is_bigendian=big_endian)
    msg.data = array.array("B", bytes(size))
    try:
        picture = to_picture(msg)
    except ImageError as error:
        assert str(error).endswith(".")
    else:
        assert picture.array.shape == (height, width, 3)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"width": 0}, "empty"),
        ({"height": 0}, "empty"),
        ({"step": 0}, "step 0 is less than the 24 bytes"),
        ({"step": 23}, "step 23 is less than the 24 bytes"),
        ({"height": 9}, "192 bytes of data"),
        ({"data": array.array("B")}, "0 bytes of data"),
        ({"encoding": "16UC1"}, "depth"),
        ({"encoding": "32FC1"}, "depth"),
        ({"encoding": "nv12", "width": 7, "height": 4}, "even size"),
        ({"encoding": "uyvy", "width": 7}, "even size"),
        ({"encoding": "h264"}, "'h264' is not known"),
    ],
)
def test_bad_images_are_refused_by_name(change, text):
    msg = message("bgr8", noise(8, 8, 3), 8, 8)
    for name, value in change.items():
        setattr(msg, name, value)
    with pytest.raises(ImageError, match=text):
        to_picture(msg)


def test_cv_bridge_is_asked_only_for_what_is_not_known_here(monkeypatch):
    """The module is a double: cv_bridge has no wheel. What counts is who is asked for what."""
    asked = []

    class CvBridge:
        def imgmsg_to_cv2(self, msg, desired_encoding):
            asked.append((msg.encoding, desired_encoding))
            return np.full((msg.height, msg.width, 3), 9, np.uint8)

    module = types.ModuleType("cv_bridge")
    module.CvBridge = CvBridge
    monkeypatch.setitem(sys.modules, "cv_bridge", module)
    to_picture(message("bgr8", noise(8, 8, 3), 8, 8))
    assert asked == []
    picture = to_picture(message("vendor42", noise(8, 8, 3), 8, 8))
    assert asked == [("vendor42", "bgr8")] and (picture.array == 9).all()


def test_same_pixels_as_cv_bridge():
    bridge_module = pytest.importorskip(
        "cv_bridge", reason="cv_bridge comes with a ROS install only"
    )
    bridge = bridge_module.CvBridge()
    for encoding, (channels, dtype, _) in INTERLEAVED.items():
        msg = message(encoding, noise(12, 10, channels, dtype=dtype), 12, 10, pad=6)
        if encoding[:2] != "8U":
            np.testing.assert_array_equal(
                to_picture(msg).bgr(), bridge.imgmsg_to_cv2(msg, desired_encoding="bgr8")
            )


def compressed(picture, extension, text):
    ok, data = cv2.imencode(extension, picture)
    assert ok
    return CompressedImage(format=text, data=array.array("B", data.tobytes()))


@pytest.mark.parametrize(
    "extension, text",
    [
        (".png", "bgr8; png compressed bgr8"),
        (".png", "rgb8; png compressed bgr8"),
        (".png", "png"),
        (".png", ""),
        (".tiff", "bgr8; tiff compressed bgr8"),
    ],
)
def test_compressed_without_loss(extension, text):
    picture = noise(7, 9, 3)
    decoded = to_picture_compressed(compressed(picture, extension, text))
    np.testing.assert_array_equal(decoded.bgr(), picture)


@pytest.mark.parametrize("text", ["bgr8; jpeg compressed bgr8", "jpeg", "", "png"])
def test_compressed_jpeg_is_recognised_by_its_bytes(text):
    picture = cv2.resize(noise(4, 4, 3), (48, 32), interpolation=cv2.INTER_CUBIC)
    msg = compressed(picture, ".jpg", text)
    expected = cv2.imdecode(np.frombuffer(msg.data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(to_picture_compressed(msg).bgr(), expected)


def test_compressed_mono_16_bit_bayer_and_rgb():
    mono = noise(7, 9)
    np.testing.assert_array_equal(
        to_picture_compressed(compressed(mono, ".png", "mono8; png compressed ")).bgr(), gray(mono)
    )
    deep = noise(7, 9, dtype=np.uint16)
    np.testing.assert_array_equal(
        to_picture_compressed(compressed(deep, ".png", "mono16; png compressed ")).bgr(),
        gray(scaled(deep)),
    )
    mosaic = noise(8, 10)
    np.testing.assert_array_equal(
        to_picture_compressed(
            compressed(mosaic, ".png", "bayer_rggb8; png compressed bayer_rggb8")
        ).bgr(),
        cv2.cvtColor(mosaic, BAYER["bayer_rggb"]),
    )
    for extension, codec in ((".png", "png"), (".tiff", "tiff")):
        msg = compressed(mosaic, extension, f"bayer_rggb8; {codec} compressed ")
        colours = cv2.cvtColor(mosaic, BAYER["bayer_rggb"])
        np.testing.assert_array_equal(to_picture_compressed(msg).bgr(), colours)
    picture = noise(7, 9, 3)
    for order, channels in (("rgb8", picture[..., ::-1]), ("bgr8", picture)):
        msg = compressed(picture, ".tiff", f"{order}; tiff compressed ")
        np.testing.assert_array_equal(to_picture_compressed(msg).bgr(), channels)
    for text in ("rgb8; png compressed rgb8", "png compressed rgb8"):
        swapped = to_picture_compressed(compressed(picture, ".png", text))
        np.testing.assert_array_equal(swapped.bgr(), picture[..., ::-1])


def test_exif_rotation_is_ignored():
    picture = cv2.resize(noise(4, 4, 3), (48, 32), interpolation=cv2.INTER_CUBIC)
    _, data = cv2.imencode(".jpg", picture)
    # An APP1 segment whose only tag is Orientation = 6 (turn by 90 degrees).
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    raw = data.tobytes()
    turned = raw[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + raw[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (48, 32, 3)
    assert to_picture_compressed(CompressedImage(data=turned)).array.shape == (32, 48, 3)


@pytest.mark.parametrize(
    "data, text, reason",
    [
        (b"", "jpeg", "no data"),
        (b"\xff\xd8\xff\xe0rubbish", "jpeg", "broken"),
        (b"hello world", "", "starts with 68656c6c"),
        (b"\x89PNG", "16UC1; compressedDepth png", "depth"),
        (b"\x89PNG", "16UC1; png compressed ", "depth"),
    ],
)
def test_bad_compressed_images_are_refused_by_name(data, text, reason):
    with pytest.raises(ImageError, match=reason):
        to_picture_compressed(CompressedImage(format=text, data=data))


@pytest.mark.parametrize("text", ["tiff", "bayer_rggb8; tiff compressed bayer_rggb8"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_compressed_floating_point_numbers_are_no_picture(kind, text):
    msg = compressed(noise(5, 7, 3).astype(kind), ".tiff", text)
    with pytest.raises(ImageError, match=f"type {np.dtype(kind)}"):
        to_picture_compressed(msg)


def test_truncated_jpeg_never_raises_anything_else():
    _, data = cv2.imencode(".jpg", noise(64, 64, 3))
    raw = data.tobytes()
    for end in range(0, len(raw), 97):
        try:
            assert to_picture_compressed(CompressedImage(data=raw[:end])).array.shape == (64, 64, 3)
        except ImageError:
            pass


def test_to_image_round_trip_and_header():
    picture = noise(6, 8, 3)[:, ::2]  # not contiguous
    header = Header(frame_id="camera_optical_frame")
    msg = to_image(picture, header)
    assert msg.header is header and (msg.height, msg.width, msg.step) == (6, 4, 12)
    np.testing.assert_array_equal(to_picture(msg).bgr(), picture)
    mono = to_image(picture[..., 0], header, "mono8")
    np.testing.assert_array_equal(to_picture(mono).bgr(), gray(picture[..., 0]))


def test_pictures_that_show_nothing():
    """A night with a lamp shows something; what a camera of 12 bits sends as 16 does not."""
    rng = np.random.default_rng(1)
    street = rng.integers(20, 200, (480, 640), np.uint16)
    for samples, words in (
        (street * 257, ""),
        (street * 16, "nearly black.*16 bits"),
        (np.full((480, 640), 40_000, np.uint16), "single colour"),
    ):
        picture = to_picture(message("mono16", samples, 480, 640))
        assert re.match(f".*{words}", said := shows_nothing(picture)) and bool(said) == bool(words)
    night = np.zeros((480, 640, 3), np.uint8)
    assert shows_nothing(Picture(night, "bgr"))
    night[100:160, 200:280] = 255
    assert not shows_nothing(Picture(night, "bgr"))


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_pictures_of_any_size_can_be_judged(height, width):
    lit = np.indices((height, width, 3)).sum(axis=0).astype(np.uint8) | 16
    assert bool(shows_nothing(Picture(lit, "rgb"))) == bool(np.all(lit == lit[0, 0]))
