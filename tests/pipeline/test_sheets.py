"""Rows of images: where each picture lies, and that words take their place."""

import numpy as np
import pytest

from pipeline.sheets import GAP, LINE, draw_rows


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_their_shape_and_order(channels):
    wide = np.full((10, 20, channels), 200, np.uint8)
    dark = np.full((20, 20, channels), 40, np.uint8)
    rows = [("first", "red", [(wide, "a"), (dark, "b")]), ("", "red", [(dark, "")])]
    sheet = np.asarray(draw_rows(rows, side=40))
    assert sheet.shape[0] == 3 * GAP + 2 * 40 + 2 * LINE
    top = GAP + 2 * LINE
    assert (sheet[top : top + 20, GAP : GAP + 40] == 200).all()
    assert (sheet[top + 20 : top + 40, GAP : GAP + 40] == 255).all()  # it is half as high as wide
    assert (sheet[top : top + 40, 2 * GAP + 40 : 2 * GAP + 80] == 40).all()
    assert (sheet[top + 40 + GAP :][:40, GAP : GAP + 40] == 40).all()
    words = sheet[: GAP + LINE]
    assert (words.astype(int) @ [1, -1, 0]).max() > 100 and sheet[GAP + LINE : top].min() < 100
