"""Metrics and held-out images -> metrics.json, figures and one self-contained report.html."""

import base64
import html
import io
import json

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

import plots
from run_directory import write_whole
from siamese_network_funcs import embed

HARDEST = 6  # pairs shown of each kind
QUERIES, NEIGHBOURS = 5, 6
MOST_ON_MAP = 400  # thumbnails on the map of embeddings
OCCLUDED_PAIRS, PATCHES = 3, 12  # pairs looked into; squares along a side that are covered in turn
THUMBNAIL = 72  # pixels

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --quiet: #5f6670; --paper: #fff;
  --line: #dfe3e8; --card: #f6f7f9; --warn: #b45309; --accent: #1a7f5a }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --quiet: #9aa3ad; --paper: #16181b;
  --line: #30353b; --card: #1f2226; --warn: #f59e0b; --accent: #4cc38a } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1040px; padding: 24px 16px 64px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin: 0 0 4px } h2 { font-size: 1.25rem; margin: 40px 0 8px }
h3 { font-size: 1rem; margin: 20px 0 6px } p { margin: 6px 0 } .quiet { color: var(--quiet) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px }
.card { background: var(--card); border-radius: 8px; padding: 12px 14px }
.card b { display: block; font-size: 1.6rem; line-height: 1.2 }
.warning { border-left: 4px solid var(--warn); background: var(--card); padding: 8px 14px }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .92rem }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line);
  white-space: nowrap } td.best { color: var(--accent); font-weight: 600 }
figure { margin: 12px 0 } img { max-width: 100% } .paper { background: #fff; border-radius: 6px }
.strip { display: flex; flex-wrap: wrap; gap: 14px } .strip figure { margin: 0 }
.strip img { width: 72px; height: 72px; border-radius: 4px; image-rendering: auto }
figcaption { font-size: .8rem; color: var(--quiet); max-width: 150px; overflow-wrap: anywhere }
.pair { display: flex; gap: 4px; background: var(--card); border-radius: 6px; padding: 6px }
.pair figcaption { max-width: 72px } .look img { width: 132px; height: 132px }
.map { position: relative; width: 100%; aspect-ratio: 1.6; background: var(--card);
  border-radius: 8px } .map i { position: absolute; width: 9px; height: 9px; border-radius: 50%;
  margin: -4px 0 0 -4px } .map i img { display: none; position: absolute; left: 8px; top: 8px;
  width: 96px; max-width: none; z-index: 2; border: 2px solid var(--ink); border-radius: 4px;
  background: var(--paper) } .map i:hover img { display: block }
.map i.left img { left: -92px } .map i.low img { top: -92px }
details { margin: 8px 0 } pre { overflow-x: auto; background: var(--card); padding: 12px;
  border-radius: 8px; font-size: .82rem }
"""


def write_report(out, run, metrics, held_out):
    """Writes `metrics.json`, the figures and `report.html`.

    Args:
        out: Folder for them.
        run: The `RunDirectory` that was scored.
        metrics: From `evaluate.evaluate`.
        held_out: List of `evaluate.HeldOut`.
    """
    write_whole(out / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=2)))
    figures = _draw_figures(out, metrics, held_out)
    encoder, threshold = run.load_encoder(), run.read_json("threshold.json")
    parts = [_heading(run, metrics), _warnings(metrics)]
    for held in held_out:
        parts += _set_section(held, metrics["sets"][held.name], figures, encoder, threshold)
    if "lake" in metrics:
        parts.append(_lake_table(metrics["lake"]))
    parts.append(_training(run))
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_text(run.path.name)}</title><style>{STYLE}</style><body>{''.join(parts)}</body>"
    )
    write_whole(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))


def _text(value):
    return html.escape(str(value), quote=True)


def _percent(value):
    return f"{value:.1%}"


def _draw_figures(out, metrics, held_out):
    """Draws the PNG files; returns their paths by name."""
    jobs = {}
    curves = {name: result["curve"] for name, result in metrics["sets"].items() if result["curve"]}
    if curves:
        jobs["n_way.png"] = lambda path: plots.plot_n_way(curves, path)
    for held in held_out:
        scores = metrics["sets"][held.name]["verification"]
        jobs[f"verification_{held.name}.png"] = lambda path, held=held, scores=scores: (
            plots.plot_verification(held.same, held.distances, scores, held.name, path)
        )
    for name, draw in jobs.items():
        write_whole(out / name, draw)
    return {name: out / name for name in jobs}


def _heading(run, metrics):
    parts = [f"<h1>{_text(run.path.name)}</h1>"]
    source = f"scored on {metrics['data']}" if metrics["data"] else "scored on its held-out images"
    parts.append(f"<p class='quiet'>{_text(source)}, which it never trained on</p>")
    for name, result in metrics["sets"].items():
        scores = result["verification"]
        intervals = scores["intervals"]
        cards = [("ROC AUC", f"{scores['auc']:.4f}", [f"{v:.4f}" for v in intervals["auc"]])]
        for title, key in (("equal error rate", "equal_error_rate"), ("accuracy", "accuracy")):
            cards.append((title, _percent(scores[key]), map(_percent, intervals[key])))
        for row in result["few_shot"]:
            if row["classes"] == "across":
                title = f"{row['ways']}-way {row['shots']}-shot"
                model = row["model"]
                cards.append((title, _percent(model["accuracy"]), map(_percent, model["interval"])))
        cells = "".join(
            f"<div class='card'>{title}<b>{value}</b><span class='quiet'>{' to '.join(interval)}"
            "</span></div>"
            for title, value, interval in cards
        )
        parts.append(f"<h2>{_text(name.capitalize())} classes</h2><div class='cards'>{cells}</div>")
    parts.append("<p class='quiet'>Ranges are 95% intervals: by bootstrap over classes, and over "
                 "trials for N-way.</p>")  # fmt: skip
    return "".join(parts)


def _warnings(metrics):
    sentences = [w for result in metrics["sets"].values() for w in result["warnings"]]
    return "".join(f"<p class='warning'>{_text(sentence)}</p>" for sentence in sentences)


def _set_section(held, result, figures, encoder, threshold):
    """Everything about one set of images."""
    title = f"<h2>{held.name.capitalize()} classes in detail</h2>"
    counts = f"{result['images']} images of {result['classes']} classes"
    parts = [f"{title}<p class='quiet'>{counts}</p>", _few_shot_table(result)]
    names = (f"verification_{held.name}.png", "n_way.png")
    parts += [_figure(figures[name]) for name in names if name in figures]
    parts += [_hardest(held, threshold["threshold"]), _neighbours(held), _map(held)]
    parts += [_where_it_looks(held, encoder), _classes(result["retrieval"])]
    return parts


def _figure(path):
    data = base64.b64encode(path.read_bytes()).decode()
    source = f"data:image/png;base64,{data}"
    return f"<figure><img class='paper' alt='{_text(path.stem)}' src='{source}'></figure>"


def _few_shot_table(result):
    names = list(dict.fromkeys(k for row in result["few_shot"] for k, v in row.items()
                               if isinstance(v, dict)))  # fmt: skip
    if not names:
        return ""
    head = "".join(f"<th>{_text(name)}</th>" for name in ("trial", *names))
    lines = []
    for row in result["few_shot"]:
        best = max(row[name]["accuracy"] for name in names if name in row)
        cells = [f"<td>{row['ways']}-way {row['shots']}-shot, {row['classes']}</td>"]
        for name in names:
            value = row[name]["accuracy"] if name in row else None
            mark = " class='best'" if value == best else ""
            cells.append(f"<td{mark}>{'' if value is None else _percent(value)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        "<h3>N-way K-shot accuracy, the same trials for all</h3><div class='scroll'><table>"
        f"<tr>{head}</tr>{''.join(lines)}</table></div>"
    )


def _thumbnail(pixels, size=THUMBNAIL):
    image = Image.fromarray(pixels.squeeze()).resize((size, size), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _image(held, position, caption):
    name = held.dataset.index.class_names[held.labels[position]]
    source = _thumbnail(held.image(position))
    return (
        f"<figure><img alt='{_text(name)}' title='{_text(name)}' src='{source}'>"
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _hardest(held, threshold):
    """The genuine pairs farthest apart and the impostors closest together."""
    parts = []
    for title, mask, sign in (
        ("Hardest genuine pairs: one class, far apart", held.same, -1),
        ("Hardest impostors: two classes, close together", ~held.same, 1),
    ):
        members = np.flatnonzero(mask)
        members = members[np.argsort(sign * held.distances[members])][:HARDEST]
        strip = "".join(
            "<div class='pair'>"
            + _image(held, held.left[pair], f"distance {held.distances[pair]:.3f}")
            + _image(held, held.right[pair], _class_of(held, held.right[pair]))
            + "</div>"
            for pair in members
        )
        parts.append(f"<h3>{title}</h3><div class='strip'>{strip}</div>")
    note = f"<p class='quiet'>The run calls a pair the same below {threshold:.3f}.</p>"
    return "".join(parts) + note


def _class_of(held, position):
    return held.dataset.index.class_names[held.labels[position]]


def _neighbours(held):
    """The nearest images to a few queries, of as many classes."""
    _, queries = np.unique(held.labels, return_index=True)
    queries = queries[np.linspace(0, len(queries) - 1, min(QUERIES, len(queries))).astype(int)]
    lines = []
    for query in queries:
        distances = np.linalg.norm(held.embeddings - held.embeddings[query], axis=1)
        nearest = [n for n in np.argsort(distances, kind="stable") if n != query][:NEIGHBOURS]
        cells = _image(held, query, f"query: {_class_of(held, query)}")
        for n in nearest:
            mark = "✓" if held.labels[n] == held.labels[query] else "✗ " + _class_of(held, n)
            cells += _image(held, n, f"{mark} {distances[n]:.3f}")
        lines.append(f"<div class='strip'>{cells}</div>")
    return "<h3>Nearest neighbours of a few queries</h3>" + "<br>".join(lines)


def _map(held):
    """The embeddings in two dimensions, a dot an image, with its picture on hover."""
    rng = np.random.default_rng(0)
    shown = np.sort(rng.permutation(len(held.rows))[:MOST_ON_MAP])
    vectors = held.embeddings[shown]
    if len(shown) > 30:
        points = TSNE(perplexity=min(30, len(shown) / 4), random_state=0).fit_transform(vectors)
    else:
        points = PCA(2).fit_transform(vectors) if len(shown) > 2 else np.zeros((len(shown), 2))
    low, high = points.min(axis=0), points.max(axis=0)
    places = 3 + 94 * (points - low) / np.where(high > low, high - low, 1)
    classes, colors = np.unique(held.labels[shown], return_inverse=True)
    dots = []
    for position, (x, y), color in zip(shown, places, colors, strict=True):
        side = ("left " if x > 80 else "") + ("low" if y > 70 else "")
        hue = f"hsl({360 * color / len(classes):.0f} 70% 50%)"
        dots.append(
            f"<i class='{side}' style='left:{x:.1f}%;top:{y:.1f}%;background:{hue}'"
            f" title='{_text(_class_of(held, position))}'><img alt='' loading='lazy' "
            f"src='{_thumbnail(held.image(position), 64)}'></i>"
        )
    return (
        "<h3>Map of the embeddings</h3><p class='quiet'>A dot an image, a colour a class; point at "
        f"one to see it.</p><div class='map'>{''.join(dots)}</div>"
    )


def _where_it_looks(held, encoder):
    """Genuine pairs with the parts marked that bring the two together."""
    genuine = np.flatnonzero(held.same)
    genuine = genuine[np.argsort(held.distances[genuine])]
    chosen = genuine[np.linspace(0, len(genuine) // 2, OCCLUDED_PAIRS).astype(int)]
    strip = ""
    for pair in dict.fromkeys(chosen.tolist()):
        one, other = held.left[pair], held.right[pair]
        for here, there in ((one, other), (other, one)):
            heat = occlusion_map(encoder, held.image(here), held.embeddings[there])
            source = _thumbnail(plots.overlay(held.image(here), heat), 2 * THUMBNAIL)
            caption = f"{_class_of(held, here)}, distance {held.distances[pair]:.3f}"
            strip += f"<figure><img alt='occlusion map' src='{source}'><figcaption>{_text(caption)}"
            strip += "</figcaption></figure>"
    return (
        "<h3>Where the network looks</h3><p class='quiet'>Each square is covered in turn; the "
        "redder, the more the pair's distance grows without it. Red beside the object is a bad "
        f"sign.</p><div class='strip look'>{strip}</div>"
    )


def occlusion_map(encoder, pixels, other_embedding):
    """How much the distance to another image grows when a part of this one is covered.

    Args:
        encoder: Model from raw pixels to embeddings.
        pixels: uint8 array (size, size, channels).
        other_embedding: The other image's, (embedding_dim,).

    Returns:
        Array (PATCHES, PATCHES); 0 where the part does not matter.

    Reference:
        Zeiler & Fergus, "Visualizing and understanding convolutional networks", 2014.
    """
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
    distances = np.linalg.norm(embeddings - other_embedding, axis=1)
    return np.maximum(distances[:-1] - distances[-1], 0).reshape(PATCHES, PATCHES)


def _classes(retrieval):
    """Recall by class, and the pairs of classes most often taken for each other."""
    recalls = sorted(retrieval["class_recall_at_1"].items(), key=lambda item: item[1])
    rows = "".join(f"<tr><td>{_text(n)}</td><td>{_percent(v)}</td></tr>" for n, v in recalls)
    confused = "".join(
        f"<tr><td>{_text(one)}</td><td>{_text(other)}</td><td>{times}</td></tr>"
        for one, other, times in retrieval["most_confused"]
    )
    general = ", ".join(
        [f"recall at {k} {_percent(retrieval[f'recall_at_{k}'])}" for k in (1, 5, 10)]
    )
    return (
        f"<h3>Retrieval</h3><p>{general}, mean average precision "
        f"{retrieval['mean_average_precision']:.3f}</p><details><summary>By class, the hardest "
        f"first</summary><div class='scroll'><table><tr><th>class</th><th>recall at 1</th></tr>"
        f"{rows}</table></div></details><details open><summary>Most confused</summary><div "
        "class='scroll'><table><tr><th>image of</th><th>nearest is of</th><th>times</th></tr>"
        f"{confused}</table></div></details>"
    )


def _lake_table(lake):
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td>{value['error']:.2%}</td>"
        f"<td>{' to '.join(f'{v:.2%}' for v in value['interval'])}</td></tr>"
        for name, value in lake.items()
    )
    runs = next(iter(lake.values()))["runs"]
    return (
        f"<h2>Lake's {runs} one-shot runs</h2><table><tr><th></th><th>error</th>"
        f"<th>95% interval over runs</th></tr>{rows}</table>"
    )


def _training(run):
    """The run's curves, config and environment."""
    curves = [_figure(run / name) for name in ("accuracy.png", "loss.png") if (run / name).exists()]
    files = "".join(
        f"<details><summary>{name}</summary><pre>{_text((run / name).read_text())}</pre></details>"
        for name in ("config.json", "environment.json", "threshold.json")
    )
    return f"<h2>The training</h2>{''.join(curves)}{files}"
