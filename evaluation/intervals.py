"""95% intervals that hold for other images, or other classes, than those at hand. No Keras.

What is drawn anew are units: the classes (or families) of unseen classes, the images of known ones.
A damped bootstrap gives the variance: a unit's weight is 1 + DAMPING * (times drawn - 1), so that
none is ever lost, and variances shrink by DAMPING squared. From that variance follows how many
independent trials the score is worth, and Wilson's interval of so many, with Student's t for few
units.

Reference:
    Efron and Tibshirani, "An introduction to the bootstrap", 1993; Wilson, 1927.
"""

import dataclasses

import numpy as np
from scipy import stats

from evaluation import verification

DAMPING = 0.5
DRAWS = 100
MOST_QUERIES, MOST_OF_A_CLASS = 1500, 40  # images that stand for all in an interval of few-shot


@dataclasses.dataclass
class Units:
    """What is drawn anew: the unit of each image, and within what (all images if one stratum)."""

    of_image: np.ndarray  # (images,) from 0
    strata: np.ndarray  # (units,)

    @classmethod
    def of(cls, labels, families, known):
        """Images within their classes for known classes; else families where 5 or more, classes."""
        if known:
            return cls(np.arange(len(labels)), labels)
        units = families if len(np.unique(families)) >= 5 else labels
        _, units = np.unique(units, return_inverse=True)
        return cls(units, np.zeros(units.max() + 1, int))

    @property
    def t(self):
        """Student's t for 95%: its degrees of freedom are the units less one a stratum."""
        return stats.t.ppf(0.975, max(1, len(self.strata) - len(np.unique(self.strata))))

    def weights(self, rng):
        """Weights of the units in each draw, (DRAWS, units), of mean 1."""
        weights = np.ones((DRAWS, len(self.strata)))
        for stratum in np.unique(self.strata):
            inside = np.flatnonzero(self.strata == stratum)
            count = len(inside)
            times = rng.multinomial(count, np.full(count, 1 / count), DRAWS)
            weights[:, inside] += DAMPING * (times - 1) * np.sqrt(count / max(1, count - 1))
        return weights

    def joint_weights(self, images, weights):
        """Yields the weights (m,) of pairs, or of k images (k, m), in each draw.

        They weigh what their units do, multiplied, each unit once.
        """
        units = self.of_image[np.stack(images)]
        new = [(units[:i] != units[i]).all(axis=0) for i in range(len(units))]
        for drawn in weights:
            yield np.where(new, drawn[units], 1).prod(axis=0)

    def margin(self, resampled):
        """Half of the interval of a value that is no share, from its values over the draws."""
        return float(self.t * np.std(resampled, ddof=1) / DAMPING)

    def interval(self, value, resampled, trials=np.inf):
        """`[low, high]` of a share from its values over the draws and the chance of `trials`."""
        variance = np.var(resampled, ddof=1) / DAMPING**2 + value * (1 - value) / trials
        worth, t = len(self.of_image), self.t
        if variance > 0 and 0 < value < 1:
            worth = value * (1 - value) / variance
        middle = value + t**2 / (2 * worth)
        half = t * np.sqrt(value * (1 - value) / worth + (t / (2 * worth)) ** 2)
        ends = np.array([middle - half, middle + half]) / (1 + t**2 / worth)
        return ends.clip(0, 1).tolist()


def verification_intervals(scores, same, distances, left, right, threshold, units, rng):
    """Intervals of the `scores` of pairs that a ROC curve and the threshold give, by name."""
    found = resampled_scores(same, distances, left, right, threshold, units, rng)
    names = [name for name in found[0] if name in scores]
    return {name: units.interval(scores[name], [each[name] for each in found]) for name in names}


def resampled_scores(same, distances, left, right, threshold, units, rng):
    """What a ROC curve and the threshold give in each draw, dicts."""
    order = np.argsort(distances, kind="stable")  # sorted once, for all draws
    same, distances, left, right = (each[order] for each in (same, distances, left, right))
    ends = np.append(np.flatnonzero(np.diff(distances)), len(distances) - 1)  # ties stay together
    found = []
    for weights in units.joint_weights((left, right), units.weights(rng)):
        genuine, impostor = np.cumsum(weights * same)[ends], np.cumsum(weights * ~same)[ends]
        curve = (np.append(0, rates / rates[-1]) for rates in (impostor, genuine))
        accuracy = np.average(same == (distances < threshold), weights=weights)
        found.append(verification.curve_scores(*curve) | {"accuracy": accuracy})
    return found


def few_shot_intervals(accuracies, shots, held, rng, trials, within=False):
    """Intervals of K-shot accuracies of a `HeldOut`, {ways: accuracy} -> {ways: interval}.

    A query is answered rightly among N classes if N - 1 drawn prototypes are farther than its own:
    the share of all prototypes that are, to the power of N - 1; of its family where `within`.
    """
    embeddings, distance, units = held.embeddings, held.distance, held.units
    by_class = verification.ImagesByClass(held.trial_labels)
    classes = np.flatnonzero(by_class.counts > shots)
    most = verification.most_compared(MOST_QUERIES, distance)
    drawn = np.repeat(classes, np.clip(most // len(classes), 1, MOST_OF_A_CLASS))
    references = by_class.draw_distinct(drawn, shots, rng)
    own = by_class.draw_distinct(drawn, shots + 1, rng)
    queries = embeddings[own[:, 0]]  # against the mean of the rest, and all other prototypes
    nearest = verification.row_distances(queries, embeddings[own[:, 1:]].mean(axis=1), distance)
    others = verification.all_distances(queries, embeddings[references].mean(axis=1), distance)
    rivals = drawn[:, None] != drawn  # (queries, prototypes)
    if within:
        rivals &= held.families[own[:, :1]] == held.families[references[:, 0]]
    kept = rivals.any(axis=1)
    farther = (rivals * np.heaviside(others - nearest[:, None], 0.5))[kept]  # a tie is half
    weights = units.weights(rng)
    of_prototypes = np.array([*units.joint_weights(references.T, weights)]).T
    of_queries = np.array([*units.joint_weights(own[kept].T, weights)]).T
    shares = (farther @ of_prototypes) / (rivals[kept] @ of_prototypes)  # (queries, draws)
    found = {}
    for ways, accuracy in accuracies.items():
        resampled = np.average(shares ** (ways - 1), weights=of_queries, axis=0)
        found[ways] = units.interval(accuracy, resampled, trials)
    return found
