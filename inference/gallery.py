"""The embeddings of a folder of images: computed once, kept, refreshed, searched. No Keras here."""

import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.verification import all_distances
from pipeline.files import DataError, find_images
from run_directory import require_package, write_atomically

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
        self.folder, self.unreadable, self._store = folder, {}, Path(store)
        names = {stamp: name for name, stamp in image_files(folder).items()}
        rows = self._embed_missing(names, embed)
        places = {stamp: place for place, stamp in enumerate(rows["stamp"].tolist())}
        kept = [stamp for stamp in names if stamp in places]
        if not kept:
            path, reason = next(iter(self.unreadable.items()))
            raise DataError(f"No image in '{folder}' can be read. First: {path}: {reason}.")
        if kept != [*places]:
            rows = self._write(rows[[places[stamp] for stamp in kept]])
        self.names, self.embeddings = [names[stamp] for stamp in kept], rows["embedding"]
        self._rows = {stamp: row for row, stamp in enumerate(kept)}
        self._index = self._open_index() if len(kept) > MOST_EXACT else None

    def path(self, row):
        """Path of one of its images, as text."""
        return os.path.join(self.folder, self.names[row])

    def search(self, embedding, top, distance=None):
        """`(rows, distances)` of the `top` images nearest to an embedding (embedding_dim,).

        `distance` is None for Euclidean or a learned one, which is asked about every image.
        """
        rows, embeddings = np.arange(len(self.names)), self.embeddings
        if self._index is not None and distance is None:
            keys = self._index.search(embedding, CANDIDATES * top).keys
            rows = np.array([self._rows[key] for key in keys.tolist()])
            embeddings = self.embeddings[rows]
        distances = all_distances(embedding[None], embeddings, distance)[0]
        nearest = np.argsort(distances, kind="stable")[:top]
        return rows[nearest], distances[nearest]

    def _embed_missing(self, names, embed):
        """The rows of the store, stamp and embedding each, and of the images that it lacks."""
        rows = self._read()
        there = {*rows["stamp"].tolist()}
        missing = [stamp for stamp in names if stamp not in there]
        settings = {"desc": f"embedding {self.folder}", "unit": "image", "delay": 0.5}
        with tqdm(total=len(missing), **settings) as progress:
            while missing:
                size = max(PART, len(rows) // 4)
                stamps, missing = np.array(missing[:size], np.uint64), missing[size:]
                paths = [os.path.join(self.folder, names[stamp]) for stamp in stamps.tolist()]
                embeddings = embed(paths, self.unreadable)
                fine = [path not in self.unreadable for path in paths]
                row = [("stamp", np.uint64), ("embedding", np.float32, embeddings.shape[1:])]
                fresh = np.empty(sum(fine), row)
                fresh["stamp"], fresh["embedding"] = stamps[fine], embeddings[fine]
                rows = self._write(np.concatenate([rows, fresh]) if len(rows) else fresh)
                progress.update(len(paths))
        return rows

    def _read(self):
        """The rows of the store, memory-mapped; none where there is no file."""
        if not self._store.exists():
            return np.empty(0, [("stamp", np.uint64), ("embedding", np.float32)])
        try:
            return np.load(self._store, mmap_mode="r")[["stamp", "embedding"]]
        except (ValueError, EOFError, IndexError) as error:
            said = f"'{self._store}' is damaged: {error}. Remove it: it is made anew."
            raise DataError(said) from error

    def _write(self, rows):
        self._store.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._store, lambda path: np.save(path, rows))
        return rows

    def _open_index(self):
        """The usearch index beside the store, brought up to date and memory-mapped."""
        require_package("usearch", f"Searching more than {MOST_EXACT} images")
        from usearch.index import Index

        path, settings = self._store.with_suffix(".usearch"), {"metric": "l2sq", "dtype": "f32"}
        settings["path"] = path if path.exists() else None
        index = Index(ndim=self.embeddings.shape[1], **settings)
        stamps, kept = np.array([*self._rows], np.uint64), np.array(index.keys[:], np.uint64)
        gone, missing = np.setdiff1d(kept, stamps), np.flatnonzero(~np.isin(stamps, kept))
        index.remove(gone)
        for rows, threads in ((missing[:ALONE], 1), (missing[ALONE:], 0)):
            index.add(stamps[rows], self.embeddings[rows], threads=threads)
        if len(gone) or len(missing):
            write_atomically(path, index.save)
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
