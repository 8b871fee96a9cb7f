"""The embeddings of a folder of images: computed once, kept, refreshed, searched. No Keras here."""

import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.verification import all_distances
from pipeline.files import DataError, find_images
from run_directory import need, write_whole

PART = 2048  # images, or a quarter more, embedded between two writes: what a kill can cost
MOST_EXACT = 100_000  # images that are all compared; beyond, an approximate index names some
ALONE = 1000  # first vectors of an index are added one by one: at once, some are never found
CANDIDATES = 10  # times as many as asked for are compared exactly where the index named them


class Gallery:
    """The readable images of a folder, embedded; what came or changed since is embedded anew.

    Args:
        folder: Folder of images, of any depth.
        store: Path of the `.npy` file that keeps the embeddings.
        embed: Function of a list of paths and a dict that gains path -> reason for those that
            cannot be read; gives float32 embeddings (paths, embedding_dim).

    Attributes:
        names: File names below the folder, sorted.
        embeddings: float32 array (names, embedding_dim), memory-mapped.
        unreadable: Path -> reason. These are tried again when the folder is next opened.

    Raises:
        DataError: If there is no readable image, or the store is damaged.
        RunError: If the store cannot be written, or a package for a large gallery is missing.

    Reference:
        Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using
        Hierarchical Navigable Small World graphs", 2016: the index of more than `MOST_EXACT`.
    """

    def __init__(self, folder, store, embed):
        self.folder, self.unreadable, files = folder, {}, image_files(folder)
        stamps = np.array([*files.values()], np.uint64)
        rows = self._refresh(list(files), stamps, Path(store), embed)
        found = np.isin(stamps, rows["stamp"])
        if not found.any():
            path, reason = next(iter(self.unreadable.items()))
            raise DataError(f"No image in '{folder}' can be read. First: {path}: {reason}.")
        places = _places(stamps[found], rows["stamp"])
        if not np.array_equal(places, np.arange(len(rows))):
            rows = _write(store, rows[places])
        self.names = [name for name, there in zip(files, found, strict=True) if there]
        self._stamps, self.embeddings = rows["stamp"], rows["embedding"]
        self._index = self._open_index(Path(store)) if len(rows) > MOST_EXACT else None

    def path(self, row):
        """Path of one of its images, as text."""
        return os.path.join(self.folder, self.names[row])

    def search(self, embedding, top, distance=None):
        """`(rows, distances)` of the `top` images nearest to an embedding (embedding_dim,).

        `distance` is None for Euclidean or a learned one, which is asked about every image.
        """
        rows = np.arange(len(self.names))
        if self._index is not None and distance is None:
            rows = _places(self._index.search(embedding, CANDIDATES * top).keys, self._stamps)
        distances = all_distances(embedding[None], self.embeddings[rows], distance)[0]
        nearest = np.argsort(distances, kind="stable")[:top]
        return rows[nearest], distances[nearest]

    def _refresh(self, names, stamps, store, embed):
        """The rows of the store, and of the images that it lacks: stamp and embedding each."""
        rows = _read(store)
        missing = np.flatnonzero(~np.isin(stamps, rows["stamp"]))
        settings = {"desc": f"embedding {self.folder}", "unit": "image", "delay": 0.5}
        with tqdm(total=len(missing), **settings) as progress:
            while len(missing):
                size = max(PART, len(rows) // 4)
                part, missing = missing[:size], missing[size:]
                paths = [os.path.join(self.folder, names[row]) for row in part]
                embeddings = embed(paths, self.unreadable)
                fine = [path not in self.unreadable for path in paths]
                fresh = np.empty(sum(fine), _row(embeddings.shape[1]))
                fresh["stamp"], fresh["embedding"] = stamps[part[fine]], embeddings[fine]
                rows = _write(store, np.concatenate([rows, fresh]) if len(rows) else fresh)
                progress.update(len(part))
        return rows

    def _open_index(self, store):
        """The usearch index beside the store, brought up to date and memory-mapped."""
        need("usearch", f"Searching more than {MOST_EXACT} images")
        from usearch.index import Index

        path, settings = store.with_suffix(".usearch"), {"metric": "l2sq", "dtype": "f32"}
        index = Index(
            ndim=self.embeddings.shape[1], path=path if path.exists() else None, **settings
        )
        kept = np.array(index.keys[:], np.uint64)
        index.remove(np.setdiff1d(kept, self._stamps))
        missing = np.flatnonzero(~np.isin(self._stamps, kept))
        for rows, threads in ((missing[:ALONE], 1), (missing[ALONE:], 0)):
            index.add(self._stamps[rows], self.embeddings[rows], threads=threads)
        write_whole(path, index.save)
        return Index.restore(path, view=True)


def image_files(folder):
    """The image files below a folder: name -> stamp; a `DataError` if there are none."""
    if not Path(folder).is_dir():
        raise DataError(f"Expected a folder of images. Received: '{folder}', which is none.")
    skipped = {}
    images = find_images(folder, skipped)
    if not images:
        first = "".join(f"; first: {name}: {why}" for name, why in [*skipped.items()][:1])
        raise DataError(f"No images in the folder '{folder}' ({len(skipped)} other files{first}).")
    return dict(sorted(images.items()))


def _row(embedding_dim):
    return np.dtype([("stamp", np.uint64), ("embedding", np.float32, (embedding_dim,))])


def _read(store):
    """The rows of a store, memory-mapped; none where there is no file."""
    if not store.exists():
        return np.empty(0, _row(0))
    try:
        return np.load(store, mmap_mode="r")[["stamp", "embedding"]]
    except (ValueError, EOFError, IndexError) as error:
        raise DataError(f"'{store}' is damaged: {error}. Remove it: it is made anew.") from error


def _write(store, rows):
    store.parent.mkdir(parents=True, exist_ok=True)
    write_whole(store, lambda path: np.save(path, rows))
    return rows


def _places(keys, among):
    """Where keys lie in an array that holds them all."""
    order = np.argsort(among)
    return order[np.searchsorted(among, keys, sorter=order)]
