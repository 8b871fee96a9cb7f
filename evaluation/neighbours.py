"""Which images lie nearest: classes taken for one another, images at odds with their label."""

from collections import Counter

import numpy as np
from scipy import stats
from sklearn.metrics import confusion_matrix

from evaluation.verification import all_distances, chunks

NEIGHBOURS = 5


def nearest(embeddings, distance=None):
    """The `NEIGHBOURS` nearest others of each image, nearest first: positions (n, count)."""
    found = np.empty((len(embeddings), min(NEIGHBOURS, len(embeddings) - 1)), int)
    for rows in chunks(len(embeddings), len(embeddings)):
        distances = all_distances(embeddings[rows], embeddings, distance)
        own = np.arange(len(distances))
        distances[own, rows.start + own] = np.inf
        found[rows] = np.argsort(distances, axis=1, kind="stable")[:, : found.shape[1]]
    return found


def retrieval_scores(labels, neighbours):
    """How often the nearest other image is of the class, of images not alone in theirs.

    Returns a dict that JSON can hold: `recall_at_1`, `class_recall_at_1` of each class by name, and
    `most_confused`: (class, the nearest image's, times).
    """
    labels = np.asarray(labels)
    names, counts = np.unique(labels, return_counts=True)
    asked = np.isin(labels, names[counts > 1])
    if not asked.any():
        return {}
    labels, found = labels[asked].tolist(), labels[neighbours[asked, 0]].tolist()
    times = Counter(zip(labels, found, strict=True))
    return {
        "recall_at_1": sum(n for (a, b), n in times.items() if a == b) / len(labels),
        "class_recall_at_1": {name: times[name, name] / n for name, n in Counter(labels).items()},
        "most_confused": [[a, b, n] for (a, b), n in times.most_common() if a != b][:10],
    }


def most_confused(labels, neighbours, most):
    """`(classes, shares)`: the `most` classes that are most taken for one another, sorted.

    Rows of `shares` are classes of images, columns those of the nearest other image.
    """
    classes, counts = np.unique(labels, return_counts=True)
    taken = confusion_matrix(labels, labels[neighbours[:, 0]], labels=classes)
    wrong = taken - np.diag(taken.diagonal())
    worst = np.sort(np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:most])
    return classes[worst], (taken / counts[:, None])[np.ix_(worst, worst)]


def suspected_label_errors(labels, neighbours):
    """Images most of whose neighbours are of one other class, the clearest first.

    Their labels may be wrong (Wilson, "Asymptotic properties of nearest neighbor rules using
    edited data", 1972). Returns `(image, the nearest of that class, share of the neighbours)` each.
    """
    around = labels[neighbours]  # (n, count)
    most, counts = stats.mode(around, axis=1)
    shares = counts / around.shape[1]
    twins = neighbours[np.arange(len(labels)), (around == most[:, None]).argmax(axis=1)]
    order = np.argsort(-shares, kind="stable")
    found = order[(most != labels)[order] & (shares[order] > 0.5)]
    return list(zip(found, twins[found], shares[found], strict=True))
