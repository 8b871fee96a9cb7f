"""Draws signatures: writers, their genuine images and forgeries.  python data/draw_signatures.py

Folders are `NAME` (genuine) beside `NAME_forg` (forgeries of that writer). A signature is a chain
of smooth strokes that moves the pen to and fro while it travels. A writer's own images differ
little; a forger follows the shape he sees less surely, with habits and a pen of his own. Paper and
pen are drawn alike for both kinds, so that neither tells a forgery.
"""

import argparse
import itertools

import cv2
import numpy as np
from draw_leaves import write_images

HEIGHT, WIDTH = 240, 400  # pixels of an image
POINTS = 15  # of a curve between two points of a stroke
GENUINE, FORGED = (0.05, 0.012), (0.09, 0.05)  # how far the strokes' points, the whole shape vary


def draw_writer(rng):
    """The shape of a writer's signature: strokes, a list of arrays (points, 2) about 0..1."""
    slant, height, loop = rng.normal(0.2, 0.25), rng.uniform(0.5, 1), rng.uniform(0, 0.05)
    strokes, start = [], 0.0
    for _ in range(rng.integers(2, 5)):
        count, step = rng.integers(4, 10), rng.uniform(0.03, 0.07)
        x = start + step * np.arange(count) + loop * rng.normal(size=count)
        y = np.where(np.arange(count) % 2, 1, 0.4) * rng.normal(0.4, 0.25, count) * height
        strokes.append(np.stack([x + slant * y, y], axis=1))
        start = x[-1] + rng.uniform(-0.05, 0.06)
    if rng.random() < 0.5:  # an underline
        x = np.linspace(rng.uniform(0, 0.3), rng.uniform(0.6, 1) * start, 4)
        strokes.append(np.stack([x, rng.normal(-0.35, 0.06, 4)], axis=1))
    return strokes


def draw_habits(rng):
    """How a hand writes, whatever it writes: pen's pressure, roundness, tremor, speed."""
    return {
        "pressure": rng.uniform(0.5, 2), "round": rng.uniform(0.6, 1.4),
        "tremor": rng.uniform(0, 0.003), "stretch": rng.normal(1, 0.08),
    }  # fmt: skip


def draw_signature(strokes, habits, rng, forged=False):
    """One image of a shape by a hand, uint8 (240, 400): a scan in grey, ink on paper."""
    inner, outer = FORGED if forged else GENUINE
    turn, zoom = np.radians(rng.normal(0, 3)), rng.uniform(0.85, 1.15)
    lines = []
    for stroke in strokes:
        spread = np.abs(np.diff(stroke, axis=0)).mean()
        moved = stroke + rng.normal(0, inner, stroke.shape) * spread * 2 + rng.normal(0, outer, 2)
        line = curve(moved * (habits["stretch"], 1), habits["round"])
        tremor = rng.normal(0, habits["tremor"] * (2 if forged else 1), line.shape)
        lines.append(line + cv2.blur(tremor, (1, 5)))
    return scan(lines, turn, zoom, habits["pressure"], rng)


def curve(points, roundness):
    """A smooth curve (n, 2) through points: cubic, with tangents as long as `roundness` says."""
    tangents = np.gradient(points, axis=0) * roundness
    t = np.linspace(0, 1, POINTS)[:, None]
    weights = 2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t, 3 * t**2 - 2 * t**3, t**3 - t**2
    ends = zip(points[:-1], tangents[:-1], points[1:], tangents[1:], strict=True)
    return np.concatenate([sum(w * e for w, e in zip(weights, end, strict=True)) for end in ends])


def scan(lines, turn, zoom, pressure, rng):
    """Puts the curves on paper with a pen that is thin where it is fast."""
    whole = np.concatenate(lines)
    low, span = whole.min(axis=0), np.ptp(whole, axis=0)
    scale = zoom * 0.75 * min(WIDTH / span[0], HEIGHT / span[1])
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    ink = np.zeros((HEIGHT, WIDTH), np.uint8)
    centre = np.array([WIDTH, HEIGHT]) / 2 + rng.normal(0, 8, 2)
    pen = rng.uniform(1.2, 3.2)  # drawn anew for each image, of either kind
    for line in lines:
        places = (line - low - span / 2) * (scale, -scale) @ rotation + centre
        speed = np.linalg.norm(np.diff(places, axis=0), axis=1)
        slow = (np.median(speed) + 1) / (speed + 1)
        widths = (pen * slow ** (0.3 * pressure)).round().clip(1, 7).astype(int).tolist()
        ends = (16 * places).round().astype(int).tolist()  # cv2 takes sixteenths of a pixel
        for start, end, width in zip(ends[:-1], ends[1:], widths, strict=True):
            cv2.line(ink, start, end, 255, width, cv2.LINE_AA, shift=4)
    ink = cv2.GaussianBlur(ink, (0, 0), rng.uniform(0.4, 0.9)) / 255
    paper, dark = rng.uniform(200, 250), rng.uniform(20, 90)
    noise = rng.normal(0, rng.uniform(1, 4), ink.shape)
    return np.clip(paper + (dark - paper) * ink + noise, 0, 255).astype(np.uint8)


def draw_images(writer, seed, genuine, forgeries):
    """Yields `(path, image)` of one writer, the same whenever they are drawn."""
    rng = np.random.default_rng([seed, writer])
    strokes, habits = draw_writer(rng), draw_habits(rng)
    for number in range(genuine):
        yield f"{writer:03d}/{number:04d}.png", draw_signature(strokes, habits, rng)
    for number in range(forgeries):
        image = draw_signature(strokes, draw_habits(rng), rng, forged=True)
        yield f"{writer:03d}_forg/{number:04d}.png", image


def draw_signatures(folder, seed=0, writers=60, genuine=16, forgeries=8, report=print):
    """Draws a new `folder`, which appears when all of it is drawn.

    Raises:
        FileExistsError: If there is something at `folder`.
    """
    drawn = (draw_images(writer, seed, genuine, forgeries) for writer in range(writers))
    total = writers * (genuine + forgeries)
    write_images(folder, itertools.chain.from_iterable(drawn), total, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="data/signatures", help="default: %(default)s")
    for option, count in {"writers": 60, "genuine": 16, "forgeries": 8, "seed": 0}.items():
        parser.add_argument(f"--{option}", type=int, default=count, help="default: %(default)s")
    draw_signatures(**vars(parser.parse_args()))
