"""Where to cut: the distance below which two images are called the same. No Keras."""

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from evaluation.intervals import Units
from evaluation.verification import checked, curve_scores, last_within, operating_points

FEW, FEWEST = 100, 20  # genuine pairs below which a threshold is called uncertain, hardly known


def choose_threshold(same, distances, false_accept_rate, classes):
    """The distance below which two images are called the same, as `threshold.json` holds it.

    From validation pairs and the `classes` of their images (2, pairs). `false_accept_rate` is the
    share of impostors that may pass, None for the equal error rate. The `interval` is the 95% one
    for other classes; `calibration` is for `probability`.
    """
    rate, _ = equal_error_rate(same, distances)
    purpose = f"false-accept rate {false_accept_rate}"
    if false_accept_rate is None:
        purpose = f"equal error rate {rate:.4f}"

    def choose(weights=None):
        if false_accept_rate is None:
            return equal_error_rate(same, distances, weights)[1]
        return threshold_at_false_accept(same, distances, false_accept_rate, weights)

    threshold = choose()
    _, classes = np.unique(classes, return_inverse=True)
    units = Units(np.arange(classes.max() + 1), np.zeros(classes.max() + 1, int))
    weights = units.joint_weights(classes, units.weights(np.random.default_rng(0)))
    margin = units.margin([choose(of_pairs) for of_pairs in weights])
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
        "interval": [max(0.0, threshold - margin), threshold + margin],
        "chosen_for": f"{purpose} on validation pairs",
        "val_accuracy": float(np.mean((distances < threshold) == same)),
        "calibration": list(calibrate(same, distances, threshold)),
        "genuine_pairs": genuine,
        "impostor_pairs": len(same) - genuine,
        "warnings": warnings,
    }


def equal_error_rate(same, distances, weights=None):
    """`(rate, threshold)` where false accepts equal false rejects, interpolated along the ROC."""
    false_accept, true_accept, thresholds = operating_points(same, distances, weights)
    nearest = np.argmin(np.abs(false_accept + true_accept - 1))
    return curve_scores(false_accept, true_accept)["equal_error_rate"], float(thresholds[nearest])


def best_threshold(same, distances):
    """The threshold where most pairs are right, both kinds weighing the same."""
    false_accept, true_accept, thresholds = operating_points(same, distances)
    return float(thresholds[np.argmax(true_accept - false_accept)])


def threshold_at_false_accept(same, distances, rate, weights=None):
    """The largest threshold that accepts at most `rate` of the impostors."""
    false_accept, _, thresholds = operating_points(same, distances, weights)
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
