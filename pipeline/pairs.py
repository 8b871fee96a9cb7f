"""Batches of genuine and impostor pairs, half and half; each a function of (seed, step)."""

import numpy as np

from pipeline.augmentation import augment
from pipeline.class_batches import ClassTable

NEAR = 0.5  # share of the impostor pairs that are drawn from classes that lie near each other


class PairBatches:
    """Batches of pairs for a two-input model.

    `batches[step]` is `((left, right), same)`: uint8 images (pairs, height, width, channels) twice,
    and float32 labels (pairs, 1), 1 for genuine.

    Args:
        index: An `ImageIndex`; pairs that it gives are the ones drawn.
        pixels: uint8 array (images, height, width, channels).
        rows: The rows to draw from.
        config: A `Config`.

    Attributes:
        distances: Of the classes to each other as the network sees them, (classes, classes), in
            the order of `table.classes`; None before the first epoch is over.
    """

    def __init__(self, index, pixels, rows, config):
        self.index, self.pixels, self.config = index, pixels, config
        self.half = config.pairs_per_batch // 2
        self.images_per_step, self.distances = 4 * self.half, None
        self.table = ClassTable(index, rows[~index.forged[rows]])
        forgeries = rows[index.forged[rows]]
        self.forgeries = forgeries[np.isin(index.labels[forgeries], self.table.classes)]
        self.given = None
        if index.pairs is not None:
            inside = index.pairs[np.isin(index.pairs[:, :2], rows).all(axis=1)]
            self.given = [inside[inside[:, 2] == same, :2] for same in (1, 0)]

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
        return np.array([self.table.draw_members(one, 2, rng) for one in chosen]).T

    def _draw_impostors(self, rng):
        """(2, pairs): images of two classes, and skilled forgeries beside what they imitate."""
        skilled = round(self.config.skilled_share * self.half) if len(self.forgeries) else 0
        first, second = self._draw_class_pairs(self.half - skilled, rng)
        random = self.table.draw_one(first, rng), self.table.draw_one(second, rng)
        if not skilled:
            return np.array(random)
        forged = rng.choice(self.forgeries, skilled)
        order = np.argsort(self.table.classes)
        target = np.searchsorted(self.table.classes[order], self.index.labels[forged])
        genuine = self.table.draw_one(order[target], rng)
        return np.concatenate([random, [genuine, forged]], axis=1)

    def _draw_class_pairs(self, count, rng):
        """Two different classes per pair: any two, and in part two that lie near each other."""
        num_classes = len(self.table.counts)
        first = rng.integers(num_classes, size=count)
        second = (first + rng.integers(1, num_classes, size=count)) % num_classes
        if rng.random() < self.config.family_batches:
            second = self._relative(first, second, rng)
        elif self.distances is not None:
            near = rng.random(count) < NEAR
            second[near] = [rng.choice(num_classes, p=self._chances(one)) for one in first[near]]
        return first, second

    def _relative(self, first, second, rng):
        """In place of `second`, classes of the family of `first` where it has another one."""
        low = np.searchsorted(self.table.families, self.table.families[first], side="left")
        size = np.searchsorted(self.table.families, self.table.families[first], side="right") - low
        step = 1 + rng.integers(np.maximum(size - 1, 1))
        return np.where(size > 1, low + (first - low + step) % np.maximum(size, 1), second)

    def _chances(self, one):
        """Of each class to be the impostor of one: higher where it lies near, 0 for itself."""
        distances = self.distances[one]
        others = np.delete(distances, one)
        beyond = np.maximum(distances - others.min(), 0)  # its own is less
        chances = np.exp(-beyond / (others.std() + 1e-6))
        chances[one] = 0
        return chances / chances.sum()
