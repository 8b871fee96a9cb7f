"""Rows of images: where each picture lies, and that words take their place."""

import numpy as np
import pytest

from configs import Config
from pipeline import sheets
from pipeline.sheets import GAP, LINE, draw_rows
from prepare_data import load_data


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


def test_a_contact_sheet_says_which_are_forged(write_images, tmp_path, monkeypatch):
    """CEDAR's forgeries come first by name; both kinds are seen, and told apart."""
    kinds = ("org/original", "forg/forgeries")
    names = [f"full_{k}_{w}_{n:02d}.png" for k in kinds for w in range(4) for n in range(12)]
    folder, drawn = write_images(*names), []
    monkeypatch.setattr(sheets, "draw_rows", lambda rows, side: drawn.extend(rows))
    sheets.contact_sheet(load_data(Config(data_dir=str(folder), cache_dir=str(tmp_path / "c"))))
    assert len(drawn) == 4
    assert [[words for _, words in images] for *_, images in drawn] == [
        ["forged"] * 4 + [""] * 4
    ] * 4
