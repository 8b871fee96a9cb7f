"""None of these: how near a stranger comes to the nearest of some references. No Keras here.

A query's score is its distance to the nearest reference, less how near images of other classes
come to it anyway, its background. A score that strangers reach too often is not believed.

Reference:
    Sturim & Reynolds, "Speaker adaptive cohort selection for Tnorm in text-independent speaker
    verification", 2005.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

from evaluation.scores import all_distances

MOST_IMAGES = 1000  # of the cohort, of validation: as many again change little
MOST_REFERENCES = 300  # whose distances to the others are looked at
NEAREST = 10  # images of the cohort that make a background
SHARES = np.geomspace(1e-6, 0.5, 48)  # of the impostors
FEWEST = 5  # impostors that a share must stand on


@dataclasses.dataclass
class OpenSet:
    """What a run knows of strangers."""

    cohort: np.ndarray  # embeddings of some training images, (n, embedding_dim)
    classes: np.ndarray  # theirs, (n,)
    shares: np.ndarray  # ascending
    scores: np.ndarray  # that share of the impostors at validation scores lower
    distance: Callable | None = None  # as in `scores`

    @classmethod
    def load(cls, path, distance=None):
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(**file, distance=distance)

    def save(self, path):
        """Writes an `.npz`, the cohort at half precision."""
        cohort, classes = self.cohort.astype(np.float16), self.classes
        np.savez(path, cohort=cohort, classes=classes, shares=self.shares, scores=self.scores)

    def background(self, embeddings, classes=None):
        """Mean distance (n,) of images to their nearest of the cohort; zeros if that is too small.

        The nearest class is left out, as it may be the image's own, and that where it is known.
        """
        if len(np.unique(self.classes)) < 3:
            return np.zeros(len(embeddings))
        distances = all_distances(embeddings, self.cohort, self.distance)
        if classes is not None:
            distances[classes[:, None] == self.classes] = np.inf
        own = self.classes[distances.argmin(axis=1)]
        distances[own[:, None] == self.classes] = np.inf
        nearest = np.sort(distances)[:, :NEAREST]
        return np.mean(nearest, axis=1, where=np.isfinite(nearest))

    def reach(self, references, labels, rate):
        """The score below which a query is believed to show one of the references' classes.

        With n references a stranger has n chances, so each may accept the share of impostors
        that makes the `rate` for all. Classes that were not trained on may lie closer together
        than those of validation, and strangers to them as well: every reference is a stranger
        to the other classes, and where these come nearer than expected the reach shrinks as much.
        """
        reach = self.score_at(share_of_each(len(labels), rate))
        some = np.unique(np.linspace(0, len(labels) - 1, MOST_REFERENCES).astype(int))
        same = labels[some, None] == labels
        if same.all():
            return reach
        distances = all_distances(references[some], references, self.distance)
        nearest = np.min(distances, axis=1, where=~same, initial=np.inf)
        seen = np.median(nearest - self.background(references[some]))
        expected = self.score_at(share_of_each(np.mean(np.sum(~same, axis=1)), 0.5))
        return reach + min(0.0, seen - expected)

    def score_at(self, share):
        """The score below which a share (at most a half) of the impostors lies.

        Beyond the known shares scores are taken for normal.
        """
        place, known = ndtri(share), ndtri(self.shares)
        if place >= known[0] or len(known) < 2:
            return float(np.interp(place, known, self.scores))
        spread = np.polyfit(known, self.scores, 1)[0]
        return float(self.scores[0] + spread * (place - known[0]))


def learn(cohort, classes, images, image_classes, distance=None):
    """An `OpenSet` from training images, the cohort, and validation images: embeddings, classes."""
    blank = OpenSet(cohort, classes, SHARES, SHARES, distance)
    background = blank.background(images, image_classes)
    impostor = image_classes[:, None] != image_classes
    impostors = (all_distances(images, images, distance) - background[:, None])[impostor]
    return dataclasses.replace(blank, **quantiles(impostors))


def quantiles(impostors):
    """`shares` and `scores` of an `OpenSet`, from the scores of impostors."""
    shares = SHARES[SHARES * len(impostors) >= min(FEWEST, len(impostors) / 2)]
    return {"shares": shares, "scores": np.quantile(impostors, shares)}


def share_of_each(chances, rate):
    """The share that each of some independent chances may take, for a rate of all together."""
    return -np.expm1(np.log1p(-rate) / chances)
