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
def test_pairs_of_every_kind_or_of_one_only(tmp_path, channels):
    pixels = np.zeros((4, 8, 8, channels), np.uint8)
    pixels[1] = 255
    left, right = np.array([0, 1, 2, 3]), np.array([1, 0, 3, 2])
    same, near = np.array([True, True, False, False]), np.array([0.1, 0.9, 0.2, 0.8])
    for distances in (near, np.where(same, 0.1, 0.9)):
        figures.plot_pairs(pixels, left, right, same, distances, 0.5, tmp_path / "pairs.png")
        assert np.asarray(Image.open(tmp_path / "pairs.png")).std() > 10
