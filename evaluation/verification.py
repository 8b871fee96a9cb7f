"""Verification: are two images of one class? Pairs, distances and what they score. No Keras.

What the arguments are, in all of `evaluation`:

- `embeddings`: `(n, d)`, one row per image; `labels`: their classes, `(n,)`.
- `left`, `right`: image indices of pairs, `(pairs,)`; `same`: True for genuine pairs;
  `distances`: of the pairs. Below the `threshold` a pair is called the same.
- `distance`: None for Euclidean, or a network's learned head: a function of left and right
  embeddings, float32 `(pairs, d)` each, that returns `(pairs,)`.
- `rng`: a `numpy.random.Generator`.

What cannot be scored (one class, one kind of pair, a distance that is not finite) is a ValueError.
"""

import numpy as np
from sklearn import metrics
from sklearn.calibration import calibration_curve

FALSE_ACCEPT_RATES = (0.1, 0.01, 0.001)
LEAST_ACCEPTED = 10  # impostors that a false-accept rate must come to, to be measured at all
CHUNK = 2**19  # numbers worked on at once: 4 MB stay near the processor, memory stays flat


def chunks(num_rows, row_size):
    """Slices of rows that hold about `CHUNK` numbers each."""
    step = max(1, CHUNK // row_size)
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def row_distances(left, right, distance):
    """Distances `(n,)` of the rows of `left` to those of `right`, `(n, d)` each."""
    if distance is not None:
        return distance(left.astype(np.float32), right.astype(np.float32))
    difference = np.subtract(left, right, dtype=np.float64)
    return np.sqrt(np.einsum("nd,nd->n", difference, difference))


def pair_distances(embeddings, left, right, distance=None):
    """Distances `(pairs,)` between rows `left` and `right` of `embeddings`, by chunks."""
    distances = np.empty(len(left))
    for rows in chunks(len(left), embeddings.shape[1]):
        distances[rows] = row_distances(embeddings[left[rows]], embeddings[right[rows]], distance)
    return distances


def all_distances(left, right, distance=None):
    """Distances `(n, m)` of the rows of `left` `(n, d)` to those of `right` `(m, d)`.

    Euclidean ones are rounded to a millionth of the longest embedding, so that equal ones tie.
    """
    if distance is not None:
        distances = np.empty((len(left), len(right)))
        for rows in chunks(len(right), right.shape[1]):
            for one, row in zip(left, distances, strict=True):
                others = np.broadcast_to(one, right[rows].shape)
                row[rows] = row_distances(others, right[rows], distance)
        return distances
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    ours, theirs = (np.einsum("nd,nd->n", side, side) for side in (left, right))
    scale = theirs.max(initial=0) or 1
    squared = np.round((ours[:, None] + theirs - 2 * left @ right.T) / scale, 12)
    return np.sqrt(np.maximum(squared, 0) * scale)


def finite(distances):
    """Distances as float64; a ValueError where one is not finite."""
    distances = np.asarray(distances, np.float64)
    if wrong := np.sum(~np.isfinite(distances)):
        raise ValueError(
            f"Distances must be finite. Received: {wrong} of {distances.size} NaN or infinite. "
            "Look for a training that diverged."
        )
    return distances


def verification_pairs(dataset, rows, rng):
    """The pairs that a `Dataset` gives among some sorted rows, else drawn: positions in `rows`."""
    given, forged = dataset.given_pairs(rows), dataset.index.forged
    forged = None if forged is None else forged[rows]
    return given or draw_verification_pairs(dataset.index.labels[rows], rng, forged=forged)


def draw_verification_pairs(labels, rng, max_pairs=20_000, forged=None):
    """Draws genuine pairs and as many impostor pairs, every class having its say.

    No class gives more than three times the median class's genuine pairs; of more than
        `max_pairs` each gives the same number, or all it has. Impostors spread over the pairs of
        classes likewise. No pair comes twice, so with few impostors fewer are returned. Where some
        images are `forged`, `(n,)`, half of the impostors are skilled: on the left an image of the
        class that the forgery on the right imitates. Returns `(left, right, same)`.
    """
    _, labels = np.unique(labels, return_inverse=True)
    if forged is not None and np.any(forged):
        return _with_forgeries(labels, rng, max_pairs, np.asarray(forged))
    by_class, starts, counts = grouped(labels)
    if len(counts) < 2 or counts.max() < 2:
        raise ValueError(
            "Verification needs at least 2 classes, one of them with 2 images. Received: "
            f"{len(counts)} with {max(counts, default=0)} in the largest. Add images."
        )
    sizes = counts * (counts - 1) // 2
    # One large class must not speak for all.
    most = 3 * int(np.percentile(sizes[sizes > 0], 50, method="lower"))
    classes, pairs = _draw_evenly(sizes, max_pairs, rng, most)
    genuine = starts[classes] + _unordered_pairs(pairs)  # (2, pairs)

    num_class_pairs, num_genuine = len(counts) * (len(counts) - 1) // 2, len(pairs)
    some = rng.choice(num_class_pairs, min(num_class_pairs, num_genuine), replace=False)
    class_pairs = _unordered_pairs(some)  # (2, class pairs)
    cells, pairs = _draw_evenly(counts[class_pairs].prod(axis=0), num_genuine, rng)
    one, other = class_pairs[:, cells]
    impostor = np.stack([starts[one], starts[other]]) + np.divmod(pairs, counts[other])

    left, right = by_class[np.concatenate([genuine, impostor], axis=1)]
    return left, right, np.arange(len(left)) < num_genuine


def _with_forgeries(labels, rng, max_pairs, forged):
    rows = np.flatnonzero(~forged)
    left, right, same = draw_verification_pairs(labels[rows], rng, max_pairs)
    pairs, num_genuine = rows[np.stack([left, right])], same.sum()
    forgeries = np.flatnonzero(forged & np.isin(labels, labels[rows]))
    if not len(forgeries):
        return *pairs, same
    rows = rows[np.argsort(labels[rows], kind="stable")]
    first, end = (np.searchsorted(labels[rows], labels[forgeries], s) for s in ("left", "right"))
    cells, items = _draw_evenly(end - first, (num_genuine + 1) // 2, rng)
    skilled = np.stack([rows[first[cells] + items], forgeries[cells]])
    random = rng.permutation(pairs[:, num_genuine:], axis=1)[:, : num_genuine - len(cells)]
    left, right = np.concatenate([pairs[:, :num_genuine], random, skilled], axis=1)
    return left, right, np.arange(len(left)) < num_genuine


def grouped(labels):
    """Image indices class by class, where each class begins in them, and its number of images."""
    counts = np.bincount(labels)
    return np.argsort(labels, kind="stable"), np.cumsum(counts) - counts, counts


def _draw_evenly(sizes, count, rng, most=np.inf):
    """Draws `count` different (cell, item), cells giving equal shares, all they have or `most`."""
    quotas, limits = np.zeros_like(sizes), np.minimum(sizes, most).astype(sizes.dtype)
    while (left := min(count, limits.sum()) - quotas.sum()) > 0:
        able = np.flatnonzero(quotas < limits)
        if left < len(able):
            able = rng.choice(able, left, replace=False)
        quotas[able] += np.minimum(left // len(able), (limits - quotas)[able])
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


def operating_points(same, distances):
    """False and true accept rates, and thresholds between neighbouring distances."""
    same, distances = checked(same, distances)
    false_accept, true_accept, scores = metrics.roc_curve(same, -distances, drop_intermediate=False)
    accepted = -scores[1:]  # the largest accepted distance; the first point accepts none
    middle = (accepted + np.append(accepted[1:], accepted[-1])) / 2
    thresholds = np.maximum(middle, np.nextafter(accepted, np.inf))  # it is accepted under `<`
    return false_accept, true_accept, np.append(accepted[0], thresholds)


def checked(same, distances):
    """`(same, distances)` as arrays; a ValueError where one kind of pair is missing."""
    same, distances = np.asarray(same, bool), finite(distances)
    if same.all() or not same.any():
        raise ValueError(
            f"Verification needs genuine and impostor pairs. Received: {same.sum()} genuine and "
            f"{np.sum(~same)} impostors. Draw both kinds with draw_verification_pairs."
        )
    return same, distances


def curve_scores(false_accept, true_accept):
    """What a ROC curve tells; only the equal error rate is interpolated."""
    excess = false_accept + true_accept - 1  # rises from -1 to 1 along the curve
    return {
        "auc": float(metrics.auc(false_accept, true_accept)),
        "equal_error_rate": float(np.interp(0, excess, false_accept)),
        **{
            f"true_accept_at_{100 * rate:g}_percent": float(
                last_within(rate, false_accept, true_accept)
            )
            for rate in FALSE_ACCEPT_RATES
        },
    }


def last_within(rate, false_accept, values):
    """The last of `values` along a ROC curve whose false-accept rate is at most `rate`."""
    # The tolerance forgives the rounding of weighted sums.
    return values[np.searchsorted(false_accept, rate + 1e-12, side="right") - 1]


def verification_scores(same, distances, threshold, probabilities):
    """Scores verification, with a threshold and calibrated probabilities from validation pairs.

    Returns:
        Dict that JSON can hold; `accuracy`, `precision` and `recall` are at `threshold`,
        `brier` and `reliability` (by bin) of the calibrated probability. `smallest_rate` is the
        false-accept rate below which so few impostors measure nothing; those are left out.
    """
    same, distances = checked(same, distances)
    scores = curve_scores(*operating_points(same, distances)[:2])
    smallest = LEAST_ACCEPTED / np.sum(~same)
    for rate in FALSE_ACCEPT_RATES:
        if rate < smallest:
            del scores[f"true_accept_at_{100 * rate:g}_percent"]
    accepted = distances < threshold
    observed, predicted = calibration_curve(same, probabilities, n_bins=10)
    return {
        **scores,
        "smallest_rate": float(smallest),
        "accuracy": float(np.mean(accepted == same)),
        "precision": float(metrics.precision_score(same, accepted, zero_division=0)),
        "recall": float(np.mean(accepted[same])),
        "brier": float(metrics.brier_score_loss(same, probabilities)),
        "reliability": {"predicted": predicted.tolist(), "observed": observed.tolist()},
        "threshold": float(threshold),
        "num_genuine": int(same.sum()),
        "num_impostors": int(np.sum(~same)),
    }
