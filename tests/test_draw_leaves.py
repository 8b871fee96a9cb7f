"""The drawn leaves: the same every time, laid out as promised, whole or absent."""

import draw_leaves
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of two leaves per class, and the lines reported meanwhile."""
    folder, lines = tmp_path_factory.mktemp("drawn") / "leaves", []
    draw_leaves.draw_leaves(folder, seed=3, images_per_class=2, report=lines.append)
    return folder, lines


def read(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_a_seed_gives_the_same_bytes_every_time(drawn, tmp_path):
    first = read(drawn[0])
    draw_leaves.draw_leaves(tmp_path / "again", seed=3, images_per_class=2, report=print)
    assert read(tmp_path / "again") == first
    draw_leaves.draw_leaves(tmp_path / "other", seed=4, images_per_class=1, report=print)
    other = read(tmp_path / "other")
    assert other.keys() < first.keys() and len(other) * 2 == len(first)
    assert all(first[name] != image for name, image in other.items())


def test_layout_and_format(drawn):
    folder, lines = drawn
    names = sorted(path.name for path in folder.iterdir())
    crops, conditions = zip(*(name.split("___") for name in names), strict=True)
    assert (len(names), len(set(crops)), len(set(conditions))) == (40, 8, 7)
    assert all((folder / f"{crop}___healthy").is_dir() for crop in crops)
    for name in names:
        files = sorted((folder / name).iterdir())
        assert [path.name for path in files] == ["0000.jpg", "0001.jpg"]
        for path in files:
            with Image.open(path) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))
    assert lines[-1] == "   80 of 80 images"


def test_pixels_of_the_corners_do_not_tell_the_class():
    corners, labels = [], np.repeat(np.arange(len(draw_leaves.CLASSES)), 12)
    for number, label in enumerate(labels):
        image = draw_leaves.draw_image(draw_leaves.CLASSES[label], number % 12, seed=0, size=64)
        corners.append(image[[0, 0, -1, -1], [0, -1, 0, -1]].ravel().astype("float32"))
    apart = ((np.array(corners)[:, None] - np.array(corners)) ** 2).sum(-1)
    np.fill_diagonal(apart, np.inf)
    right = (labels[apart.argmin(1)] == labels).mean()
    assert right < 2 * 11 / (len(labels) - 1)  # chance: 11 of the others are of the same class


def test_an_interrupted_drawing_leaves_nothing(tmp_path):
    folder = tmp_path / "data" / "leaves"

    def interrupt(line):
        assert not folder.exists()  # what a kill at this moment would leave
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_leaves.draw_leaves(folder, images_per_class=1, report=interrupt)
    assert list(folder.parent.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="Remove it or name another"):
        draw_leaves.draw_leaves(tmp_path, images_per_class=1, report=print)
    assert read(tmp_path) == {"mine.txt": b"mine"}
