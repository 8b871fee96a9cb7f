"""Rows of images: where each picture lies, and that words take their place."""

import numpy as np
import pytest
from PIL import Image

from pipeline.sheets import GAP, LINE, SIDE, contact_sheet, draw_rows


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


def test_a_contact_sheet_shows_a_class_a_line_and_which_are_forged(write_images, prepare):
    """CEDAR's forgeries come first by name; both kinds are seen, and told apart."""
    kinds = ("org/original", "forg/forgeries")
    names = [f"full_{k}_{w}_{n:02d}.png" for k in kinds for w in range(4) for n in range(12)]
    folder = write_images(*names)
    Image.new("RGB", (20, 20), "red").save(folder / "full_org/original_1_11.png")
    sheet = np.asarray(contact_sheet(prepare(folder)))
    step = SIDE + 2 * LINE + GAP
    assert len(sheet) == 4 * step + GAP
    line = sheet[step + GAP :][:step]  # of the second writer
    last = line[2 * LINE :][:SIDE, GAP + 7 * (SIDE + GAP) :][:, :SIDE]
    assert (last == (255, 0, 0)).all()
    captions = line[LINE:][:LINE, GAP:].min(axis=(0, 2))
    said = [captions[column * (SIDE + GAP) :][:SIDE].min() < 100 for column in range(8)]
    assert said == [True] * 4 + [False] * 4


def test_letters_beyond_ascii_are_drawn():
    """Each unlike the others, and unlike the box that stands for a letter that is not there."""
    names, dot = ["\u0416", "\u00df", "\u03a9", "\U0010fffe"], np.zeros((1, 1, 3), np.uint8)
    sheet = np.asarray(draw_rows([(name, "black", [(dot, "")]) for name in names], side=8))
    titles = {sheet[GAP + line * (8 + GAP + LINE) :][:13, GAP:16].tobytes() for line in range(4)}
    assert len(titles) == 4 and sheet[GAP : GAP + 13].min() < 100
