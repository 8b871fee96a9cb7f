"""Damaged images never crash or hang the decoder: pixels come out, or BadImage."""

import itertools
import warnings

import numpy as np
import pytest
from conftest import encoded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import Config
from pipeline.reading import BadImage, decode


def whole_images():
    """Files of every format and of the modes and options that are read by other code."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(256, size=(40, 50, 3), dtype=np.uint8))
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
def test_damaged_images(count):
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
