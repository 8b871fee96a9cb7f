"""Metrics and held-out images -> lines for a terminal, figures, one self-contained report.html."""

import base64
import html
import io
import json

import numpy as np
from PIL import Image
from sklearn.manifold import TSNE
from sklearn.preprocessing import minmax_scale

import plots
import scores
from run_directory import write_whole

HARDEST = 6  # pairs shown of each kind
QUERIES, NEIGHBOURS = 5, 6
MOST_ON_MAP = 400  # thumbnails on the map of embeddings
LOOKED_INTO, PATCHES = 3, 12  # pairs; squares along a side that are covered in turn
LOOKS = (
    "Each square is covered in turn; the redder, the more the pair's distance grows without it. "
    "Red beside the object is a bad sign."
)

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

STYLE = """
:root { color-scheme: light dark; --card: color-mix(in srgb, CanvasText 6%, Canvas) }
body { margin: auto; max-width: 1040px; padding: 16px; font: 16px/1.5 system-ui, sans-serif }
h1, h2, h3 { line-height: 1.3; margin: 1.5em 0 .3em }
.quiet, figcaption { color: color-mix(in srgb, CanvasText 65%, Canvas) }
.card, .warning, .map, pre { background: var(--card); border-radius: 8px; padding: 10px 14px }
.card b { display: block; font-size: 1.6rem; line-height: 1.2 }
.warning { border-left: 4px solid #d97706 }
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
"""

# The tables, for terminal and page


def score_lines(metrics):
    """The scores as lines for a terminal."""
    lines = []
    for name, result in metrics["sets"].items():
        lines += ["", _title(name, result), *(f"WARNING: {w}" for w in result["warnings"])]
        for rows in score_tables(result):
            lines += _aligned(rows)
    return lines + (_aligned(lake_table(metrics["lake"])) if "lake" in metrics else [])


def _aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows]
    return ["", *("  ".join(cells).rstrip() for cells in padded)]


def _title(name, result):
    return f"{name.capitalize()} classes: {result['images']} images of {result['classes']} classes"


def score_tables(result):
    """One set's scores, and its trials if there are any: lists of rows of text, the head first."""
    found, intervals = result["verification"], result["verification"]["intervals"]
    overall = [["verification and retrieval", "score", "95% interval"]]
    for key, (title, form) in SCORES.items():
        interval = _interval(intervals[key], form) if key in intervals else ""
        value = found[key] if key in found else result["retrieval"][key]
        overall.append([title, f"{value:{form}}", interval])
    rows = result["few_shot"]
    names = dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, dict))
    trials = [["N-way K-shot", *names, "model's 95% interval"]]
    for row in rows:
        title = f"{row['ways']}-way {row['shots']}-shot {row['classes']}"
        cells = [f"{row[name]['accuracy']:.1%}" if name in row else "" for name in names]
        trials.append([title, *cells, _interval(row["model"]["interval"])])
    return [overall, trials] if rows else [overall]


def lake_table(lake):
    """Lake's protocol: rows of text, the head first."""
    runs = lake["model"]["runs"]
    return [
        [f"Lake's {runs} one-shot runs", "error", "95% interval over runs"],
        *([name, f"{v['error']:.2%}", _interval(v["interval"], ".2%")] for name, v in lake.items()),
    ]


def _interval(ends, form=".1%"):
    return " to ".join(f"{end:{form}}" for end in ends)


# The page


class Markup(str):
    """Text that is HTML already; all other text is escaped by `tag`."""


def tag(name, /, *content, **attributes):
    """An HTML element; write `class_` for the attribute class."""
    inside = "".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in content)
    named = "".join(f' {k.rstrip("_")}="{html.escape(str(v))}"' for k, v in attributes.items())
    return Markup(f"<{name}{named}>{inside}" + ("" if name in ("img", "meta") else f"</{name}>"))


def write_report(out, run, metrics, held_out, encoder):
    """Writes `metrics.json`, the figures and `report.html`.

    Args:
        out: Folder for them.
        run: The `RunDirectory` that was scored.
        metrics: From `evaluate.evaluate`.
        held_out: List of `evaluate.HeldOut`.
        encoder: The run's.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=2)))
    parts = _heading(out, run, metrics)
    for held in held_out:
        parts += _set_section(out, held, metrics["sets"][held.name], encoder)
    curves = [_plot(run / name) for name in ("accuracy.png", "loss.png") if (run / name).exists()]
    parts += [tag("h2", "The training"), tag("div", *curves, class_="row")]
    for name in ("config.json", "environment.json", "threshold.json"):
        text = tag("pre", (run / name).read_text())
        parts.append(tag("details", tag("summary", name), text))
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", run.path.name),
        tag("style", Markup(STYLE)),
    )
    page = "<!doctype html>" + tag("html", *head, tag("body", *parts), lang="en")
    write_whole(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))


def _heading(out, run, metrics):
    """How good the run is, at a glance."""
    note = "Scored on its own held-out images, which it never trained on. "
    if metrics["data"]:
        note = f"Scored on {metrics['data']}, all of whose classes count as unseen. "
    note += "Ranges are 95% intervals: by bootstrap over classes, and over trials for N-way."
    parts = [tag("h1", run.path.name), tag("p", note, class_="quiet")]
    for name, result in metrics["sets"].items():
        overall, *trials = score_tables(result)
        cards = [
            tag("div", title, tag("b", value), interval, class_="card")
            for title, value, interval in overall[1:4]
        ]
        warnings = [tag("p", warning, class_="warning") for warning in result["warnings"]]
        parts += [tag("h2", _title(name, result)), *warnings, tag("div", *cards, class_="row")]
        parts += map(_table, trials)
    if "lake" in metrics:
        parts.append(_table(lake_table(metrics["lake"])))
    curves = {name: result["curve"] for name, result in metrics["sets"].items() if result["curve"]}
    if curves:
        write_whole(out / "n_way.png", lambda path: plots.plot_n_way(curves, path))
        parts.append(_plot(out / "n_way.png"))
    return parts


def _set_section(out, held, result, encoder):
    """Everything about one set of images."""
    path, retrieval = out / f"verification_{held.name}.png", result["retrieval"]
    same = held.same, held.distances, result["verification"], held.name
    write_whole(path, lambda file: plots.plot_verification(*same, file))
    recalls = sorted(retrieval["class_recall_at_1"].items(), key=lambda item: item[1])
    by_class = [["class", "recall at 1"], *([name, f"{share:.1%}"] for name, share in recalls)]
    confused = [["image of", "nearest is of", "times"], *retrieval["most_confused"]]
    return [
        tag("h2", f"{held.name.capitalize()} classes in detail"),
        tag("div", _plot(path), class_="scroll"),
        _table(score_tables(result)[0]),
        tag("h3", "Hardest genuine pairs: one class, far apart"),
        _hardest(held, np.flatnonzero(held.same), -1),
        tag("h3", "Hardest impostors: two classes, close together"),
        _hardest(held, np.flatnonzero(~held.same), 1),
        tag("h3", "Nearest neighbours of a few queries"),
        *_neighbours(held),
        tag("h3", "Map of the embeddings"),
        tag(
            "p", "t-SNE: a dot an image, a colour a class; point at one to see it.", class_="quiet"
        ),
        _map(held),
        tag("h3", "Where the network looks"),
        tag("p", LOOKS, class_="quiet"),
        _where_it_looks(held, encoder),
        tag("details", tag("summary", "Most confused classes"), _table(confused), open=""),
        tag("details", tag("summary", "All classes, the hardest first"), _table(by_class)),
    ]


def _table(rows):
    lines = [tag("tr", *(tag("th" if row is rows[0] else "td", c) for c in row)) for row in rows]
    return tag("div", tag("table", *lines), class_="scroll")


def _plot(path):
    return _embedded(path.read_bytes(), "png", path.stem, class_="plot")


def _image(pixels, size, alt):
    file = io.BytesIO()
    small = Image.fromarray(pixels.squeeze()).resize((size, size), Image.Resampling.BILINEAR)
    small.convert("RGB").save(file, "JPEG", quality=80)
    return _embedded(file.getvalue(), "jpeg", alt, title=alt)


def _embedded(content, kind, alt, **attributes):
    data = base64.b64encode(content).decode()
    return tag("img", alt=alt, src=f"data:image/{kind};base64,{data}", **attributes)


def _figure(held, positions, caption):
    images = [_image(held.image(at), 96, held.class_name(at)) for at in positions]
    return tag("figure", *images, tag("figcaption", caption))


def _hardest(held, pairs, sign):
    """The pairs that the network gets most wrong."""
    figures = []
    for pair in pairs[np.argsort(sign * held.distances[pairs], kind="stable")][:HARDEST]:
        both = held.left[pair], held.right[pair]
        names = " and ".join(dict.fromkeys(map(held.class_name, both)))
        figures.append(_figure(held, both, f"{held.distances[pair]:.3f}: {names}"))
    return tag("div", *figures, class_="row")


def _neighbours(held):
    """Yields the nearest images to a few queries, of as many classes."""
    _, firsts = np.unique(held.labels, return_index=True)
    queries = firsts[np.linspace(0, len(firsts) - 1, min(QUERIES, len(firsts))).astype(int)]
    distances = scores.all_distances(held.embeddings[queries], held.embeddings, held.distance)
    for query, row in zip(queries, distances, strict=True):
        row[query] = np.inf
        figures = [_figure(held, [query], f"query: {held.class_name(query)}")]
        for at in np.argsort(row, kind="stable")[:NEIGHBOURS]:
            name = "✓" if held.labels[at] == held.labels[query] else f"✗ {held.class_name(at)}"
            figures.append(_figure(held, [at], f"{row[at]:.3f} {name}"))
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
        dots.append(tag("i", _image(held.image(at), 64, held.class_name(at)), style=style))
    return tag("div", *dots, class_="map")


def _where_it_looks(held, encoder):
    """Genuine pairs with the parts marked that bring the two together."""
    pairs = np.flatnonzero(held.same)
    pairs = pairs[np.argsort(held.distances[pairs], kind="stable")]
    figures = []
    for pair in pairs[np.unique(np.linspace(0, len(pairs) // 2, LOOKED_INTO).astype(int))]:
        both, images = [held.left[pair], held.right[pair]], []
        for here, there in (both, both[::-1]):
            heat = occlusion_map(encoder, held.image(here), held.embeddings[there], held.distance)
            images.append(_image(plots.overlay(held.image(here), heat), 144, "occlusion map"))
        caption = f"{held.class_name(both[0])}, distance {held.distances[pair]:.3f}"
        figures.append(tag("figure", *images, tag("figcaption", caption)))
    return tag("div", *figures, class_="row")


def occlusion_map(encoder, pixels, other_embedding, distance=None):
    """How much the distance to another image grows when a part of this one is covered.

    Args:
        encoder: Model from raw pixels to embeddings.
        pixels: uint8 array (size, size, channels).
        other_embedding: The other image's, (embedding_dim,).
        distance: Of two embeddings, as in `scores`.

    Returns:
        Array (PATCHES, PATCHES); 0 where the part does not matter.

    Reference:
        Zeiler & Fergus, "Visualizing and understanding convolutional networks", 2014.
    """
    from siamese_network_funcs import embed

    size = len(pixels)
    edges = np.linspace(0, size, PATCHES + 1).astype(int)
    covered = np.repeat(pixels[None], PATCHES**2 + 1, axis=0)  # the last one stays whole
    middle, margin = np.median(pixels, axis=(0, 1)), size // PATCHES // 2
    for number in range(PATCHES**2):
        row, column = divmod(number, PATCHES)
        rows = slice(max(0, edges[row] - margin), edges[row + 1] + margin)
        columns = slice(max(0, edges[column] - margin), edges[column + 1] + margin)
        covered[number, rows, columns] = middle
    embeddings = embed(encoder, covered, np.arange(len(covered)))
    distances = scores.all_distances(other_embedding[None], embeddings, distance)[0]
    return np.maximum(distances[:-1] - distances[-1], 0).reshape(PATCHES, PATCHES)
