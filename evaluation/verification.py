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

import bisect

import numpy as np
from sklearn import metrics

FALSE_ACCEPT_RATES = (0.1, 0.01, 0.001)
LEAST_ACCEPTED = 10  # impostors that a false-accept rate must come to, to be measured at all
MOST_ROUNDS = 30  # of drawing, until different pairs are called all there are
MOST_LEARNED = 400  # images that a learned distance, which takes long, compares all with all
CHUNK = 2**19  # numbers worked on at once: 4 MB stay near the processor, memory stays flat


def chunks(num_rows, row_size):
    """Slices of rows that hold about `CHUNK` numbers each."""
    step = max(1, CHUNK // row_size)
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def most_compared(most, distance):
    """How many images are compared all with all: `most`, or less by a learned distance."""
    return most if distance is None else min(most, MOST_LEARNED)


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
    distances = np.empty((len(left), len(right)))
    ours, theirs = (np.einsum("nd,nd->n", side, side, dtype=np.float64) for side in (left, right))
    scale = theirs.max(initial=0) or 1
    for rows in chunks(len(right), right.shape[1]):
        if distance is None:
            products = np.asarray(left, np.float64) @ np.asarray(right[rows], np.float64).T
            squared = np.round((ours[:, None] + theirs[rows] - 2 * products) / scale, 12)
            distances[:, rows] = np.sqrt(np.maximum(squared, 0) * scale)
        else:
            for one, row in zip(left, distances, strict=True):
                others = np.broadcast_to(one, right[rows].shape)
                row[rows] = row_distances(others, right[rows], distance)
    return distances


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
    labels, forged = dataset.index.labels[rows], dataset.index.forged[rows]
    return dataset.given_pairs(rows) or draw_verification_pairs(labels, rng, forged=forged)


def draw_verification_pairs(labels, rng, max_pairs=20_000, forged=False):
    """Draws genuine pairs and as many impostor pairs, every class having its say.

    Each class gives the same number of genuine pairs, or all it has, and none more than three times
    what the median class has. Every two classes give as many impostor pairs. No pair comes twice,
    so where there are few impostors fewer are returned. Where some images are `forged`, `(n,)`,
    half of the impostors are skilled: on the left an image of the class that the forgery on the
    right imitates. Returns `(left, right, same)`.
    """
    genuine = ImagesByClass(labels, np.logical_not(forged))
    forgeries, counts = ImagesByClass(labels, forged), genuine.counts
    classes, imitated = np.flatnonzero(counts), np.flatnonzero(counts * forgeries.counts)
    largest = max(counts, default=0)
    if len(classes) < 2 or largest < 2:
        raise ValueError(
            "Verification needs at least 2 classes, one of them with 2 images. Received: "
            f"{len(classes)} with {largest} in the largest. Add images."
        )
    same = _genuine_pairs(genuine, max_pairs, rng)

    def random(number):
        one = rng.integers(len(classes), size=number)
        other = (one + rng.integers(1, len(classes), size=number)) % len(classes)
        return [genuine.draw(classes[one], rng), genuine.draw(classes[other], rng)]

    def skilled(number):
        victims = rng.choice(imitated, number)
        return [genuine.draw(victims, rng), forgeries.draw(victims, rng)]

    num_genuine = same.shape[1]
    hard = _distinct(skilled, (num_genuine + 1) // 2 if len(imitated) else 0)
    easy = _distinct(random, num_genuine - hard.shape[1])
    left, right = np.concatenate([same, easy, hard], axis=1)
    return left, right, np.arange(len(left)) < num_genuine


class ImagesByClass:
    """Image indices class by class, by sorted label; those `among` `(n,)` count, all by default."""

    def __init__(self, labels, among=True):
        _, labels = np.unique(labels, return_inverse=True)
        rows = np.flatnonzero(np.broadcast_to(among, len(labels)))
        self.images = rows[np.argsort(labels[rows], kind="stable")]
        self.counts = np.bincount(labels[rows], minlength=max(labels, default=-1) + 1)
        self.starts = np.cumsum(self.counts) - self.counts  # of each class in `images`

    def draw(self, classes, rng):
        """An image of each of some classes, an array like `classes`."""
        return self.images[self.starts[classes] + rng.integers(self.counts[classes])]

    def draw_distinct(self, classes, count, rng):
        """`count` different images of each of some classes `(m,)`, in random order: (m, count)."""
        sizes = self.counts[classes]
        drawn = np.empty((len(sizes), count), np.int64)
        for i in range(count):  # Floyd's sampling, all rows at once
            last = sizes - count + i
            candidate = rng.integers(last + 1)
            taken = (drawn[:, :i] == candidate[:, None]).any(axis=1)
            drawn[:, i] = np.where(taken, last, candidate)
        drawn = rng.permuted(drawn, axis=1)  # Floyd's sets are uniform, his order is not.
        return self.images[self.starts[classes][:, None] + drawn]


def _genuine_pairs(by_class, max_pairs, rng):
    """Different pairs within classes, `(2, pairs)`: as many of each class, or all it has."""
    sizes = by_class.counts * (by_class.counts - 1) // 2
    # One large class must not speak for all.
    most = 3 * int(np.percentile(sizes[sizes > 0], 50, method="lower"))
    of_each = bisect.bisect_left(range(most), max_pairs, key=lambda n: np.minimum(sizes, n).sum())
    drawn = [rng.choice(size, min(size, of_each), replace=False) for size in sizes]
    # The pairs of a class are numbered (0, 1), (0, 2), (1, 2), (0, 3), ...
    numbers = np.concatenate(drawn)
    second = ((1 + np.sqrt(1 + 8 * numbers)) / 2).astype(np.int64)
    first = numbers - second * (second - 1) // 2
    starts = np.repeat(by_class.starts, np.minimum(sizes, of_each))
    return rng.permutation(by_class.images[starts + [first, second]], axis=1)[:, :max_pairs]


def _distinct(draw, count):
    """`count` different pairs `(2, count)` of what `draw(number)` gives, or all there are."""
    pairs = np.empty((2, 0), int)
    for _ in range(MOST_ROUNDS):
        if pairs.shape[1] >= count:
            break
        pairs = np.concatenate([pairs, draw(2 * count)], axis=1)
        _, first = np.unique(np.sort(pairs, axis=0), axis=1, return_index=True)
        pairs = pairs[:, np.sort(first)]
    return pairs[:, :count]


def operating_points(same, distances, weights=None):
    """False and true accept rates of weighted pairs; thresholds between neighbouring distances."""
    same, distances = checked(same, distances)
    false_accept, true_accept, scores = metrics.roc_curve(
        same, -distances, sample_weight=weights, drop_intermediate=False
    )
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
            f"{np.sum(~same)} impostors. List or draw pairs of both kinds."
        )
    return same, distances


def curve_scores(false_accept, true_accept, smallest_rate=0.0):
    """What a ROC curve tells, at false-accept rates from the smallest; the EER is interpolated.

    The best accuracy, both kinds weighing the same, is SigNet's (Dey et al. 2017): it flatters.
    """
    excess = false_accept + true_accept - 1  # rises from -1 to 1 along the curve
    scores = {
        "auc": float(metrics.auc(false_accept, true_accept)),
        "equal_error_rate": float(np.interp(0, excess, false_accept)),
        "best_accuracy": float(1 + np.max(true_accept - false_accept)) / 2,
    }
    for rate in FALSE_ACCEPT_RATES:
        if rate >= smallest_rate:
            accepted = last_within(rate, false_accept, true_accept)
            scores[f"true_accept_at_{100 * rate:g}_percent"] = float(accepted)
    return scores


def last_within(rate, false_accept, values):
    """The last of `values` along a ROC curve whose false-accept rate is at most `rate`."""
    # The tolerance forgives the rounding of weighted sums.
    return values[np.searchsorted(false_accept, rate + 1e-12, side="right") - 1]


def verification_scores(same, distances, threshold):
    """Scores verification at a threshold that was chosen on validation pairs.

    Returns a dict that JSON can hold. `smallest_rate` is the false-accept rate below which so few
    impostors measure nothing; true accepts at such are left out.
    """
    same, distances = checked(same, distances)
    smallest, accepted = min(1.0, LEAST_ACCEPTED / np.sum(~same)), distances < threshold
    return {
        **curve_scores(*operating_points(same, distances)[:2], smallest),
        "smallest_rate": float(smallest),
        "accuracy": float(np.mean(accepted == same)),
        "precision": float(metrics.precision_score(same, accepted, zero_division=0)),
        "recall": float(np.mean(accepted[same])),
        "threshold": float(threshold),
        "num_genuine": int(same.sum()),
        "num_impostors": int(np.sum(~same)),
    }
