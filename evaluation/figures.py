"""History, pairs and scores -> figures, PNG files at `path`. matplotlib and arrays only."""

import matplotlib

matplotlib.use("agg")  # files only: no screen needed

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.metrics import roc_curve  # noqa: E402

QUIET, GREEN, ORANGE, RED = "#8a8f98", "#1a7f5a", "#c2410c", "#b91c1c"
PAIRS_A_KIND = 4


def draw_figures(metrics, held_out):
    """Name -> `Figure` of what was scored."""
    figures = {}
    for held in held_out:
        figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
        auc = metrics[held.name]["auc"]
        axes.plot(*roc_curve(held.same, -held.distances)[:2], label=f"{held.name}, AUC {auc:.4f}")
        axes.legend(frameon=False)
        figures["roc"] = figure
        plt.close(figure)
    return figures


def _save(figure, path, *graphs):
    """Gives the graphs a quiet grid and writes the figure."""
    for axes in graphs:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_curves(history, name, title, best_epoch, path):
    """Draws training and validation over the epochs, `best_epoch`, which was kept, marked.

    `history` is a list of dicts, one an epoch, with `epoch` (from 1), `name` and `val_` + `name`.
    """
    epochs = [row["epoch"] for row in history]
    best = history[epochs.index(best_epoch)][f"val_{name}"]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for key, label, color in ((name, "training", QUIET), (f"val_{name}", "validation", GREEN)):
        axes.plot(epochs, [row[key] for row in history], color=color, marker=".", label=label)
    axes.axvline(best_epoch, color=ORANGE, linestyle=":", linewidth=1)
    axes.plot(best_epoch, best, "o", color=ORANGE, label=f"kept: epoch {best_epoch}, {best:.3f}")
    axes.set(xlabel="epoch", ylabel=name, title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    _save(figure, path, axes)


def plot_training_pairs(pixels, left, right, same, class_names, labels, path):
    """Shows some pairs of a training, genuine ones above impostor ones, with their classes.

    Args:
        pixels: uint8 array (images, height, width, channels).
        left, right: Rows of pixels (pairs,).
        same: Boolean array (pairs,), True for genuine.
        class_names: Of all classes.
        labels: Class of each row of pixels.
    """
    rows = []
    for kind in (True, False):
        for pair in np.array_split(np.flatnonzero(same == kind), 2):
            sides = zip(left[pair], right[pair], strict=True)
            shown = [row for both in sides for row in both]
            rows.append([(pixels[row], _short(class_names[labels[row]])) for row in shown])
    titles = [("genuine: one class", GREEN), ("", GREEN), ("impostor: two classes", RED), ("", RED)]
    plot_rows(rows, path, titles)


def _short(name, most=22):
    """The end of a name, which tells classes of a family apart."""
    return name if len(name) <= most else "…" + name[1 - most :]


def plot_rows(rows, path, titles=()):
    """Lists of (uint8 array (size, size, channels), caption above it) as rows of images.

    `titles` are the text and colour above each row.
    """
    shape = len(rows), max(map(len, rows))
    size = max(4.5, 1.7 * shape[1]), (2.4 if titles else 2.0) * shape[0]
    figure = plt.figure(figsize=size, layout="constrained")
    lines = figure.subfigures(shape[0], squeeze=False)[:, 0]
    for (title, color), line in zip(titles, lines, strict=False):
        line.suptitle(title, color=color, fontweight="bold", x=0.01, ha="left")
    for line, row in zip(lines, rows, strict=True):
        for number, axes in enumerate(line.subplots(1, shape[1], squeeze=False)[0]):
            axes.axis("off")
            if number < len(row):
                pixels, caption = row[number]
                axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
                axes.set_title(caption, fontsize=8, loc="left")
    _save(figure, path)


def plot_verification(same, distances, scores, name, path):
    """ROC curve, distance histograms with the threshold, and reliability, side by side.

    `scores` are those of `verification.verification_scores`, `name` is "known" or "unseen".
    """
    figure, graphs = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    figure.suptitle(f"Verification, {name} classes: ROC AUC {scores['auc']:.4f}")
    roc, histogram, reliability = graphs
    roc.plot(*roc_curve(same, -distances)[:2], color=GREEN)
    roc.plot([0, 1], [1, 0], ":", color=QUIET, linewidth=1)
    title = f"equal error rate {scores['equal_error_rate']:.1%}"
    roc.set(xlabel="false accepts", ylabel="true accepts", title=title)

    kinds = [distances[same], distances[~same]]
    style = {"color": [GREEN, RED], "alpha": 0.55, "label": ["genuine", "impostor"]}
    histogram.hist(kinds, 50, density=True, histtype="stepfilled", **style)
    histogram.axvline(scores["threshold"], color="black", linestyle="--", linewidth=1)
    title = f"{scores['accuracy']:.1%} right, threshold {scores['threshold']:.3f}"
    histogram.set(xlabel="distance", yticks=[], title=title)
    histogram.legend(frameon=False)

    points, title = scores["reliability"], f"Brier score {scores['brier']:.4f}"
    reliability.plot([0, 1], [0, 1], ":", color=QUIET, linewidth=1)
    reliability.plot(points["predicted"], points["observed"], color=GREEN, marker="o")
    reliability.set(xlabel="predicted probability of same", ylabel="observed share", title=title)
    _save(figure, path, *graphs)


def plot_n_way(curves, path):
    """Draws `curves`, "known" and "unseen" -> what `evaluate.n_way_curve` gives, with 95% bands."""
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for name, curve in curves.items():
        ways, color = curve["ways"], {"known": GREEN, "unseen": ORANGE}[name]
        for kind, style in (("model", "-"), ("raw pixels", "--")):
            accuracy = [100 * point["accuracy"] for point in curve[kind]]
            band = 100 * np.array([point["interval"] for point in curve[kind]]).T
            axes.plot(
                ways, accuracy, style, color=color, marker=".", label=f"{kind}, {name} classes"
            )
            axes.fill_between(ways, *band, color=color, alpha=0.15, linewidth=0)
    ways = max((curve["ways"] for curve in curves.values()), key=len)
    axes.plot(ways, [100 / n for n in ways], ":", color=QUIET, label="random")
    axes.set(xlabel="classes to choose from (N)", ylabel="accuracy (%)", title="N-way one-shot")
    axes.set_ylim(0, 101)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path, axes)


def overlay(pixels, heat):
    """An image (size, size, channels) in grey under a heat map (rows, columns) in red, uint8."""
    grey = pixels.mean(axis=2, keepdims=True)
    scaled = Image.fromarray((178 * heat / (heat.max() or 1)).astype(np.uint8))  # at most 70% red
    red = np.asarray(scaled.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC))[..., None] / 255
    return (grey * (1 - red) + red * np.array([255, 40, 20])).astype(np.uint8)
