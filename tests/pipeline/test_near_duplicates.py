"""Copies of pictures are found however they were saved; other pictures are not."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.near_duplicates import find_near_duplicates, near_duplicates, thumbnails

CHANGES = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "cropped": lambda image: image.crop((5, 4, image.width - 5, image.height - 4)),
}


@pytest.fixture(scope="module")
def pictures():
    """Smooth random pictures of 200 x 160, unlike each other."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 200, size=(60, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((200, 160), Image.Resampling.BICUBIC) for one in coarse]


def pixels(images):
    return np.stack([np.asarray(image.resize((64, 64))) for image in images])


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_and_nothing_else(change, pictures):
    copies = [CHANGES[change](picture) for picture in pictures]
    links = find_near_duplicates(thumbnails(pixels([*pictures, *copies])))
    assert links.tolist() == [[row, row + 60] for row in range(60)]


def test_plain_pictures_are_not_copies_of_each_other():
    plain = np.full((10, 64, 64, 1), 200, np.uint8)
    plain[:, 0, 0] = np.arange(10)[:, None]
    assert len(find_near_duplicates(thumbnails(plain))) == 0


def test_what_was_found_is_kept_whole_or_not_at_all(pictures, tmp_path, monkeypatch):
    rows = np.zeros(120, [("stamp", "u8")])
    cache = SimpleNamespace(rows=rows, folder=tmp_path, pixels=pixels([*pictures, *pictures]))

    def fill(path, links):
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fill)
        assert len(near_duplicates(cache)) == 60
    assert len(near_duplicates(cache)) == 60
    cache.pixels = None  # the second time it is not needed
    assert len(near_duplicates(cache)) == 60


def test_leaves_are_not_joined_for_being_leaves(real_data):
    files = sorted(real_data.glob("plantvillage/*/*"))[::4]
    images = [Image.open(file).convert("RGB") for file in files]
    links = find_near_duplicates(thumbnails(pixels(images)))
    assert len(links) <= 1
