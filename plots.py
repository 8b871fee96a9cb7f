"""History and pairs -> figures. matplotlib and arrays only."""

import matplotlib

matplotlib.use("agg")  # files only: no screen needed

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

TRAINING, VALIDATION, BEST = "#8a8f98", "#1a7f5a", "#c2410c"
RIGHT, WRONG = "#1a7f5a", "#b91c1c"
PAIRS_A_KIND = 4


def plot_curves(history, name, title, best_epoch, path):
    """Draws one quantity over the epochs, training and validation, best epoch marked.

    Args:
        history: List of dicts, one an epoch, with `epoch`, `name` and `val_` + `name`.
        name: "accuracy" or "loss".
        title: Above the axes.
        best_epoch: The epoch whose weights were kept, counted from 1.
        path: PNG to write.
    """
    epochs = [row["epoch"] for row in history]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for key, color, label in (
        (name, TRAINING, "training"),
        (f"val_{name}", VALIDATION, "validation"),
    ):
        axes.plot(epochs, [row[key] for row in history], color=color, marker=".", label=label)
    best = next(row[f"val_{name}"] for row in history if row["epoch"] == best_epoch)
    axes.axvline(best_epoch, color=BEST, linestyle=":", linewidth=1)
    axes.plot(best_epoch, best, "o", color=BEST, label=f"kept: epoch {best_epoch}, {best:.3f}")
    axes.set(xlabel="epoch", ylabel=name, title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_pairs(pixels, left, right, same, distances, threshold, path):
    """Shows validation pairs with distance and verdict, right ones and wrong ones.

    Args:
        pixels: uint8 array (images, size, size, channels).
        left: Rows of pixels (pairs,).
        right: Rows of pixels (pairs,).
        same: Boolean array (pairs,), True for genuine.
        distances: Array (pairs,).
        threshold: A pair is called the same below it.
        path: PNG to write.
    """
    called_same, error = distances < threshold, np.abs(distances - threshold)
    kinds = [
        ("genuine, called same", same & called_same, 1),
        ("impostor, called different", ~same & ~called_same, 1),
        ("genuine, called different", same & ~called_same, -1),
        ("impostor, called same", ~same & called_same, -1),
    ]
    figure, grid = plt.subplots(4, 2 * PAIRS_A_KIND, figsize=(11, 7.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.16)  # the lines' titles lie between them
    figure.suptitle(f"Validation pairs: the same below a distance of {threshold:.3f}")
    for line, (kind, mask, sign) in zip(grid, kinds, strict=True):
        members = np.flatnonzero(mask)
        # Right ones as they come, wrong ones the worst first; no image twice on the left.
        order = members if sign > 0 else members[np.argsort(-error[members])]
        _, first = np.unique(left[order], return_index=True)
        order = order[np.sort(first)]
        shown = order[:: max(1, len(order) // PAIRS_A_KIND)] if sign > 0 else order
        color = RIGHT if sign > 0 else WRONG
        for axes in line:
            axes.axis("off")
        title = f"{kind}: {len(members)}"
        place = {"transform": line[0].transAxes, "in_layout": False}
        line[0].text(0, 1.22, title, color=color, fontweight="bold", **place)
        for slot, pair in enumerate(shown[:PAIRS_A_KIND]):
            for axes, row in zip(
                line[2 * slot : 2 * slot + 2], (left[pair], right[pair]), strict=True
            ):
                axes.imshow(pixels[row].squeeze(), cmap="gray", vmin=0, vmax=255)
            line[2 * slot].set_title(f"distance {distances[pair]:.3f}", fontsize=8, loc="left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_verification(same, distances, scores, name, path):
    """ROC curve, distance histograms with the threshold, and reliability, side by side.

    Args:
        same: Boolean array (pairs,), True for genuine.
        distances: Array (pairs,).
        scores: Dict as from `scores.verification_scores`.
        name: "known" or "unseen".
        path: PNG to write.
    """
    figure, (roc, histogram, reliability) = plt.subplots(
        1, 3, figsize=(12, 3.8), layout="constrained"
    )
    figure.suptitle(f"Verification, {name} classes")
    thresholds = np.unique(np.quantile(distances, np.linspace(0, 1, 400)))
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    accepted = [np.searchsorted(d, thresholds, side="right") / len(d) for d in (impostor, genuine)]
    roc.plot(*accepted, color=VALIDATION)
    roc.plot([0, 1], [1, 0], color=TRAINING, linestyle=":", linewidth=1)
    roc.set(xlabel="false accepts", ylabel="true accepts", title=f"ROC, AUC {scores['auc']:.4f}")

    bins = np.linspace(0, distances.max() or 1, 50)
    histogram.hist(genuine, bins, color=RIGHT, alpha=0.6, density=True, label="genuine")
    histogram.hist(impostor, bins, color=WRONG, alpha=0.5, density=True, label="impostor")
    histogram.axvline(scores["threshold"], color="black", linestyle="--", linewidth=1)
    histogram.set(xlabel="distance", title=f"threshold {scores['threshold']:.3f}", yticks=[])
    histogram.legend(frameon=False)

    reliability.plot([0, 1], [0, 1], color=TRAINING, linestyle=":", linewidth=1)
    points = scores["reliability"]
    reliability.plot(points["predicted"], points["observed"], color=VALIDATION, marker="o")
    title = f"Brier score {scores['brier']:.4f}"
    reliability.set(xlabel="predicted probability of same", ylabel="observed share", title=title)
    for axes in (roc, histogram, reliability):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_n_way(curves, path):
    """One-shot accuracy against the number of classes, with 95% bands.

    Args:
        curves: "known" and "unseen" -> dict as from `evaluate.n_way_curve`.
        path: PNG to write.
    """
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    colors = {"known": VALIDATION, "unseen": BEST}
    for name, curve in curves.items():
        for kind, style in (("model", "-"), ("raw pixels", "--")):
            accuracy = [100 * point["accuracy"] for point in curve[kind]]
            low, high = 100 * np.array([point["interval"] for point in curve[kind]]).T
            label = f"{'nearest neighbour on pixels' if kind != 'model' else kind}, {name} classes"
            axes.plot(curve["ways"], accuracy, style, color=colors[name], marker=".", label=label)
            axes.fill_between(curve["ways"], low, high, color=colors[name], alpha=0.15, linewidth=0)
    ways = max((curve["ways"] for curve in curves.values()), key=len)
    axes.plot(ways, [100 / n for n in ways], ":", color=TRAINING, label="random")
    axes.set(xlabel="classes to choose from (N)", ylabel="accuracy (%)", title="N-way one-shot")
    axes.set_ylim(0, 101)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def overlay(pixels, heat):
    """An image in grey with a heat map laid over it in red.

    Args:
        pixels: uint8 array (size, size, channels).
        heat: Array (rows, columns), 0 for nothing.

    Returns:
        uint8 array (size, size, 3).
    """
    size = len(pixels)
    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    scaled = Image.fromarray((255 * heat / (heat.max() or 1)).astype(np.uint8))
    share = np.asarray(scaled.resize((size, size), Image.Resampling.BICUBIC))[..., None] / 255 * 0.7
    return (grey * (1 - share) + share * np.array([255, 40, 20])).astype(np.uint8)


def plot_rows(rows, path):
    """Images in rows, each with a caption above it.

    Args:
        rows: List of lists of (uint8 array (size, size, 3), caption).
        path: PNG to write.
    """
    columns = max(map(len, rows))
    size = (max(4.5, 1.7 * columns), 2.0 * len(rows))
    figure, grid = plt.subplots(len(rows), columns, figsize=size, squeeze=False,
                                layout="constrained")  # fmt: skip
    for line, row in zip(grid, rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (pixels, caption) in zip(line, row, strict=False):
            axes.imshow(pixels)
            axes.set_title(caption, fontsize=8, loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)
