"""Draws diseased and healthy leaves, laid out as the PlantVillage photographs are.

    python data/draw_leaves.py [FOLDER]

One folder per class, `Crop___condition`, 60 JPEG files of 128 x 128 in each. The crop fixes
outline and veins, the condition what is painted over them. Pose, light, background, camera
and severity are drawn anew for every image and never look at the class, so raw pixels tell
little and a network has something to learn. Each image is a function of (seed, class name,
number): asking for more images changes none that were there before.
"""

import argparse
import colorsys
import pathlib
import tempfile
import time
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

OVERSAMPLE = 3  # outlines are drawn this much larger and averaged down, for smooth edges


@dataclass(frozen=True)
class Crop:
    """How a crop's leaf is built: one blade, or several leaflets alike but for length."""

    width: float  # half-width of a blade at its widest, in blade lengths
    widest: float  # where that is along the midrib, 0 at the stalk and 1 at the tip
    pointed: float  # 0.8 is as blunt as an ellipse, 1.5 tapers at both ends
    veins: int  # side veins on each side
    hue: float  # mean green, in degrees; single leaves stray far enough to overlap
    teeth: int = 0  # teeth along each margin
    depth: float = 0.0  # how deep they cut, as a share of the half-width
    heart: float = 0.0  # how far the blade reaches back behind its stalk, in blade lengths
    parallel: bool = False  # veins run along the blade, as in grasses
    leaflets: tuple = ((0.0, 0, 1.0),)  # (place on the stalk, angle in degrees, length)


def pairs(*leaflets):
    """The leaflets given and their mirror images, the first of them alone and on top."""
    rest = [(place, s * angle, length) for place, angle, length in leaflets[1:] for s in (-1, 1)]
    return (*reversed(rest), leaflets[0])


FAN = pairs((0, 0, 1.0), (0, 38, 0.97), (0, 78, 0.85), (0, 122, 0.65))
LOBES = pairs((0, 0, 1.0), (0, 50, 0.92), (0, 104, 0.78))
THREE = pairs((0.06, 0, 1.0), (0, 100, 0.95))
FEATHER = pairs((0.9, 0, 0.46), (0.8, 66, 0.38), (0.46, 70, 0.42), (0.12, 72, 0.34))

CROPS = {
    "Apple": Crop(0.35, 0.45, 1.1, veins=7, hue=100, teeth=22, depth=0.1),
    "Cassava": Crop(0.125, 0.55, 1.3, veins=6, hue=112, leaflets=FAN),
    "Corn": Crop(0.085, 0.35, 0.4, veins=3, hue=86, parallel=True),
    "Grape": Crop(0.38, 0.48, 1.5, veins=5, hue=84, teeth=6, depth=0.2, leaflets=LOBES),
    "Peach": Crop(0.17, 0.45, 1.7, veins=9, hue=104, teeth=30, depth=0.06),
    "Strawberry": Crop(0.4, 0.64, 1.25, veins=6, hue=120, teeth=9, depth=0.16, leaflets=THREE),
    "Tomato": Crop(0.29, 0.38, 1.2, veins=4, hue=104, teeth=4, depth=0.34, leaflets=FEATHER),
    "Yam": Crop(0.43, 0.4, 2.2, veins=5, hue=116, heart=0.36),
}

# Every crop has a healthy class and three of six symptoms; every symptom has four crops.
CONDITIONS = {
    "Apple": ("rust", "mildew", "spots", "mosaic"),
    "Cassava": ("mosaic", "blight", "spots", "mildew"),
    "Corn": ("rust", "blight", "mosaic", "scorch"),
    "Grape": ("blight", "mildew", "scorch", "spots"),
    "Peach": ("spots", "scorch", "rust", "mildew"),
    "Strawberry": ("scorch", "mildew", "rust", "blight"),
    "Tomato": ("mosaic", "blight", "mildew", "rust"),
    "Yam": ("spots", "scorch", "mosaic", "blight"),
}
CLASSES = tuple(
    f"{crop}___{condition}" for crop in CROPS for condition in ("healthy", *CONDITIONS[crop])
)


def colour(hue, saturation, value):
    """An RGB triple in 0..1 from a hue in degrees."""
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value), "float32")


def noise(rng, size, cells, stretch=1.0):
    """Smooth noise in 0..1 with `cells` bumps from top to bottom, `cells / stretch` across."""
    grid = rng.random((max(2, round(cells)), max(2, round(cells / stretch))), "float32")
    image = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), 0, 1)


def blur(mask, radius):
    """A mask in 0..1 blurred by a Gaussian of `radius` pixels."""
    image = Image.fromarray((mask * 255).astype("uint8"))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(radius))), "float32") / 255


def cover(under, alpha, rgb):
    """Paints a colour, or a picture, over another where alpha (size, size) is 1."""
    return under + alpha[..., None] * (rgb - under)


# Outlines. Points are complex numbers and a blade runs from 0 to 1 along the real axis, so
# turning, stretching and placing a leaflet is one multiplication and one addition.


def half_width(crop, along):
    """Half the width of a blade, teeth left out, at `along` in 0..1."""
    rise, fall = crop.widest * crop.pointed, (1 - crop.widest) * crop.pointed
    peak = crop.widest**rise * (1 - crop.widest) ** fall
    return crop.width * along**rise * (1 - along) ** fall / peak


def half_blade(crop):
    """One margin of a blade from stalk to tip, and the side veins that lead to it."""
    along = np.linspace(0, 1, 181)
    notch = crop.depth * (1 - along * crop.teeth % 1) * (along * crop.teeth >= 1)
    back = 14.9 * crop.heart * along * (1 - along) ** 5  # 14.9 makes `heart` its largest value
    margin = along - back + 1j * half_width(crop, along) * (1 - notch)
    if crop.parallel:
        shares = np.arange(1, crop.veins + 1) / (crop.veins + 1)
        return margin, [along + 1j * share * half_width(crop, along) for share in shares]
    starts = np.linspace(0.02, 0.8, crop.veins)[:, None]
    ends = margin[np.linspace(32.4, 167.4, crop.veins).round().astype(int)][:, None]
    return margin, list(starts + 0.9 * np.linspace(0, 1, 6) * (ends - starts))


def build(crop, rng):
    """Blades of one leaf, each (left margin, right margin, midrib, side veins), and its stalk."""
    margin, veins = half_blade(crop)
    stretch, blades = rng.uniform(0.9, 1.1), []
    for origin, angle, length in crop.leaflets:
        turn = length * rng.uniform(0.93, 1.07) * np.exp(1j * np.radians(angle + rng.normal(0, 4)))
        wide = [points.real + 1j * stretch * points.imag for points in (margin, *veins)]
        left, *left_veins = [origin + turn * points for points in wide]
        right, *right_veins = [origin + turn * points.conj() for points in wide]
        midrib = origin + turn * np.linspace(0, 0.97, 12)
        blades.append((left, right, midrib, left_veins + right_veins))
    stalk = np.linspace(rng.uniform(-0.3, -0.12), crop.leaflets[-1][0], 12) + 0j
    return blades, stalk


def pose(points, rng, size):
    """A function from leaf points to pixels that bends, turns, tilts, scales and shifts."""
    bend, turn, tilt = rng.normal(0, 0.2), *rng.uniform(0, 2 * np.pi, 2)
    squash, depth = rng.uniform(0.84, 1), rng.uniform(0, 0.2)
    scale, shift = rng.uniform(0.44, 0.54) * size, complex(*rng.normal(0, 0.025 * size, 2))

    def curve(points):
        return points * np.exp(1j * bend * points.real)

    ends = curve(points)
    centre = (ends.real.min() + ends.real.max() + 1j * (ends.imag.min() + ends.imag.max())) / 2
    radius = np.abs(ends - centre).max()

    def place(points):
        points = (curve(points) - centre) / radius * np.exp(1j * (turn - tilt))
        points = (points.real * squash + 1j * points.imag) / (1 + depth * points.real)
        points = points * np.exp(1j * tilt) * scale + shift + (size + 1j * size) / 2
        return np.stack([points.real, points.imag], -1).ravel().tolist()

    return place


@dataclass
class Leaf:
    """A drawn leaf as masks in 0..1, each (size, size)."""

    blade: np.ndarray
    stalk: np.ndarray
    veins: np.ndarray
    tone: np.ndarray  # about 0.5, less on the side of a blade turned away from the light
    breadth: float  # how wide a blade is, in pixels; the yardstick of the symptoms


def draw_leaf(crop, rng, size):
    """Outline and veins of one leaf in a pose of its own."""
    large = size * OVERSAMPLE
    images = {name: Image.new("L", (large, large)) for name in ("blade", "stalk", "veins", "tone")}
    blade, stem, vein, tone = [ImageDraw.Draw(image) for image in images.values()]
    blades, stalk = build(crop, rng)
    place = pose(np.concatenate([stalk[4:5], *(np.concatenate(b[:2]) for b in blades)]), rng, large)
    stem.line(place(stalk), fill=255, width=round(large * 0.016), joint="curve")
    slope = rng.uniform(-22, 22)
    for left, right, midrib, veins in blades:
        outline = place(np.concatenate([left, right[::-1]]))
        blade.polygon(outline, fill=255)
        vein.polygon(outline, fill=0)
        shade = 128 + rng.uniform(-14, 14)
        tone.polygon(outline, fill=round(shade - slope))
        tone.polygon(place(np.concatenate([left, midrib[::-1]])), fill=round(shade + slope))
        for points in veins:
            vein.line(place(points), fill=210 if crop.parallel else 150, width=round(large * 0.006))
        vein.line(place(midrib), fill=255, width=round(large * 0.011), joint="curve")
        vein.line(place(midrib[:6]), fill=255, width=round(large * 0.016), joint="curve")
    masks = [np.asarray(image.reduce(OVERSAMPLE), "float32") / 255 for image in images.values()]
    edge = np.abs(np.gradient(masks[0])).sum()
    return Leaf(*masks, breadth=4 * masks[0].sum() / max(edge, 1))


# Symptoms. Each takes (rng, leaf, severity in 0..1) and lists what to paint on the blade, first
# to last, as (alpha (size, size), colour). Sizes follow the breadth of the blade.


def dots(rng, leaf, count, radii, clustered, *growths):
    """For each growth a mask of the same `count` round dots, their radii times that growth.

    A higher power `clustered` of the noise that scatters them leaves more of the blade bare.
    """
    size = len(leaf.blade)
    chance = (leaf.blade > 0.6) * noise(rng, size, 5) ** clustered
    heaped = np.cumsum(chance, dtype="float64")
    where = np.searchsorted(heaped, rng.uniform(0, heaped[-1], count))
    rows, columns = np.divmod(where, size)
    sizes, masks = rng.uniform(*radii, count), []
    for growth in growths:
        image = Image.new("L", (size * 2, size * 2))
        pen = ImageDraw.Draw(image)
        for row, column, radius in zip(rows, columns, sizes * growth * 2, strict=True):
            x, y = 2 * column + 1, 2 * row + 1
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        masks.append(np.asarray(image.reduce(2), "float32") / 255)
    return masks


def healthy(rng, leaf, severity):
    """Nothing at all."""
    return []


def spots(rng, leaf, severity):
    """Round dark spots with a yellow halo and, often, a pale middle."""
    unit = np.clip(leaf.breadth, 14, 40)
    count = round((7 + 8 * severity) * max(1, 25 / leaf.breadth))
    radii = (0.045 * unit, (0.07 + 0.05 * severity) * unit)
    halo, core, middle = dots(rng, leaf, count, radii, 0.3, 1.9, 1, 0.4)
    return [
        (0.75 * blur(halo, 1.2), colour(rng.uniform(48, 60), 0.7, 0.8)),
        (0.95 * core, colour(rng.uniform(10, 35), 0.6, rng.uniform(0.06, 0.18))),
        (rng.uniform(0, 0.7) * middle, colour(30, 0.25, 0.65)),
    ]


def rust(rng, leaf, severity):
    """Many small orange pustules in clusters, on a leaf that yellows around them."""
    count, unit = round(90 + 160 * severity), len(leaf.blade) / 128
    halo, core = dots(rng, leaf, count, (0.6 * unit, 1.3 * unit), 2, 2.5, 1)
    return [
        (0.4 * blur(halo, 2), colour(50, 0.75, 0.75)),
        (0.95 * core, colour(rng.uniform(16, 30), 0.9, rng.uniform(0.65, 0.9))),
    ]


def blight(rng, leaf, severity):
    """Large brown patches that eat inwards from the margin, ringed, with a yellow rim."""
    size, layers = len(leaf.blade), []
    rows, columns = np.nonzero((leaf.blade > 0.5) & (blur(leaf.blade, 2) < 0.75))
    grid = np.arange(size, dtype="float32")
    brown = colour(rng.uniform(16, 28), rng.uniform(0.45, 0.6), rng.uniform(0.28, 0.4))
    for pick in rng.integers(len(rows), size=rng.integers(2, 4)):
        radius = size * rng.uniform(0.14, 0.18 + 0.1 * severity)
        away = np.hypot(grid[:, None] - rows[pick], grid - columns[pick]) / radius
        away = away + 0.7 * (noise(rng, size, 14) - 0.5)
        layers.append((0.7 * np.clip(5 * (1.2 - away), 0, 1), colour(52, 0.7, 0.75)))
        layers.append((np.clip(8 * (1 - away), 0, 1), brown))
        rings = np.clip(np.sin(away * rng.uniform(16, 24)), 0, 1)
        layers.append((0.35 * rings * np.clip(8 * (1 - away), 0, 1), brown * 0.4))
    return layers


def mildew(rng, leaf, severity):
    """Fuzzy white colonies that run together over a thin film, all of it powdery."""
    size, unit = len(leaf.blade), np.clip(leaf.breadth, 14, 40)
    count = round((4 + 6 * severity) * max(1, 25 / leaf.breadth))
    (colonies,) = dots(rng, leaf, count, (0.1 * unit, 0.24 * unit), 0.5, 1)
    film = 0.3 * severity * noise(rng, size, 9) + 0.9 * blur(colonies, 1.5)
    powder = 0.6 + 0.4 * rng.random((size, size), "float32")
    return [(np.minimum(film, 0.68) * powder, colour(rng.uniform(60, 120), 0.05, 0.92))]


def mosaic(rng, leaf, severity):
    """Yellow and dark green in a patchwork, the veins staying green."""
    size = len(leaf.blade)
    patches = noise(rng, size, 3.2 * size / np.clip(leaf.breadth, 18, 32))
    yellow = np.clip(7 * (patches - 0.55 + 0.1 * severity), 0, 1) * (1 - 0.7 * leaf.veins)
    return [
        (0.5 * np.clip(5 * (0.4 - patches), 0, 1), colour(130, 0.7, 0.25)),
        ((0.6 + 0.3 * severity) * yellow, colour(rng.uniform(54, 66), 0.65, 0.85)),
    ]


def scorch(rng, leaf, severity):
    """A dry tan edge all around, behind it a thin dark line."""
    size = len(leaf.blade)
    reach = np.clip(0.17 * leaf.breadth, 2.5, 8)
    inwards = 2 * blur(leaf.blade, reach) - 1 + 0.5 * (noise(rng, size, 16) - 0.5)
    line, tan = 0.3 + 0.4 * severity, colour(rng.uniform(24, 36), 0.5, rng.uniform(0.45, 0.6))
    return [
        (0.8 * np.clip(8 * (line + 0.12 - inwards), 0, 1), colour(12, 0.7, 0.3)),
        (np.clip(8 * (line - inwards), 0, 1), tan),
    ]


SYMPTOMS = {s.__name__: s for s in (healthy, spots, rust, blight, mildew, mosaic, scorch)}


# The photograph: what lies under the leaf, the light and the camera. None of it knows the class.


def background(rng, size):
    """Cloth, boards, pebbles or blades of grass in colours of any hue, (size, size, 3)."""
    hue, saturation, value = rng.uniform(0, 360), rng.uniform(0, 0.32), rng.uniform(0.3, 0.75)
    first = colour(hue, saturation, value)
    second = colour(hue + rng.normal(0, 20), 0.8 * saturation, value * rng.uniform(0.75, 0.95))
    kind = rng.choice(["cloth", "boards", "pebbles", "grass"])
    stretch = np.exp(rng.choice([-2.5, 2.5])) if kind == "boards" else 1.0
    blend = noise(rng, size, rng.uniform(3, 10)) + noise(rng, size, rng.uniform(20, 60), stretch)
    picture = cover(np.tile(first, (size, size, 1)), blend / 2, second)
    if kind in ("cloth", "boards"):
        return picture
    image = Image.fromarray((picture * 255).astype("uint8"))
    pen, lean = ImageDraw.Draw(image), rng.normal(0, size / 4, 2)
    for _ in range(90):
        x, y = rng.uniform(-0.1 * size, 1.1 * size, 2)
        rgb = (first + rng.random() * (second - first)) * rng.uniform(0.9, 1.06)
        fill = tuple(int(min(v, 1) * 255) for v in rgb)
        if kind == "grass":
            dx, dy = lean + rng.normal(0, size / 8, 2)
            pen.line((x, y, x + dx, y + dy), fill=fill, width=round(size * rng.uniform(0.01, 0.05)))
        else:
            w, h = size * rng.uniform(0.02, 0.07, 2)
            pen.ellipse((x - w, y - h, x + w, y + h), fill=fill)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 3)))
    return np.asarray(image, "float32") / 255


def paint_leaf(leaf, hue, symptom, rng):
    """The leaf's own colours, (size, size, 3): green, veins, symptoms, relief."""
    size = len(leaf.blade)
    green = colour(rng.normal(hue, 8), rng.uniform(0.45, 0.75), rng.uniform(0.38, 0.62))
    pale = green + rng.uniform(0.1, 0.4) * (colour(70, 0.3, 0.9) - green)
    picture = cover(np.tile(green, (size, size, 1)), 0.3 * noise(rng, size, 10), pale)
    picture = cover(picture, leaf.veins * rng.uniform(0.5, 0.9), pale)
    for alpha, rgb in SYMPTOMS[symptom](rng, leaf, rng.uniform(0.5, 1)):
        picture = cover(picture, alpha * leaf.blade, rgb)
    picture = cover(picture, np.clip(leaf.stalk - leaf.blade, 0, 1), pale)
    height = noise(rng, size, 14) * 0.8 - blur(leaf.veins, 1.2)
    down, across = np.gradient(height)
    angle = rng.uniform(0, 2 * np.pi)
    relief = np.cos(angle) * across + np.sin(angle) * down
    return picture * (0.5 + leaf.tone + rng.uniform(0.5, 1.5) * relief)[..., None]


def photograph(leaf, picture, rng):
    """Lays the painted leaf on a background, lights it and takes a picture, uint8."""
    size = len(leaf.blade)
    shape = np.maximum(leaf.blade, leaf.stalk)
    dx, dy = rng.integers(-6, 7, 2) * size // 128
    shadow = np.roll(blur(shape, rng.uniform(1, 4)), (dy, dx), (0, 1))
    scene = background(rng, size) * (1 - rng.uniform(0.15, 0.45) * shadow[..., None])
    scene = cover(scene, shape, picture)
    grid = np.linspace(-1, 1, size, dtype="float32")
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    light = 1 + fall * (np.cos(angle) * grid + np.sin(angle) * grid[:, None])
    light = light * rng.uniform(0.85, 1.2) * (1 - rng.uniform(0, 0.25) * noise(rng, size, 4))
    warmth, tint = rng.normal(0, 0.06), rng.normal(0, 0.03)
    balance = np.array([1 + warmth, 1 + tint, 1 - warmth], "float32")
    scene = np.clip(scene * light[..., None] * balance, 0, 1) ** rng.uniform(0.85, 1.2)
    image = Image.fromarray((scene * 255).astype("uint8"))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6)))
    grain = rng.standard_normal((size, size, 3), "float32") * rng.uniform(1, 5)
    return np.clip(np.asarray(image) + grain, 0, 255).astype("uint8")


def draw_image(name, number, seed, size):
    """Image `number` of class `name`, (size, size, 3) uint8, the same whenever it is drawn."""
    crop, symptom = name.split("___")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    leaf = draw_leaf(CROPS[crop], rng, size)
    return photograph(leaf, paint_leaf(leaf, CROPS[crop].hue, symptom, rng), rng)


def draw_leaves(folder, seed=0, images_per_class=60, size=128, report=print):
    """Draws every class into `folder`.

    The files are written to a hidden folder beside it that is renamed at the end: whatever
    stops the drawing, `folder` is either whole or absent.

    Args:
        folder: Where to, a path that is new or an empty folder.
        seed: Another seed draws other leaves of the same classes.
        images_per_class: Files in each class folder, `0000.jpg` and on.
        size: Pixels along a side.
        report: Called with a line now and then, on what is done and the seconds left.

    Raises:
        FileExistsError: If there is something in `folder`, which stays as it is.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"The leaves need a new or an empty folder. Received: '{folder}', which holds "
            "something. Remove it or name another."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    start, total = time.perf_counter(), len(CLASSES) * images_per_class
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        whole = pathlib.Path(scratch, "leaves")
        for done, name in enumerate(CLASSES, start=1):
            (whole / name).mkdir(parents=True)
            for number in range(images_per_class):
                image = Image.fromarray(draw_image(name, number, seed, size))
                image.save(whole / name / f"{number:04d}.jpg", quality=90)
            left = (time.perf_counter() - start) / done * (len(CLASSES) - done)
            if done % 4 == 0:
                report(f"{done * images_per_class:5d} of {total} leaves, {left:.0f} s to go")
        if folder.exists():
            folder.rmdir()
        whole.rename(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draws a folder of leaves, a folder per class.")
    parser.add_argument("folder", nargs="?", default="data/leaves", help="default: %(default)s")
    draw_leaves(parser.parse_args().folder)
