"""N-way K-shot episodes: which class is it? No Keras. Arguments: `verification`."""

from typing import NamedTuple

import numpy as np

from evaluation.verification import ImagesByClass, chunks, finite, row_distances


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
    images = draw_episodes(labels, ways, shots + 1, num_trials, rng, families)
    answers = rng.integers(images.shape[1], size=num_trials)
    return Trials(images[np.arange(num_trials), answers, shots], images[:, :, :shots], answers)


def draw_episodes(labels, ways, size, num_episodes, rng, families=None):
    """Draws `ways` classes and `size` images of each, as `draw_trials` does: `(T, ways, size)`."""
    by_class = ImagesByClass(labels)
    eligible = np.flatnonzero(by_class.counts >= size)
    first_images = by_class.images[by_class.starts[eligible]]
    family = np.zeros(len(eligible), int) if families is None else families[first_images]
    by_family = ImagesByClass(family)  # here of eligible classes
    most = max(by_family.counts, default=0)
    if min(ways, most) < 2 or size < 2 or num_episodes < 1:
        raise ValueError(
            f"A trial needs at least 2 classes{'' if families is None else ' of one family'} with "
            f"{size} images each, references and a query. Received: ways={ways}, "
            f"{num_episodes} trials and {most} such classes. Add images or ask for fewer shots."
        )
    ways = min(ways, most)
    family = rng.choice(np.flatnonzero(by_family.counts >= ways), num_episodes)  # of each episode
    classes = eligible[by_family.draw_distinct(family, ways, rng)]  # (T, ways)
    return by_class.draw_distinct(classes.ravel(), size, rng).reshape(num_episodes, ways, size)


def trials_of(images, shots):
    """`Trials` of episodes: every query, an image after the first `shots`, against its episode."""
    queries, references = images[:, :, shots:], images[:, :, :shots]
    count, ways, each = queries.shape
    answers = np.tile(np.arange(ways).repeat(each), count)
    return Trials(queries.ravel(), references.repeat(ways * each, axis=0), answers)


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
