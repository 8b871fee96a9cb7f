"""Mutated images never crash or hang the decoder: pixels come out, or BadImage.

python tests/pipeline/test_decode_fuzz.py COUNT [SEED]
"""

import io
import itertools
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SECONDS = 5  # of processor time that one file may take
EXTREME = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 20_000, 0x7FFFFFFF, 0xFFFFFFFF)


def seeds():
    """Files of every format and of the modes and options that are read by other code."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(256, size=(40, 50, 3), dtype=np.uint8))
    grey, deep = rgb.convert("L"), Image.fromarray(np.arange(900, dtype="u2").reshape(30, 30) * 70)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"save_all": True, "append_images": [grey.convert("RGB")]}
    options = {  # images, options
        "JPEG": ([rgb, grey, rgb.convert("CMYK")], [{}, {"progressive": True}, {"exif": exif}]),
        "PNG": ([rgb, grey, deep, rgb.convert("RGBA"), rgb.quantize(16), rgb.convert("1")], [{}]),
        "GIF": ([rgb], [{}, more]),
        "TIFF": ([rgb], [{"compression": c} for c in (None, "tiff_lzw", "jpeg", "packbits")]),
        "TIFF ": ([deep, rgb.convert("1"), grey.convert("F")], [{}]),
        "WEBP": ([rgb], [{}, {"lossless": True}, more]),
        "PPM": ([rgb, grey, deep, rgb.convert("1")], [{}]),
        "BMP": ([rgb, grey, rgb.convert("1"), rgb.convert("RGBA")], [{}]),
    }
    files = [b"P2 3 2 255\n1 2 3\n4 5 6\n"]
    for form, (images, extras) in options.items():
        for image, extra in itertools.product(images, extras):
            file = io.BytesIO()
            image.save(file, form.strip(), **extra)
            files.append(file.getvalue())
    return files


def mutate(data, rng):
    """One to four edits: bytes changed, header numbers made extreme, parts cut or doubled."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, kind = rng.integers(len(data) + 1), rng.integers(5)
        if kind == 0:
            for flipped in rng.integers(len(data), size=rng.integers(1, 17)) if data else ():
                data[flipped] = rng.integers(256)
        elif kind == 1:
            width, order = rng.choice([1, 2, 4]), rng.choice(["big", "little"])
            value = int(rng.choice(EXTREME)) % 256 ** int(width)
            at = rng.integers(min(len(data), 100) + 1)
            data[at : at + width] = value.to_bytes(int(width), str(order))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.integers(1, 40)]
        else:
            data[at:at] = data[at // 2 : at // 2 + rng.integers(1, 40)]
    return bytes(data)


def fuzz(count, seed):
    """Decodes mutated files; returns how many gave pixels."""
    from configs import Config
    from pipeline.reading import BadImage, decode

    warnings.simplefilter("ignore")
    files, num_read = seeds(), 0
    for data in files:
        decode(data, Config(image_size=24))
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        data, channels = mutate(files[number % len(files)], rng), int(rng.choice([1, 3]))
        begin = time.process_time()
        try:
            pixels, kind = decode(data, Config(image_size=24, channels=channels))
            assert pixels.shape == (24, 24, channels) and pixels.dtype == np.uint8 and kind
            num_read += 1
        except BadImage as error:
            assert str(error), f"image {number} of seed {seed}: no reason"
        took = time.process_time() - begin
        assert took < SECONDS, f"image {number} of seed {seed} took {took:.1f} s"
    return num_read


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_images(count):
    """In a process of its own, which may crash."""
    command = [sys.executable, "-X", "faulthandler", __file__, str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60 + count)
    assert done.returncode == 0, done.stderr[-2000:]
    assert count / 20 < int(done.stdout) < count * 19 / 20  # both outcomes were met


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
