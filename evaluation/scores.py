"""The mathematics of evaluation: arrays in, numbers out. No files, no models, no Keras.

What the arguments are, everywhere:

- `embeddings`: `(n, d)`, a row an image; `labels`: their classes, `(n,)`.
- `left`, `right`: image indices of pairs, `(pairs,)`; `same`: True for genuine pairs;
  `distances`: of the pairs. Below the `threshold` a pair is called the same.
- `distance`: None for Euclidean, or a network's learned head: a function of left and right
  embeddings, float32 `(pairs, d)` each, that returns `(pairs,)`.
- `rng`: a `numpy.random.Generator`.

What cannot be scored (one class, one kind of pair, a distance that is not finite) is a ValueError.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import binomtest
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

CHUNK = 2**19  # numbers worked on at once: 4 MB stay near the processor, memory stays flat
MOST_LEARNED = 1000  # queries of a retrieval by a learned distance


def _chunks(num_rows, row_size):
    """Slices of rows that hold about `CHUNK` numbers each."""
    step = max(1, CHUNK // row_size)
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def _row_distances(left, right, distance):
    if distance is not None:
        return distance(left.astype(np.float32), right.astype(np.float32))
    difference = np.subtract(left, right, dtype=np.float64)
    return np.sqrt(np.einsum("nd,nd->n", difference, difference))


def pair_distances(embeddings, left, right, distance=None):
    """Distances `(pairs,)` between rows `left` and `right` of `embeddings`, by chunks."""
    distances = np.empty(len(left))
    for rows in _chunks(len(left), embeddings.shape[1]):
        distances[rows] = _row_distances(embeddings[left[rows]], embeddings[right[rows]], distance)
    return distances


def all_distances(left, right, distance=None):
    """Distances `(n, m)` of the rows of `left` `(n, d)` to those of `right` `(m, d)`.

    Euclidean ones are rounded to a millionth of the longest embedding, so that equal ones tie.
    """
    if distance is not None:
        distances = np.empty((len(left), len(right)))
        for rows in _chunks(len(right), right.shape[1]):
            for one, row in zip(left, distances, strict=True):
                others = np.broadcast_to(one, right[rows].shape)
                row[rows] = _row_distances(others, right[rows], distance)
        return distances
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    ours, theirs = (np.einsum("nd,nd->n", side, side) for side in (left, right))
    scale = theirs.max(initial=0) or 1
    squared = np.round((ours[:, None] + theirs - 2 * left @ right.T) / scale, 12)
    return np.sqrt(np.maximum(squared, 0) * scale)


def _finite(distances):
    distances = np.asarray(distances, np.float64)
    if wrong := np.sum(~np.isfinite(distances)):
        raise ValueError(
            f"Distances must be finite. Received: {wrong} of {distances.size} NaN or infinite. "
            "Look for a training that diverged."
        )
    return distances


# Verification


def draw_verification_pairs(labels, rng, max_pairs=20_000):
    """Draws genuine pairs and as many impostor pairs, every class having its say.

    Of more than `max_pairs` genuine pairs each class gives the same number, or all it has;
    impostors spread over the pairs of classes likewise. No pair comes twice, so with few
    impostors fewer are returned. Returns `(left, right, same)`.
    """
    _, labels = np.unique(labels, return_inverse=True)
    by_class, starts, counts = _grouped(labels)
    if len(counts) < 2 or counts.max() < 2:
        raise ValueError(
            "Verification needs at least 2 classes, one of them with 2 images. Received: "
            f"{len(counts)} with {max(counts, default=0)} in the largest. Add images."
        )
    classes, pairs = _draw_evenly(counts * (counts - 1) // 2, max_pairs, rng)
    genuine = starts[classes] + _unordered_pairs(pairs)  # (2, pairs)

    num_class_pairs, num_genuine = len(counts) * (len(counts) - 1) // 2, len(pairs)
    some = rng.choice(num_class_pairs, min(num_class_pairs, num_genuine), replace=False)
    class_pairs = _unordered_pairs(some)  # (2, class pairs)
    cells, pairs = _draw_evenly(counts[class_pairs].prod(axis=0), num_genuine, rng)
    one, other = class_pairs[:, cells]
    impostor = np.stack([starts[one], starts[other]]) + np.divmod(pairs, counts[other])

    left, right = by_class[np.concatenate([genuine, impostor], axis=1)]
    return left, right, np.arange(len(left)) < num_genuine


def _grouped(labels):
    """Image indices class by class, where each class begins in them, and its number of images."""
    counts = np.bincount(labels)
    return np.argsort(labels, kind="stable"), np.cumsum(counts) - counts, counts


def _draw_evenly(sizes, count, rng):
    """Draws `count` different (cell, item), each cell giving an equal share or all it has."""
    quotas = np.zeros_like(sizes)
    while (left := min(count, sizes.sum()) - quotas.sum()) > 0:
        able = np.flatnonzero(quotas < sizes)
        if left < len(able):
            able = rng.choice(able, left, replace=False)
        quotas[able] += np.minimum(left // len(able), (sizes - quotas)[able])
    cells = np.flatnonzero(quotas)
    items = [
        np.arange(size) if size == quota else rng.choice(size, quota, replace=False)
        for size, quota in zip(sizes[cells], quotas[cells], strict=True)
    ]
    return np.repeat(cells, quotas[cells]), np.concatenate(items)


def _unordered_pairs(indices):
    """Which (first < second) stand there in the order (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    second = ((1 + np.sqrt(1 + 8 * indices)) / 2).astype(np.int64)
    return np.stack([indices - second * (second - 1) // 2, second])


def equal_error_rate(same, distances):
    """`(rate, threshold)` where false accepts equal false rejects, interpolated along the ROC."""
    false_accept, true_accept, thresholds = _operating_points(same, distances)
    nearest = np.argmin(np.abs(false_accept + true_accept - 1))
    return _curve_scores(false_accept, true_accept)["equal_error_rate"], float(thresholds[nearest])


def best_threshold(same, distances):
    """`(accuracy, threshold)` where the most pairs are right; of test pairs it would flatter."""
    false_accept, true_accept, thresholds = _operating_points(same, distances)
    accuracy = np.average([1 - false_accept, true_accept], axis=0, weights=np.bincount(same))
    best = np.argmax(accuracy)
    return float(accuracy[best]), float(thresholds[best])


def threshold_at_false_accept(same, distances, rate):
    """The largest threshold that accepts at most `rate` of the impostors."""
    false_accept, _, thresholds = _operating_points(same, distances)
    return float(_last_within(rate, false_accept, thresholds))


def _operating_points(same, distances):
    """False and true accept rates, and thresholds between neighbouring distances."""
    same, distances = _checked(same, distances)
    false_accept, true_accept, scores = metrics.roc_curve(same, -distances, drop_intermediate=False)
    accepted = -scores[1:]  # the largest accepted distance; the first point accepts none
    middle = (accepted + np.append(accepted[1:], accepted[-1])) / 2
    thresholds = np.maximum(middle, np.nextafter(accepted, np.inf))  # it is accepted under `<`
    return false_accept, true_accept, np.append(accepted[0], thresholds)


def _checked(same, distances):
    same, distances = np.asarray(same, bool), _finite(distances)
    if same.all() or not same.any():
        raise ValueError(
            f"Verification needs genuine and impostor pairs. Received: {same.sum()} genuine and "
            f"{np.sum(~same)} impostors. Draw both kinds with draw_verification_pairs."
        )
    return same, distances


def _curve_scores(false_accept, true_accept):
    """What a ROC curve tells; only the equal error rate is interpolated."""
    excess = false_accept + true_accept - 1  # rises from -1 to 1 along the curve
    return {
        "auc": float(metrics.auc(false_accept, true_accept)),
        "equal_error_rate": float(np.interp(0, excess, false_accept)),
        "true_accept_at_1_percent": float(_last_within(0.01, false_accept, true_accept)),
        "true_accept_at_0.1_percent": float(_last_within(0.001, false_accept, true_accept)),
    }


def _last_within(rate, false_accept, values):
    # The tolerance forgives the rounding of weighted sums.
    return values[np.searchsorted(false_accept, rate + 1e-12, side="right") - 1]


def calibrate(same, distances):
    """Fits `(a, b)` so that `sigmoid(a * distance + b)` is the probability of one class.

    Logistic regression, both kinds of pair weighing the same; its mild penalty keeps `a` finite
    (Platt, "Probabilistic outputs for support vector machines", 1999).
    """
    same, distances = _checked(same, distances)
    mean, spread = distances.mean(), distances.std() or 1.0
    model = LogisticRegression(class_weight="balanced")
    model.fit(((distances - mean) / spread)[:, None], same)
    slope = model.coef_[0, 0] / spread
    return float(slope), float(model.intercept_[0] - slope * mean)


def probability(distances, calibration):
    """Probability that each pair is of one class, from `calibrate`'s `(a, b)`."""
    slope, intercept = calibration
    return expit(slope * np.asarray(distances, np.float64) + intercept)


def verification_scores(same, distances, threshold, calibration):
    """Scores verification, with a threshold and a calibration from validation pairs.

    Returns:
        Dict that JSON can hold; `accuracy`, `precision` and `recall` are at `threshold`,
        `brier` and `reliability` (by bin) of the calibrated probability.
    """
    same, distances = _checked(same, distances)
    accepted, probabilities = distances < threshold, probability(distances, calibration)
    observed, predicted = calibration_curve(same, probabilities, n_bins=10)
    return {
        **_curve_scores(*_operating_points(same, distances)[:2]),
        "accuracy": float(np.mean(accepted == same)),
        "precision": float(metrics.precision_score(same, accepted, zero_division=0)),
        "recall": float(np.mean(accepted[same])),
        "brier": float(metrics.brier_score_loss(same, probabilities)),
        "reliability": {"predicted": predicted.tolist(), "observed": observed.tolist()},
        "threshold": float(threshold),
        "num_genuine": int(same.sum()),
        "num_impostors": int(np.sum(~same)),
    }


def bootstrap_intervals(same, distances, left_classes, right_classes, threshold, rng, draws=200):
    """95% intervals `[low, high]` of accuracy and of the ROC's scores, by bootstrap over classes.

    Classes are drawn with replacement; a pair weighs the product of its two classes'
    multiplicities, a genuine pair its class's. Draws that leave only one kind are dropped.
    Percentile intervals (Efron and Tibshirani, "An introduction to the bootstrap", 1993).
    """
    same, distances = _checked(same, distances)
    order = np.argsort(distances, kind="stable")  # sorted once, for all draws
    same, distances = same[order], distances[order]
    ends = np.append(np.flatnonzero(np.diff(distances)), len(distances) - 1)  # ties stay together
    classes, pair_classes = np.unique([left_classes, right_classes], return_inverse=True)
    left, right = pair_classes.reshape(2, -1)[:, order]
    resampled = []
    for times in rng.multinomial(len(classes), np.full(len(classes), 1 / len(classes)), draws):
        weights = times[left] * np.where(same, 1, times[right])
        genuine, impostor = np.cumsum(weights * same)[ends], np.cumsum(weights * ~same)[ends]
        if genuine[-1] and impostor[-1]:
            curve = (np.append(0, rates / rates[-1]) for rates in (impostor, genuine))
            accuracy = np.average(same == (distances < threshold), weights=weights)
            resampled.append({**_curve_scores(*curve), "accuracy": accuracy})
    return {
        name: np.percentile([scores[name] for scores in resampled], [2.5, 97.5]).tolist()
        for name in resampled[0]
    }


# N-way K-shot trials


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
    by_class, starts, counts = _grouped(labels)
    eligible = np.flatnonzero(counts > shots)
    family = np.zeros(len(eligible), int) if families is None else families[first_image[eligible]]
    _, family = np.unique(family, return_inverse=True)
    by_family, family_starts, pool_sizes = _grouped(family)
    most = max(pool_sizes, default=0)
    if min(ways, most) < 2 or min(shots, num_trials) < 1:
        raise ValueError(
            f"A trial needs at least 2 classes{'' if families is None else ' of one family'} with "
            f"{shots + 1} images each ({shots} references and a query). Received: ways={ways}, "
            f"{num_trials} trials and {most} such classes. Add images or ask for fewer shots."
        )
    ways = min(ways, most)
    pools = rng.choice(np.flatnonzero(pool_sizes >= ways), num_trials)  # (T,)
    members = family_starts[pools][:, None] + _distinct(pool_sizes[pools], ways, rng)
    classes = eligible[by_family[members]]  # (T, ways)
    members = _distinct(counts[classes].ravel(), shots + 1, rng)
    images = by_class[starts[classes][..., None] + members.reshape(num_trials, ways, shots + 1)]
    answers = rng.integers(ways, size=num_trials)
    return Trials(images[np.arange(num_trials), answers, shots], images[:, :, :shots], answers)


def _distinct(sizes, count, rng):
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
    for rows in _chunks(num_trials, ways * shots * embeddings.shape[1]):
        queries = embeddings[trials.queries[rows]].repeat(ways, axis=0)  # (b * ways, d)
        prototypes = embeddings[trials.references[rows]].mean(axis=2, dtype=np.float32)
        prototypes = prototypes.reshape(queries.shape)
        distances[rows] = _row_distances(queries, prototypes, distance).reshape(-1, ways)
    return distances


def few_shot_scores(distances, answers):
    """`accuracy` of picking the nearest class, and its 95% `interval`, Wilson's over the trials.

    Takes distances `(T, ways)` and answers `(T,)`. The interval knows nothing of other classes.
    """
    credit = trial_credit(distances, answers)
    interval = binomtest(round(credit.sum()), len(credit)).proportion_ci(method="wilson")
    return {"accuracy": float(credit.mean()), "interval": [float(end) for end in interval]}


def trial_credit(distances, answers):
    """Credit `(T,)`: 1/n where the right class is among n equally near, else 0."""
    nearest = _finite(distances) == distances.min(axis=1, keepdims=True)
    return nearest[np.arange(len(answers)), answers] / nearest.sum(axis=1)


# Retrieval


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
    for rows in _chunks(len(queries), len(labels)):
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
