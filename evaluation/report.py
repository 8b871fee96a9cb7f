"""Scores, figures and images of held-out classes -> report.html and model_card.md.

What they look like is in the templates of these names beside this file.
"""

import base64
import io
import json
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from evaluation import neighbours, report_tables
from evaluation.figures import draw_figures
from evaluation.similarity_map import overlay, similarity_map
from run_directory import write_atomically, write_text

PAIRS, EXPLAINED = 5, 8  # shown: the worst of each kind, and with maps
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def write_report(out, scored):
    """Writes `metrics.json`, the figures, `report.html` and `model_card.md` into a folder.

    `out` is a `Path`, `scored` a `comparison.ScoredRun`.
    """
    run, metrics, held_out = scored.run, scored.metrics, scored.held_out
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "metrics.json", json.dumps(metrics, indent=2))  # first, whatever fails later
    figures = draw_figures(held_out)
    for name, figure in figures.items():
        write_atomically(out / f"{name}.png", figure.savefig)
    plots = [out / f"{name}.png" for name in figures]
    plots += [run / name for name in ("accuracy.png", "loss.png") if (run / name).exists()]
    shown = {
        "metrics": metrics,
        "report_tables": report_tables,
        "jpeg": _jpeg,
        "plots": {path.stem: _base64(path.read_bytes()) for path in plots},
        "sets": [_details(held) for held in held_out],
        "maps": _explained(held_out[-1], scored.encoder) if held_out else [],
        "card": report_tables.model_card(run, metrics),
    }
    for name in ("report.html", "model_card.md"):
        write_text(out / name, TEMPLATES.get_template(name).render(shown))


def _details(held):
    """What a set's section shows: worst pairs, images at odds with their label, hardest classes."""
    genuine, impostors = held.nearest_first()
    shown = {"held": held, "odd": []}
    shown |= {"far": _pairs(held, genuine[::-1]), "close": _pairs(held, impostors)}
    recall = sorted(held.scores.get("class_recall_at_1", {}).items(), key=lambda each: each[1])
    shown["hardest"] = [[name, f"{share:.1%}"] for name, share in recall]
    if recall:  # else classes are not known, pairs alone
        positions, nearest = held.neighbours
        for *both, share in neighbours.suspected_label_errors(held.labels[positions], nearest):
            own, other = map(held.class_name, positions[both])
            caption = f"{own}, but {share:.0%} of its neighbours are {other}"
            shown["odd"].append(_figure(held, positions[both], caption))
    return shown


def _pairs(held, pairs):
    """The first few of some pairs, an image once."""
    figures, shown = [], set()
    for pair in pairs:
        both = held.left[pair], held.right[pair]
        if len(figures) < PAIRS and shown.isdisjoint(both):
            shown.update(both)
            names = " and ".join(dict.fromkeys(map(held.class_name, both)))
            figures.append(_figure(held, both, f"{held.distances[pair]:.3f}: {names}"))
    return figures


def _figure(held, both, caption):
    """`(caption, images with their names)`, as the template draws them."""
    return caption, [(held.image(position), held.class_name(position)) for position in both]


def _explained(held, encoder):
    """Genuine pairs from the nearest to the median, with their similarity maps."""
    (genuine, _), figures = held.nearest_first(), []
    for pair in genuine[np.unique(np.linspace(0, len(genuine) // 2, EXPLAINED).astype(int))]:
        both, images = (held.left[pair], held.right[pair]), []
        for position, other in (both, both[::-1]):
            pixels = held.image(position)
            heat = similarity_map(encoder, pixels, held.embeddings[other], held.distance)
            images.append((overlay(pixels, heat), "similarity map"))
        figures.append((f"{held.distances[pair]:.3f}: {held.class_name(both[0])}", images))
    return figures


def _jpeg(pixels, height):
    """An image (height, width, channels) as a JPEG of one height."""
    file, size = io.BytesIO(), (max(1, round(height * pixels.shape[1] / pixels.shape[0])), height)
    small = Image.fromarray(pixels.squeeze()).resize(size, Image.Resampling.BILINEAR)
    small.convert("RGB").save(file, "JPEG", quality=80)
    return _base64(file.getvalue())


def _base64(content):
    return base64.b64encode(content).decode()
