"""What the tests share: small image folders, indexes without files, the way to real photographs."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_index import ImageIndex


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

    def build(labels, groups=None, families=None, **others):
        labels = np.array(labels)
        families = np.zeros(labels.max() + 1, int) if families is None else np.array(families)
        return ImageIndex(
            source=Path("nowhere"),
            names=[f"{label}/{row}.png" for row, label in enumerate(labels)],
            stamps=[(0, 0)] * len(labels),
            labels=labels,
            class_names=[f"class{label}" for label in range(labels.max() + 1)],
            class_families=families,
            family_names=[f"family{family}" for family in range(families.max() + 1)],
            groups=np.arange(len(labels)) if groups is None else np.array(groups),
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
