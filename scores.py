"""The mathematics of evaluation: arrays in, numbers out.

Verification (is this the same class?), N-way K-shot trials (which of these is it?) and
retrieval. Knows no files, no models and no Keras, so that training and evaluation share it.
Randomness is passed in as a `numpy.random.Generator`. Small distances mean same: a pair is
called the same where `distance < threshold`.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

CHUNK = 2**21  # numbers worked on at once (16 MB), so that memory does not grow with the data

# Verification ---------------------------------------------------------------------------------


def draw_verification_pairs(labels, rng, max_pairs=20_000):
    """Draws genuine pairs and as many impostor pairs, every class having its say.

    All genuine pairs if there are at most `max_pairs`; otherwise each class gives the same
    number, or all it has. Impostors spread over the pairs of classes in the same way, so that
    big classes do not drown small ones. No pair comes twice: where fewer different impostors
    exist than genuine pairs, fewer are returned. Memory stays flat in the number of images.

    Args:
        labels: Integer classes, `(n,)`.
        rng: Source of randomness.
        max_pairs: Most genuine pairs, and most impostor pairs.

    Returns:
        `(left, right, same)`, each `(pairs,)`: two image indices, and True where genuine.

    Raises:
        ValueError: With fewer than two classes, or no class with two images.
    """
    _, labels = np.unique(labels, return_inverse=True)
    counts = np.bincount(labels)
    if len(counts) < 2 or counts.max() < 2:
        raise ValueError(
            "Verification needs at least 2 classes, one of them with 2 images. Received: "
            f"{len(counts)} with {max(counts, default=0)} in the largest. Add images."
        )
    by_class, starts = np.argsort(labels, kind="stable"), np.cumsum(counts) - counts

    classes = np.flatnonzero(counts > 1)
    drawn, pairs = _draw_evenly(counts[classes] * (counts[classes] - 1) // 2, max_pairs, rng)
    first, second = _unordered_pair(pairs)
    start = starts[classes[drawn]]
    genuine = by_class[start + first], by_class[start + second]

    num_genuine, num_class_pairs = len(drawn), len(counts) * (len(counts) - 1) // 2
    class_pairs = rng.choice(num_class_pairs, min(num_class_pairs, num_genuine), replace=False)
    one, other = _unordered_pair(class_pairs)
    drawn, pairs = _draw_evenly(counts[one] * counts[other], num_genuine, rng)
    one, other = one[drawn], other[drawn]
    first, second = np.divmod(pairs, counts[other])
    impostor = by_class[starts[one] + first], by_class[starts[other] + second]

    left, right = (np.concatenate(sides) for sides in zip(genuine, impostor, strict=True))
    return left, right, np.arange(len(left)) < num_genuine


def _draw_evenly(sizes, count, rng):
    """Draws `count` different (cell, item), each cell giving an equal share or all it has."""
    quotas = _equal_shares(sizes, count, rng)
    cells = np.flatnonzero(quotas)
    items = [
        np.arange(size) if size == quota else rng.choice(size, quota, replace=False)
        for size, quota in zip(sizes[cells], quotas[cells], strict=True)
    ]
    return np.repeat(cells, quotas[cells]), np.concatenate(items)


def _equal_shares(sizes, count, rng):
    """Shares `count` among cells: a level that all reach who can, the remainder by lot."""
    if sizes.sum() <= count:
        return sizes
    low, high = 0, count  # the highest level that `count` can pay for lies in [low, high]
    while low < high:
        middle = (low + high + 1) // 2
        affordable = np.minimum(sizes, middle).sum() <= count
        low, high = (middle, high) if affordable else (low, middle - 1)
    shares = np.minimum(sizes, low)
    shares[rng.choice(np.flatnonzero(sizes > low), count - shares.sum(), replace=False)] += 1
    return shares


def _unordered_pair(index):
    """The `index`-th pair (first < second) in the order (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    second = ((1 + np.sqrt(1 + 8 * index)) / 2).astype(np.int64)
    return index - second * (second - 1) // 2, second


def pair_distances(embeddings, left, right):
    """Euclidean distances `(pairs,)` between rows `left` and `right` of `embeddings` `(n, d)`.

    Computed in float64, a chunk of pairs at a time.
    """
    distances = np.empty(len(left))
    for rows in chunks(len(left), embeddings.shape[1]):
        difference = np.subtract(embeddings[left[rows]], embeddings[right[rows]], dtype=np.float64)
        distances[rows] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return distances


def chunks(num_rows, row_size):
    """Slices of rows that hold about `CHUNK` numbers each."""
    step = max(1, CHUNK // row_size)
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def equal_error_rate(same, distances):
    """The rate at which false accepts equal false rejects, and the threshold nearest to it.

    Args:
        same: True for genuine pairs, `(pairs,)`.
        distances: Distances of the pairs, `(pairs,)`.

    Returns:
        `(rate, threshold)`; the rate is interpolated along the ROC curve.

    Raises:
        ValueError: Unless both kinds of pair are there and every distance is finite.
    """
    false_accept, true_accept, thresholds = _operating_points(same, distances)
    nearest = np.argmin(np.abs(false_accept + true_accept - 1))
    return _equal_error(false_accept, true_accept), float(thresholds[nearest])


def best_threshold(same, distances):
    """`(accuracy, threshold)` where the most pairs are right. Takes what equal_error_rate does.

    Choose it on validation pairs: on the pairs it is then scored on, it flatters.
    """
    false_accept, true_accept, thresholds = _operating_points(same, distances)
    accuracy = np.mean(same) * true_accept + np.mean(~np.asarray(same, bool)) * (1 - false_accept)
    best = np.argmax(accuracy)
    return float(accuracy[best]), float(thresholds[best])


def threshold_at_false_accept(same, distances, rate):
    """The largest threshold that accepts at most `rate` of the impostors."""
    false_accept, _, thresholds = _operating_points(same, distances)
    return float(thresholds[_last_within(false_accept, rate)])


def true_accept_rate_at(same, distances, rate):
    """Share of genuine pairs accepted while at most `rate` of the impostors are.

    Not interpolated. With fewer than `1 / rate` impostors no false accept is allowed at all.
    """
    false_accept, true_accept, _ = _operating_points(same, distances)
    return float(true_accept[_last_within(false_accept, rate)])


def _operating_points(same, distances):
    """False and true accept rates, and thresholds between neighbouring distances."""
    same, distances = _checked(same, distances)
    false_accept, true_accept, scores = metrics.roc_curve(same, -distances, drop_intermediate=False)
    largest_accepted = -scores[1:]  # The first point accepts nothing; scikit-learn says inf.
    ends = np.nextafter(largest_accepted[[0, -1]], [-np.inf, np.inf])
    below = np.concatenate([ends[:1], largest_accepted])
    above = np.concatenate([largest_accepted, ends[1:]])
    middle = below + (above - below) / 2
    # Between adjacent floats there is no middle; `above` still separates under `<`.
    return false_accept, true_accept, np.where(middle > below, middle, above)


def _checked(same, distances):
    same, distances = np.asarray(same, bool), _finite(np.asarray(distances, np.float64))
    if same.all() or not same.any():
        raise ValueError(
            f"Verification needs genuine and impostor pairs. Received: {same.sum()} genuine and "
            f"{np.sum(~same)} impostors. Draw both kinds with draw_verification_pairs."
        )
    return same, distances


def _finite(distances):
    if not np.isfinite(distances).all():
        raise ValueError(
            f"Distances must be finite. Received: {np.sum(~np.isfinite(distances))} of "
            f"{distances.size} NaN or infinite. Look for a training that diverged."
        )
    return distances


def _equal_error(false_accept, true_accept):
    excess = false_accept + true_accept - 1  # rises from -1 to 1 along the curve
    after = np.argmax(excess >= 0)
    part = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(false_accept[after - 1] + part * (false_accept[after] - false_accept[after - 1]))


def _last_within(false_accept, rate):
    # The tolerance forgives the rounding of weighted sums.
    return np.searchsorted(false_accept, rate + 1e-12, side="right") - 1


def calibrate(same, distances):
    """Fits `(a, b)` so that `sigmoid(a * distance + b)` is the probability of one class.

    Logistic regression, both kinds of pair weighing the same (even odds before looking), on
    validation pairs. Its mild penalty keeps `a` finite where the two kinds part entirely.

    Reference:
        Platt, "Probabilistic outputs for support vector machines", 1999.
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
    """Scores verification; everything in the dict can be written as JSON.

    Args:
        same: True for genuine pairs, `(pairs,)`.
        distances: Distances of the pairs, `(pairs,)`.
        threshold: Chosen beforehand, on validation pairs.
        calibration: `(a, b)` from `calibrate`, fitted on validation pairs.

    Returns:
        `auc`; `equal_error_rate`; `true_accept_at_1_percent` and `true_accept_at_0.1_percent`
        false accepts; `accuracy`, `precision` and `recall` at `threshold`; `brier` and
        `reliability` (mean `predicted` probability and `observed` share, by bin) of the
        calibrated probability; `num_genuine`, `num_impostors`.

    Raises:
        ValueError: Unless both kinds of pair are there and every distance is finite.
    """
    same, distances = _checked(same, distances)
    false_accept, true_accept, _ = _operating_points(same, distances)
    accepted, probabilities = distances < threshold, probability(distances, calibration)
    observed, predicted = calibration_curve(same, probabilities, n_bins=10)
    return {
        **_curve_scores(false_accept, true_accept),
        "accuracy": float(metrics.accuracy_score(same, accepted)),
        "precision": float(metrics.precision_score(same, accepted, zero_division=0)),
        "recall": float(metrics.recall_score(same, accepted)),
        "brier": float(metrics.brier_score_loss(same, probabilities)),
        "reliability": {"predicted": predicted.tolist(), "observed": observed.tolist()},
        "threshold": float(threshold),
        "num_genuine": int(same.sum()),
        "num_impostors": int(np.sum(~same)),
    }


def _curve_scores(false_accept, true_accept):
    return {
        "auc": float(metrics.auc(false_accept, true_accept)),
        "equal_error_rate": _equal_error(false_accept, true_accept),
        "true_accept_at_1_percent": float(true_accept[_last_within(false_accept, 0.01)]),
        "true_accept_at_0.1_percent": float(true_accept[_last_within(false_accept, 0.001)]),
    }


def bootstrap_intervals(
    same, distances, left_classes, right_classes, threshold, rng, num_resamples=200
):
    """95% intervals of verification scores, by bootstrap over classes.

    Pairs are not independent, classes nearly are: so whole classes are drawn with replacement,
    and a pair weighs the product of its two classes' multiplicities (a genuine pair, its
    class's). The interval tells how far another draw of as many classes would stray.

    Args:
        same: True for genuine pairs, `(pairs,)`.
        distances: Distances of the pairs, `(pairs,)`.
        left_classes: Class of each pair's left image, `(pairs,)`.
        right_classes: Class of each pair's right image, `(pairs,)`.
        threshold: For `accuracy`.
        rng: Source of randomness.
        num_resamples: Draws; the few that leave no genuine or no impostor pair are dropped.

    Returns:
        `[low, high]` for `auc`, `equal_error_rate`, `true_accept_at_1_percent`,
        `true_accept_at_0.1_percent` and `accuracy`.

    Raises:
        ValueError: Unless both kinds of pair are there and every distance is finite.

    Reference:
        Efron and Tibshirani, "An introduction to the bootstrap", 1993 (percentile interval).
    """
    same, distances = _checked(same, distances)
    order = np.argsort(distances, kind="stable")  # sorted once, for all resamples
    same, distances = same[order], distances[order]
    ends = np.append(np.flatnonzero(np.diff(distances)), len(distances) - 1)  # ties stay together
    right = same == (distances < threshold)
    classes, pair_classes = np.unique([left_classes, right_classes], return_inverse=True)
    left, other = pair_classes.reshape(2, -1)[:, order]
    draws = rng.multinomial(len(classes), np.full(len(classes), 1 / len(classes)), num_resamples)
    resampled = []
    for times in draws:
        weights = times[left] * np.where(same, 1, times[other])
        genuine, impostor = np.cumsum(weights * same)[ends], np.cumsum(weights * ~same)[ends]
        if genuine[-1] and impostor[-1]:
            curve = (np.append(0, rates / rates[-1]) for rates in (impostor, genuine))
            accuracy = np.average(right, weights=weights)
            resampled.append({**_curve_scores(*curve), "accuracy": accuracy})
    return {
        name: np.percentile([scores[name] for scores in resampled], [2.5, 97.5]).tolist()
        for name in resampled[0]
    }


# N-way K-shot trials --------------------------------------------------------------------------


class Trials(NamedTuple):
    """T trials as image indices. `references.shape` tells the number of ways there really is."""

    queries: np.ndarray  # (T,)
    references: np.ndarray  # (T, ways, shots)
    answers: np.ndarray  # (T,) which of the ways is of the query's class


def draw_trials(labels, ways, shots, num_trials, rng, families=None):
    """Draws trials: `ways` classes, `shots` references of each, and a query that is no reference.

    Classes with fewer than `shots + 1` images take no part. With `families`, all classes of a
    trial come from one family, each family that has enough classes being as likely. Where no
    family (or the whole set) has `ways` classes, the most there are is used: read the number
    from `references.shape[1]`, and the families from `np.unique(families[queries])`.

    Args:
        labels: Integer classes, `(n,)`.
        ways: Classes per trial, at least 2.
        shots: Reference images per class.
        num_trials: Number of trials, T.
        rng: Source of randomness.
        families: Each image's family, `(n,)`, or None for trials across all classes.

    Returns:
        `Trials(queries, references, answers)`.

    Raises:
        ValueError: When no two classes (of one family) have `shots + 1` images.
    """
    _, first_image, labels, counts = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    eligible = np.flatnonzero(counts > shots)
    family = np.zeros(len(counts), int) if families is None else families[first_image]
    _, family = np.unique(family[eligible], return_inverse=True)
    pool_sizes = np.bincount(family)
    if ways < 2 or max(pool_sizes, default=0) < 2:
        raise ValueError(
            f"A trial needs at least 2 classes{'' if families is None else ' of one family'} with "
            f"{shots + 1} images each ({shots} references and a query). Received: ways={ways} and "
            f"{max(pool_sizes, default=0)} such classes. Add images or ask for fewer shots."
        )
    ways = min(ways, pool_sizes.max())
    pools = rng.choice(np.flatnonzero(pool_sizes >= ways), num_trials)  # (T,)
    starts = np.cumsum(pool_sizes) - pool_sizes
    members = starts[pools][:, None] + _distinct(pool_sizes[pools], ways, rng)
    classes = eligible[np.argsort(family, kind="stable")][members]  # (T, ways)

    by_class, starts = np.argsort(labels, kind="stable"), np.cumsum(counts) - counts
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


def euclidean(queries, references):
    """Distances `(b, ways)` from queries `(b, d)` to references `(b, ways, d)`."""
    difference = np.subtract(references, queries[:, None], dtype=np.float64)
    return np.sqrt(np.einsum("ijk,ijk->ij", difference, difference))


def trial_distances(embeddings, trials, distance=euclidean):
    """Distances `(T, ways)` of each query to its classes, a chunk of trials at a time.

    A class stands as the mean of its K reference embeddings, its prototype.

    Args:
        embeddings: `(n, d)`.
        trials: As from `draw_trials`.
        distance: Called with float32 `(b, d)` and `(b, ways, d)`; gives `(b, ways)`. For a
            network whose head is no Euclidean distance.

    Returns:
        float32, so that sums that differ in their last bits still tie. Where only a matrix of
        distances is at hand, `matrix[queries[:, None, None], references].mean(-1)` does.

    Reference:
        Snell et al., "Prototypical networks for few-shot learning", 2017.
    """
    num_trials, ways, shots = trials.references.shape
    distances = np.empty((num_trials, ways), np.float32)
    for rows in chunks(num_trials, ways * shots * embeddings.shape[1]):
        queries = embeddings[trials.queries[rows]].astype(np.float32)
        prototypes = embeddings[trials.references[rows]].mean(axis=2, dtype=np.float64)
        distances[rows] = distance(queries, prototypes.astype(np.float32))
    return distances


def few_shot_scores(distances, answers):
    """Accuracy of picking the nearest class; a tie shares its credit.

    A query with n classes equally near scores 1/n if the right one is among them, so a
    network with constant output scores exactly 1/N.

    Args:
        distances: Distance of each query to its classes, `(T, ways)`.
        answers: The right one, `(T,)`.

    Returns:
        `accuracy`, `interval` (95%, Wilson's, over the trials: how far trials drawn afresh
        from the same classes would stray; it knows nothing of other classes), `ways`,
        `num_trials`.
    """
    credit = trial_credit(distances, answers)
    return {
        "accuracy": float(credit.mean()),
        "interval": _wilson_interval(credit.mean(), len(credit)),
        "ways": distances.shape[1],
        "num_trials": len(credit),
    }


def trial_credit(distances, answers):
    """Credit `(T,)` of each trial, 0 to 1: the share of the right class among the nearest."""
    nearest = _finite(distances) == distances.min(axis=1, keepdims=True)
    return nearest[np.arange(len(answers)), answers] / nearest.sum(axis=1)


def _wilson_interval(share, count, z=1.96):
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z**2 / count)
    return np.clip([centre - reach, centre + reach], 0, 1).tolist()


# Retrieval ------------------------------------------------------------------------------------


def retrieval_scores(embeddings, labels, num_confused=10):
    """Each image in turn asks for the others of its class, nearest first.

    Images alone in their class ask nothing, but stand in the way of others. A tie counts
    against the embedding: of images equally far, those of other classes come first.

    Args:
        embeddings: `(n, d)`.
        labels: Integer classes, `(n,)`.
        num_confused: Pairs of classes to name.

    Returns:
        `recall_at_1`, `recall_at_5`, `recall_at_10` (share of queries with an image of their
        class among the nearest k), `mean_average_precision`, `num_queries`,
        `class_recall_at_1` (label to share) and `most_confused` (lists of label, label of the
        nearest image, number of times).

    Raises:
        ValueError: When no class has two images.
    """
    labels = np.asarray(labels)
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(counts[inverse] > 1)
    if not len(queries):
        raise ValueError(
            "Retrieval needs a class with at least 2 images. Received: "
            f"{len(labels)} images in {len(classes)} classes. Add images."
        )
    vectors = np.asarray(embeddings, np.float64)
    squares = np.einsum("ij,ij->i", vectors, vectors)
    first_hits, precisions, nearest = (np.empty(len(queries)) for _ in range(3))
    for rows in chunks(len(queries), len(labels)):
        asked = queries[rows]
        squared = squares[asked, None] + squares - 2 * vectors[asked] @ vectors.T
        first_hits[rows], precisions[rows], nearest[rows] = _rank_hits(
            squared / (squares.max() or 1), labels[asked, None] == labels, asked
        )
    truth, found = labels[queries], labels[nearest.astype(int)]
    return {
        **{f"recall_at_{k}": float(np.mean(first_hits < k)) for k in (1, 5, 10)},
        "mean_average_precision": float(precisions.mean()),
        "num_queries": len(queries),
        "class_recall_at_1": _shares(truth, found == truth),
        "most_confused": _most_confused(truth, found, num_confused),
    }


def _rank_hits(squared, hit, asked):
    """First hit's place (from 0), average precision and nearest image, for each row."""
    # One integer holds distance and hit: rounding makes equal distances tie, and among ties
    # the last bit puts misses first.
    keys = (np.rint(squared * 2.0**40).astype(np.int64) << 1) | hit
    keys[np.arange(len(asked)), asked] = 2**62  # the query itself: last, and no hit
    nearest = keys.argmin(axis=1)
    keys.sort(axis=1)
    hits = (keys & 1).astype(bool)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return hits.argmax(axis=1), precision.sum(axis=1, where=hits) / hits.sum(axis=1), nearest


def _shares(groups, flags):
    names, inverse = np.unique(groups, return_inverse=True)
    shares = np.bincount(inverse, weights=flags) / np.bincount(inverse)
    return dict(zip(names.tolist(), shares.tolist(), strict=True))


def _most_confused(truth, found, count):
    wrong = np.stack([truth, found], axis=1)[truth != found]
    pairs, times = np.unique(wrong, axis=0, return_counts=True)
    top = np.argsort(-times, kind="stable")[:count]
    return np.column_stack([pairs[top], times[top]]).tolist()
