"""History and pairs -> figures. matplotlib and arrays only."""

import matplotlib

matplotlib.use("agg")  # files only: no screen needed

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

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
    figure.suptitle(f"Validation pairs: the same below a distance of {threshold:.3f}")
    for line, (kind, mask, sign) in zip(grid, kinds, strict=True):
        members = np.flatnonzero(mask)
        # Right ones as they come, wrong ones the worst first.
        order = members if sign > 0 else members[np.argsort(-error[members])]
        shown = order[:: max(1, len(order) // PAIRS_A_KIND)] if sign > 0 else order
        color = RIGHT if sign > 0 else WRONG
        for axes in line:
            axes.axis("off")
        line[0].text(0, 1.22, f"{kind}: {len(members)}", color=color, fontweight="bold",
                     transform=line[0].transAxes)  # fmt: skip
        for slot, pair in enumerate(shown[:PAIRS_A_KIND]):
            for axes, row in zip(
                line[2 * slot : 2 * slot + 2], (left[pair], right[pair]), strict=True
            ):
                axes.imshow(pixels[row].squeeze(), cmap="gray", vmin=0, vmax=255)
            line[2 * slot].set_title(f"distance {distances[pair]:.3f}", fontsize=8, loc="left")
    figure.savefig(path, dpi=130)
    plt.close(figure)
