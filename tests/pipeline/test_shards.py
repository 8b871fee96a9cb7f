"""The cache in shards, on the disk and far away, and training that reads it in sequence."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from configs import CONFIGS, Config
from pipeline import batches, image_cache, shards
from pipeline.batches import ClassBatches, PairBatches
from pipeline.image_cache import open_cache
from pipeline.image_index import DataError, read_index

SIZE = 8
ROOT = Path(shards.__file__).parents[1]


@pytest.fixture
def small(monkeypatch):
    """Shards of ten images."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 10 * SIZE * SIZE * 3)


@pytest.fixture(params=["disk", "far disk", "memory"])
def config(request, tmp_path):
    """A config whose cache lies on the disk, on the disk as if it were far, or in memory."""
    places = {"disk": f"{tmp_path}/cache", "far disk": f"file://{tmp_path}/cache"}
    yield Config(cache_dir=places.get(request.param, "memory://cache"), image_size=SIZE)
    fsspec.filesystem("memory").store.clear()


def draw(folder, *names):
    """Images of noise, each as a file tells its own number."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([*str(name).encode()]).integers(256, size=(SIZE, SIZE, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def names(classes, images):
    return [f"c{c:02}/{i:02}.png" for c in range(classes) for i in range(images)]


def expected(folder, index):
    return np.stack([np.asarray(Image.open(Path(folder, name))) for name in index.names])


def test_rows_are_those_of_the_files(small, config, tmp_path):
    folder = draw(tmp_path / "images", *names(7, 5))
    index = read_index(folder)
    cache, images = open_cache(index, config), expected(folder, index)
    assert len(cache.pixels.files) == 4
    some = [3, 3, 34, 0]
    for what in (
        some,
        np.array(some),
        slice(5, 30, 4),
        slice(None),
        7,
        -1,
        images[:, 0, 0, 0] > 99,
    ):
        np.testing.assert_array_equal(cache.pixels[what], images[what])
    np.testing.assert_array_equal(np.asarray(cache.pixels), images)
    assert len(cache.pixels) == 35 and cache.pixels.shape == images.shape
    if cache.pixels.folder.is_far:
        cache.pixels.hold([1, 2])
        np.testing.assert_array_equal(cache.pixels[:], images)


def decoded(index, config, monkeypatch):
    """Opens a cache; gives it and how many files were decoded for it."""
    calls, real = itertools.count(), image_cache.decode
    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "decode", lambda *args: (next(calls), real(*args))[1])
        return open_cache(index, config), next(calls)


def test_what_is_added_makes_a_shard_and_touches_no_other(small, config, tmp_path, monkeypatch):
    folder = draw(tmp_path / "images", *names(9, 5))
    before = decoded(read_index(folder), config, monkeypatch)
    assert before[1] == 45
    files = {path: before[0].pixels.folder.fs.modified(path) for path in before[0].pixels.files}
    draw(folder, "c03/new.png", "c77/1.png", "c77/2.png")
    index = read_index(folder)
    cache, count = decoded(index, config, monkeypatch)
    assert count == 3 and len(cache.pixels.files) == len(files) + 1
    assert {path: cache.pixels.folder.fs.modified(path) for path in files} == files
    np.testing.assert_array_equal(cache.pixels[:], expected(folder, index))


def test_what_is_gone_takes_no_room_for_long(small, config, tmp_path, monkeypatch):
    folder = draw(tmp_path / "images", *names(8, 10))
    open_cache(read_index(folder), config)
    for name in names(5, 10):
        Path(folder, name).unlink()
    draw(folder, "d/1.png")  # so that there is something to write
    index = read_index(folder)
    cache, count = decoded(index, config, monkeypatch)
    assert len(cache.pixels.files) <= 5 and count <= 16
    np.testing.assert_array_equal(cache.pixels[:], expected(folder, index))


def test_many_small_additions_are_merged(small, config, tmp_path, monkeypatch):
    folder, most = draw(tmp_path / "images", *names(2, 10)), 0
    for addition in range(25):
        draw(folder, f"c00/new{addition:02}.png")
        cache, _ = decoded(read_index(folder), config, monkeypatch)
        most = max(most, len(cache.pixels.files))
    assert most <= 2 + shards.MOST_SMALL + 2 + 1
    np.testing.assert_array_equal(cache.pixels[:], expected(folder, read_index(folder)))


def test_images_of_a_class_lie_in_runs_and_runs_in_any_order(small, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "RUN", 5)
    folder = draw(tmp_path / "images", *names(4, 12))
    index = read_index(folder)
    cache = open_cache(index, Config(cache_dir=str(tmp_path / "cache"), image_size=SIZE))
    order = image_cache._in_runs(np.arange(len(index)), index)
    assert sorted(order) == list(range(48))
    lengths = [len(list(run)) for _, run in itertools.groupby(index.labels[order])]
    assert min(lengths) == 2 and len(lengths) > 6
    together = [np.unique(index.labels[cache.pixels.shards == n]).size for n in range(5)]
    assert np.mean(together) >= 2


FAR = {"image_size": SIZE, "classes_per_batch": 2, "images_per_class": 3, "pairs_per_batch": 4}


@pytest.fixture
def far(small, tmp_path, monkeypatch):
    """`(index, pixels)` of 20 classes in 20 far shards."""
    monkeypatch.setattr(batches, "WINDOW", 3)
    monkeypatch.setattr(image_cache, "RUN", 5)
    folder = draw(tmp_path / "images", *names(20, 10))
    index = read_index(folder)
    place = Config(cache_dir=f"file://{tmp_path}/cache", image_size=SIZE)
    return index, open_cache(index, place).pixels


@pytest.mark.parametrize("kind", [ClassBatches, PairBatches])
def test_far_batches_come_from_a_few_shards_at_a_time(kind, far, monkeypatch):
    index, pixels = far
    rows = np.flatnonzero(np.arange(len(index)) % 10 < 9)
    made = kind(index, pixels, rows, dataclasses.replace(CONFIGS["leaves"], **FAR))
    read, real = [], pixels._read
    monkeypatch.setattr(pixels, "_read", lambda shard: (read.append(shard), real(shard))[1])
    monkeypatch.setattr(pixels.folder.fs, "cat_ranges", None)  # nothing image by image
    images_seen, most = set(), 0
    steps = 2 * len(rows) // made.images_per_step
    for step in range(steps):
        drawn = made.rows(step)
        drawn = drawn if kind is ClassBatches else np.concatenate(drawn[:2])
        assert np.isin(drawn, rows).all()
        most = max(most, len(np.unique(pixels.shards[drawn])))
        images_seen |= set(drawn.tolist())
        made[step]
    assert most <= batches.WINDOW and len(images_seen) > 0.6 * len(rows)
    assert len(read) <= 2 * 20 + batches.WINDOW + batches.COMING + 2  # each once a round
    again = kind(index, pixels, rows, made.config)  # a step on its own, as after continuing
    np.testing.assert_array_equal(again.rows(steps - 1)[0], made.rows(steps - 1)[0])
    assert " of 180 images" in made.window.describe() and " of 20 classes" in made.window.describe()


def test_a_window_grows_until_a_batch_can_be_drawn(far):
    index, pixels = far
    config = dataclasses.replace(CONFIGS["leaves"], **FAR | {"classes_per_batch": 18})
    made = ClassBatches(index, pixels, np.arange(len(index)), config)
    assert all(len(np.unique(index.labels[made.rows(step)])) == 18 for step in range(40))


def test_training_and_evaluation_from_afar(tmp_path):
    folder = draw(tmp_path / "images", *names(6, 12))
    fields = {"data_dir": folder, "cache_dir": f"file://{tmp_path}/far", "runs_dir": tmp_path}
    fields |= {"run_name": "run", "epochs": 2, "steps_per_epoch": 2, **FAR}
    words = [str(word) for name, value in fields.items() for word in (f"--{name}", value)]
    for command in (["train.py", "leaves", *words], ["evaluate.py", tmp_path / "run"]):
        done = subprocess.run(
            [sys.executable, ROOT / command[0], *command[1:]],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = "The cache is read shard by shard" in done.stdout
        assert said == (command[0] == "train.py")
    assert (tmp_path / "run/metrics.json").exists()


@pytest.mark.parametrize("url", ["nowhere://a/b", "s3://bucket/cache"])
def test_a_place_that_cannot_be_reached_is_told(url, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    index = read_index(draw(tmp_path / "images", "a/1.png"))
    with pytest.raises(DataError, match=f"cache_dir '{url}' cannot be reached: .*(known|s3fs)"):
        open_cache(index, Config(cache_dir=url, image_size=SIZE))


def test_more_shards_than_a_process_may_open_files(tmp_path):
    resource = pytest.importorskip("resource")
    if 0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 500:
        pytest.skip("this system allows fewer than 500 open files")
    program = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
