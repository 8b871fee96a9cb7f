"""The embeddings of a folder of images: computed once, kept, refreshed, searched. No Keras here."""

import contextlib
import functools
import os
import sqlite3
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.verification import all_distances
from pipeline.files import DataError, find_images
from run_directory import need, write_whole

SCHEMA = """create table if not exists embedded
    (id integer primary key autoincrement, name unique, size, time, reason, embedding)"""
PART = 2048  # images embedded between two writes: what a kill can cost
MOST_EXACT = 100_000  # images that are all compared; beyond, an approximate index names some
ALONE = 1000  # first vectors of an index are added one by one: at once, some are never found
CANDIDATES = 10  # times as many as asked for are compared exactly where the index named them


class Gallery:
    """The readable images of a folder, embedded.

    Args:
        folder: Where the images lie.
        store: SQLite file of their embeddings, as `open_gallery` writes it.
        unreadable: Path -> reason.

    Attributes:
        names: File names below the folder, sorted.

    Reference:
        Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using
        Hierarchical Navigable Small World graphs", 2016: the index of more than `MOST_EXACT`.
    """

    def __init__(self, folder, store, unreadable):
        self.folder, self.unreadable, self._store = folder, unreadable, store
        rows = _select(store, "id, name")
        self._ids = np.array([row for row, _ in rows])
        self.names = [os.fsdecode(name) for _, name in rows]
        self._index = self._open_index() if len(rows) > MOST_EXACT else None

    @functools.cached_property
    def embeddings(self):
        """float32 array (images, embedding_dim), read when first asked for."""
        values = [value for (value,) in _select(self._store, "embedding")]
        return np.frombuffer(b"".join(values), np.float32).reshape(len(values), -1)

    def path(self, row):
        """Path of one of its images, as text."""
        return os.path.join(self.folder, self.names[row])

    def search(self, embedding, top, distance=None):
        """`(rows, distances)` of the `top` images nearest to an embedding (embedding_dim,).

        `distance` is None for Euclidean or a learned one, which is asked about every image.
        """
        if self._index is None or distance:
            rows, embeddings = np.arange(len(self.names)), self.embeddings
        else:
            keys = self._index.search(embedding, CANDIDATES * top).keys
            order = np.argsort(self._ids)
            rows = order[np.searchsorted(self._ids, keys.astype(np.int64), sorter=order)]
            embeddings = np.stack(self._index.get(keys))
        distances = all_distances(embedding[None], embeddings, distance)[0]
        nearest = np.argsort(distances, kind="stable")[:top]
        return rows[nearest], distances[nearest]

    def _open_index(self):
        """The usearch index beside the store, brought up to date and memory-mapped."""
        need("usearch", f"Searching more than {MOST_EXACT} images")
        from usearch.index import Index, MetricKind, ScalarKind

        path = self._store.with_suffix(".usearch")
        shape = {"ndim": self.embeddings.shape[1], "metric": MetricKind.L2sq}
        index = Index(**shape, dtype=ScalarKind.F32, path=path if path.exists() else None)
        kept = np.array(index.keys[:], np.int64)
        missing = np.flatnonzero(~np.isin(self._ids, kept))
        index.remove(np.setdiff1d(kept, self._ids))
        alone = missing[: max(0, ALONE - len(kept))]
        index.add(self._ids[alone], self.embeddings[alone], threads=1)
        others = missing[len(alone) :]
        index.add(self._ids[others], self.embeddings[others], log="building the index")
        write_whole(path, index.save)
        del self.embeddings  # the index holds them, on disk
        return Index.restore(path, view=True)


def image_files(folder):
    """The image files below a folder: name -> (size, time); a `DataError` if there are none."""
    if not Path(folder).is_dir():
        raise DataError(f"Expected a folder of images. Received: '{folder}', which is none.")
    skipped = {}
    images = find_images(folder, skipped)
    if not images:
        first = "".join(f"; first: {name}: {why}" for name, why in [*skipped.items()][:1])
        raise DataError(f"No images in the folder '{folder}' ({len(skipped)} other files{first}).")
    return dict(sorted(images.items()))


def open_gallery(folder, store, embed):
    """The `Gallery` of a folder; embeds what came or changed, forgets what went.

    Args:
        folder: Folder of images, of any depth.
        store: File (SQLite) to keep the embeddings in.
        embed: Called with a list of paths; gives `(embeddings, reasons)`, a text for each path
            that is empty where it can be read.

    Raises:
        DataError: If there is no readable image, or the store cannot be written.
    """
    files = {os.fsencode(name): stamp for name, stamp in image_files(folder).items()}
    store.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(store, timeout=60)) as base:
            _refresh(base, folder, files, embed)
        bad = _select(store, "name, reason", "reason <> ''")
        unreadable = {os.path.join(folder, os.fsdecode(name)): reason for name, reason in bad}
        if len(bad) == len(files):
            path, reason = next(iter(unreadable.items()))
            raise DataError(f"No image in '{folder}' can be read. First: {path}: {reason}.")
        return Gallery(folder, store, unreadable)
    except sqlite3.Error as error:
        raise DataError(f"The embeddings in '{store}' cannot be kept: {error}.") from error


def _select(store, columns, condition="reason = ''"):
    with contextlib.closing(sqlite3.connect(store, timeout=60)) as base:
        query = f"select {columns} from embedded where {condition} order by name"
        return base.execute(query).fetchall()


def _refresh(base, folder, files, embed):
    base.execute(SCHEMA)
    kept = {name: stamp for name, *stamp in base.execute("select name, size, time from embedded")}
    # What could not be read is tried again: the disk may have been away.
    base.execute("delete from embedded where reason <> ''")
    stale = [(name,) for name in kept if list(files.get(name, ())) != kept[name]]
    base.executemany("delete from embedded where name = ?", stale)
    base.commit()
    fresh = {name for (name,) in base.execute("select name from embedded")}
    missing = sorted(files.keys() - fresh)
    with tqdm(total=len(missing), desc=f"embedding {folder}", unit="image", delay=0.5) as progress:
        for start in range(0, len(missing), PART):
            names = missing[start : start + PART]
            embeddings, reasons = embed([os.path.join(folder, os.fsdecode(n)) for n in names])
            rows = [
                (name, *files[name], reason, embedding.tobytes())
                for name, reason, embedding in zip(names, reasons, embeddings, strict=True)
            ]
            # Another process may embed the same folder.
            base.executemany("insert or replace into embedded values (null, ?, ?, ?, ?, ?)", rows)
            base.commit()
            progress.update(len(names))
