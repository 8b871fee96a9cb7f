"""What the tests share: small image folders, indexes without files, the way to real photographs."""

import os
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


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A folder with `images`, 8 classes of 14, and a run trained on them, `runs/run`: to copy."""
    import train

    folder, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    for label in range(8):  # noise about a colour each
        color = 75 + 100 * np.array([label & 1, label >> 1 & 1, label >> 2])
        (folder / f"images/class{label}").mkdir(parents=True)
        for number in range(14):
            pixels = (color + rng.normal(0, 40, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"images/class{label}/{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.main(["leaves", "--data_dir", "images", *TINY]) == 0
    return folder
