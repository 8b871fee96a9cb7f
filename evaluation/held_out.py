"""The images that a run is scored on: which they are, their embeddings and their pairs."""

import dataclasses
from collections.abc import Callable

import numpy as np

from evaluation import verification
from pipeline.image_cache import open_cache
from pipeline.image_index import read_index
from pipeline.splits import unusable
from prepare_data import Dataset


@dataclasses.dataclass
class HeldOut:
    """One set of images to score on; images are told by their position in `rows`."""

    name: str  # "known" or "unseen"
    dataset: Dataset
    rows: np.ndarray  # of the dataset, sorted
    labels: np.ndarray  # their classes
    embeddings: np.ndarray  # (images, embedding_dim)
    distance: Callable | None  # of two embeddings, as in `verification`
    left: np.ndarray  # of verification pairs
    right: np.ndarray
    same: np.ndarray  # True for genuine pairs
    distances: np.ndarray  # of the pairs

    def image(self, position):
        """One image, uint8 array (height, width, channels)."""
        return self.dataset.pixels[self.rows[position]]

    def class_name(self, position):
        """The name of an image's class."""
        return self.dataset.index.class_names[self.labels[position]]


def held_out_rows(run, data):
    """The images to score on: all of `data`, or else what the run kept for test.

    Returns a `Dataset`, and its rows by name, "known" or "unseen".
    """
    config = dataclasses.replace(run.config, data_dir=str(data)) if data else run.config
    index = read_index(config.data_dir)
    cache = open_cache(index, config, run.ranges if data else None)
    dataset = Dataset(index, cache, splits=None)
    if data:
        left_out = unusable(index, cache.digests, cache.unreadable)
        return dataset, {"unseen": np.setdiff1d(np.arange(len(index)), list(left_out))}
    saved, sides = run.read_json("splits.json"), {}
    for name in ("known", "unseen"):
        rows = np.flatnonzero(np.isin(index.names, saved[f"test_{name}"]))
        if gone := len(saved[f"test_{name}"]) - len(rows):
            print(f"{gone} test images of {name} classes are gone.")
        if len(rows):
            sides[name] = rows
        else:
            print(f"The run kept no test images of {name} classes.")
    return dataset, sides


def embed_set(name, dataset, rows, encoder, distance, rng):
    """Embeds a set, each image once, and draws its verification pairs: a `HeldOut`."""
    from networks.embedding import embed

    labels = dataset.index.labels[rows]
    pairs = verification.verification_pairs(dataset, rows, rng)
    embeddings = embed(encoder, dataset.pixels, rows)
    distances = verification.pair_distances(embeddings, *pairs[:2], distance)
    return HeldOut(name, dataset, rows, labels, embeddings, distance, *pairs, distances)
