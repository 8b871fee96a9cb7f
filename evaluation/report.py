"""Metrics and held-out images -> lines for a terminal, figures, one self-contained report.html."""

import base64
import html
import io
import json

import numpy as np
from PIL import Image
from sklearn.manifold import TSNE
from sklearn.preprocessing import minmax_scale

from evaluation import figures, verification
from run_directory import write_whole

HARDEST = 6  # pairs shown of each kind
QUERIES, NEIGHBOURS = 5, 6
MOST_ON_MAP = 400  # thumbnails on the map of embeddings
LOOKED_INTO, PATCHES = 3, 12  # pairs; squares along a side that are covered in turn
LOOKS = (
    "Each square is covered in turn; the redder, the more the pair's distance grows without it. "
    "Red beside the object is a bad sign."
)
MAP = "t-SNE: a dot an image, a colour a class; point at one to see it."

SCORES = {  # key in metrics.json -> title and format
    "auc": ("ROC AUC", ".4f"),
    "equal_error_rate": ("equal error rate", ".1%"),
    "accuracy": ("accuracy at the threshold", ".1%"),
    "precision": ("precision there", ".1%"),
    "recall": ("recall there", ".1%"),
    "true_accept_at_1_percent": ("true accepts at 1% false accepts", ".1%"),
    "true_accept_at_0.1_percent": ("true accepts at 0.1% false accepts", ".1%"),
    "brier": ("Brier score of the probability", ".4f"),
    "recall_at_1": ("retrieval, recall at 1", ".1%"),
    "recall_at_5": ("retrieval, recall at 5", ".1%"),
    "recall_at_10": ("retrieval, recall at 10", ".1%"),
    "mean_average_precision": ("retrieval, mean average precision", ".4f"),
}

HEAD = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --card: color-mix(in srgb, CanvasText 6%, Canvas) }
body { margin: auto; max-width: 1040px; padding: 16px; font: 16px/1.5 system-ui, sans-serif }
p, figcaption { color: color-mix(in srgb, CanvasText 65%, Canvas) }
.warning, .map, pre { background: var(--card); border-radius: 8px; padding: 10px 14px }
.warning { border-left: 4px solid #d97706; color: CanvasText }
.row { display: flex; flex-wrap: wrap; gap: 14px; margin: 12px 0 }
.scroll, pre { overflow-x: auto; margin: 12px 0 }
table { border-collapse: collapse }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--card) }
td { white-space: nowrap }
.plot { flex: 1 1 360px; min-width: 0; max-width: 720px; width: 100% }
.scroll .plot { min-width: 720px; max-width: none }
figure { margin: 0 } figure img { width: 96px; border-radius: 4px; margin-right: 4px }
figcaption { font-size: .8rem; width: 0; min-width: 100%; overflow-wrap: anywhere }
.map { position: relative; aspect-ratio: 1.6 }
.map i { position: absolute; width: 9px; height: 9px; border-radius: 50% }
.map img { display: none; position: fixed; right: 16px; bottom: 16px; width: 128px }
.map i:hover { outline: 2px solid } .map i:hover img { display: block }
</style>"""

# The tables, for terminal and page


def score_lines(metrics):
    """The scores as lines for a terminal."""
    lines = []
    for title, warnings, tables in _scored(metrics):
        lines += ["", title, *(f"WARNING: {warning}" for warning in warnings)]
        for rows in tables:
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines += ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)]
    return lines


def _scored(metrics):
    """Yields title, warnings and tables of each set, and of a protocol."""
    for name in ("known", "unseen"):
        if result := metrics.get(name):
            counted = f"{result['images']} images of {result['classes']} classes"
            title = f"{name.capitalize()} classes: {counted}"
            yield title, result["warnings"], score_tables(result)
    if found := metrics.get("protocol"):
        rows = [["", "error", "95% interval over runs"]]
        for row in found["rows"]:
            rows.append([row["name"], f"{row['error']:.2%}", _interval(row["interval"], ".2%")])
        rows += [[name, f"{error:.2%}", "published"] for name, error in found["published"].items()]
        yield found["title"], [], [rows]


def score_tables(result):
    """One set's scores, and its trials if there are any: lists of rows of text, the head first."""
    found, intervals = result, result["intervals"]
    overall = [["verification and retrieval", "score", "95% interval"]]
    for key, (title, form) in SCORES.items():
        interval = _interval(intervals[key], form) if key in intervals else ""
        overall.append([title, f"{(found | result['retrieval'])[key]:{form}}", interval])
    rows = result["few_shot"]
    names = dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, dict))
    trials = [["N-way K-shot", *names, "model's 95% interval"]]
    for row in rows:
        title = f"{row['ways']}-way {row['shots']}-shot {row['classes']}"
        cells = [f"{row[name]['accuracy']:.1%}" if name in row else "" for name in names]
        trials.append([title, *cells, _interval(row["model"]["interval"])])
    return [overall, trials] if rows else [overall]


def _interval(ends, form=".1%"):
    return " to ".join(f"{end:{form}}" for end in ends)


# The page


class Markup(str):
    """Text that is HTML already; all other text is escaped by `tag`."""


def tag(name, /, *content, **attributes):
    """An HTML element; write `class_` for the attribute class."""
    inside = "".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in content)
    named = "".join(f' {k.rstrip("_")}="{html.escape(str(v))}"' for k, v in attributes.items())
    return Markup(f"<{name}{named}>{inside}" + ("" if name == "img" else f"</{name}>"))


def write_report(out, run, metrics, held_out, drawn, encoder):
    """Writes `metrics.json`, the figures and `report.html` into a folder.

    `drawn` are those of `draw_figures`. Takes what `evaluate` scored: the `RunDirectory`, the dict
    of metrics and the list of `HeldOut`.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=2)))
    note = "Scored on its own held-out images, which it never trained on. "
    if metrics["data"]:
        note = f"Scored on {metrics['data']}, all of whose classes count as unseen. "
    note += "Ranges are 95% intervals: by bootstrap over classes, and over trials for N-way."
    parts = [tag("h1", run.path.name), tag("p", note)]
    for title, warnings, tables in _scored(metrics):
        parts += [tag("h2", title), *(tag("p", warning, class_="warning") for warning in warnings)]
        parts += map(_table, tables)
    curves = {held.name: metrics[held.name]["curve"] for held in held_out}
    curves = {name: curve for name, curve in curves.items() if curve}
    if curves:
        parts.append(_plot(out / "n_way.png", figures.plot_n_way, curves))
    for held in held_out:
        parts += _set_section(out, held, metrics[held.name], encoder)
    curves = [_plot(run / name) for name in ("accuracy.png", "loss.png") if (run / name).exists()]
    parts += [tag("h2", "The training"), tag("div", *curves, class_="row")]
    for name in ("config.json", "environment.json", "threshold.json"):
        parts.append(_folded(name, tag("pre", (run / name).read_text())))
    head = Markup(HEAD) + tag("title", run.path.name)
    page = "<!doctype html>" + tag("html", Markup(head), tag("body", *parts), lang="en")
    write_whole(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))


def _set_section(out, held, result, encoder):
    """The pictures behind one set's scores."""
    drawn = held.same, held.distances, result, held.name
    figure = _plot(out / f"verification_{held.name}.png", figures.plot_verification, *drawn)
    ranked = np.argsort(held.distances, kind="stable")  # nearest first
    genuine, impostors = (ranked[held.same[ranked] == same] for same in (True, False))
    looked_into = np.unique(np.linspace(0, len(genuine) // 2, LOOKED_INTO).astype(int))
    hardest = genuine[::-1][:HARDEST]
    recalls = sorted(result["retrieval"]["class_recall_at_1"].items(), key=lambda item: item[1])
    by_class = [["class", "recall at 1"], *([name, f"{share:.1%}"] for name, share in recalls)]
    confused = [["image of", "nearest is of", "times"], *result["retrieval"]["most_confused"]]
    return [
        tag("h2", f"{held.name.capitalize()} classes in detail"),
        tag("div", figure, class_="scroll"),
        _part("Hardest genuine pairs: one class, far apart", _pairs(held, hardest)),
        _part("Hardest impostors: two classes, close together", _pairs(held, impostors[:HARDEST])),
        _part("Nearest neighbours of a few queries", *_neighbours(held)),
        _part("Map of the embeddings", tag("p", MAP), _map(held)),
        _part(
            "Where the network looks", tag("p", LOOKS), _pairs(held, genuine[looked_into], encoder)
        ),
        _part("Most confused classes", _table(confused)),
        _folded("All classes, the hardest first", _table(by_class)),
    ]


def _part(title, *content):
    return tag("section", tag("h3", title), *content)


def _table(rows):
    lines = [tag("tr", *(tag("th" if row is rows[0] else "td", c) for c in row)) for row in rows]
    return tag("div", tag("table", *lines), class_="scroll")


def _folded(title, content):
    return tag("details", tag("summary", title), content)


def _plot(path, draw=None, *given):
    """The figure at a path, drawn first if need be."""
    if draw:
        write_whole(path, lambda partial: draw(*given, partial))
    return _embedded(path.read_bytes(), "png", path.stem, class_="plot")


def _embedded(content, kind, alt, **attributes):
    data = base64.b64encode(content).decode()
    return tag("img", alt=alt, src=f"data:image/{kind};base64,{data}", **attributes)


def _image(pixels, size, alt):
    file = io.BytesIO()
    small = Image.fromarray(pixels.squeeze()).resize((size, size), Image.Resampling.BILINEAR)
    small.convert("RGB").save(file, "JPEG", quality=80)
    return _embedded(file.getvalue(), "jpeg", alt, title=alt)


def _thumbnail(held, at, size=96):
    return _image(held.image(at), size, held.class_name(at))


def _figure(caption, *images):
    return tag("figure", *images, tag("figcaption", caption))


def _pairs(held, pairs, encoder=None):
    """Pairs with their distances; given an encoder, what brings the two together is marked."""
    figures = []
    for pair in pairs:
        both = held.left[pair], held.right[pair]
        images = [_thumbnail(held, at) for at in both]
        if encoder:
            images = [_look(held, encoder, *sides) for sides in (both, both[::-1])]
        names = " and ".join(dict.fromkeys(map(held.class_name, both)))
        figures.append(_figure(f"{held.distances[pair]:.3f}: {names}", *images))
    return tag("div", *figures, class_="row")


def _look(held, encoder, here, there):
    heat = occlusion_map(encoder, held.image(here), held.embeddings[there], held.distance)
    return _image(figures.overlay(held.image(here), heat), 144, "occlusion map")


def _neighbours(held):
    """Yields the nearest images to a few queries, of as many classes."""
    _, firsts = np.unique(held.labels, return_index=True)
    queries = firsts[np.linspace(0, len(firsts) - 1, min(QUERIES, len(firsts))).astype(int)]
    distances = verification.all_distances(held.embeddings[queries], held.embeddings, held.distance)
    for query, row in zip(queries, distances, strict=True):
        row[query] = np.inf
        figures = [_figure(f"query: {held.class_name(query)}", _thumbnail(held, query))]
        for at in np.argsort(row, kind="stable")[:NEIGHBOURS]:
            name = "✓" if held.labels[at] == held.labels[query] else f"✗ {held.class_name(at)}"
            figures.append(_figure(f"{row[at]:.3f} {name}", _thumbnail(held, at)))
        yield tag("div", *figures, class_="row")


def _map(held):
    """The embeddings in two dimensions, a dot an image, with its picture on hover."""
    shown = np.sort(np.random.default_rng(0).permutation(len(held.rows))[:MOST_ON_MAP])
    method = TSNE(perplexity=min(30, (len(shown) - 1) / 3), init="random", random_state=0)
    places = 2 + 94 * minmax_scale(method.fit_transform(held.embeddings[shown]))  # percent
    classes, colors = np.unique(held.labels[shown], return_inverse=True)
    dots = []
    for at, (x, y), color in zip(shown, places, 360 * colors / len(classes), strict=True):
        style = f"left:{x:.1f}%;top:{y:.1f}%;background:hsl({color:.0f} 70% 50%)"
        dots.append(tag("i", _thumbnail(held, at, 64), style=style))
    return tag("div", *dots, class_="map")


def occlusion_map(encoder, pixels, other_embedding, distance=None):
    """How much the distance to another image grows when a part of this one is covered.

    Args:
        encoder: Model from raw pixels to embeddings.
        pixels: uint8 array (size, size, channels).
        other_embedding: The other image's, (embedding_dim,).
        distance: Of two embeddings, as in `verification`.

    Returns:
        Array (PATCHES, PATCHES); 0 where the part does not matter (Zeiler & Fergus, "Visualizing
        and understanding convolutional networks", 2014).
    """
    from networks.embedding import embed

    size = len(pixels)
    edges, margin = np.linspace(0, size, PATCHES + 1).astype(int), size // PATCHES // 2
    starts, ends = np.maximum(edges[:-1] - margin, 0), edges[1:] + margin
    places = np.arange(size)
    inside = (places >= starts[:, None]) & (places < ends[:, None])  # (PATCHES, size)
    squares = (inside[:, None, :, None] & inside[:, None]).reshape(-1, size, size, 1)
    covered = np.where(squares, np.median(pixels, axis=(0, 1)).astype(np.uint8), pixels)
    shown = np.concatenate([covered, pixels[None]])
    embeddings = embed(encoder, shown, np.arange(len(shown)))
    distances = verification.all_distances(other_embedding[None], embeddings, distance)[0]
    return np.maximum(distances[:-1] - distances[-1], 0).reshape(PATCHES, PATCHES)
