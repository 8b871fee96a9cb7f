"""The images that a run is scored on: which they are, their embeddings and their pairs."""

import dataclasses
import functools
from collections.abc import Callable

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


@dataclasses.dataclass(eq=False)
class HeldOut:
    """One set of images to score on; images are told by their position in `rows`."""

    name: str  # "known" or "unseen"
    dataset: Dataset
    rows: np.ndarray  # which of its images, sorted
    embeddings: np.ndarray  # theirs, (images, embedding_dim)
    distance: Callable | None  # of two embeddings, as in `verification`
    pairs: dataclasses.InitVar[tuple]  # as `verification.verification_pairs` gives them
    scores: dict = dataclasses.field(default_factory=dict)  # of `scores.score_set`, once it has any

    def __post_init__(self, pairs):
        index, rows = self.dataset.index, self.rows
        self.labels, self.families = index.labels[rows], index.families[rows]
        self.forged = index.forged[rows]
        self.trial_labels = training_labels(index)[rows]  # where a forgery is alone in its class
        self.units = Units.of(self.labels, self.families, self.name == "known")
        left, right, self.same = pairs
        self.left, self.right = left, right
        self.distances = verification.pair_distances(self.embeddings, left, right, self.distance)

    def image(self, position):
        """One image, uint8 array (height, width, channels)."""
        return self.dataset.pixels[self.rows[position]]

    def class_name(self, position):
        """The name of an image's class, and whether it is a forgery of that."""
        name = self.dataset.index.class_names[self.labels[position]]
        return f"{name}, forged" if self.forged[position] else name

    @functools.cached_property
    def impostors(self):
        """Kind -> which pairs: "impostor"; where there are forgeries, "random" and "skilled"."""
        skilled = (self.forged[self.left] | self.forged[self.right]) & ~self.same
        random = ~self.same & ~skilled
        if not skilled.any():
            return {"impostor": random}
        return {"random": random, "skilled": skilled} if random.any() else {"skilled": skilled}

    def nearest_first(self):
        """Genuine pairs and impostor pairs, each from the smallest distance to the largest."""
        order = np.argsort(self.distances, kind="stable")
        return order[self.same[order]], order[~self.same[order]]

    @functools.cached_property
    def neighbours(self):
        """`(positions, nearest)`: a seeded choice of genuine images, and `neighbours.nearest`."""
        count = verification.most_compared(MOST_SEEN, self.distance)
        genuine = np.random.default_rng(0).permutation(np.flatnonzero(~self.forged))
        positions = np.sort(genuine[:count])
        return positions, neighbours.nearest(self.embeddings[positions], self.distance)


def held_out_rows(run, data=None, strict=False, pair_label=None):
    """The images to score on: what a `RunDirectory` kept for test, or those of other data.

    Images of other data that the run was trained or validated on are left out; a DataError where
    `strict`. `pair_label` is as in `scores.Options`, the run's own where nothing else tells.
    Returns `(dataset, rows, left_out)`: a `Dataset`; "known" and "unseen" -> its rows; how many
    images were left out, or None where the data are the run's own.
    """
    config = run.config
    if not data:
        index = read_index(config.data_dir, pair_label or config.pair_label)
        return Dataset(index, open_cache(index, config), splits=None), _own_rows(run, index), None
    try:
        index = read_index(data, pair_label)
    except DataError:
        if pair_label or not config.pair_label:
            raise
        index = read_index(data, config.pair_label)
        print(f"Label 1 means {config.pair_label}, as in the list that the run was trained on.")
    dataset = Dataset(index, open_cache(index, config, run.ranges), splits=None)
    return dataset, *_other_rows(run, dataset, strict)


def _own_rows(run, index):
    """Rows by name of what the run kept for test."""
    splits, sides = run.read_json("splits.json"), {}
    for name in ("known", "unseen"):
        kept = splits[f"test_{name}"]
        rows = np.flatnonzero(np.isin(index.names, kept))
        if len(rows):
            sides[name] = rows
        else:
            print(f"The run kept no test images of {name} classes.")
        if gone := len(kept) - len(rows):
            print(f"{gone} test images of {name} classes are gone.")
    return sides


def _other_rows(run, dataset, strict):
    """`(rows by name, left_out)` of data that may hold what the run was trained on."""
    index, cache = dataset.index, dataset.cache
    usable = np.ones(len(index), bool)
    usable[list(unusable(index, cache.digests, cache.unreadable))] = False
    if index.pairs is None:  # a twin is too easily found
        usable &= np.isin(np.arange(len(index)), np.unique(cache.digests, return_index=True)[1])
    equal, alike, class_names = recognise_trained(run, dataset)
    trained = usable & (equal | alike)
    left_out = {
        "images": int(trained.sum()),
        "of": int(usable.sum()),
        "near_duplicates": int((trained & ~equal).sum()),
        "classes": len(np.unique(index.labels[trained])),
    }
    said = (
        "{images} of {of} images of '{name}', of {classes} classes, were trained or validated on "
        "({near_duplicates} as near-duplicates)"
    ).format(name=index.source.name, **left_out)
    if strict and trained.any():
        raise DataError(f"{said}. Remove them, or leave them out: without --strict.")
    print(f"{said}: left out." if trained.any() else f"{said}.")
    # What shows the same thing as a trained image says nothing new either.
    free = usable & ~np.isin(index.groups, index.groups[trained])
    known = _known_classes(index, trained, class_names)[index.labels]
    if index.pairs is not None:
        scored = free[index.pairs[:, :2]].all(axis=1)
        print(f"{scored.sum()} of {len(scored)} pairs are scored.")
        known[:] = known[free].any()  # pairs may join the two sides
    sides = {"known": np.flatnonzero(free & known), "unseen": np.flatnonzero(free & ~known)}
    return {name: rows for name, rows in sides.items() if len(rows)}, left_out


def _known_classes(index, trained, class_names):
    """Which classes count as known, (classes,): some image was `trained` on, or their name says so.

    Names are taken for chance where no image was trained on and most of them are new.
    """
    known = np.isin(index.class_names, class_names)
    if known.any():
        chance = not trained.any() and 2 * known.sum() < len(known)
        verdict = "as no image is, all classes count as unseen."
        print(
            f"{known.sum()} of {len(known)} class names are names the run was trained on: "
            f"{verdict if chance else 'these classes count as known.'}"
        )
        known &= not chance
    known[index.labels[trained]] = True
    return known


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


def recognise_trained(run, dataset):
    """Which images of a `Dataset` a run was trained or validated on.

    Returns `(equal, alike, classes)`: boolean arrays (images,), the same file and a near-duplicate;
    the names of the classes trained on.
    """
    if not (run / "trained_on.npz").exists():
        raise RunError(f"'{run.path}' does not say what it was trained on. Train it anew.")
    with np.load(run / "trained_on.npz") as file:
        digests, ours, classes = (file[name] for name in ("digests", "thumbnails", "classes"))
    equal = np.isin(dataset.cache.digests, digests)
    alike = np.zeros(len(equal), bool)
    if len(ours) and len(equal) <= MOST_IMAGES:
        both = np.concatenate([ours.astype(np.float32), thumbnails(dataset.pixels)])
        first, second = find_near_duplicates(both).T  # the first below the second
        alike[second[(first < len(ours)) & (second >= len(ours))] - len(ours)] = True
    return equal, alike, classes
