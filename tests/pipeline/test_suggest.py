"""What a folder's pictures are decides which config is named."""

import numpy as np
import pytest
from PIL import Image

from pipeline.files import DataError
from pipeline.image_index import read_index
from pipeline.suggest import advice


def write_folder(folder, draw, per_class=4):
    rng = np.random.default_rng(0)
    for number in range(3 * per_class):
        path = folder / f"class{number % 3}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(rng)).save(path)
    return read_index(folder)


def strokes(rng):
    page = np.full((40, 40), 255, np.uint8)
    page[rng.integers(40)] = 0
    return page


def grey_noise(rng):
    return rng.integers(60, 200, (40, 30), dtype=np.uint8)


def colour_noise(rng):
    return rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)


def thing_on_a_table(rng):
    table = np.full((40, 40, 3), (150, 140, 160), np.uint8)
    table[10:30, 10:30] = rng.integers(0, 256, (20, 20, 3))
    return table


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (strokes, "characters"),
        (grey_noise, "faces"),
        (thing_on_a_table, "photographs"),
        (colour_noise, "photographs"),
    ],
)
def test_kind_of_images_decides(draw, name, tmp_path):
    found = advice(write_folder(tmp_path / "my images", draw))
    assert f"python train.py {name} --data_dir '{tmp_path / 'my images'}'" in found


def test_black_pictures_are_no_drawings(tmp_path):
    assert advice(write_folder(tmp_path, lambda rng: np.zeros((40, 40), np.uint8))) == ""


def test_unreadable_images_are_refused_in_a_sentence(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text("no image")
    with pytest.raises(DataError, match="None of the images"):
        advice(read_index(tmp_path))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("plantvillage", "photographs"),
        ("omniglot/images_background.zip", "characters"),
        ("att_faces", "faces"),
        ("dogs", "photographs"),
    ],
)
def test_real_images_get_the_config_made_for_them(real_data, part, name):
    assert f"train.py {name} " in advice(read_index(real_data / part))
