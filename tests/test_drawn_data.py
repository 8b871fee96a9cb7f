"""Drawn leaves and signatures: the same every time, laid out as promised, without shortcuts."""

import draw_leaves
import draw_signatures
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score


def leaves(folder, seed=3, report=print):
    draw_leaves.draw_leaves(folder, seed, images_per_class=1, report=report)
    return folder


def signatures(folder, seed=3):
    draw_signatures.draw_signatures(folder, seed, writers=2, genuine=3, forgeries=2)
    return folder


def read(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


@pytest.mark.parametrize("draw", [leaves, signatures])
def test_a_seed_gives_the_same_bytes_every_time(draw, tmp_path):
    first, again, other = (read(draw(tmp_path / str(n), seed=n // 2)) for n in range(3))
    assert again == first and other.keys() == first.keys()
    assert all(first[name] != image for name, image in other.items())


def test_layout_and_format_of_leaves(tmp_path):
    lines = []
    files = read(leaves(tmp_path / "leaves", report=lines.append))
    assert lines[-1] == "   40 of 40 images"
    names = [name.removesuffix("/0000.jpg") for name in files]
    crops, conditions = zip(*(name.split("___") for name in names), strict=True)
    assert (len({*names}), len({*crops}), len({*conditions})) == (40, 8, 7)
    assert {f"{crop}___healthy" for crop in crops} <= {*names}
    for name in files:
        with Image.open(tmp_path / "leaves" / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))


def test_layout_and_format_of_signatures(tmp_path):
    files = read(signatures(tmp_path / "drawn"))
    names = [f"{writer}{kind}" for writer in ("000", "001") for kind in ("", "_forg")]
    assert sorted({name[:-9] for name in files}) == names and len(files) == 10
    for name in files:
        with Image.open(tmp_path / "drawn" / name) as image:
            assert (image.mode, image.size) == ("L", (400, 240))


def test_pixels_of_the_corners_do_not_tell_the_class():
    corners, labels = [], np.repeat(np.arange(len(draw_leaves.CLASSES)), 12)
    for number, label in enumerate(labels):
        image = draw_leaves.draw_image(draw_leaves.CLASSES[label], number % 12, seed=0, size=64)
        corners.append(image[[0, 0, -1, -1], [0, -1, 0, -1]].ravel().astype("float32"))
    apart = ((np.array(corners)[:, None] - np.array(corners)) ** 2).sum(-1)
    np.fill_diagonal(apart, np.inf)
    right = (labels[apart.argmin(1)] == labels).mean()
    assert right < 2 * 11 / (len(labels) - 1)  # chance: 11 of the others are of the same class


def test_single_numbers_of_a_picture_do_not_tell_a_forgery():
    images, forged = [], []
    for writer in range(20):
        for path, image in draw_signatures.draw_images(writer, 0, genuine=6, forgeries=6):
            images.append(image)
            forged.append("_forg/" in path)
    for number in (np.median, np.mean, lambda image: np.quantile(image, 0.001)):
        auc = roc_auc_score(forged, [number(image) for image in images])
        assert 0.4 < auc < 0.6


def test_an_interrupted_drawing_leaves_nothing(tmp_path):
    folder = tmp_path / "data" / "leaves"

    def interrupt(line):
        assert not folder.exists()  # what a kill at this moment would leave
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leaves(folder, report=interrupt)
    assert list(folder.parent.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="Remove it or name another"):
        leaves(tmp_path)
    assert read(tmp_path) == {"mine.txt": b"mine"}
