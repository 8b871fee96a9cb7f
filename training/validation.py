"""Scores an encoder on the validation images, each embedded once."""

import numpy as np
from keras import ops
from sklearn.metrics import roc_auc_score

from evaluation import few_shot, references, thresholds, verification
from networks.embedding import embed
from pipeline.class_batches import ClassBatches, training_labels
from siamese_network_funcs import accuracy, build_loss

BATCHES = 8  # over which val_loss is averaged when classes are sampled
WAYS, TRIALS = 20, 1000  # of val_one_shot
MOST_IMAGES = 2000  # more make a validation slower, not surer
A_MINUTE = 200  # images for each minute of a time limit, at most
UNKNOWN_SCALE = 1 / 30  # so that a mean distance below 0.001 has collapsed
COLLAPSED = 0.03  # mean distance of pairs, as a share of that of unrelated embeddings


class TrainingFailed(RuntimeError):
    """The training cannot go on; the message says what happened and what to try."""

    def __init__(self, what):
        advice = "Try a lower learning_rate, unit_length=True, or another loss or seed."
        super().__init__(f"{what}. {advice}")


class Validator:
    """What an encoder is scored on after each epoch.

    `pixels` is what it takes of each row, the data set's by default; `loss` a Keras loss, the
    config's by default.
    """

    def __init__(self, dataset, config, pixels=None, loss=None):
        self.dataset, self.config = dataset, config
        self.pixels = dataset.pixels if pixels is None else pixels
        rng = np.random.default_rng([config.seed, 2])
        most = int(min(MOST_IMAGES, A_MINUTE * max(1, config.max_minutes or np.inf)))
        self.rows = dataset.sample(dataset.splits.val, most, rng)
        self.labels = training_labels(dataset.index)[self.rows]  # a forgery is alone in its class
        pairs = verification.verification_pairs(dataset, self.rows, rng)
        self.left, self.right, self.same = pairs
        self.trials = few_shot.draw_trials(self.labels, WAYS, 1, TRIALS, rng)
        self.loss = loss or build_loss(config)
        if config.sampling == "classes":
            batches = ClassBatches(dataset.index, None, self.rows, config)
            drawn = [batches.rows(step) for step in range(BATCHES)]
            self.batches = [np.searchsorted(self.rows, rows) for rows in drawn]

    def score(self, encoder, distance=None):
        """Validation metrics of an encoder, with a distance as from `distance_function`.

        Returns:
            `(metrics, spread)`: a dict of val_loss, val_accuracy, val_auc, val_one_shot, and the
            mean distance of the pairs as a share of that of unrelated embeddings.

        Raises:
            TrainingFailed: If an embedding is not finite.
        """
        embeddings = embed(encoder, self.pixels, self.rows)
        if not np.isfinite(embeddings).all():
            raise TrainingFailed("Embeddings are not finite")
        distances = verification.pair_distances(embeddings, self.left, self.right, distance)
        trial_distances = few_shot.trial_distances(embeddings, self.trials, distance)
        metrics = {
            "val_loss": self._loss(embeddings, distances),
            "val_accuracy": float(accuracy(self.same, distances, self.config.accuracy_distance)),
            "val_auc": roc_auc_score(self.same, -distances),
            "val_one_shot": few_shot.few_shot_accuracy(trial_distances, self.trials.answers),
        }
        return metrics, float(distances.mean() / self._scale(embeddings))

    def choose_thresholds(self, embeddings, distances, distance=None):
        """What is called the same, none of these, and the enrolled person: `threshold.json`.

        `embeddings` are those of the validation images, `distances` those of the pairs.
        """
        index, rate = self.dataset.index, self.config.false_accept_rate
        sides = index.labels[self.rows][[self.left, self.right]]
        chosen = thresholds.choose_threshold(self.same, distances, rate, sides)
        if index.classes_known:
            unknown, enrolled = self._reference_tables(embeddings, distance)
        else:  # of images of two pairs nobody knows whether they show the same
            unknown, enrolled = references.unknown_thresholds([distances[~self.same]]), None
        if enrolled is None:
            rates = [thresholds.equal_error_rate(self.same, distances)[0]]
            enrolled = {"rule": "nearest", "impostors": references.IMPOSTORS["random"], **unknown}
            enrolled["equal_error_rates"] = rates * len(unknown["references"])
        return chosen | {"unknown": unknown, "enrolled": enrolled}

    def _reference_tables(self, embeddings, distance):
        """The tables of `unknown_thresholds` and `reference_thresholds`."""
        rng = np.random.default_rng([self.config.seed, 6])
        most = verification.most_compared(MOST_IMAGES, distance)
        rows = self.dataset.sample(self.rows, most, rng)
        classes, forged = self.dataset.index.labels[rows], self.dataset.index.forged[rows]
        embeddings = embeddings[np.isin(self.rows, rows)]
        distances = verification.all_distances(embeddings, embeddings, distance)
        of_others = (classes[:, None] != classes) & ~forged  # (images, images)
        impostors = [distances[row, of_others[row]] for row in np.flatnonzero(~forged)]
        enrolled = references.reference_thresholds(distances, classes, forged, rng)
        return references.unknown_thresholds(impostors), enrolled

    def _scale(self, embeddings):
        """Distance of unrelated embeddings: at a right angle, and as long as these are."""
        if not self.config.unit_length:  # nothing says how far apart such a network puts them
            return UNKNOWN_SCALE
        return np.sqrt(2 * np.square(embeddings).sum(axis=1).mean()) + 1e-12

    def _loss(self, embeddings, distances):
        if self.config.sampling == "pairs":
            same = self.same.astype(np.float32)[:, None]
            losses = [self.loss(same, distances.astype(np.float32)[:, None])]
        else:
            losses = [self.loss(self.labels[rows], embeddings[rows]) for rows in self.batches]
        return float(np.mean([float(ops.mean(loss)) for loss in losses]))  # one's own: of each pair
