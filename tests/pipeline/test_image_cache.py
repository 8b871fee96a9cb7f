"""Cached rows against fresh decodes and hand values, odd files, and when a cache is taken again."""

import dataclasses
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from configs import Config
from pipeline import image_cache, row_store
from pipeline.files import DataError
from pipeline.image_cache import open_cache
from pipeline.image_index import read_index

SIZE = 16


@pytest.fixture
def config(tmp_path):
    return Config(cache_dir=str(tmp_path / "cache"), image_size=SIZE)


def fresh(path):
    """The image as Pillow alone reads it."""
    with Image.open(path) as image:
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def test_what_cannot_be_read_is_skipped_named_and_tried_again(write_images, config):
    folder = write_images("a/1.png", "a/9.png", "b/1.png")
    (folder / "a/text.png").write_text("hello")
    index = read_index(folder)
    (folder / "a/9.png").rename(folder / "away")  # gone since it was indexed
    for _ in range(2):  # the others are decoded, then found
        cache = open_cache(index, config)
        assert list(cache.unreadable) == [1, 2] and not cache.pixels[[1, 2]].any()
        assert "No such file" in cache.unreadable[1] and "not an image" in cache.unreadable[2]
        np.testing.assert_array_equal(cache.pixels[-1], fresh(folder / "b/1.png"))
    (folder / "away").rename(folder / "a/9.png")
    cache, decoded = check_rows(folder, config)
    assert list(cache.unreadable) == [2] and decoded == 2


def check_rows(folder, config):
    """Opens the cache and compares each row; gives the cache and how many files were decoded."""
    index = read_index(folder)
    with mock.patch.object(image_cache, "decode", wraps=image_cache.decode) as decode:
        cache = open_cache(index, config)
    readable = set(range(len(index))) - set(cache.unreadable)
    for row in readable:
        np.testing.assert_array_equal(cache.pixels[row], fresh(folder / index.names[row]))
    content = [(folder / name).read_bytes() for name in index.names]
    for row, other in itertools.combinations(readable, 2):
        assert (cache.digests[row] == cache.digests[other]) == (content[row] == content[other])
    return cache, decode.call_count


def test_only_what_came_or_changed_is_decoded(write_images, config):
    folder = write_images(*(f"{label}/{i}.png" for label in "abc" for i in range(20)))
    shutil.copy(folder / "a/2.png", folder / "c/3.png")
    first, decoded = check_rows(folder, config)
    assert decoded == 60
    files = [path for path in Path(config.cache_dir).rglob("*") if path.is_file()]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    assert check_rows(folder, config)[1] == 0
    assert before == [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    for other in ({"image_size": 8}, {"channels": 1}):
        other = open_cache(read_index(folder), dataclasses.replace(config, **other))
        assert other.folder != first.folder
    Image.new("RGB", (9, 9), "red").save(folder / "a/1.png")
    (folder / "b/7.png").unlink()
    (folder / "b/9.png").write_bytes(b"")
    write_images("a/00.png", "d/1.png")
    cache, decoded = check_rows(folder, config)
    assert decoded == 4 and list(cache.unreadable.values()) == ["empty file"]
    assert sum(cache.kinds.values()) == 60 and cache.kinds["9x9 RGB"] == 1
    assert check_rows(folder, config)[1] == 1  # what cannot be read may be readable now


def test_pixels_are_read_as_an_array(write_images, config):
    folder = write_images(*(f"a/{i}.png" for i in range(9)), "b/1.png", "b/2.png")
    open_cache(read_index(folder), config)
    write_images("a/00.png", "b/0.png")  # rows of the index lie in another order than the pixels
    index = read_index(folder)
    pixels, images = open_cache(index, config).pixels, [fresh(folder / n) for n in index.names]
    images, some = np.stack(images), np.array([3, 3, 12, 0])
    for what in (some.tolist(), some, slice(2, 9, 3), slice(None), 7, -1, images[:, 0, 0, 0] > 99):
        np.testing.assert_array_equal(pixels[what], images[what])
    assert len(pixels) == 13 and pixels.shape == images.shape
    assert isinstance(pixels.map, np.memmap)


CHILD = """
import os, signal, sys, time
from pipeline import image_cache
from configs import Config
from pipeline.image_index import read_index
real, calls = image_cache.decode, []
def decode(*args):
    calls.append(1)
    while len(calls) > 8 and os.path.exists({hold!r}):
        time.sleep(0.01)
    if len(calls) == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
image_cache.decode = decode
image_cache.PART_BYTES = 2 * {size} * {size} * 3
image_cache.open_cache(read_index({folder!r}), Config(cache_dir={cache_dir!r}, image_size={size}))
print(len(calls))
"""


def start(folder, config, kill_at=0, hold=""):
    """Another process that prepares the folder, and ends by printing how much it decoded.

    It stops after eight files while there is a file `hold`, and kills itself at the one `kill_at`.
    """
    names = dict(folder=str(folder), cache_dir=config.cache_dir, size=config.image_size)
    code = CHILD.format(kill_at=kill_at, hold=str(hold), **names)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    root = Path(image_cache.__file__).parents[1]
    return subprocess.Popen([sys.executable, "-c", code], cwd=root, **pipes)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("rows", "none"), ("rows", "zeros"),
     *itertools.product(("values", "rows"), ("cut", "longer", "gone"))],
)  # fmt: skip
def test_a_killed_build_is_continued(name, damage, write_images, config):
    """Whatever is left of it: every row is right, and what is whole is not decoded again."""
    folder = write_images(*(f"a/{i}.png" for i in range(6)), "b/1.png")
    child = start(folder, config, kill_at=5)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    (path,) = Path(config.cache_dir).glob(f"*/{name}")
    content = path.read_bytes()
    whole = path.with_name("rows").stat().st_size // image_cache.DECODED.itemsize
    assert whole in (2, 4)  # the second part may not have been written yet
    changed = {"cut": content[:-9], "longer": content + content[:9], "zeros": bytes(len(content))}
    path.write_bytes(changed.get(damage, content))
    if damage == "gone":
        path.unlink()
    lost = {"cut": 1, "gone": whole, "zeros": whole}.get(damage, 0)
    assert check_rows(folder, config)[1] == 7 - whole + lost
    assert check_rows(folder, config)[1] == 0


@pytest.mark.parametrize("killed", [False, True])
def test_two_at_once_share_one_cache(killed, write_images, config, tmp_path):
    folder, hold = write_images(*(f"a/{i}.png" for i in range(19)), "b/1.png"), tmp_path / "hold"
    hold.touch()
    first = start(folder, config, kill_at=12 if killed else 0, hold=hold)
    while not any(path.stat().st_size for path in Path(config.cache_dir).glob("*/rows")):
        time.sleep(0.01)
    second = start(folder, config)
    assert second.stderr.readline().startswith("Waiting for another process, which prepares '")
    hold.unlink()
    decoded = [child.communicate()[0].strip() for child in (first, second)]
    assert decoded == ["20", "0"] if not killed else 10 <= int(decoded[1]) < 20
    assert check_rows(folder, config)[1] == 0


def test_whoever_waits_too_long_is_told_for_what(write_images, config, monkeypatch):
    monkeypatch.setattr(row_store, "LOCK_SECONDS", 0.1)
    index = read_index(write_images("a/1.png"))
    shutil.rmtree(cache := open_cache(index, config).folder)
    refused = pytest.raises(DataError, match="lock.*could not be acquired")
    with row_store.one_at_a_time(cache), refused:
        open_cache(index, config)


def test_a_cache_that_cannot_be_written(write_images, config, tmp_path):
    index = read_index(write_images("a/1.png", "b/1.png"))

    full, little = OSError(errno.ENOSPC, "No space left on device"), SimpleNamespace(free=1000)
    for patched, sentence in (
        (mock.patch.object(os, "fsync", side_effect=full), "No space left on device"),
        (mock.patch.object(shutil, "disk_usage", return_value=little), ".*needed, 0 MB free"),
    ):
        sentence = f"cannot be written: {sentence}.*another cache_dir"
        with patched, pytest.raises(DataError, match=sentence):
            open_cache(index, config)
    assert open_cache(index, config).unreadable == {}
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match="cannot be written: .*(exists|Not a directory).*"):
            open_cache(index, dataclasses.replace(config, cache_dir=str(path)))


def test_a_folder_that_vanishes(write_images, config):
    folder = write_images(*(f"a/{i}.png" for i in range(9)))
    index, away = read_index(folder), folder.with_name("away")

    def vanish(*args):
        if folder.exists():
            folder.rename(away)
        return mock.DEFAULT

    gone = mock.patch.object(image_cache, "decode", wraps=image_cache.decode, side_effect=vanish)
    with gone, pytest.raises(DataError, match="vanished while its images were read"):
        open_cache(index, config)
    away.rename(folder)
    assert open_cache(index, config).unreadable == {}


def test_numbers_of_twelve_bits_are_read_by_the_range_of_the_set(write_images, config, capsys):
    """One rule for all, settled once, widened when a new image reaches further."""
    values = np.random.default_rng(0).integers(256, size=(SIZE, SIZE), dtype=np.uint8)
    folder = write_images("a/0.png", "b/0.png")
    for number, divisor in enumerate((8, 1)):
        image = Image.fromarray((values // divisor).astype("u2") * 4)  # to 124, to 1020
        image.save(folder / f"a/deep{number}.png")
    image.save(folder / "b/z.pgm")  # which says its largest number itself
    grey = dataclasses.replace(config, channels=1)
    cache = open_cache(read_index(folder), grey)
    assert cache.ranges == {"I;16": [0, 1023]}
    assert "lie in 0..1023" in capsys.readouterr().err
    for row, divisor in ((1, 8), (2, 1)):
        assert np.abs(cache.pixels[row][..., 0] - (values // divisor).astype(float)).max() <= 1
    old, before = cache, cache.pixels[:]
    Image.fromarray(values.astype("u2") * 16).save(folder / "b/deep.png")  # to 4080
    cache = open_cache(read_index(folder), grey)
    assert cache.ranges == {"I;16": [0, 4095]} and cache.pixels[2].max() < 65
    np.testing.assert_array_equal(old.pixels[:], before)  # who reads the old one goes on
    assert open_cache(read_index(folder), grey).ranges == cache.ranges
    forced = open_cache(read_index(folder), grey, {"I;16": [0, 1023]})
    assert forced.pixels[2].max() > 250 and forced.pixels[4].max() == 255
