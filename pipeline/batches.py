"""Which images meet in a training batch: each batch a function of (seed, step) alone."""

import numpy as np

from pipeline.augmentation import augment, recolor, turn
from pipeline.image_index import DataError


class ClassTable:
    """Rows sorted by family, class and group, so that drawing is index arithmetic.

    Args:
        index: An `ImageIndex`.
        rows: The rows to draw from.
    """

    def __init__(self, index, rows):
        order = np.lexsort((index.groups[rows], index.labels[rows], index.families[rows]))
        self.rows = np.asarray(rows)[order]
        self.groups = index.groups[self.rows]
        self.starts = np.append(0, np.flatnonzero(np.diff(index.labels[self.rows])) + 1)
        self.counts = np.diff(np.append(self.starts, len(self.rows)))
        self.families = index.families[self.rows[self.starts]]

    def draw_genuine(self, count, rng):
        """Rows `(left, right)`, each (count,): of one class, and of two groups where it has two."""
        chosen = rng.choice(np.flatnonzero(self.counts >= 2), count)
        return np.array([self._draw_members(one, 2, rng) for one in chosen]).T

    def draw_impostors(self, count, rng, within_family):
        """Pairs of images of two classes, in the same form, uniform over pairs of classes.

        `within_family` takes both classes of a pair from one family, where families have two.
        """
        first, second = self._draw_class_pairs(count, rng, within_family)
        left = self.starts[first] + rng.integers(self.counts[first])
        right = self.starts[second] + rng.integers(self.counts[second])
        return self.rows[left], self.rows[right]

    def _draw_class_pairs(self, count, rng, within_family):
        """Two different classes a pair; families are runs, as classes are sorted by them."""
        num_classes = len(self.counts)
        low, high = np.zeros(num_classes, int), np.full(num_classes, num_classes)
        if within_family:
            low = np.searchsorted(self.families, self.families, side="left")
            high = np.searchsorted(self.families, self.families, side="right")
        able = np.flatnonzero(high - low >= 2)
        if not len(able):
            return self._draw_class_pairs(count, rng, within_family=False)
        first = rng.choice(able, count)
        second = low[first] + rng.integers(high[first] - low[first] - 1)
        return first, second + (second >= first)

    def draw_classes(self, batch_size, images_per_class, rng, within_family):
        """Rows (batch_size,): up to `images_per_class` distinct images of one class after another.

        A smaller class gives all it has, the last one what is still missing. `within_family`
        takes the classes family by family instead of in any order.
        """
        order = rng.permutation(len(self.counts))
        if within_family:
            rank = rng.permutation(self.families.max() + 1)
            order = order[np.argsort(rank[self.families[order]], kind="stable")]
        batch = np.empty(0, int)
        for chosen in order:
            if len(batch) >= batch_size:
                break
            batch = np.append(batch, self._draw_members(chosen, images_per_class, rng))
        return batch[:batch_size]

    def _draw_members(self, chosen, count, rng):
        """Distinct images of one class, one of every group before a second of any."""
        members = self.starts[chosen] + rng.permutation(self.counts[chosen])
        _, first = np.unique(self.groups[members], return_index=True)
        order = np.append(np.sort(first), np.delete(np.arange(len(members)), first))
        return self.rows[members[order[:count]]]


class Batches:
    """What both kinds share.

    Args:
        index: An `ImageIndex`.
        pixels: uint8 array (images, size, size, channels).
        rows: The rows to draw from.
        config: A `Config`.

    Attributes:
        images_per_step: How many a batch holds.
        part: Of each batch, read and made here; other hosts make the rest.
    """

    part = slice(None)

    def __init__(self, index, pixels, rows, config):
        self.index, self.pixels, self.config = index, pixels, config
        self.table = ClassTable(index, rows)

    def _read(self, rows):
        """Images of some rows, black outside the part where none of the others is needed."""
        if self.config.background_swap > 0 or len(rows[self.part]) == len(rows):
            return self.pixels[rows]
        images = np.zeros((len(rows), *self.pixels.shape[1:]), np.uint8)
        images[self.part] = self.pixels[rows[self.part]]
        return images


class PairBatches(Batches):
    """Batches of couples for a two-input model.

    `batches[step]` is `((left, right), same)`: uint8 images (pairs, size, size, channels) twice,
    and float32 labels (pairs, 1), 1 for genuine.
    """

    def __init__(self, index, pixels, rows, config):
        super().__init__(index, pixels, rows, config)
        self.images_per_step = 2 * (config.pairs_per_batch // 2) * 2
        self.impostors = None
        if index.pairs is not None:
            inside = np.isin(index.pairs[:, :2], rows).all(axis=1)
            self.impostors = index.pairs[inside & (index.pairs[:, 2] == 0), :2]
            if not len(self.impostors):
                raise DataError(
                    "No dissimilar pair is left to train on. Lower the held-out shares."
                )

    def rows(self, step):
        """`(left, right, same)` of one step: rows and labels, each (pairs,)."""
        rng = np.random.default_rng([self.config.seed, 0, step])
        half, table = self.config.pairs_per_batch // 2, self.table
        genuine = table.draw_genuine(half, rng)
        if self.impostors is not None:
            impostor = self.impostors[rng.integers(len(self.impostors), size=half)].T
        else:
            within = rng.random() < self.config.family_batches
            impostor = table.draw_impostors(half, rng, within)
        left, right = np.concatenate([genuine, impostor], axis=1)
        return left, right, np.arange(2 * half) < half

    def __getitem__(self, step):
        left, right, same = self.rows(step)
        rng = np.random.default_rng([self.config.seed, 1, step])
        sides = (self._read(side) for side in (left, right))
        sides = tuple(augment(side, self.config, rng, part=self.part) for side in sides)
        return sides, same[self.part].astype(np.float32)[:, None]


class ClassBatches(Batches):
    """Batches of P classes x K images for the encoder; every pair within a batch is used.

    `batches[step]` is `(images, labels)`: uint8 (batch, size, size, channels) and int32 (batch,).
    Classes with fewer than K images make room for more classes.
    """

    def __init__(self, index, pixels, rows, config):
        super().__init__(index, pixels, rows, config)
        wanted = config.classes_per_batch * config.images_per_class
        available = int(np.minimum(self.table.counts, config.images_per_class).sum())
        self.images_per_step = min(wanted, available)

    def rows(self, step):
        """Rows of one step, (batch,)."""
        rng = np.random.default_rng([self.config.seed, 0, step])
        within = rng.random() < self.config.family_batches
        size, per_class = self.images_per_step, self.config.images_per_class
        return self.table.draw_classes(size, per_class, rng, within)

    def __getitem__(self, step):
        rows = self.rows(step)
        rng = np.random.default_rng([self.config.seed, 1, step])
        images, labels, tables = self._read(rows), self.index.labels[rows], None
        num_classes = len(self.index.class_names)
        if self.config.rotated_classes:
            turns = rng.integers(4, size=len(self.index.family_names))[self.index.families[rows]]
            images = turn(images, turns)
            labels = labels + 2 * turns * num_classes
        if self.config.recolor_share > 0:
            images, tables, recolored = recolor(images, labels, self.config.recolor_share, rng)
            labels = labels + recolored * num_classes  # classes of their own
        images = augment(images, self.config, rng, tables, self.part)
        return images, labels[self.part].astype(np.int32)


BATCHES = {"pairs": PairBatches, "classes": ClassBatches}
