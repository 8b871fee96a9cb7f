"""Cached rows against fresh decodes and hand values, odd files, and when a cache is taken again."""

import dataclasses
import errno
import hashlib
import io
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps

from configs import Config
from pipeline import image_cache, shards
from pipeline.files import DataError
from pipeline.image_cache import open_cache
from pipeline.image_index import read_index

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
    assert isinstance(cache.pixels.maps[0], np.memmap) and cache.unreadable == {}
    for row, name in enumerate(index.names):
        np.testing.assert_array_equal(cache.pixels[row], fresh(folder / name, channels))
    assert cache.kinds == {"40x23 RGB": 7}
    digests = dict(zip(index.names, cache.digests.tolist(), strict=True))
    assert digests["a/2.png"] == digests["b/0.jpg"] and len(set(digests.values())) == 6


BROKEN = {
    "cut.jpg": (encoded(noise(64, 64, 3), "JPEG")[:-900], "truncated"),
    "zero.jpg": (b"", "empty file"),
    "text.png": (b"hello, this is text", "not an image"),
}


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
        with pytest.raises(DataError, match="4 of 6 images cannot be read. First: 'a/9.png'"):
            open_cache(index, dataclasses.replace(config, on_bad_image="error"))


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
    assert bytes_below(config.cache_dir) == before and len(before) == 4  # pixels, table, lock, tag
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
shards.SHARD_BYTES = 1
image_cache.open_cache(read_index({folder!r}), Config(cache_dir={cache_dir!r}, image_size={size}))
print(len(calls))
"""


def start(folder, config, kill_at=0, hold=""):
    """Another process that prepares the folder, and ends by printing how much it decoded.

    It stops after two files while there is a file `hold`, and kills itself at the one `kill_at`.
    """
    names = dict(folder=str(folder), cache_dir=config.cache_dir, size=config.image_size)
    code = CHILD.format(kill_at=kill_at, hold=str(hold), **names)
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


def test_a_cache_dir_that_cannot_be(write_images, config, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match="cannot be written: .*(exists|Not a directory).*"):
            open_cache(
                read_index(write_images("a/1.png")),
                dataclasses.replace(config, cache_dir=str(path)),
            )


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


def write_numbered(folder, *names):
    """Images of noise, each as its own name decides."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([*name.encode()])
        Image.fromarray(rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def small(monkeypatch):
    """Shards of ten images."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 10 * SIZE * SIZE * 3)


def numbered(classes, images):
    return [f"c{label:02}/{i:02}.png" for label in range(classes) for i in range(images)]


def test_rows_in_many_shards(small, config, tmp_path):
    folder = write_numbered(tmp_path / "images", *numbered(7, 5))
    index = read_index(folder)
    cache = open_cache(index, config)
    images = np.stack([fresh(folder / name) for name in index.names])
    assert len(cache.pixels.maps) == 4
    some = np.array([3, 3, 34, 0])
    for what in (some.tolist(), some, slice(5, 30, 4), slice(None), 7, -1, images[:, 0, 0, 0] > 99):
        np.testing.assert_array_equal(cache.pixels[what], images[what])
    np.testing.assert_array_equal(np.asarray(cache.pixels), images)
    assert len(cache.pixels) == 35 and cache.pixels.shape == images.shape


def test_shards_come_and_go_with_their_images(small, config, tmp_path):
    """What is added makes a shard and touches no other; small and deserted ones are merged."""
    folder, most = write_numbered(tmp_path / "images", *numbered(5, 4)), 0
    assert check_rows(folder, config)[1] == 20
    before = bytes_below(config.cache_dir)
    write_numbered(folder, "c03/new.png", "c77/1.png", "c77/2.png")
    assert check_rows(folder, config)[1] == 3
    after = bytes_below(config.cache_dir)
    assert before.items() <= after.items() and len(after) == len(before) + 2
    for name in numbered(4, 4):
        (folder / name).unlink()
    for addition in range(shards.MOST_SMALL + 4):
        write_numbered(folder, f"c04/more{addition}.png")
        most = max(most, len(check_rows(folder, config)[0].pixels.maps))
    assert most <= shards.MOST_SMALL + 2


def test_more_shards_than_a_process_may_open_files(tmp_path):
    resource = pytest.importorskip("resource")
    if 0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 500:
        pytest.skip("this system allows fewer than 500 open files")
    program = f"""
import resource
import numpy as np
from pipeline.shards import ROW, ShardFolder, Shards
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
folder = ShardFolder({str(tmp_path)!r}, (8, 8, 1))
for stamp in range(1, 151):
    row = np.zeros(1, ROW)
    row["stamp"] = stamp
    folder.write(np.full((1, 8, 8, 1), stamp, np.uint8), row, {{}})
folder.refresh()
*places, _ = folder.find(np.arange(1, 151, dtype=np.uint64))
assert (Shards(folder, *places)[:] == np.arange(1, 151).reshape(-1, 1, 1, 1)).all()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_numbers_of_twelve_bits_are_read_by_the_range_of_the_set(write_images, config, capsys):
    """One rule for all, settled once, widened when a new image reaches further."""
    values = noise(SIZE, SIZE)
    folder = write_images("a/0.png", "b/0.png")
    for number, divisor in enumerate((8, 1)):
        image = Image.fromarray((values // divisor).astype("u2") * 4)  # to 124, to 1020
        image.save(folder / f"a/deep{number}.png")
    grey = dataclasses.replace(config, channels=1)
    cache = open_cache(read_index(folder), grey)
    assert cache.ranges == {"I;16": [0, 1023]}
    assert "lie in 0..1023" in capsys.readouterr().err
    for row, divisor in ((1, 8), (2, 1)):
        assert np.abs(cache.pixels[row][..., 0] - (values // divisor).astype(float)).max() <= 1
    Image.fromarray(values.astype("u2") * 16).save(folder / "b/deep.png")  # to 4080
    cache = open_cache(read_index(folder), grey)
    assert cache.ranges == {"I;16": [0, 4095]} and cache.pixels[2].max() < 65
    assert open_cache(read_index(folder), grey).ranges == cache.ranges
    forced = open_cache(read_index(folder), grey, {"I;16": [0, 1023]})
    assert forced.pixels[2].max() > 250 and forced.pixels[4].max() == 255


def test_a_cache_dir_far_away_is_refused(write_images, config):
    with pytest.raises(DataError, match="must be a folder.*s3://a/b"):
        open_cache(
            read_index(write_images("a/1.png")), dataclasses.replace(config, cache_dir="s3://a/b")
        )
