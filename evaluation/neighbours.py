"""Which images lie nearest: classes taken for one another, images at odds with their label."""

import numpy as np

from evaluation.verification import all_distances

MOST_IMAGES, MOST_LEARNED = 2000, 400  # looked at, by Euclidean and by a learned distance
NEIGHBOURS = 5


def sample(held, most=MOST_IMAGES):
    """Sorted positions of at most so many genuine images of a `HeldOut`, a seeded choice."""
    most = most if held.distance is None else min(most, MOST_LEARNED)
    genuine = np.flatnonzero(~held.forged)
    return np.sort(np.random.default_rng(0).permutation(genuine)[:most])


def nearest(embeddings, distance=None, count=NEIGHBOURS):
    """The nearest others of each image, nearest first: positions (n, count)."""
    distances = all_distances(embeddings, embeddings, distance)
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, : min(count, len(distances) - 1)]


def confusion(labels, neighbours):
    """`(classes, counts)`: images of each class (row) by the class of the nearest (column)."""
    classes, labels = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, labels[neighbours[:, 0]]), 1)
    return classes, counts


def at_odds(labels, neighbours):
    """Images most of whose neighbours are of one other class, the clearest first.

    Their labels may be wrong (Wilson, "Asymptotic properties of nearest neighbor rules using
    edited data", 1972).

    Returns:
        List of `(image, the nearest image of that class, share of the neighbours)`.
    """
    found = []
    for image, around in enumerate(labels[neighbours]):  # labels (count,)
        classes, counts = np.unique(around, return_counts=True)
        most = classes[counts.argmax()]
        if most != labels[image] and 2 * counts.max() > len(around):
            twin = neighbours[image][np.argmax(around == most)]
            found.append((image, int(twin), counts.max() / len(around)))
    return sorted(found, key=lambda each: -each[2])
