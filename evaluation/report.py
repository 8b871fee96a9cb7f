"""Scores, figures and images of held-out classes -> one self-contained report.html."""

import base64
import html
import io
import json

import numpy as np
from PIL import Image

from evaluation import neighbours, summary
from evaluation.similarity_map import overlay, similarity_map
from run_directory import write_whole

PAIRS, ODD, EXPLAINED = 5, 10, 8  # shown: the worst of each kind, at odds, with maps
SIDE, LARGE = 96, 144  # pixels of a picture
MAPS = (
    "Each part is covered in turn; the redder, the more the distance grows without it. Red beside "
    "the object is a bad sign. Pairs of {} classes."
)

HEAD = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --card: color-mix(in srgb, CanvasText 6%, Canvas) }
body { margin: auto; max-width: 1080px; padding: 16px; font: 16px/1.5 system-ui, sans-serif }
h1 { margin: 8px 0; overflow-wrap: anywhere } h2 { margin-top: 40px }
.note, figcaption { color: color-mix(in srgb, CanvasText 65%, Canvas) }
.card { background: var(--card); border-left: 4px solid #1a7f5a; border-radius: 8px }
.card { margin: 12px 0; padding: 2px 16px } .found { border-color: #d97706 }
.card p { margin: 10px 0 }
.plots { display: grid; gap: 16px }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)) }
.plots img { width: 100%; max-width: 690px; border-radius: 8px }
@media (prefers-color-scheme: dark) { .plots img { filter: invert(.88) hue-rotate(180deg) } }
.row { display: flex; flex-wrap: wrap; gap: 16px; margin: 12px 0 }
figure { margin: 0 } .row img { height: 96px; border-radius: 4px; margin-right: 4px }
.row .large { height: 144px }
figcaption { font-size: .8rem; width: 0; min-width: 100%; overflow-wrap: anywhere }
.scroll { overflow-x: auto; margin: 16px 0 }
table { border-collapse: collapse; font-size: .9rem }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--card) }
td { vertical-align: top; overflow-wrap: break-word }
summary { cursor: pointer; margin: 8px 0 }
</style>"""


class Markup(str):
    """Text that is HTML already; all other text is escaped by `tag`."""


def tag(name, /, *content, **attributes):
    """An HTML element; write `class_` for the attribute class."""
    inside = "".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in content)
    named = "".join(f' {k.rstrip("_")}="{html.escape(str(v))}"' for k, v in attributes.items())
    return Markup(f"<{name}{named}>{inside}" + ("" if name == "img" else f"</{name}>"))


def write_report(out, run, metrics, held_out, figures, encoder):
    """Writes `metrics.json`, the figures, `report.html` and `model_card.md` into a folder.

    Args:
        out: The folder, a `Path`; made where it is missing.
        run: The `RunDirectory`.
        metrics, held_out: The dict and the list of `HeldOut` that `evaluate` scored.
        figures: Name -> Matplotlib figure, from `draw_figures`.
        encoder: The run's.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=2)))
    for name, figure in figures.items():
        write_whole(out / f"{name}.png", figure.savefig)
    card = summary.model_card(run, metrics)
    text = summary.markdown(run.path.name, metrics, card)
    write_whole(out / "model_card.md", lambda path: path.write_text(text, encoding="utf-8"))
    pictures = [out / f"{name}.png" for name in figures]
    pictures += [run / name for name in ("accuracy.png", "loss.png") if (run / name).exists()]
    body = tag("body", *_parts(run, metrics, held_out, encoder, card, pictures))
    head = Markup(HEAD) + tag("title", run.path.name)
    page = "<!doctype html>" + tag("html", Markup(head), body, lang="en")
    write_whole(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))


def _parts(run, metrics, held_out, encoder, card, pictures):
    """Yields the page from top to bottom."""
    scored = f"images of {metrics['data']}" if metrics["data"] else "images it never trained on"
    yield tag("h1", run.path.name)
    yield tag("p", f"Scored on {scored}. [Ranges] are 95% intervals.", class_="note")
    said = summary.sentences(metrics).items()
    yield _card([tag("p", tag("b", f"{title}: "), text) for title, text in said])
    found, verdict = summary.leakage(metrics)
    yield _card([tag("p", sentence) for sentence in verdict], "card found" if found else "card")
    yield tag("h2", "Scores")
    yield from map(_table, summary.tables(metrics))
    yield tag("h2", "Figures")
    plots = [_embedded(path.read_bytes(), "png", path.stem) for path in pictures]
    yield tag("div", *plots, class_="plots")
    for held in held_out:
        yield from _details(held, metrics[held.name]["retrieval"])
    if held_out:
        yield tag("h2", "Where the similarity comes from")
        yield tag("p", MAPS.format(held_out[-1].name), class_="note")
        yield _explained(held_out[-1], encoder)
    yield tag("h2", "Model card")
    for title, facts in card.items():
        yield tag("details", tag("summary", title), _table([[], *facts.items()]))


def _details(held, retrieval):
    """Yields the images and classes behind one set's scores."""
    yield tag("h2", f"{held.name.capitalize()} classes in detail")
    order = np.argsort(held.distances, kind="stable")  # nearest first
    yield tag("h3", "Worst pairs: one class, far apart")
    yield _pairs(held, order[held.same[order]][::-1])
    yield tag("h3", "Worst pairs: two classes, close together")
    yield _pairs(held, order[~held.same[order]])
    if not retrieval:  # classes are not known, pairs alone
        return
    yield tag("h3", "Images most at odds with their label")
    yield _at_odds(held)
    confused = [["image of", "nearest is of", "times"], *retrieval["most_confused"]]
    yield tag("h3", "Most confused classes")
    yield _table(confused)
    recalls = sorted(retrieval["class_recall_at_1"].items(), key=lambda item: item[1])
    by_class = [["class", "recall at 1"], *([name, f"{share:.1%}"] for name, share in recalls)]
    yield tag("details", tag("summary", "All classes, the hardest first"), _table(by_class))


def _pairs(held, pairs):
    """The first few of some pairs, an image once."""
    figures, shown = [], set()
    for pair in pairs:
        both = held.left[pair], held.right[pair]
        if len(figures) == PAIRS or shown & {*both}:
            continue
        shown |= {*both}
        names = " and ".join(dict.fromkeys(map(held.class_name, both)))
        images = (_image(held.image(at), SIDE, held.class_name(at)) for at in both)
        figures.append(_figure(f"{held.distances[pair]:.3f}: {names}", *images))
    return tag("div", *figures, class_="row")


def _at_odds(held):
    """Images whose neighbours are of another class, each beside the nearest of those."""
    some = neighbours.sample(held)
    nearest = neighbours.nearest(held.embeddings[some], held.distance)
    found = neighbours.at_odds(held.labels[some], nearest)
    figures = []
    for at, twin, share in found[:ODD]:
        names = [held.class_name(some[each]) for each in (at, twin)]
        both = zip((some[at], some[twin]), names, strict=True)
        caption = f"{names[0]}, but {share:.0%} of its neighbours are {names[1]}"
        figures.append(_figure(caption, *(_image(held.image(p), SIDE, name) for p, name in both)))
    said = f"{len(found)} of {len(some):,}: labels to check, or what the network cannot tell."
    return tag("div", tag("p", said, class_="note"), tag("div", *figures, class_="row"))


def _explained(held, encoder):
    """Genuine pairs from the nearest to the median, with their similarity maps."""
    order = np.argsort(held.distances, kind="stable")
    genuine, figures = order[held.same[order]], []
    for pair in genuine[np.unique(np.linspace(0, len(genuine) // 2, EXPLAINED).astype(int))]:
        both, images = (held.left[pair], held.right[pair]), []
        for at, other in (both, both[::-1]):
            pixels, there = held.image(at), held.embeddings[other]
            heat = similarity_map(encoder, pixels, there, held.distance)
            images.append(_image(overlay(pixels, heat), LARGE, "similarity map", class_="large"))
        caption = f"{held.distances[pair]:.3f}: {held.class_name(both[0])}"
        figures.append(_figure(caption, *images))
    return tag("div", *figures, class_="row")


def _card(sentences, class_="card"):
    return tag("div", *sentences, class_=class_)


def _table(rows):
    """A table whose first row is the head."""
    kinds = ["th", *["td"] * (len(rows) - 1)]
    lines = [tag("tr", *(tag(kind, c) for c in row)) for kind, row in zip(kinds, rows, strict=True)]
    return tag("div", tag("table", *lines), class_="scroll")


def _figure(caption, *images):
    return tag("figure", *images, tag("figcaption", caption))


def _image(pixels, height, alt, **attributes):
    """An image (height, width, channels) as a JPEG of one height within the page."""
    file, size = io.BytesIO(), (max(1, round(height * pixels.shape[1] / pixels.shape[0])), height)
    small = Image.fromarray(pixels.squeeze()).resize(size, Image.Resampling.BILINEAR)
    small.convert("RGB").save(file, "JPEG", quality=80)
    return _embedded(file.getvalue(), "jpeg", alt, title=alt, **attributes)


def _embedded(content, kind, alt, **attributes):
    data = base64.b64encode(content).decode()
    return tag("img", alt=alt, src=f"data:image/{kind};base64,{data}", **attributes)
