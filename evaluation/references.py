"""Verification against several references of one class: which rule, and where to cut. No Keras."""

import numpy as np

from evaluation.thresholds import NUMBERS, RATES, equal_error_rate, unknown_threshold
from evaluation.verification import all_distances

RULES = {"nearest": np.min, "mean": np.mean}  # of the distances to the references
IMPOSTORS = {"random": "images of other classes", "skilled": "forgeries"}
DRAWS = 5  # of the references of a class, for a table
KINDS = ("genuine", "random", "skilled")  # of the class, of another one, forgeries of the class


def reference_distances(distances, labels, forged, count, rng, draws=1):
    """Scores every image against `count` references of each class that has more images.

    Args:
        distances: Of all images to each other, `(n, n)`.
        labels: Their classes, `(n,)`.
        forged: Which are forgeries, boolean `(n,)`; never references.
        count: References of a class, drawn from its genuine images.
        rng: A NumPy generator.
        draws: How often a class's references are drawn anew.

    Returns:
        Dict: rule -> kind -> array of distances. Genuine images of other classes are `random`.
    """
    found = {kind: [] for kind in KINDS}
    for label in np.repeat(np.unique(labels), draws):
        own = rng.permutation(np.flatnonzero((labels == label) & ~forged))
        if len(own) <= count:
            continue
        rows = {"genuine": own[count:]}
        rows["skilled"] = np.flatnonzero((labels == label) & forged)
        rows["random"] = np.flatnonzero((labels != label) & ~forged)
        for kind in KINDS:
            found[kind].append(distances[np.ix_(rows[kind], own[:count])])
    joined = {
        kind: np.concatenate(blocks or [np.empty((0, count))]) for kind, blocks in found.items()
    }
    return {rule: {kind: score(joined[kind], axis=1) for kind in KINDS}
            for rule, score in RULES.items()}  # fmt: skip


def equal_errors(scores):
    """Equal error rate of each kind of impostor, from one rule's scores; without those missing."""
    genuine = scores["genuine"]
    impostors = {kind: scores[kind] for kind in KINDS[1:] if len(scores[kind]) and len(genuine)}
    return {
        kind: equal_error_rate(
            np.arange(len(genuine) + len(some)) < len(genuine), np.concatenate([genuine, some])
        )[0]
        for kind, some in impostors.items()
    }


def reference_thresholds(embeddings, labels, forged, rng, distance=None):
    """The better rule and its table of thresholds, for `threshold.json`, from validation images.

    A false accept is a forgery where there are any, else an image of another class. The better rule
    has the lower equal error rate with the most references there can be.

    Returns:
        Dict: `rule`, `impostors` in words, `measured` (equal error rates of both rules with most
        references), `equal_error_rates` by number of references, and the table that
        `thresholds.unknown_threshold` reads; None where no class has two images.
    """
    distances = all_distances(embeddings, embeddings, distance)
    counts = np.bincount(labels[~forged])
    numbers = [n for n in NUMBERS if np.sum(counts > n) >= max(1, np.sum(counts > 1) / 2)]
    if not numbers or np.sum(counts > 0) < 2:
        return None
    scores = [reference_distances(distances, labels, forged, n, rng, DRAWS) for n in numbers]
    measured = {rule: equal_errors(of) for rule, of in scores[-1].items()}
    kind = "skilled" if all("skilled" in errors for errors in measured.values()) else "random"
    rule = min(RULES, key=lambda rule: measured[rule][kind])
    return {
        "rule": rule,
        "impostors": IMPOSTORS[kind],
        "measured": measured,
        "references": numbers,
        "equal_error_rates": [equal_errors(of[rule])[kind] for of in scores],
        "false_accept_rates": list(RATES),
        "thresholds": [np.quantile(of[rule][kind], RATES).tolist() for of in scores],
    }


def accept_below(table, count, false_accept_rate=None):
    """`(threshold, false-accept rate)` for `count` references, from what `threshold.json` keeps.

    None stands for the equal error rate.
    """
    if false_accept_rate is None:
        numbers = np.log(table["references"])
        false_accept_rate = float(np.interp(np.log(count), numbers, table["equal_error_rates"]))
    false_accept_rate = max(false_accept_rate, RATES[0])
    return unknown_threshold(table, count, false_accept_rate), false_accept_rate
