"""What the tests share: small image folders, indexes without files, the way to real photographs."""

import io
import os
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.image_index import ImageIndex

TINY = (
    "--sampling classes "
    "--image_size 16 --classes_per_batch 4 --images_per_class 4 --steps_per_epoch 30 --epochs 1 "
    "--embedding_dim 8 --precision float32 --unseen_share 0.25 --run_name run"
).split()


def noise_about_colors(num_classes, per_class, deviation=40, seed=0):
    """`(images, labels)`: uint8 (n, 16, 16, 3), noise about a colour of each of up to 8 classes."""
    labels = np.repeat(np.arange(num_classes), per_class)
    colors = 75 + 100 * (labels[:, None, None, None] >> np.arange(3) & 1)
    noise = np.random.default_rng(seed).normal(0, deviation, (len(labels), 16, 16, 3))
    return (colors + noise).clip(0, 255).astype(np.uint8), labels


def write_colors(folder, num_classes=8, per_class=14, name="class", seed=0):
    """Writes `noise_about_colors` as `class0/0.png` and so on, numbered within their class."""
    drawn = zip(*noise_about_colors(num_classes, per_class, seed=seed), strict=True)
    for row, (image, label) in enumerate(drawn):
        path = folder / f"{name}{label}" / f"{row % per_class}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def encoded(image, form="PNG", **options):
    """An array or a PIL image as the bytes of a file."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, form, **options)
    return file.getvalue()


def write_zip(path, files):
    """Writes a zip of name -> bytes, gives its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def city_block():
    """A distance in the place of a learned one."""

    def distance(left, right):
        assert left.dtype == right.dtype == np.float32 and left.shape == right.shape
        return np.abs(left - right).sum(axis=1)

    return distance


def residual_network(size, embedding_dim):
    """A small network with skip connections, as somebody else would write it."""
    import keras

    pixels = keras.Input((size, size, 3))
    maps = keras.layers.Conv2D(8, 3, 2, "same")(keras.layers.Rescaling(1 / 255)(pixels))
    for _ in range(2):
        inner = keras.layers.BatchNormalization()(maps)
        inner = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inner)
        maps = keras.layers.Add()([maps, inner])
    values = keras.layers.GlobalAveragePooling2D()(maps)
    values = keras.layers.Dense(embedding_dim, name="head")(values)
    return keras.Model(pixels, keras.layers.UnitNormalization()(values), name="residual")


@pytest.fixture
def write_images(tmp_path):
    """`write_images("a/1.png", ...)` writes noise of its own under each name, gives the folder."""

    def write(*names, folder="data", size=(12, 10)):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            Image.fromarray(rng.integers(256, size=(*size[::-1], 3), dtype=np.uint8)).save(path)
        return tmp_path / folder

    return write


@pytest.fixture
def build_index():
    """`build_index(labels, groups=..., families=...)` makes an `ImageIndex` that has no files."""

    def build(labels, groups=None, families=None, forged=None, **others):
        labels = np.array(labels)
        families = np.zeros(labels.max() + 1, int) if families is None else np.array(families)
        return ImageIndex(
            source=Path("nowhere"),
            names=[f"{label}/{row}.png" for row, label in enumerate(labels)],
            stamps=np.arange(1, len(labels) + 1),
            labels=labels,
            class_names=[f"class{label}" for label in range(labels.max() + 1)],
            class_families=families,
            family_names=[f"family{family}" for family in range(families.max() + 1)],
            groups=np.arange(len(labels)) if groups is None else np.array(groups),
            forged=np.zeros(len(labels), bool) if forged is None else forged,
            **others,
        )

    return build


@pytest.fixture
def real_data():
    """The folder of real photographs that SIAMESE_REAL_DATA names; skips where it is not set."""
    folder = os.environ.get("SIAMESE_REAL_DATA")
    if not folder:
        pytest.skip("SIAMESE_REAL_DATA names no folder of real photographs")
    return Path(folder)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium to open a page in")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A folder with `images`, 8 classes of 14, and a run trained on them, `runs/run`: to copy."""
    import train

    folder = tmp_path_factory.mktemp("tiny")
    write_colors(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.main(["leaves", "--data_dir", "images", *TINY]) == 0
    return folder


@pytest.fixture(scope="module")
def place(tiny_run, tmp_path_factory):
    """A copy of `tiny_run` for one file of tests."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("place"), dirs_exist_ok=True)


@pytest.fixture
def here(place, monkeypatch):
    """The same, as current directory."""
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def prepare(tmp_path):
    """`prepare(folder, field=value)` loads a folder with a small cache of its own."""
    from configs import Config
    from prepare_data import load_data

    def load(folder, **fields):
        fields = {"image_size": 16, "cache_dir": str(tmp_path / "cache")} | fields
        return load_data(Config(data_dir=str(folder), **fields))

    return load
