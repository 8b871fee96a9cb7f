"""The images that a run is scored on: which they are, their embeddings and their pairs."""

import dataclasses
import functools

import numpy as np

from evaluation import neighbours, verification
from evaluation.intervals import Units
from pipeline.class_batches import training_labels
from pipeline.files import DataError
from pipeline.image_cache import open_cache
from pipeline.image_index import read_index
from pipeline.near_duplicates import MOST_IMAGES, find_near_duplicates, thumbnails
from pipeline.splits import unusable
from prepare_data import Dataset
from run_directory import RunError

MOST_SEEN = 5000  # images whose neighbours are looked for


class HeldOut:
    """One set of images to score on; images are told by their position in `rows`.

    Args:
        name: "known" or "unseen".
        dataset: A `Dataset`.
        rows: Which of its images, sorted.
        embeddings: Theirs, (images, embedding_dim).
        distance: Of two embeddings, as in `verification`.
        pairs: `(left, right, same)`, as `verification.verification_pairs` gives them.
    """

    def __init__(self, name, dataset, rows, embeddings, distance, pairs):
        index = dataset.index
        self.name, self.dataset, self.rows = name, dataset, rows
        self.embeddings, self.distance = embeddings, distance
        self.labels, self.families = index.labels[rows], index.families[rows]
        self.forged = index.forged[rows]
        self.trial_labels = training_labels(index)[rows]  # where a forgery is alone in its class
        self.units = Units.of(self.labels, self.families, name == "known")
        self.left, self.right, self.same = pairs
        self.distances = verification.pair_distances(embeddings, self.left, self.right, distance)

    def image(self, position):
        """One image, uint8 array (height, width, channels)."""
        return self.dataset.pixels[self.rows[position]]

    def class_name(self, position):
        """The name of an image's class, and whether it is a forgery of that."""
        name = self.dataset.index.class_names[self.labels[position]]
        return f"{name}, forged" if self.forged[position] else name

    def kinds_of_pairs(self):
        """Name -> which pairs are genuine, impostors or, where there are any, skilled forgeries."""
        skilled = (self.forged[self.left] | self.forged[self.right]) & ~self.same
        if not skilled.any():
            return {"genuine": self.same, "impostor": ~self.same}
        kinds = {"genuine": self.same, "random": ~self.same & ~skilled, "skilled": skilled}
        return {kind: pairs for kind, pairs in kinds.items() if pairs.any()}

    def nearest_first(self):
        """Genuine pairs and impostor pairs, each from the smallest distance to the largest."""
        order = np.argsort(self.distances, kind="stable")
        return order[self.same[order]], order[~self.same[order]]

    @functools.cached_property
    def neighbours(self):
        """`(positions, nearest)`: a seeded choice of genuine images, and `neighbours.nearest`."""
        some = np.random.default_rng(0).permutation(np.flatnonzero(~self.forged))
        some = np.sort(some[: verification.most_compared(MOST_SEEN, self.distance)])
        return some, neighbours.nearest(self.embeddings[some], self.distance)


def held_out_rows(run, data=None, strict=False, pair_label=None):
    """The images to score on: what a `RunDirectory` kept for test, or those of other data.

    Images of other data that the run was trained or validated on are left out; a DataError where
    `strict`. `pair_label` is as in `scores.Options`, the run's own where nothing else tells.
    Returns `(dataset, rows, left_out)`: a `Dataset`; "known" and "unseen" -> its rows; how many
    images were left out, or None where the data are the run's own.
    """
    config = dataclasses.replace(run.config, data_dir=str(data)) if data else run.config
    said = pair_label or (None if data else config.pair_label)
    try:
        index = read_index(config.data_dir, said)
    except DataError:
        if said or not config.pair_label:
            raise
        index = read_index(config.data_dir, config.pair_label)
        print(f"Label 1 means {config.pair_label}, as in the list that the run was trained on.")
    cache = open_cache(index, config, run.ranges if data else None)
    dataset = Dataset(index, cache, splits=None)
    if data:
        return dataset, *_other_rows(run, dataset, strict)
    saved, sides = run.read_json("splits.json"), {}
    for name in ("known", "unseen"):
        kept = saved[f"test_{name}"]
        rows = np.flatnonzero(np.isin(index.names, kept))
        if len(rows):
            sides[name] = rows
        else:
            print(f"The run kept no test images of {name} classes.")
        if gone := len(kept) - len(rows):
            print(f"{gone} test images of {name} classes are gone.")
    return dataset, sides, None


def _other_rows(run, dataset, strict):
    """`(rows by name, left_out)` of data that may hold what the run was trained on."""
    index, cache = dataset.index, dataset.cache
    usable = np.ones(len(index), bool)
    usable[list(unusable(index, cache.digests, cache.unreadable))] = False
    if index.pairs is None:  # a twin is too easily found
        usable &= np.isin(np.arange(len(index)), np.unique(cache.digests, return_index=True)[1])
    equal, alike, classes = trained_on(run, dataset)
    trained = usable & (equal | alike)
    trained_labels = np.unique(index.labels[trained])
    left_out = {
        "images": int(trained.sum()),
        "of": int(usable.sum()),
        "near_duplicates": int((trained & ~equal).sum()),
        "classes": len(trained_labels),
    }
    said = (
        "{images} of {of} images of '{name}', of {classes} classes, were trained or validated on "
        "({near_duplicates} as near-duplicates)"
    ).format(name=index.source.name, **left_out)
    if strict and trained.any():
        raise DataError(f"{said}. Remove them, or leave them out: without --strict.")
    print(f"{said}: left out." if trained.any() else f"{said}.")
    known = np.isin(index.class_names, classes)
    if known.any():
        chance = not trained.any() and 2 * known.sum() < len(known)
        verdict = "as no image is, all classes count as unseen."
        print(
            f"{known.sum()} of {len(known)} class names are names the run was trained on: "
            f"{verdict if chance else 'these classes count as known.'}"
        )
        known &= not chance
    known[trained_labels] = True
    # What shows the same thing as a trained image says nothing new either.
    free = usable & ~np.isin(index.groups, index.groups[trained])
    sides = {"known": free & known[index.labels], "unseen": free & ~known[index.labels]}
    if index.pairs is not None:  # pairs may join the two
        sides = {"known" if sides["known"].any() else "unseen": free}
        kept = free[index.pairs[:, :2]].all(axis=1)
        print(f"{kept.sum()} of {len(kept)} pairs are scored.")
    return {name: np.flatnonzero(rows) for name, rows in sides.items() if rows.any()}, left_out


def remember_trained(run, dataset):
    """Writes `trained_on.npz`, by which training and validation images are recognised later."""
    index, cache, splits = dataset.index, dataset.cache, dataset.splits
    rows = np.concatenate([splits.train, splits.val])
    arrays = {
        "digests": cache.digests[rows],
        "thumbnails": thumbnails(cache.pixels)[rows] if len(index) <= MOST_IMAGES else [],
        "classes": np.array(index.class_names)[np.unique(index.labels[rows])],
    }
    run.write("trained_on.npz", lambda path: np.savez_compressed(path, **arrays))


def trained_on(run, dataset):
    """Which images of a `Dataset` a run was trained or validated on.

    Returns `(equal, alike, classes)`: boolean arrays (images,), the same file and a near-duplicate;
    the names of the classes trained on.
    """
    if not (run / "trained_on.npz").exists():
        raise RunError(f"'{run.path}' does not say what it was trained on. Train it anew.")
    with np.load(run / "trained_on.npz") as file:
        digests, small, classes = (file[name] for name in ("digests", "thumbnails", "classes"))
    equal = np.isin(dataset.cache.digests, digests)
    alike = np.zeros(len(equal), bool)
    if len(small) and len(equal) <= MOST_IMAGES:
        theirs = thumbnails(dataset.pixels)
        trained, other = find_near_duplicates(np.concatenate([small.astype(np.float32), theirs])).T
        across = (trained < len(small)) & (other >= len(small))
        alike[other[across] - len(small)] = True
    return equal, alike, classes
