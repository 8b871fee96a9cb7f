"""Images in rows, with words above them, as one picture: a contact sheet, pairs."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS, MOST_CLASSES, SIDE = 8, 40, 96  # of a contact sheet: images a class, classes, pixels
GAP, LINE, WIDTH = 4, 16, 480  # pixels between images, of a line of words, of a sheet at least


def draw_rows(rows, side=160):
    """Draws rows of images.

    Args:
        rows: A `(title, color, images)` each: words above the row, and images as uint8 arrays
            (height, width, channels) with a caption each. Empty words take no room.
        side: Pixels of the longer side of an image.

    Returns:
        A `PIL.Image`.
    """
    import matplotlib  # late: it takes a while

    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")  # letters beyond ASCII
    font = ImageFont.truetype(str(path), 12)
    lines = [(bool(title), any(words for _, words in images)) for title, _, images in rows]
    width = GAP + (side + GAP) * max(len(images) for *_, images in rows)
    height = GAP + sum(side + GAP + LINE * sum(line) for line in lines)
    sheet, top = Image.new("RGB", (max(WIDTH, width), height), "white"), GAP
    draw = ImageDraw.Draw(sheet)
    for (title, color, images), (titled, captioned) in zip(rows, lines, strict=True):
        draw.text((GAP, top - 1), printable(title), color, font)
        top += LINE * titled
        for column, (pixels, words) in enumerate(images):
            left = GAP + column * (side + GAP)
            draw.text((left, top - 1), printable(words), "black", font)
            image = Image.fromarray(pixels.squeeze())
            size = [max(1, round(each * side / max(image.size))) for each in image.size]
            sheet.paste(image.resize(size), (left, top + LINE * captioned))
        top += LINE * captioned + side + GAP
    return sheet


def contact_sheet(dataset):
    """A picture of some images of each class of a `Dataset`, a class a line."""
    index, rows = dataset.index, []
    usable = np.setdiff1d(np.arange(len(index)), list(dataset.splits.left_out))
    for label in np.unique(index.labels[usable])[:MOST_CLASSES]:
        own = usable[index.labels[usable] == label]
        some = own[np.unique(np.linspace(0, len(own) - 1, COLUMNS).astype(int))]
        images = [(dataset.pixels[row], "forged" * int(index.forged[row])) for row in some]
        rows.append((f"{index.class_names[label]}  ({len(own)})", "black", images))
    return draw_rows(rows, SIDE)


def printable(text):
    """A line in which no file name can break lines or move the cursor."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
