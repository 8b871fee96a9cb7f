"""Draws diseased and healthy leaves, a folder of 128 x 128 JPEG files per class.

    python data/draw_leaves.py [FOLDER]

The crop fixes outline and veins, the condition what is painted over them. Pose, light,
background, camera and severity never look at the class, so raw pixels tell little. Each image is
a function of (seed, class name, number): asking for more images changes none that were there.
"""

import argparse
import pathlib
import tempfile
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image


class Crop(NamedTuple):
    """How a crop's leaf is built: one blade, or several leaflets alike but for length."""

    width: float  # half-width of a blade at its widest, in blade lengths
    widest: float  # where that is along the midrib, 0 at the stalk and 1 at the tip
    pointed: float  # 0.8 is as blunt as an ellipse, 1.5 tapers at both ends
    veins: int  # side veins on each side; 0: three that run along the blade, as in grasses
    teeth: int = 0  # teeth along each margin
    depth: float = 0.0  # how deep they cut, as a share of the half-width
    heart: float = 0.0  # how far the blade reaches back behind its stalk, in blade lengths
    leaflets: tuple = ((0.0, 0, 1.0),)  # (place on the stalk, angle, length), the top one last


# An angle other than 0 stands for two leaflets, one on either side of the stalk.
FAN = ((0, 122, 0.65), (0, 78, 0.85), (0, 38, 0.97), (0, 0, 1.0))
LOBES = ((0, 104, 0.78), (0, 50, 0.92), (0, 0, 1.0))
THREE = ((0.06, 100, 0.95), (0.06, 0, 1.0))
FEATHER = ((0.12, 72, 0.34), (0.46, 70, 0.42), (0.8, 66, 0.38), (0.9, 0, 0.46))

CROPS = {
    "Apple": Crop(0.31, 0.45, 1.1, veins=7, teeth=20, depth=0.13),
    "Cassava": Crop(0.125, 0.55, 1.3, veins=6, leaflets=FAN),
    "Corn": Crop(0.085, 0.35, 0.4, veins=0),
    "Grape": Crop(0.32, 0.5, 1.5, veins=5, teeth=6, depth=0.25, leaflets=LOBES),
    "Peach": Crop(0.17, 0.45, 1.7, veins=9, teeth=30, depth=0.06),
    "Strawberry": Crop(0.36, 0.64, 1.25, veins=6, teeth=9, depth=0.16, leaflets=THREE),
    "Tomato": Crop(0.29, 0.38, 1.2, veins=4, teeth=4, depth=0.34, leaflets=FEATHER),
    "Yam": Crop(0.43, 0.36, 2.2, veins=5, heart=0.45),
}

# A symptom is blobs around seeds. Where the seeds lie (every pixel outside the leaf is one of
# scorch), how many, how far the blobs reach in image sides, and how heaped the seeds are, 0 evenly
# to 2 in places:
SEEDS = {
    "spots": ("blade", (8, 16), (0.018, 0.032), 0.5),
    "rust": ("blade", (90, 200), (0.007, 0.011), 2),
    "blight": ("margin", (2, 4), (0.1, 0.15), 0.5),
    "mildew": ("blade", (5, 12), (0.06, 0.1), 0.5),
    "mosaic": ("blade", (25, 50), (0.035, 0.055), 0.5),
    "scorch": ("outside", None, (0.02, 0.035), None),
}
# What is painted there in layers: edge in reaches, its sharpness, alpha, RGB.
YELLOW, BROWN, DARK = (0.8, 0.74, 0.24), (0.34, 0.23, 0.17), (0.14, 0.09, 0.06)
WHITE, ORANGE, TAN = (0.9, 0.92, 0.88), (0.8, 0.35, 0.08), (0.52, 0.4, 0.26)
LAYERS = {
    "spots": [(1.9, 1, 0.75, YELLOW), (1.0, 4, 1.0, DARK), (0.4, 4, 0.5, (0.65, 0.57, 0.49))],
    "rust": [(3.0, 0.5, 0.3, YELLOW), (1.0, 3, 1.0, ORANGE)],
    "blight": [(1.2, 5, 0.7, YELLOW), (1, 8, 1, BROWN), (0.7, 8, 0.4, DARK), (0.5, 8, 0.8, BROWN)],
    "mildew": [(2.0, 0.4, 0.2, WHITE), (1.0, 1.5, 0.5, WHITE)],
    "mosaic": [(1.5, 4, 0.4, (0.1, 0.25, 0.08)), (1.0, 4, 0.65, (0.85, 0.85, 0.3))],
    "scorch": [(1.3, 4, 0.8, (0.3, 0.13, 0.09)), (1.0, 4, 1.0, TAN)],
}

# Every crop has a healthy class and four of the six symptoms.
CLASSES = [
    f"{crop}___{condition}"
    for i, crop in enumerate(CROPS)
    for condition in ("healthy", *(name for j, name in enumerate(SEEDS) if (i - j) % 3))
]


def noise(rng, size, cells, stretch=1.0):
    """Smooth noise in 0..1 with `cells` bumps from top to bottom, `cells / stretch` across."""
    grid = rng.random((max(2, round(cells)), max(2, round(cells / stretch))), "float32")
    return np.clip(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def blur(image, radius):
    return cv2.GaussianBlur(image, (0, 0), radius)


def cover(under, alpha, rgb):
    """Paints a colour, or a picture, over another where alpha (size, size) is 1."""
    return under + alpha[..., None] * (np.asarray(rgb, "float32") - under)


def blade_strokes(crop):
    """A blade from 0 to 1: complex points, value for (blade, stalk, veins), width (0: fill)."""
    along = np.linspace(0, 1, 181)
    half = along ** (crop.widest * crop.pointed) * (1 - along) ** ((1 - crop.widest) * crop.pointed)
    half = 1j * crop.width * half / half.max()
    notch = crop.depth * (1 - along * crop.teeth % 1) * (along * crop.teeth >= 1)
    back = 14.9 * crop.heart * along * (1 - along) ** 5  # 14.9 makes `heart` its largest value
    margin = along - back + half * (1 - notch)
    veins = [along + share * half for share in (0.25, 0.5, 0.75)]
    if crop.veins:
        starts = np.linspace(0.02, 0.8, crop.veins)[:, None]
        ends = margin[np.linspace(32, 167, crop.veins).astype(int)][:, None]
        veins = starts + np.array([0, 0.45, 0.9]) * (ends - starts)
    return [
        (np.append(margin, margin[::-1].conj()), (255, 0, 0), 0),
        *((side, (255, 0, 150), 0.006) for vein in veins for side in (vein, vein.conj())),
        (np.linspace(0, 0.97, 12), (255, 0, 255), 0.011),
    ]


def draw_leaf(crop, rng, size):
    """Blade, stalk and veins of one leaf in a pose of its own, (3, size, size) in 0..1."""
    start, end = rng.uniform(-0.3, -0.12), crop.leaflets[-1][0]
    strokes = [(np.linspace(start, end, 12), (0, 255, 0), 0.016)]
    for place, angle, length in crop.leaflets:
        for side in (-angle, angle) if angle else (0,):
            turn = length * np.exp(1j * np.radians(side + rng.normal(0, 4)))
            strokes += [(place + turn * line, *pen) for line, *pen in blade_strokes(crop)]
    bend = 1j * rng.normal(0, 0.2)
    ends = np.concatenate([line * np.exp(bend * line.real) for line, _, _ in strokes[1:]])
    zoom = rng.uniform(0.42, 0.54) * size / np.abs(ends - ends.mean()).max()
    turn, squash = zoom * np.exp(1j * rng.uniform(0, 2 * np.pi, 2)) * (1, rng.uniform(0, 0.08))
    centre = size / 2 * (1 + 1j) + complex(*rng.normal(0, 0.025 * size, 2))
    canvas = np.zeros((size, size, 3), "uint8")
    for line, value, width in strokes:
        line = line * np.exp(bend * line.real) - ends.mean()
        line = centre + turn * line + squash * line.conj()
        line = np.stack([line.real, line.imag], -1) * 16  # cv2 takes sixteenths of a pixel
        line, width = [line.round().astype("int32")], width * size
        if width:
            cv2.polylines(canvas, line, False, value, max(1, round(width)), cv2.LINE_AA, shift=4)
        else:
            cv2.fillPoly(canvas, line, value, cv2.LINE_AA, shift=4)
    return np.moveaxis(canvas.astype("float32") / 255, -1, 0)


def distances(rng, blade, where, count, reach, heaped):
    """Distance of each pixel to the nearest seed, in reaches that vary over the picture."""
    size = len(blade)
    seeds = blade < 0.5
    if where != "outside":
        chance = (blade > 0.6) & ((where == "blade") | (blur(blade, 2) < 0.75))
        chance = np.cumsum(chance * noise(rng, size, 5) ** heaped, dtype="float64")
        seeds = np.zeros((size, size), bool)
        draws = rng.uniform(0, chance[-1], rng.integers(*count))
        seeds.flat[np.searchsorted(chance, draws)] = True
    distance = cv2.distanceTransform((~seeds).astype("uint8"), cv2.DIST_L2, 5)
    return distance / (size * rng.uniform(*reach) * (0.4 + 1.2 * noise(rng, size, 14)))


def paint(leaf, condition, rng):
    """The leaf's own colours, (size, size, 3): green, symptoms, veins, relief."""
    (blade, stalk, veins), size = leaf, leaf.shape[-1]
    green = rng.uniform(0.38, 0.62) * rng.uniform((0.4, 1, 0.25), (0.85, 1, 0.55))
    pale = green + rng.uniform(0.1, 0.4) * (np.array((0.85, 0.9, 0.63)) - green)
    picture = cover(green, 0.3 * noise(rng, size, 10), pale)
    if condition != "healthy":
        distance = distances(rng, blade, *SEEDS[condition])
        rough = blade * (1 - rng.uniform(0, 0.35) * rng.random((size, size), "float32"))
        for edge, sharpness, alpha, rgb in LAYERS[condition]:
            alpha = np.clip(sharpness * (edge - distance), 0, alpha * rng.uniform(0.8, 1))
            picture = cover(picture, alpha * rough, rgb * rng.normal(1, (0.15, 0.1, 0.1)))
    picture = cover(picture, veins * rng.uniform(0.4, 0.8) + stalk, pale)
    down, across = np.gradient(0.8 * noise(rng, size, 14) - blur(veins, 1.2))
    light = rng.uniform(0.5, 1.5) * np.exp(1j * rng.uniform(0, 2 * np.pi))
    return picture * (1 + light.real * across + light.imag * down)[..., None]


def photograph(leaf, picture, rng):
    """Lays the painted leaf on a background, lights it and takes a picture, uint8."""
    shape, size = np.maximum(leaf[0], leaf[1]), leaf.shape[-1]
    ground = rng.uniform(0.3, 0.8) * rng.uniform(0.65, 1, (2, 3))  # two colours, woven or grained
    grain = noise(rng, size, rng.uniform(20, 60), np.exp(rng.uniform(-2.5, 2.5)))
    scene = cover(ground[0], (noise(rng, size, rng.uniform(3, 10)) + grain) / 2, ground[1])
    shadow = np.roll(shape, rng.integers(-6, 7, 2) * size // 128, (0, 1))
    scene = cover(scene, blur(shadow, rng.uniform(1, 4)) * rng.uniform(0.15, 0.45), 0)
    scene = cover(scene, shape, picture)
    scene *= (1 - rng.uniform(0, 0.4) * noise(rng, size, rng.integers(2, 5)))[..., None]
    scene *= rng.uniform(0.85, 1.25) * rng.normal(1, (0.06, 0.03, 0.06))
    scene = np.clip(scene, 0, 1) ** rng.uniform(0.85, 1.2) * 255
    scene = blur(scene, rng.uniform(0.1, 0.6)) + rng.normal(0, rng.uniform(1, 5), scene.shape)
    return np.clip(scene, 0, 255).astype("uint8")


def draw_image(name, number, seed, size):
    """Image `number` of class `name`, (size, size, 3) uint8, the same whenever it is drawn."""
    crop, condition = name.split("___")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    leaf = draw_leaf(CROPS[crop], rng, size)
    return photograph(leaf, paint(leaf, condition, rng), rng)


def draw_leaves(folder, seed=0, images_per_class=60, size=128, report=print):
    """Draws every class into a new `folder`, which appears when all of it is drawn.

    Files are `Crop___condition/0000.jpg` and on, `size` pixels along a side; `report` is called
    with a line now and then. Another seed draws other leaves of the same classes.

    Raises:
        FileExistsError: If there is something at `folder`.
    """
    drawn = (
        (f"{name}/{number:04d}.jpg", draw_image(name, number, seed, size))
        for name in CLASSES
        for number in range(images_per_class)
    )
    write_images(folder, drawn, len(CLASSES) * images_per_class, report)


def write_images(folder, images, total, report=print):
    """Writes `(path, uint8 array)` into a new `folder`, which appears when all are written.

    `report` is called with a line after every tenth of the `total`.

    Raises:
        FileExistsError: If there is something at `folder`.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise FileExistsError(f"'{folder}' is there already. Remove it or name another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        whole = pathlib.Path(scratch, "whole")
        for done, (path, image) in enumerate(images, start=1):
            (whole / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(whole / path, quality=90)  # of a JPEG
            if done % max(1, total // 10) == 0:
                report(f"{done:5d} of {total} images")
        whole.rename(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draws a folder of leaves, a folder per class.")
    parser.add_argument("folder", nargs="?", default="data/leaves", help="default: %(default)s")
    draw_leaves(parser.parse_args().folder)
