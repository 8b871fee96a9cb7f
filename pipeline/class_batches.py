"""Batches of P classes x K images, every pair of them used; each a function of (seed, step)."""

import numpy as np

from pipeline.augmentation import augment, turn


class ClassTable:
    """Rows sorted by family, class and group, so that drawing is index arithmetic."""

    def __init__(self, index, rows):
        order = np.lexsort((index.groups[rows], index.labels[rows], index.families[rows]))
        self.rows = np.asarray(rows)[order]
        self.groups = index.groups[self.rows]
        self.starts = np.append(0, np.flatnonzero(np.diff(index.labels[self.rows])) + 1)
        self.counts = np.diff(np.append(self.starts, len(self.rows)))
        self.classes = index.labels[self.rows[self.starts]]
        self.families = index.families[self.rows[self.starts]]

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
            batch = np.append(batch, self.draw_members(chosen, images_per_class, rng))
        return batch[:batch_size]

    def draw_members(self, chosen, count, rng):
        """Distinct images of one class, one of every group before a second of any."""
        members = self.starts[chosen] + rng.permutation(self.counts[chosen])
        _, first = np.unique(self.groups[members], return_index=True)
        order = np.append(np.sort(first), np.delete(np.arange(len(members)), first))
        return self.rows[members[order[:count]]]

    def draw_one(self, chosen, rng):
        """One image of each of some classes, rows as `chosen`."""
        return self.rows[self.starts[chosen] + rng.integers(self.counts[chosen])]


def training_labels(index):
    """Class of each row for a training on classes, where a forgery is a class of its own."""
    own = len(index.class_names) + np.arange(len(index))
    return np.where(index.forged, own, index.labels)


class ClassBatches:
    """Batches of P classes x K images of some rows; every pair within a batch is used.

    `batches[step]` is `(images, labels)`: uint8 (batch, height, width, channels) and int32
    (batch,). Classes with fewer than K images make room for more classes.
    """

    candidates, neighbours = (), None  # every pair is used: none is mined, as `PairBatches` does

    def __init__(self, index, pixels, rows, config):
        self.index, self.pixels, self.config = index, pixels, config
        self.table, self.labels = ClassTable(index, rows), training_labels(index)
        available = np.minimum(self.table.counts, config.images_per_class).sum()
        self.images_per_step = min(config.classes_per_batch * config.images_per_class, available)

    def rows(self, step):
        """Rows of one step, (batch,)."""
        rng = np.random.default_rng([self.config.seed, 0, step])
        within = rng.random() < self.config.family_batches
        return self.table.draw_classes(
            self.images_per_step, self.config.images_per_class, rng, within
        )

    def __getitem__(self, step):
        rows = self.rows(step)
        rng = np.random.default_rng([self.config.seed, 1, step])
        images, labels = self.pixels[rows], self.labels[rows]
        if self.config.rotated_classes:
            turns = rng.integers(8, size=len(self.index.family_names))[self.index.families[rows]]
            images = turn(images, turns)
            labels = labels + turns * (self.labels.max() + 1)
        return augment(images, self.config, rng), labels.astype(np.int32)
