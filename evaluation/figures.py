"""Histories, pairs and scores -> Matplotlib figures, small enough to be read on a phone."""

import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import auc, roc_curve
from threadpoolctl import threadpool_limits

from evaluation.neighbours import most_confused

QUIET, GREEN, ORANGE, RED = "#8a8f98", "#1a7f5a", "#c2410c", "#b91c1c"
KINDS = GREEN, RED, "#4f46e5"  # of pairs: genuine, (random) impostor, skilled forgery
COLORS = {"known": GREEN, "unseen": ORANGE}
WIDTH, HEIGHT, DPI = 4.6, 3.5, 150  # inches
MOST_ON_MAP, MOST_NAMED = 600, 20  # images of the t-SNE; classes with a name


def draw_figures(held_out):
    """What a report shows of scored `HeldOut`s: name -> `Figure`."""
    if not held_out:
        return {}
    figures = {"roc": plot_roc(held_out), "distances": plot_distances(held_out)}
    for name, along, table in (("n_way", "ways", "curve"), ("k_shot", "shots", "few_shot")):
        figures[name] = plot_few_shot(along, {held.name: held.scores[table] for held in held_out})
    for held in held_out:
        if held.dataset.index.classes_known:  # else only pairs are
            figures[f"confusion_{held.name}"] = plot_confusion(held)
            figures[f"t_sne_{held.name}"] = plot_t_sne(held)
    return {name: figure for name, figure in figures.items() if figure is not None}


def plot_roc(held_out):
    """True against false accepts, both axes linear, with the low rates in a logarithmic inset."""
    figure, axes = _graph("ROC", "false accept rate", "true accept rate")
    inset = axes.inset_axes([0.46, 0.14, 0.52, 0.5])
    inset.set(xscale="log", xlim=(1e-3, 1), ylim=(0, 1), xticks=[1e-3, 1e-2, 1e-1, 1])
    inset.tick_params(labelsize=7)
    inset.grid(alpha=0.25)
    for held in held_out:
        for (kind, impostors), style in zip(held.impostors.items(), ("-", "--"), strict=False):
            pairs = held.same | impostors
            false, true, _ = roc_curve(held.same[pairs], -held.distances[pairs])
            label = f"{held.name} classes, {kind}: AUC {auc(false, true):.3f}"
            for graph in (axes, inset):
                graph.plot(false, true, style, color=COLORS[held.name], label=label)
    axes.plot([0, 1], [0, 1], ":", color=QUIET, label="chance")
    return _with_legend(figure, axes)


def plot_distances(held_out):
    """Histograms of genuine and impostor distances with the run's threshold, a set each."""
    figure = Figure((WIDTH, 1.2 + 1.4 * len(held_out)), DPI, layout="constrained")
    graphs = figure.subplots(len(held_out), sharex=True, squeeze=False)[:, 0]
    for axes, held in zip(graphs, held_out, strict=True):
        low, high = held.distances.min(), held.distances.max()
        edges = np.linspace(low, max(high, low + 1e-6), 51)  # those of a constant network are equal
        look = {"density": True, "histtype": "stepfilled", "alpha": 0.55}
        kinds = {"genuine": held.same} | held.impostors
        for (kind, pairs), color in zip(kinds.items(), KINDS, strict=False):
            axes.hist(held.distances[pairs], edges, label=kind, color=color, **look)
        threshold = held.scores["threshold"]
        axes.axvline(threshold, color="k", ls="--", lw=1, label=f"threshold {threshold:.3f}")
        title = f"Distances, {held.name} classes: {held.scores['accuracy']:.1%} of pairs right"
        _quiet(axes, title=title, yticks=[])
    graphs[-1].set(xlabel="distance")
    return _with_legend(figure, graphs[0])


def plot_few_shot(along, sets):
    """Accuracy against N ("ways") or K ("shots"), with 95% bands; None where no line has 2 points.

    `sets`: "known" and "unseen" -> rows of `scores.few_shot_table`.
    """
    title, label, other, unit = {
        "ways": ("N-way accuracy", "N: classes to choose from", "shots", "-shot"),
        "shots": ("K-shot accuracy", "K: references of each class", "ways", "-way"),
    }[along]
    figure, axes = _graph(title, label, "accuracy (%)")
    styles = {"model": "-", "raw pixels": "--", "random": ":"}
    for name, rows in sets.items():
        rows = [row for row in rows if row["classes"] == "across"]
        for value, marker in zip(sorted({row[other] for row in rows}), "os^D", strict=False):
            line = [row for row in rows if row[other] == value]
            places = [row[along] for row in line]
            if len(line) < 2:
                continue
            for kind, style in styles.items():
                accuracy = [100 * row[kind]["accuracy"] for row in line]
                color, label = COLORS[name], f"{kind}, {value}{unit} {name}"
                if kind == "random":  # whatever the classes
                    color, label = QUIET, f"random, {value}{unit}"
                axes.plot(places, accuracy, marker + style, ms=3, color=color, label=label)
            band = 100 * np.array([row["model"]["interval"] for row in line]).T
            axes.fill_between(places, *band, color=COLORS[name], alpha=0.15, linewidth=0)
    axes.set_ylim(0, 101)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _with_legend(figure, axes) if axes.lines else None


def plot_confusion(held):
    """Heat map of the classes that are most taken for one another: class of the nearest image."""
    positions, nearest = held.neighbours
    labels, class_names = held.labels[positions], held.dataset.index.class_names
    classes, shares = most_confused(labels, nearest, MOST_NAMED)
    names = [short(class_names[label]) for label in classes]
    title, count = f"Nearest image's class, {held.name} classes", len(np.unique(labels))
    if len(classes) < count:
        title += f"\nthe {len(classes)} most confused of {count}"
    figure, axes = _graph(title, "class of the nearest image", "class of the image", height=WIDTH)
    picture = axes.imshow(100 * shares, cmap="Greens", vmin=0, vmax=100)
    figure.colorbar(picture, shrink=0.6, label="% of the class")
    axes.set_xticks(range(len(names)), names, fontsize=6, rotation=90)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.grid(False)
    return figure


def plot_t_sne(held):
    """The embeddings in two dimensions, the largest classes with colour, marker and name.

    Van der Maaten and Hinton, "Visualizing data using t-SNE", 2008.
    """
    shown = held.neighbours[0]
    shown = shown[np.unique(np.linspace(0, len(shown) - 1, MOST_ON_MAP).astype(int))]
    if len(shown) < 4:
        return None
    # Not from principal components: of equal embeddings they are NaN.
    perplexity = min(30, (len(shown) - 1) / 3)
    method = TSNE(perplexity=perplexity, init="random", max_iter=500, random_state=0)
    with threadpool_limits(1):  # its threads wait for one another where others compute too
        places, labels = method.fit_transform(held.embeddings[shown]), held.labels[shown]
    classes, counts = np.unique(labels, return_counts=True)
    named = np.sort(classes[np.argsort(-counts, kind="stable")[:MOST_NAMED]])
    figure, axes = _graph(f"t-SNE, {held.name} classes", "", "", height=WIDTH)
    axes.set(xticks=[], yticks=[])
    if unnamed := len(classes) - len(named):
        others = places[~np.isin(labels, named)]
        axes.scatter(*others.T, s=6, color="#d4d6da", label=f"{unnamed} other classes")
    for number, each in enumerate(named):
        color, marker = f"C{number % 10}", "o^"[number // 10]
        name = short(held.dataset.index.class_names[each])
        axes.scatter(*places[labels == each].T, s=10, c=color, marker=marker, label=name)
    return _with_legend(figure, axes)


def plot_curves(history, name, title, best_epoch):
    """Training and validation over the epochs, `best_epoch`, which was kept, marked.

    `history` is a list of dicts, one an epoch, with `epoch` (from 1), `name` and `val_` + `name`.
    """
    epochs = [row["epoch"] for row in history]
    best = history[epochs.index(best_epoch)][f"val_{name}"]
    figure, axes = _graph(title, "epoch", name)
    for key, label, color in ((name, "training", QUIET), (f"val_{name}", "validation", GREEN)):
        axes.plot(epochs, [row[key] for row in history], color=color, marker=".", label=label)
    axes.axvline(best_epoch, color=ORANGE, linestyle=":", linewidth=1)
    axes.plot(best_epoch, best, "o", color=ORANGE, label=f"kept: epoch {best_epoch}, {best:.3f}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _with_legend(figure, axes)


def short(name, most=22):
    """The end of a name, which tells classes of a family apart."""
    return name if len(name) <= most else "…" + name[1 - most :]


def _graph(title, xlabel, ylabel, height=HEIGHT):
    figure = Figure((WIDTH, height), DPI, layout="constrained")
    axes = figure.subplots()
    _quiet(axes, title=title, xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _quiet(axes, **words):
    axes.set(**words)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _with_legend(figure, axes):
    """Below the graph, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))  # each once
    place = "outside lower center"
    figure.legend(named.values(), named.keys(), loc=place, frameon=False, fontsize=7, ncols=2)
    return figure
