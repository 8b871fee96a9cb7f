"""Cached rows against fresh decodes and hand values, odd files, and when a cache is taken again."""

import dataclasses
import hashlib
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import image_cache
from configs import Config
from image_cache import BadImage, decode, open_cache
from image_index import DataError, read_index

SIZE = 16


@pytest.fixture
def config(tmp_path):
    return Config(cache_dir=str(tmp_path / "cache"), image_size=SIZE)


def noise(*shape):
    return np.random.default_rng(len(shape)).integers(256, size=shape, dtype=np.uint8)


def encoded(image, form="PNG", **options):
    """An array or a PIL image as the bytes of a file."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, form, **options)
    return file.getvalue()


def fresh(path, channels=3):
    """The image as Pillow alone reads it."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
        small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return small.reshape(SIZE, SIZE, channels).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_equal_fresh_decodes(channels, write_images, config):
    names = ["a/1.png", "a/2.png", "b/1.bmp", "b/2.tiff", "b/3.ppm", "b/4.webp"]
    folder = write_images(*names, size=(40, 23))
    shutil.copy(folder / "a/2.png", folder / "b/0.jpg")  # what a file is called does not count
    index = read_index(folder)
    cache = open_cache(index, dataclasses.replace(config, channels=channels))
    assert cache.pixels.shape == (7, SIZE, SIZE, channels) and cache.pixels.dtype == np.uint8
    assert isinstance(cache.pixels, np.memmap) and cache.unreadable == {}
    for row, name in enumerate(index.names):
        np.testing.assert_array_equal(cache.pixels[row], fresh(folder / name, channels))
    assert cache.kinds == {"40x23 RGB": 7}
    digests = dict(zip(index.names, cache.digests.tolist(), strict=True))
    assert digests["a/2.png"] == digests["b/0.jpg"] and len(set(digests.values())) == 6


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
def test_photos_stand_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = noise(SIZE, SIZE, 3)
    pixels, _ = decode(encoded(stored, exif=exif), SIZE, 3)
    np.testing.assert_array_equal(pixels, UPRIGHT[orientation](stored))


LEVELS = np.arange(256).reshape(SIZE, SIZE) * 255 + 77  # of 65535: the upper byte is not all


def pgm16(values):
    return b"P5 16 16 65535\n" + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        encoded(LEVELS.astype("u2")),
        encoded(LEVELS.astype("u2"), "TIFF"),
        encoded(LEVELS.astype("i4"), "TIFF"),
        encoded((LEVELS / 257).astype("f4"), "TIFF"),
        encoded((LEVELS / 65535).astype("f4"), "TIFF"),
        pgm16(LEVELS),
        encoded((LEVELS / 257).astype("u1")),
    ],
    ids=["png16", "tiff16", "tiff32", "float", "float to 1", "pgm16", "8 bits"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_grey_keeps_its_levels(data, channels):
    pixels, _ = decode(data, SIZE, channels)
    assert pixels.shape == (SIZE, SIZE, channels)
    assert np.abs(pixels - LEVELS[..., None] / 257).max() <= 1


def test_jpegs_keep_their_detail(tmp_path):
    wave = 128 + 100 * np.sin(np.arange(64) / 3)  # 3 periods in 64 pixels, 5 pixels each in 16
    image = np.broadcast_to(wave[:, None, None], (64, 64, 3)).astype(np.uint8)
    (tmp_path / "wave.jpg").write_bytes(encoded(image, "JPEG", quality=95))
    pixels, _ = decode((tmp_path / "wave.jpg").read_bytes(), SIZE, 3)
    assert np.abs(pixels - fresh(tmp_path / "wave.jpg")).max() < 12


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
        (encoded(flat("L", 77)), (77, 77, 77), "20x12 L"),
        (animation(), (255, 0, 0), None),
        (encoded(Image.new("RGB", (1, 1), (1, 2, 3))), (1, 2, 3), "1x1 RGB"),
        (encoded(Image.new("RGB", (3000, 1), (1, 2, 3))), (1, 2, 3), "3000x1 RGB"),
    ],
    ids="cmyk palette see-through rgba la 1-bit grey gif 1x1 line".split(),
)
def test_flat_colours(data, colour, kind):
    pixels, found = decode(data, SIZE, 3)
    assert np.abs(pixels.astype(int) - colour).max() <= 1
    assert found == (kind or found)
    grey, _ = decode(data, SIZE, 1)
    assert np.abs(grey - np.dot(colour, [0.299, 0.587, 0.114])).max() <= 2


def huge(side):
    """A PNG of a few bytes whose header says side x side."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99))


BROKEN = {
    "cut.jpg": (encoded(noise(64, 64, 3), "JPEG")[:-900], "truncated"),
    "zero.jpg": (b"", "empty file"),
    "text.png": (b"hello, this is text", "not an image"),
    "bomb.png": (huge(20_000), "bomb"),
    "large.png": (huge(10_000), "bomb"),  # Pillow alone would only warn
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_unreadable_files_give_their_reason(name):
    data, reason = BROKEN[name]
    with pytest.raises(BadImage, match=reason):
        decode(data, SIZE, 3)


def test_unreadable_files_are_skipped_or_refused(write_images, config):
    folder = write_images("a/1.png", "a/9.png", "b/1.png")
    for name, (data, _) in BROKEN.items():
        (folder / "a" / name).write_bytes(data)
    index = read_index(folder)
    (folder / "a/9.png").unlink()  # gone since it was indexed
    for _ in range(2):  # decoded, then found
        cache = open_cache(index, config)
        reasons = {index.names[row]: reason for row, reason in cache.unreadable.items()}
        assert set(reasons) == {"a/9.png", *("a/" + name for name in BROKEN)}
        assert all(reason in reasons["a/" + name] for name, (_, reason) in BROKEN.items())
        assert not cache.pixels[list(cache.unreadable)].any()
        np.testing.assert_array_equal(cache.pixels[-1], fresh(folder / "b/1.png"))
        with pytest.raises(DataError, match="6 of 8 images cannot be read. First: 'a/9.png'"):
            open_cache(index, dataclasses.replace(config, on_bad_image="error"))


def test_a_set_without_a_readable_image_is_refused(write_images, config):
    folder = write_images("a/1.png")
    (folder / "a/1.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images cannot be read.*empty file"):
        open_cache(read_index(folder), config)


def bytes_below(folder):
    return {
        path: (hashlib.md5(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def test_a_second_start_decodes_nothing_and_changes_nothing(write_images, config, monkeypatch):
    folder = write_images("a/1.png", "b/1.png")
    first, before = open_cache(read_index(folder), config), bytes_below(config.cache_dir)

    def fail(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(image_cache, "_decode_all", fail)
    second = open_cache(read_index(folder), config)
    assert bytes_below(config.cache_dir) == before and len(before) == 3
    assert second.folder == first.folder and second.kinds == first.kinds
    np.testing.assert_array_equal(second.pixels, first.pixels)
    np.testing.assert_array_equal(second.digests, first.digests)
    for other in ({"image_size": 8}, {"channels": 1}):
        with pytest.raises(AssertionError, match="decoded again"):
            open_cache(read_index(folder), dataclasses.replace(config, **other))


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_changed_added_and_removed_files_make_a_new_cache(form, write_images, config, tmp_path):
    folder = write_images("a/1.png", "b/1.png")

    def open_it():
        source = folder
        if form == "zip":
            source = shutil.make_archive(tmp_path / "archive", "zip", folder)
        index = read_index(source)
        cache = open_cache(index, config)
        for row, name in enumerate(index.names):
            np.testing.assert_array_equal(cache.pixels[row], fresh(folder / name))
        return cache.folder

    folders = [open_it()]
    assert open_it() == folders[0]
    (folder / "a/1.png").write_bytes(encoded(noise(9, 9, 3)))
    folders.append(open_it())
    write_images("b/2.png")
    folders.append(open_it())
    (folder / "b/1.png").unlink()
    folders.append(open_it())
    assert len(set(folders)) == 4


def test_a_killed_build_is_not_taken_for_a_cache(write_images, config):
    folder = write_images("a/1.png", "a/2.png", "b/1.png")
    code = f"""
import os, sys
import image_cache
from configs import Config
from image_index import read_index
real, calls = image_cache.decode, []
def decode(*args):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    return real(*args)
image_cache.decode = decode
config = Config(cache_dir={config.cache_dir!r}, image_size={config.image_size})
image_cache.open_cache(read_index({str(folder)!r}), config)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(image_cache.__file__).parent)
    assert done.returncode == -signal.SIGKILL and os.listdir(config.cache_dir)
    index = read_index(folder)
    cache = open_cache(index, config)
    for row, name in enumerate(index.names):
        np.testing.assert_array_equal(cache.pixels[row], fresh(folder / name))


def test_an_interrupted_build_leaves_nothing(write_images, config, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_cache, "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_cache(read_index(write_images("a/1.png", "b/1.png")), config)
    assert os.listdir(config.cache_dir) == []


def test_processes_decode_the_same_as_one(write_images, config, tmp_path, monkeypatch):
    folder = write_images(*(f"{label}/{i}.png" for label in "ab" for i in range(40)))
    (folder / "a/7.png").write_bytes(b"")
    index = read_index(folder)
    one = open_cache(index, config)
    monkeypatch.setattr(image_cache, "FEW_FILES", 0)
    many = open_cache(index, dataclasses.replace(config, cache_dir=str(tmp_path / "other")))
    np.testing.assert_array_equal(one.pixels, many.pixels)
    np.testing.assert_array_equal(one.digests, many.digests)
    assert many.unreadable == one.unreadable == {index.names.index("a/7.png"): "empty file"}
    assert many.kinds == one.kinds


def test_real_photographs(real_data, tmp_path, config):
    paths = [*sorted(real_data.glob("dogs/*/*.jpg"))[::30], *real_data.glob("att_faces/s1/*.pgm")]
    paths += sorted(real_data.glob("plantvillage/*/*.jpg"))[::60]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f'"{p}",x\n' for p in paths))
    cache = open_cache(read_index(tmp_path / "list.csv"), config)
    for row, path in enumerate(paths):  # JPEGs are decoded at a half or a quarter: nearly the same
        difference = np.abs(cache.pixels[row] - fresh(path))
        assert difference.max() <= (0 if path.suffix == ".pgm" else 15) and difference.mean() < 2.5
