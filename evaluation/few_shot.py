"""N-way K-shot episodes and retrieval: which class is it? No Keras. Arguments: `verification`."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from evaluation.verification import all_distances, chunks, finite, grouped, row_distances

MOST_LEARNED = 1000  # queries of a retrieval by a learned distance


class Trials(NamedTuple):
    """T trials as image indices. `references.shape` tells the number of ways there really is."""

    queries: np.ndarray  # (T,)
    references: np.ndarray  # (T, ways, shots)
    answers: np.ndarray  # (T,) which of the ways is of the query's class


def draw_trials(labels, ways, shots, num_trials, rng, families=None):
    """Draws `Trials`: `ways` classes, `shots` references of each, a query that is no reference.

    Classes with fewer than `shots + 1` images take no part; `ways` shrinks to what there is.
    Given each image's family `(n,)`, a trial's classes come from one of those that have enough.
    """
    _, first_image, labels = np.unique(labels, return_index=True, return_inverse=True)
    by_class, starts, counts = grouped(labels)
    eligible = np.flatnonzero(counts > shots)
    family = np.zeros(len(eligible), int) if families is None else families[first_image[eligible]]
    _, family = np.unique(family, return_inverse=True)
    by_family, family_starts, pool_sizes = grouped(family)
    most = max(pool_sizes, default=0)
    if min(ways, most) < 2 or min(shots, num_trials) < 1:
        raise ValueError(
            f"A trial needs at least 2 classes{'' if families is None else ' of one family'} with "
            f"{shots + 1} images each ({shots} references and a query). Received: ways={ways}, "
            f"{num_trials} trials and {most} such classes. Add images or ask for fewer shots."
        )
    ways = min(ways, most)
    pools = rng.choice(np.flatnonzero(pool_sizes >= ways), num_trials)  # (T,)
    members = family_starts[pools][:, None] + distinct(pool_sizes[pools], ways, rng)
    classes = eligible[by_family[members]]  # (T, ways)
    members = distinct(counts[classes].ravel(), shots + 1, rng)
    images = by_class[starts[classes][..., None] + members.reshape(num_trials, ways, shots + 1)]
    answers = rng.integers(ways, size=num_trials)
    return Trials(images[np.arange(num_trials), answers, shots], images[:, :, :shots], answers)


def distinct(sizes, count, rng):
    """`count` different integers below each of `sizes` (m,), in random order: (m, count)."""
    drawn = np.empty((len(sizes), count), np.int64)
    for i in range(count):  # Floyd's sampling, all rows at once
        last = sizes - count + i
        candidate = rng.integers(last + 1)
        taken = (drawn[:, :i] == candidate[:, None]).any(axis=1)
        drawn[:, i] = np.where(taken, last, candidate)
    return rng.permuted(drawn, axis=1)  # Floyd's sets are uniform, his order is not.


def trial_distances(embeddings, trials, distance=None):
    """Distances `(T, ways)` of each query to its classes, by chunks.

    A class stands as the mean of its K references (Snell et al., "Prototypical networks for
    few-shot learning", 2017). Float32, so that sums that differ in their last bits still tie.
    """
    num_trials, ways, shots = trials.references.shape
    distances = np.empty((num_trials, ways), np.float32)
    for rows in chunks(num_trials, ways * shots * embeddings.shape[1]):
        queries = embeddings[trials.queries[rows]].repeat(ways, axis=0)  # (b * ways, d)
        prototypes = embeddings[trials.references[rows]].mean(axis=2, dtype=np.float32)
        prototypes = prototypes.reshape(queries.shape)
        distances[rows] = row_distances(queries, prototypes, distance).reshape(-1, ways)
    return distances


def few_shot_accuracy(distances, answers):
    """Share of trials whose nearest class is right: distances `(T, ways)`, answers `(T,)`."""
    return float(trial_credit(distances, answers).mean())


def trial_credit(distances, answers):
    """Credit `(T,)`: 1/n where the right class is among n equally near, else 0."""
    nearest = finite(distances) == distances.min(axis=1, keepdims=True)
    return nearest[np.arange(len(answers)), answers] / nearest.sum(axis=1)


def retrieval_scores(embeddings, labels, distance=None):
    """Each image that is not alone in its class asks for the others of it, nearest first.

    Of images equally far, those of other classes come first. With a learned distance, which
    takes long, at most `MOST_LEARNED` images ask, a seeded sample.

    Returns:
        Dict that JSON can hold, with recall at k (share of queries with a hit among the nearest
        k), that of each class, and `most_confused`: (class, the nearest image's, times).
    """
    names, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(counts[labels] > 1)
    if not len(queries):
        raise ValueError(
            "Retrieval needs a class with at least 2 images. Received: "
            f"{len(labels)} images in {len(names)} classes. Add images."
        )
    if distance is not None and len(queries) > MOST_LEARNED:
        queries = np.random.default_rng(0).choice(queries, MOST_LEARNED, replace=False)
    embeddings, answers = np.asarray(embeddings, np.float64), []
    for rows in chunks(len(queries), len(labels)):
        distances = all_distances(embeddings[queries[rows]], embeddings, distance)
        answers += map(_answer, queries[rows], distances, [labels] * len(distances))
    first_hits, precisions, nearest = map(np.array, zip(*answers, strict=True))
    asked = names[labels[queries]].tolist()
    times = Counter(zip(asked, names[nearest].tolist(), strict=True))
    return {
        **{f"recall_at_{k}": float(np.mean(first_hits <= k)) for k in (1, 5, 10)},
        "mean_average_precision": float(precisions.mean()),
        "num_queries": len(queries),
        "class_recall_at_1": {name: times[name, name] / n for name, n in Counter(asked).items()},
        "most_confused": [[a, b, n] for (a, b), n in times.most_common() if a != b][:10],
    }


def _answer(query, distances, labels):
    """Rank of the first hit, average precision, label of the nearest."""
    hit, distances[query] = labels == labels[query], np.inf  # the query comes last
    hits = np.sort(distances[hit])[:-1]
    places = np.arange(1, len(hits) + 1)
    ranks = places + np.searchsorted(np.sort(distances[~hit]), hits, side="right")
    distances[hit] = np.inf if ranks[0] > 1 else -np.inf
    return ranks[0], np.mean(places / ranks), labels[distances.argmin()]
