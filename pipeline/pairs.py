"""Batches of genuine and impostor pairs, half and half; each a function of (seed, step)."""

import numpy as np

from pipeline.augmentation import augment
from pipeline.class_batches import ClassTable

MOST_CANDIDATES = 4000  # images for hard impostor pairs
NEAREST = 100  # of other classes, from which an image's hard impostor is drawn


class PairBatches:
    """Batches of pairs of some rows for a two-input model; of given pairs where there are any.

    `batches[step]` is `((left, right), same)`: uint8 images (pairs, height, width, channels) twice,
    and float32 labels (pairs, 1), 1 for genuine.

    Attributes:
        candidates: Rows for hard impostor pairs; none where `hard_share` is 0 or pairs are given.
        neighbours: Rows (candidates, 1 + n): each candidate, then the `NEAREST` of other classes,
            or as many as there are; None before the first epoch is over.
    """

    def __init__(self, index, pixels, rows, config):
        self.index, self.pixels, self.config = index, pixels, config
        self.half = config.pairs_per_batch // 2
        self.images_per_step = 4 * self.half
        self.table = ClassTable(index, rows[~index.forged[rows]])
        forgeries = rows[index.forged[rows]]
        self.forgeries = forgeries[np.isin(index.labels[forgeries], self.table.classes)]
        self.given = None
        if index.pairs is not None:
            inside = index.pairs[index.pairs_within(rows)]
            self.given = [inside[inside[:, 2] == same, :2] for same in (1, 0)]
        places = np.linspace(0, len(self.table.rows) - 1, MOST_CANDIDATES).astype(int)
        mines = config.hard_share > 0 and not self.given
        self.candidates = self.table.rows[np.unique(places)] if mines else np.empty(0, int)
        self.neighbours = None

    def rows(self, step):
        """`(left, right, same)` of one step: rows and labels, each (pairs,)."""
        rng = np.random.default_rng([self.config.seed, 0, step])
        if self.given:
            drawn = [pairs[rng.integers(len(pairs), size=self.half)].T for pairs in self.given]
        else:
            drawn = self._draw_genuine(rng), self._draw_impostors(rng)
        left, right = np.concatenate(drawn, axis=1)
        return left, right, np.arange(2 * self.half) < self.half

    def __getitem__(self, step):
        left, right, same = self.rows(step)
        rng = np.random.default_rng([self.config.seed, 1, step])
        sides = tuple(augment(self.pixels[side], self.config, rng) for side in (left, right))
        return sides, same.astype(np.float32)[:, None]

    def _draw_genuine(self, rng):
        """(2, pairs): two images of one class, of two groups where it has two."""
        chosen = rng.choice(np.flatnonzero(self.table.counts >= 2), self.half)
        return np.array([self.table.draw_members(each, 2, rng) for each in chosen]).T

    def _draw_impostors(self, rng):
        """(2, pairs): random, hard and skilled ones, the last a forgery on the right."""
        skilled = round(self.config.skilled_share * self.half) if len(self.forgeries) else 0
        num_classes, count = len(self.table.counts), self.half - skilled
        first = rng.integers(num_classes, size=count)
        second = (first + rng.integers(1, num_classes, size=count)) % num_classes
        pairs = np.array([self.table.draw_one(each, rng) for each in (first, second)])
        if self.neighbours is not None:
            hard = np.flatnonzero(rng.random(count) < self.config.hard_share)
            anchors = rng.integers(len(self.neighbours), size=len(hard))
            near = rng.integers(1, self.neighbours.shape[1], size=len(hard))
            pairs[:, hard] = self.neighbours[anchors, 0], self.neighbours[anchors, near]
        if not skilled:
            return pairs
        forged = rng.choice(self.forgeries, skilled)
        order = np.argsort(self.table.classes)
        target = np.searchsorted(self.table.classes[order], self.index.labels[forged])
        genuine = self.table.draw_one(order[target], rng)
        return np.concatenate([pairs, [genuine, forged]], axis=1)
