"""Where to cut: the distance that says "same", and the one that says "none of these". No Keras."""

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from evaluation.verification import (
    all_distances,
    checked,
    curve_scores,
    last_within,
    operating_points,
)

FEW, FEWEST = 100, 20  # genuine pairs below which a threshold is called uncertain, hardly known
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # target false-accept rates
NUMBERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # of references
MOST_IMAGES = 1000  # looked at for "none of these"


def choose_threshold(same, distances, false_accept_rate=None):
    """The distance below which two images are called the same, as `threshold.json` holds it.

    Args:
        same: Boolean array (pairs,) of validation pairs.
        distances: Array (pairs,).
        false_accept_rate: Share of impostors that may pass, or None for the equal error rate.

    Returns:
        Dict: `threshold`, `chosen_for`, `val_accuracy` there, `calibration` of `probability`, how
        many pairs of each kind it stands on, and `warnings`, sentences.
    """
    rate, threshold = equal_error_rate(same, distances)
    purpose = f"equal error rate {rate:.4f} on validation pairs"
    if false_accept_rate is not None:
        threshold = threshold_at_false_accept(same, distances, false_accept_rate)
        purpose = f"false-accept rate {false_accept_rate} on validation pairs"
    genuine, warnings = int(np.sum(same)), []
    if genuine < FEW:
        known = "hardly known" if genuine < FEWEST else "uncertain"
        warnings.append(f"The threshold stands on {genuine} genuine pairs only: it is {known}.")
    if rate > 0.4:
        warnings.append(
            f"The equal error rate on validation pairs is {rate:.2f}, chance has 0.5: distances "
            "tell almost nothing. Train longer or on more images, or look at pairs.png."
        )
    return {
        "threshold": float(threshold),
        "chosen_for": purpose,
        "val_accuracy": float(np.mean((distances < threshold) == same)),
        "calibration": list(calibrate(same, distances, threshold)),
        "genuine_pairs": genuine,
        "impostor_pairs": len(same) - genuine,
        "warnings": warnings,
    }


def equal_error_rate(same, distances):
    """`(rate, threshold)` where false accepts equal false rejects, interpolated along the ROC."""
    false_accept, true_accept, thresholds = operating_points(same, distances)
    nearest = np.argmin(np.abs(false_accept + true_accept - 1))
    return curve_scores(false_accept, true_accept)["equal_error_rate"], float(thresholds[nearest])


def best_threshold(same, distances):
    """`(accuracy, threshold)` where most pairs are right, both kinds weighing the same.

    That accuracy is what SigNet reports; of test pairs it flatters (Dey et al. 2017).
    """
    false_accept, true_accept, thresholds = operating_points(same, distances)
    accuracy = (1 - false_accept + true_accept) / 2
    best = np.argmax(accuracy)
    return float(accuracy[best]), float(thresholds[best])


def threshold_at_false_accept(same, distances, rate):
    """The largest threshold that accepts at most `rate` of the impostors."""
    false_accept, _, thresholds = operating_points(same, distances)
    return float(last_within(rate, false_accept, thresholds))


def calibrate(same, distances, threshold):
    """Fits `(a, b)` so that `sigmoid(a * distance + b)` is the probability of one class.

    Logistic regression, both kinds of pair weighing the same, held at one half at the threshold,
    so that probability and verdict agree; its mild penalty keeps `a` finite (Platt,
    "Probabilistic outputs for support vector machines", 1999).
    """
    same, distances = checked(same, distances)
    spread = distances.std() or 1.0
    model = LogisticRegression(class_weight="balanced", fit_intercept=False)
    model.fit(((distances - threshold) / spread)[:, None], same)
    slope = min(model.coef_[0, 0], -1e-6) / spread  # a worse-than-random network has none
    return float(slope), float(-slope * threshold)


def probability(distances, calibration):
    """Probability that each pair is of one class, from `calibrate`'s `(a, b)`."""
    slope, intercept = calibration
    return expit(slope * np.asarray(distances, np.float64) + intercept)


# None of these


def unknown_thresholds(embeddings, labels, distance=None):
    """The table behind `unknown_threshold`, for `threshold.json`, from validation images.

    Every image is of an unknown class to references of the other classes. With n references drawn
    from those, one is nearer than t with probability 1 - (1 - p)^n, where p is the share of them
    that are nearer: averaged over the images, that is the false-accept rate at t.
    """
    some = np.unique(np.linspace(0, len(labels) - 1, MOST_IMAGES).astype(int))
    distances, labels = all_distances(embeddings[some], embeddings[some], distance), labels[some]
    return _table([
        np.sort(row[labels != label]) for row, label in zip(distances, labels, strict=True)
    ])  # fmt: skip


def unknown_thresholds_of_pairs(impostor_distances):
    """As `unknown_thresholds`, where nothing but distances of impostor pairs is known."""
    return _table([np.sort(impostor_distances)])


def _table(impostors):
    """Thresholds by number of references and rate, from sorted distances of each image."""
    shares = np.geomspace(1e-6, 1, 600)
    cuts = np.unique(np.quantile(np.concatenate(impostors), shares))
    nearer = np.array([np.searchsorted(row, cuts) / len(row) for row in impostors])  # (n, cuts)
    most = np.median([len(row) for row in impostors])
    numbers = [number for number in NUMBERS if number <= max(1, most)]
    table = []
    for number in numbers:
        accepted = np.mean(1 - (1 - nearer) ** number, axis=0)  # rises with the cuts
        table.append(np.interp(RATES, accepted, cuts).tolist())
    return {"references": numbers, "false_accept_rates": list(RATES), "thresholds": table}


def unknown_threshold(table, num_references, false_accept_rate=0.01):
    """The distance to the nearest of some references beyond which an image is none of them.

    Args:
        table: From `unknown_thresholds`; `threshold.json` keeps it as `unknown`.
        num_references: All references together, whatever their classes.
        false_accept_rate: Share of images of unknown classes that may be accepted.
    """
    rates = np.log(table["false_accept_rates"])
    row = [np.interp(np.log(false_accept_rate), rates, cuts) for cuts in table["thresholds"]]
    numbers, place = np.log(table["references"]), np.log(num_references)
    if place <= numbers[-1] or len(row) < 2:
        return float(np.interp(place, numbers, row))
    slope = (row[-1] - row[-2]) / (numbers[-1] - numbers[-2])  # beyond what validation could show
    return float(max(0.0, row[-1] + slope * (place - numbers[-1])))
