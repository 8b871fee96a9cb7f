"""Figures show what they were given."""

import numpy as np
import pytest
from PIL import Image

from evaluation import figures


def test_heat_turns_its_part_red():
    pixels = np.full((40, 40, 1), 100, np.uint8)
    heat = np.zeros((4, 4))
    assert figures.overlay(pixels, heat).tolist() == np.full((40, 40, 3), 100).tolist()
    heat[1, 2] = 0.3
    shown = figures.overlay(pixels, heat)
    assert shown[15, 25, 0] > 190 and shown[15, 25, 2] < 60
    assert shown[35, 5].tolist() == [100, 100, 100]


@pytest.mark.parametrize("channels", [1, 3])
def test_training_pairs_are_drawn_with_the_ends_of_their_names(tmp_path, channels):
    pixels = np.zeros((4, 8, 8, channels), np.uint8)
    pixels[1] = 255
    rows = np.array([0, 1, 2, 3]), np.array([1, 0, 3, 2])
    names = ["a very long family of plants___rust", "b"], np.array([0, 0, 1, 1])
    figures.plot_training_pairs(pixels, *rows, np.arange(4) < 2, *names, tmp_path / "pairs.png")
    assert np.asarray(Image.open(tmp_path / "pairs.png")).std() > 10
    assert figures._short(names[0][0]).endswith("plants___rust") and figures._short("b") == "b"
