"""Reading against hand values and Pillow alone: orientation, colour, depth, shape, ink, damage."""

import dataclasses
import itertools
import struct
import warnings

import cv2
import numpy as np
import pytest
from conftest import encoded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from configs import Config
from pipeline.reading import BadImage, decode, measure

SIZE = 16
LOOK = Config(image_size=SIZE)
GREY = dataclasses.replace(LOOK, channels=1)


def noise(*shape):
    return np.random.default_rng(len(shape)).integers(256, size=shape, dtype=np.uint8)


UPRIGHT = {  # EXIF orientation -> what must be done to the stored rows, as the standard draws it
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_photos_stand_upright(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = noise(SIZE, SIZE, 3)
    for image in (stored, stored[..., 0].astype("u2") * 257):
        pixels, _ = decode(encoded(image, form, exif=exif), LOOK)
        expected = UPRIGHT[orientation](stored if image.ndim == 3 else stored[..., :1])
        np.testing.assert_array_equal(pixels, np.broadcast_to(expected, pixels.shape))


LEVELS = np.arange(256).reshape(SIZE, SIZE)


def pgm16(values):
    return b"P5 16 16 65535\n" + values.astype(">u2").tobytes()


def deep(values, form, channels=3, *options):
    """A PNG or TIFF of 16 bits, RGB or RGBA, as OpenCV writes it."""
    pixels = np.stack([values] * 3 + [np.full_like(values, 65535)], axis=2).astype("u2")
    return cv2.imencode(form, pixels[..., :channels], options)[1].tobytes()


PLAIN, DEFLATED = ((cv2.IMWRITE_TIFF_COMPRESSION, number) for number in (1, 8))
PLANES = [struct.pack("<HHIHH", 284, 3, 1, number, 0) for number in (1, 2)]  # together, apart


def white_is_zero(values):
    """A grey TIFF of 16 bits that counts from white, as x-ray programs write them."""
    data = encoded((65535 - values).astype("u2"), "TIFF")
    return data.replace(struct.pack("<HHII", 262, 3, 1, 1), struct.pack("<HHII", 262, 3, 1, 0))


DEEP = [(257, 0, "u2"), (16, 0, "u2"), (257, 0, "i4"), (1, 0, "i4"), (100, -9000, "i4")]
DEEP += [(1, 0, "u2"), (1, 0, "f4"), (257, 0, "f4"), (1 / 255, 0, "f4"), (1 / 127.5, -1, "f4")]


@pytest.mark.parametrize(
    "data",
    [
        *(encoded((LEVELS * step + low).astype(kind), "TIFF") for step, low, kind in DEEP),
        *(encoded((LEVELS * step).astype("u2")) for step in (257, 16)),  # 16 and 12 bits
        pgm16(LEVELS * 257),
        white_is_zero(LEVELS * 257),
        deep(LEVELS * 257, ".png"),
        deep(LEVELS * 16, ".png"),
        deep(LEVELS * 16, ".png", 4),
        deep(LEVELS * 257, ".tiff", 3, *PLAIN),
        deep(LEVELS * 16, ".tiff", 3, *PLAIN),
        deep(LEVELS, ".tiff", 3, *DEFLATED),
        encoded(LEVELS.astype("u1")),
    ],
)
@pytest.mark.parametrize("config", [LOOK, GREY])
def test_any_range_of_numbers_keeps_its_levels(data, config):
    pixels, _ = decode(data, config)
    assert pixels.shape == config.image_shape
    assert np.abs(pixels - LEVELS[..., None].astype(float)).max() <= 1
    assert np.array_equal(decode(data, config, measure(data))[0], pixels)


def flat(mode, colour):
    return Image.new(mode, (20, 12), colour)


def palette(transparency=None):
    image = flat("P", 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return encoded(image, **({} if transparency is None else {"transparency": transparency}))


def animation():
    second = flat("RGB", "blue")
    return encoded(flat("RGB", "red"), "GIF", save_all=True, append_images=[second], duration=50)


@pytest.mark.parametrize(
    ("data", "colour", "kind"),
    [
        (encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG"), (255, 0, 0), "20x12 CMYK"),
        (palette(), (10, 200, 30), "20x12 P"),
        (palette(transparency=1), (255, 255, 255), "20x12 P"),
        (encoded(flat("RGBA", (200, 0, 50, 51))), (244, 204, 214), "20x12 RGBA"),  # 51 = 255 / 5
        (encoded(flat("LA", (0, 102))), (153, 153, 153), "20x12 LA"),
        (encoded(flat("1", 1)), (255, 255, 255), "20x12 1"),
        (encoded(flat("RGB", (1, 99, 3)), "AVIF", quality=100), (1, 99, 3), "20x12 RGB"),
        (encoded(flat("RGB", (1, 2, 3)), "JPEG2000"), (1, 2, 3), "20x12 RGB"),
        (animation(), (255, 0, 0), None),
        (encoded(Image.new("RGB", (3000, 1), (1, 2, 3))), (1, 2, 3), "3000x1 RGB"),
    ],
    ids="cmyk palette see-through rgba la 1-bit avif jpeg2000 gif line".split(),
)
def test_flat_colours(data, colour, kind):
    pixels, found = decode(data, LOOK)
    assert np.abs(pixels.astype(int) - colour).max() <= 2
    assert found == (kind or found)
    grey, _ = decode(data, GREY)
    assert np.abs(grey - np.dot(colour, [0.299, 0.587, 0.114])).max() <= 2


def bomb(side):
    """A BMP that says it has side x side pixels."""
    data = encoded(noise(8, 8, 3), "BMP")
    return data[:18] + struct.pack("<ii", side, side) + data[26:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(noise(64, 64, 3), "JPEG")[:-900], "truncated"),
        (b"", "empty file"),
        (b"hello, this is text", "not an image"),
        (bomb(20_000), "bomb"),
        (bomb(10_000), "bomb"),  # Pillow alone would only warn
        (b"\0\0\0\x18ftypheic" + bytes(40), "pip install pillow-heif|not an image"),
        (deep(LEVELS, ".tiff", 3, *PLAIN).replace(*PLANES), "16 bits in separate planes"),
    ],
)
def test_unreadable_files_give_their_reason(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode(data, LOOK)
    with pytest.raises(BadImage, match="truncated|empty|not an|bomb|heif|planes"):
        measure(data)
        raise BadImage("truncated")  # which only decoding sees


@pytest.mark.parametrize("orientation", [1, 6])
def test_padding_keeps_the_shape(orientation):
    """A disc of 300 x 100 on green stays a disc, in the middle, on green; JPEG at a part size."""
    picture = Image.new("RGB", (300, 100), (0, 130, 0))
    ImageDraw.Draw(picture).ellipse((120, 20, 180, 80), "white")
    exif = Image.Exif()
    exif[0x0112] = orientation
    config = Config(image_size="40x60", fit="pad")
    pixels, _ = decode(encoded(picture, "JPEG", quality=95, exif=exif), config)
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels[[0, -1]].astype(int) - (0, 130, 0)).max() < 6
    disc = pixels[..., 0] > 128
    side = 60 / 5 if orientation == 1 else 40 / 5  # a fifth of the long side
    assert np.abs(np.array([disc.any(axis).sum() for axis in (0, 1)]) - side).max() <= 1
    assert np.abs(np.argwhere(disc).mean(axis=0) - (19.5, 29.5)).max() <= 1
    stretched, _ = decode(encoded(picture), Config(image_size="40x60"))
    reference = picture.resize((60, 40), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(stretched, np.asarray(reference))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_ink_does_not_depend_on_paper_and_pen(form):
    def drawing(paper, pen, left):
        picture = Image.new("L", (400, 300), paper)
        ImageDraw.Draw(picture).line([(left, 50), (left + 100, 90), (left + 40, 200)], pen, 5)
        return encoded(picture, form, **({"quality": 95} if form == "JPEG" else {}))

    config = Config(image_size="50x80", channels=1, ink=True, fit="pad")
    drawn = (250, 10, 30), (180, 120, 222), (5, 240, 100)  # the last is white on black
    one, other, inverted = (decode(drawing(*of), config)[0].astype(int) for of in drawn)
    assert np.abs(one - other).mean() < 1 and np.abs(one - inverted).mean() < 1
    rows = np.flatnonzero((one[..., 0] < 128).any(axis=1))
    assert rows[0] <= 1 and rows[-1] >= 48 and one[..., 0].max() == 255  # cut to the ink
    assert (one[:, 0] == 255).all()  # padded with white
    blank = Image.new("L", (40, 30), 90)
    assert (decode(encoded(blank), config)[0] == 255).all()


def test_specks_far_from_the_ink_do_not_change_its_size():
    picture = Image.new("L", (400, 300), 250)
    ImageDraw.Draw(picture).line([(120, 90), (280, 130), (180, 220)], 20, 6)
    config = Config(image_size="50x80", channels=1, ink=True, fit="pad")
    clean, _ = decode(encoded(picture), config)
    for corner in ((1, 1), (396, 2), (200, 296)):
        ImageDraw.Draw(picture).rectangle([*corner, corner[0] + 1, corner[1] + 1], 20)
    specked, _ = decode(encoded(picture), config)
    assert np.abs(specked.astype(int) - clean).mean() < 5


def whole_images():
    """Files of every format and of the modes and options that are read by other code."""
    rgb = Image.fromarray(noise(40, 50, 3))
    grey, deep = rgb.convert("L"), Image.fromarray(np.arange(900, dtype="u2").reshape(30, 30) * 70)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"save_all": True, "append_images": [grey.convert("RGB")]}
    yield b"P2 3 2 255\n1 2 3\n4 5 6\n"
    for form, images, options in (
        ("JPEG", [rgb, grey, rgb.convert("CMYK")], [{}, {"progressive": True}, {"exif": exif}]),
        ("PNG", [rgb, grey, deep, rgb.convert("RGBA"), rgb.quantize(16), rgb.convert("1")], [{}]),
        ("GIF", [rgb], [{}, more]),
        ("TIFF", [rgb], [{"compression": c} for c in ("tiff_lzw", "jpeg", "packbits")]),
        ("TIFF", [rgb, deep, rgb.convert("1"), grey.convert("F")], [{}]),
        ("WEBP", [rgb], [{}, {"lossless": True}, more]),
        ("PPM", [rgb, grey, deep, rgb.convert("1")], [{}]),
        ("BMP", [rgb, grey, rgb.convert("1"), rgb.convert("RGBA")], [{}]),
    ):
        for image, option in itertools.product(images, options):
            yield encoded(image, form, **option)


EXTREME = [bytes(4), b"\1", b"\x7f\xff", b"\x7f\xff\xff\xff", b"\xff" * 4, b"\x4e\x20"]
EDITS = st.tuples(  # where, what is written there, in place of how many bytes
    st.integers(0, 100) | st.integers(0, 6000),
    st.just(b"") | st.sampled_from(EXTREME) | st.binary(min_size=1, max_size=16),
    st.integers(0, 16) | st.just(6000),
)


def damage(data, edits):
    for at, new, count in edits:
        at %= len(data) + 1
        data = data[:at] + new + data[at + count :]
    return data


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_images_never_crash_or_hang(count):
    """Pixels come out, or `BadImage`."""
    warnings.simplefilter("ignore")
    files, outcomes = list(whole_images()), set()
    for data in files:
        decode(data, Config(image_size=24))

    @settings(max_examples=count, deadline=10_000, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(files), st.lists(EDITS, min_size=1, max_size=4), st.sampled_from([1, 3]))
    def check(data, edits, channels):
        try:
            pixels, kind = decode(damage(data, edits), Config(image_size=24, channels=channels))
            assert pixels.shape == (24, 24, channels) and pixels.dtype == np.uint8 and kind
            outcomes.add("read")
        except BadImage as error:
            assert str(error)
            outcomes.add("refused")

    check()
    assert outcomes == {"read", "refused"}
