"""Cached rows against fresh decodes and hand values, odd files, and when a cache is taken again."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps

from configs import Config
from pipeline import image_cache, shards
from pipeline.image_cache import open_cache
from pipeline.image_index import DataError, read_index
from pipeline.reading import BadImage, decode

SIZE = 16
LOOK = Config(image_size=SIZE)
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


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
    assert isinstance(cache.pixels.maps[0], np.memmap) and cache.unreadable == {}
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
    pixels, _ = decode(encoded(stored, exif=exif), LOOK)
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
    pixels, _ = decode(data, Config(image_size=SIZE, channels=channels))
    assert pixels.shape == (SIZE, SIZE, channels)
    assert np.abs(pixels - LEVELS[..., None] / 257).max() <= 1


def test_jpegs_keep_their_detail(tmp_path):
    wave = 128 + 100 * np.sin(np.arange(64) / 3)  # 3 periods in 64 pixels, 5 pixels each in 16
    image = np.broadcast_to(wave[:, None, None], (64, 64, 3)).astype(np.uint8)
    (tmp_path / "wave.jpg").write_bytes(encoded(image, "JPEG", quality=95))
    pixels, _ = decode((tmp_path / "wave.jpg").read_bytes(), LOOK)
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
    pixels, found = decode(data, LOOK)
    assert np.abs(pixels.astype(int) - colour).max() <= 1
    assert found == (kind or found)
    grey, _ = decode(data, Config(image_size=SIZE, channels=1))
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
        decode(data, LOOK)


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

    monkeypatch.setattr(image_cache, "decode", fail)
    monkeypatch.setattr(image_cache, "_decode_missing", fail)
    second = open_cache(read_index(folder), config)
    assert bytes_below(config.cache_dir) == before and len(before) == 3  # pixels, table, lock
    assert second.folder == first.folder and second.kinds == first.kinds
    np.testing.assert_array_equal(second.pixels, first.pixels)
    np.testing.assert_array_equal(second.digests, first.digests)
    for other in ({"image_size": 8}, {"channels": 1}):
        with pytest.raises(AssertionError, match="decoded again"):
            open_cache(read_index(folder), dataclasses.replace(config, **other))


def check_rows(folder, config):
    """Opens the cache and compares each row; gives the cache and how many files were decoded."""
    index, decoded, real = read_index(folder), [], image_cache.decode

    def decode(*args):
        decoded.append(1)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_cache, "decode", decode)
        cache = open_cache(index, config)
    for row, name in enumerate(index.names):
        if row not in cache.unreadable:
            np.testing.assert_array_equal(cache.pixels[row], fresh(Path(folder) / name))
    content = [(Path(folder) / name).read_bytes() for name in index.names]
    for row, other in itertools.combinations(set(range(len(index))) - set(cache.unreadable), 2):
        assert (cache.digests[row] == cache.digests[other]) == (content[row] == content[other])
    return cache, len(decoded)


def test_only_what_came_or_changed_is_decoded(write_images, config):
    folder = write_images(*(f"{label}/{i}.png" for label in "abc" for i in range(20)))
    assert check_rows(folder, config)[1] == 60
    (folder / "a/1.png").write_bytes(encoded(noise(9, 9, 3)))
    (folder / "b/7.png").unlink()
    (folder / "b/9.png").write_bytes(b"")
    write_images("a/00.png", "d/1.png")
    cache, decoded = check_rows(folder, config)
    assert decoded == 4 and list(cache.unreadable.values()) == ["empty file"]
    assert sum(cache.kinds.values()) == 60 and cache.kinds["9x9 RGB"] == 1
    assert check_rows(folder, config)[1] == 0


def test_a_changed_zip_is_read_again(write_images, config, tmp_path):
    folder = write_images("a/1.png", "b/1.png")
    caches = []
    for _ in range(2):
        index = read_index(shutil.make_archive(tmp_path / "archive", "zip", folder))
        caches.append(open_cache(index, config))
        np.testing.assert_array_equal(caches[-1].pixels[0], fresh(folder / "a/1.png"))
        (folder / "a/1.png").write_bytes(encoded(noise(9, 9, 3)))
    assert (caches[0].pixels[0] != caches[1].pixels[0]).any()


CHILD = """
import os, signal, sys, time
from pipeline import image_cache, shards
from configs import Config
from pipeline.image_index import read_index
real, calls = image_cache.decode, []
def decode(*args):
    calls.append(1)
    while len(calls) > 2 and os.path.exists({hold!r}):
        time.sleep(0.01)
    if len(calls) == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
image_cache.decode = decode
image_cache.CHUNK = {part}
shards.SHARD_BYTES = 1
image_cache.open_cache(read_index({folder!r}), Config(cache_dir={cache_dir!r}, image_size={size}))
print(len(calls))
"""


def start(folder, config, kill_at=0, hold="", part=1):
    """Another process that prepares the folder, and ends by printing how much it decoded.

    It stops after two files while there is a file `hold`, and kills itself at the one `kill_at`.
    """
    names = dict(folder=str(folder), cache_dir=config.cache_dir, size=config.image_size)
    code = CHILD.format(kill_at=kill_at, hold=str(hold), part=part, **names)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes)


ROOT = Path(image_cache.__file__).parents[1]


@pytest.mark.parametrize(
    "kind, damage",
    [("rows", d) for d in (None, "cut", "zeros", "gone")] + [("pixels", "cut"), ("pixels", "gone")],
)
def test_a_killed_build_is_continued(kind, damage, write_images, config):
    folder = write_images(*(f"a/{i}.png" for i in range(6)), "b/1.png")
    child = start(folder, config, kill_at=4)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    tables = [p for p in Path(config.cache_dir).glob("*/*.rows") if p.stat().st_size]
    assert len(tables) in (2, 3)  # shards of one image; the last one may not be written yet
    files, missing = [path.with_suffix(f".{kind}") for path in tables], 7 - len(tables)
    if damage == "gone":
        files[0].unlink()
    elif damage == "cut":
        files[0].write_bytes(files[0].read_bytes()[:-9])
    elif damage == "zeros":
        files[0].write_bytes(bytes(files[0].stat().st_size))
    decoded = check_rows(folder, config)[1]
    assert decoded == (missing + 1 if damage else missing)
    assert check_rows(folder, config)[1] == 0


@pytest.mark.parametrize("killed", [False, True])
def test_two_at_once_share_one_cache(killed, write_images, config, tmp_path):
    folder, hold = write_images(*(f"a/{i}.png" for i in range(9)), "b/1.png"), tmp_path / "hold"
    hold.touch()
    first = start(folder, config, kill_at=5 if killed else 0, hold=hold)
    wait_for_rows(config.cache_dir)
    second = start(folder, config)
    said = second.stderr.readline()
    hold.unlink()
    assert said.startswith(f"Waiting for process {first.pid} on {socket.gethostname()}, which")
    decoded = [child.communicate()[0].strip() for child in (first, second)]
    # A lock falls with its owner; the last shard may not be written yet.
    assert decoded in ([["", "6"], ["", "7"]] if killed else [["10", "0"]])
    assert check_rows(folder, config)[1] == 0


def wait_for_rows(cache_dir):
    """Until a build there is in the midst of it."""
    while not list(Path(cache_dir).glob("*/*.rows")):
        time.sleep(0.01)


def test_whoever_waits_too_long_is_told_for_whom(write_images, config, monkeypatch, capsys):
    monkeypatch.setattr(image_cache, "LOCK_SECONDS", 0.1)
    index = read_index(write_images("a/1.png"))
    cache = open_cache(index, config).folder
    shutil.rmtree(cache)
    with (
        image_cache.one_at_a_time(cache),
        pytest.raises(DataError, match="lock.*could not be acquired"),
    ):
        open_cache(index, config)
    assert f"Waiting for process {os.getpid()}" in capsys.readouterr().err


def left_in(config):
    """Bytes that a build that failed leaves behind, but for the lock."""
    files = [path for path in Path(config.cache_dir).rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if path.suffix != ".lock")


def test_a_full_disk_is_told_and_leaves_nothing(write_images, config, monkeypatch):
    index = read_index(write_images("a/1.png", "b/1.png"))

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(DataError, match="cannot be written: No space left.*cache_dir"):
            open_cache(index, config)
    assert left_in(config) == 0
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(DataError, match="needed, 0 MB free.*another cache_dir"):
            open_cache(index, config)
    assert left_in(config) == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_fills_up(write_images, config, tmp_path):
    """A real one: the free space is gone after it was looked at."""
    folder = write_images(*(f"a/{i}.png" for i in range(300)))
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        small = dataclasses.replace(config, cache_dir=str(disk / "cache"))
        (tmp_path / "hold").touch()
        child = start(folder, small, hold=tmp_path / "hold")
        wait_for_rows(small.cache_dir)
        with open(disk / "fill", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        (tmp_path / "hold").unlink()
        _, said = child.communicate()
        assert child.returncode == 1 and "DataError" in said and "No space left" in said
        assert left_in(small) == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_cache_dir_that_cannot_be(write_images, config, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match="cannot be written: .*(exists|Not a directory).*"):
            open_cache(
                read_index(write_images("a/1.png")),
                dataclasses.replace(config, cache_dir=str(path)),
            )


def test_the_data_folder_stays_as_it_is(write_images, config):
    folder = write_images("a/1.png", "b/1.png")
    before = bytes_below(folder)
    open_cache(read_index(folder), config)
    assert bytes_below(folder) == before


def test_a_folder_that_vanishes(write_images, config, monkeypatch):
    folder = write_images(*(f"a/{i}.png" for i in range(9)))
    index, real = read_index(folder), image_cache.decode

    def decode(*args):
        if folder.exists():
            folder.rename(folder.with_name("away"))
        return real(*args)

    monkeypatch.setattr(image_cache, "decode", decode)
    with pytest.raises(DataError, match="vanished while its images were read"):
        open_cache(index, config)
    folder.with_name("away").rename(folder)
    monkeypatch.setattr(image_cache, "decode", real)
    assert open_cache(index, config).unreadable == {}


def test_what_the_disk_refused_is_read_again(write_images, config, monkeypatch):
    folder = write_images("a/1.png", "a/2.png", "b/1.png")
    (folder / "a/3.png").write_text("no image")
    index, real = read_index(folder), image_cache.read_bytes

    def read_bytes(source, name):
        if name == "a/2.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(source, name)

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "read_bytes", read_bytes)
        assert open_cache(index, config).unreadable == {1: "Permission denied", 2: "not an image"}
    cache, decoded = check_rows(folder, config)
    assert cache.unreadable == {2: "not an image"} and decoded == 1


def test_an_interrupted_build_is_continued(write_images, config, monkeypatch):
    folder = write_images("a/1.png", "a/2.png", "b/1.png")
    monkeypatch.setattr(image_cache, "CHUNK", 1)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    with monkeypatch.context() as patch:
        calls, real = [], image_cache.decode

        def interrupt(*args):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt  # it comes out where the main thread waits for this one
            return real(*args)

        patch.setattr(image_cache, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_cache(read_index(folder), config)
    assert check_rows(folder, config)[1] == 1


def test_real_photographs(real_data, tmp_path, config):
    paths = [*sorted(real_data.glob("dogs/*/*.jpg"))[::30], *real_data.glob("att_faces/s1/*.pgm")]
    paths += sorted(real_data.glob("plantvillage/*/*.jpg"))[::60]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f'"{p}",x\n' for p in paths))
    cache = open_cache(read_index(tmp_path / "list.csv"), config)
    for row, path in enumerate(paths):  # JPEGs are decoded at a half or a quarter: nearly the same
        difference = np.abs(cache.pixels[row] - fresh(path))
        assert difference.max() <= (0 if path.suffix == ".pgm" else 15) and difference.mean() < 2.5
