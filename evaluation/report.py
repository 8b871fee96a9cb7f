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

from evaluation import neighbours, summary
from evaluation.similarity_map import overlay, similarity_map
from run_directory import write_whole

PAIRS, ODD, EXPLAINED = 5, 10, 8  # shown: the worst of each kind, at odds, with maps
SIDE, LARGE = 96, 144  # pixels of a picture
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["markdown"] = summary.markdown


def write_report(out, scored, figures, encoder):
    """Writes `metrics.json`, the figures, `report.html` and `model_card.md` into a folder.

    Args:
        out: The folder, a `Path`; made where it is missing.
        scored: A `comparison.ScoredRun`.
        figures: Name -> Matplotlib figure, from `draw_figures`.
        encoder: The run's.
    """
    run, metrics, held_out = scored.run, scored.metrics, scored.held_out
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=2)))
    for name, figure in figures.items():
        write_whole(out / f"{name}.png", figure.savefig)
    plots = [out / f"{name}.png" for name in figures]
    plots += [run / name for name in ("accuracy.png", "loss.png") if (run / name).exists()]
    leaks, leakage = summary.leakage(metrics)
    shown = {
        "name": run.path.name,
        "data": metrics["data"],
        "sentences": summary.sentences(metrics),
        "leaks": leaks,
        "leakage": leakage,
        "tables": summary.tables(metrics),
        "plots": {path.stem: _base64(path.read_bytes()) for path in plots},
        "sets": [_details(held, metrics[held.name]) for held in held_out],
        "maps": _explained(held_out[-1], encoder) if held_out else [],
        "card": summary.model_card(run, metrics),
    }
    for name in ("report.html", "model_card.md"):
        text = TEMPLATES.get_template(name).render(shown)
        write_whole(out / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))


def _details(held, scores):
    """The images and classes behind one set's scores."""
    order = np.argsort(held.distances, kind="stable")  # nearest first
    shown = {
        "name": held.name,
        "far": _pairs(held, order[held.same[order]][::-1]),
        "close": _pairs(held, order[~held.same[order]]),
        "recalls": None,
    }
    if "class_recall_at_1" not in scores:  # classes are not known, pairs alone
        return shown
    some, nearest = held.neighbours
    odd = neighbours.at_odds(held.labels[some], nearest)
    recalls = sorted(scores["class_recall_at_1"].items(), key=lambda item: item[1])
    return shown | {
        "num_odd": len(odd),
        "num_seen": len(some),
        "odd": [_odd(held, some[at], some[twin], share) for at, twin, share in odd[:ODD]],
        "confused": scores["most_confused"],
        "recalls": [[name, f"{share:.1%}"] for name, share in recalls],
    }


def _pairs(held, pairs):
    """The first few of some pairs, an image once."""
    figures, shown = [], set()
    for pair in pairs:
        both = held.left[pair], held.right[pair]
        if len(figures) < PAIRS and not shown & {*both}:
            shown |= {*both}
            names = " and ".join(dict.fromkeys(map(held.class_name, both)))
            figures.append(_figure(held, both, f"{held.distances[pair]:.3f}: {names}"))
    return figures


def _odd(held, at, twin, share):
    """An image whose neighbours are of another class, beside the nearest of those."""
    caption = (
        f"{held.class_name(at)}, but {share:.0%} of its neighbours are {held.class_name(twin)}"
    )
    return _figure(held, (at, twin), caption)


def _figure(held, both, caption):
    images = [(_jpeg(held.image(at), SIDE), held.class_name(at)) for at in both]
    return {"caption": caption, "images": images}


def _explained(held, encoder):
    """Genuine pairs from the nearest to the median, with their similarity maps."""
    order = np.argsort(held.distances, kind="stable")
    genuine, figures = order[held.same[order]], []
    for pair in genuine[np.unique(np.linspace(0, len(genuine) // 2, EXPLAINED).astype(int))]:
        both, images = (held.left[pair], held.right[pair]), []
        for at, other in (both, both[::-1]):
            pixels, there = held.image(at), held.embeddings[other]
            heat = similarity_map(encoder, pixels, there, held.distance)
            images.append((_jpeg(overlay(pixels, heat), LARGE), "similarity map"))
        caption = f"{held.distances[pair]:.3f}: {held.class_name(both[0])}"
        figures.append({"caption": caption, "images": images})
    return figures


def _jpeg(pixels, height):
    """An image (height, width, channels) as a JPEG of one height."""
    file, size = io.BytesIO(), (max(1, round(height * pixels.shape[1] / pixels.shape[0])), height)
    small = Image.fromarray(pixels.squeeze()).resize(size, Image.Resampling.BILINEAR)
    small.convert("RGB").save(file, "JPEG", quality=80)
    return _base64(file.getvalue())


def _base64(content):
    return base64.b64encode(content).decode()
