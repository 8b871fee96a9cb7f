"""The embeddings of a folder of images: computed once, kept, refreshed, searched. No Keras here."""

import contextlib
import os
import sqlite3
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.scores import all_distances
from pipeline.image_index import IMAGE_SUFFIXES, DataError, list_files
from run_directory import need, write_whole

SCHEMA = """
    create table if not exists embedded (
        id integer primary key autoincrement, name unique, size, time, reason, embedding
    );
    create table if not exists scale (value);
"""
PART = 2048  # images embedded between two writes: what a kill can cost
MOST_PLAIN = 50_000  # images; above it, a matrix product takes longer than an answer should
MOST_SCANNED = 300_000  # images; above it, they stay on disk, with an approximate index
SHARD, SHARD_PART = 1_000_000, 100_000  # images in a file of the index; added between two writes
BREADTH = 64  # candidates looked at when an image is added: more find more and build longer
FIRST = 1000  # images of a shard are added one by one: at once, they lose sight of some
FINALISTS = 10  # times as many as asked for are compared exactly, where bytes did the rest


class Gallery:
    """The readable images of a folder, embedded.

    Attributes:
        names: File names below the folder.
        embeddings: float32 array (images, embedding_dim).
        unreadable: Path -> reason.
    """

    def __init__(self, folder, names, embeddings, unreadable):
        self.folder, self.names, self.embeddings = folder, names, embeddings
        self.unreadable = unreadable
        if len(names) > MOST_PLAIN:
            need("usearch", f"Searching more than {MOST_PLAIN} images")
            self._scale = 127 / (np.abs(embeddings).max() or 1)
            self._bytes = _to_bytes(embeddings, self._scale)
        else:
            self._squares = np.einsum("ij,ij->i", embeddings, embeddings)

    def path(self, row):
        """Path of one of its images, as text."""
        return os.path.join(self.folder, self.names[row])

    def search(self, embedding, top, distance=None):
        """`(rows, distances)` of the `top` images nearest to an embedding (embedding_dim,).

        `distance` is as in `scores`; a learned one is asked about every image.
        """
        rows = slice(None) if distance else self._finalists(embedding, top)
        distances = all_distances(embedding[None], self._embedded(rows), distance)[0]
        order = np.argsort(distances, kind="stable")[:top]
        return order if distance else rows[order], distances[order]

    def _embedded(self, rows):
        return self.embeddings[rows]

    def _finalists(self, embedding, top):
        """Rows that hold the nearest: by a matrix product, or a quarter of its traffic in bytes."""
        if len(self.names) <= MOST_PLAIN:
            squared = self._squares - self.embeddings @ (2 * embedding)  # but for a constant
            return np.argpartition(squared, min(top, len(squared)) - 1)[:top]
        from usearch.index import MetricKind, search

        count, query = min(FINALISTS * top, len(self.names)), _to_bytes(embedding, self._scale)
        found = search(self._bytes, query, count, MetricKind.L2sq, exact=True)
        return found.keys.astype(np.int64)


class LargeGallery(Gallery):
    """A gallery that stays on disk, `store`: a search reads the few parts of it that it needs.

    Embeddings are rows of SQLite. Beside it lies an approximate index over them as bytes (HNSW), a
    file for every `SHARD`, memory-mapped; its finalists are compared exactly.

    Reference:
        Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using
        Hierarchical Navigable Small World graphs", 2016.
    """

    def __init__(self, folder, store, unreadable):
        need("usearch", f"Searching more than {MOST_SCANNED} images")
        self.folder, self.unreadable = folder, unreadable
        self._base = sqlite3.connect(store, check_same_thread=False)  # a page has many threads
        self._scale, self._shards = _open_shards(self._base, store)
        ids = self._base.execute("select id from embedded where reason = '' order by id")
        self._ids = np.fromiter((row for (row,) in ids), np.int64)

    def _column(self, name, rows=slice(None)):
        query = f"select {name} from embedded where id = ?"
        ids = np.atleast_1d(self._ids[rows]).tolist()
        return [self._base.execute(query, (row,)).fetchone()[0] for row in ids]

    def _embedded(self, rows):
        return _to_array(self._column("embedding", rows))

    @property
    def names(self):
        return list(map(os.fsdecode, self._column("name")))

    @property
    def embeddings(self):
        return self._embedded(slice(None))

    def path(self, row):
        return os.path.join(self.folder, os.fsdecode(*self._column("name", row)))

    def _finalists(self, embedding, top):
        query, count = _to_bytes(embedding, self._scale), FINALISTS * top
        found = [shard.search(query, count) for shard in self._shards]
        nearest = np.argsort(np.concatenate([one.distances for one in found]))[:count]
        ids = np.concatenate([one.keys for one in found])[nearest].astype(np.int64)
        rows = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        return rows[self._ids[rows] == ids]  # what was deleted is still in the index


def _to_bytes(embeddings, scale):
    return np.rint(embeddings * scale).clip(-127, 127).astype(np.int8)


def _to_array(values):
    return np.frombuffer(b"".join(values), np.float32).reshape(len(values), -1)


def _open_shards(base, store):
    """Scale of the bytes, and the index in shards, with what is missing added part by part."""
    from usearch.index import Index

    [(last,)] = base.execute("select max(id) from embedded")
    [(scale,)] = base.execute("select max(value) from scale")
    if scale is None:
        some = base.execute("select embedding from embedded where reason = '' limit 1000")
        scale = 127 / float(np.abs(_to_array([value for (value,) in some])).max() or 1)
        base.execute("insert into scale values (?)", (scale,))
        base.commit()
    paths = [store.with_suffix(f".{number}.usearch") for number in range(last // SHARD + 1)]
    with tqdm(total=last, desc="building the index", unit="image", delay=0.5) as progress:
        for number, path in enumerate(paths):
            _complete(base, path, number * SHARD, scale, progress)
    return scale, [Index.restore(path, view=True) for path in paths if path.exists()]


def _complete(base, path, first, scale, progress):
    """Adds those of `SHARD` images that are not in their index yet; ids only ever grow."""
    from usearch.index import Index, MetricKind, ScalarKind

    query = "select id, embedding from embedded where reason = '' and id > ? and id < ? limit ?"
    last = int(Index.restore(path, view=True).keys[:].max()) if path.exists() else first - 1
    progress.update(last - first + 1)
    index = None
    while rows := base.execute(query, (last, first + SHARD, SHARD_PART)).fetchall():
        ids, vectors = np.array([row for row, _ in rows]), _to_array([v for _, v in rows])
        if index is None:
            shape = {"ndim": vectors.shape[1], "metric": MetricKind.L2sq, "dtype": ScalarKind.I8}
            index = Index(**shape, expansion_add=BREADTH, path=path)  # reads what there is
        vectors, alone = _to_bytes(vectors, scale), max(0, FIRST - len(index))
        index.add(ids[:alone], vectors[:alone], threads=1)
        index.add(ids[alone:], vectors[alone:])
        write_whole(path, index.save)
        last = int(ids[-1])
        progress.update(len(ids))


def image_files(folder):
    """The image files below a folder: name -> (size, time); a `DataError` if there are none."""
    if not Path(folder).is_dir():
        raise DataError(f"Expected a folder of images. Received: '{folder}', which is none.")
    files = list_files(folder)
    images = {n: files[n] for n in sorted(files) if n.lower().endswith(IMAGE_SUFFIXES)}
    if not images:
        raise DataError(f"No images in the folder '{folder}' ({len(files)} other files).")
    return images


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
            query = "select name, {} from embedded where reason {} '' order by name"
            rows = base.execute(query.format("reason", "<>"))
            unreadable = {os.path.join(folder, os.fsdecode(name)): reason for name, reason in rows}
            if len(files) - len(unreadable) > MOST_SCANNED:
                return LargeGallery(folder, store, unreadable)
            fine = base.execute(query.format("embedding", "=")).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"The embeddings in '{store}' cannot be kept: {error}.") from error
    if not fine:
        path, reason = next(iter(unreadable.items()))
        raise DataError(f"No image in '{folder}' can be read. First: {path}: {reason}.")
    names, values = zip(*fine, strict=True)
    return Gallery(folder, list(map(os.fsdecode, names)), _to_array(values), unreadable)


def _refresh(base, folder, files, embed):
    base.executescript(SCHEMA)
    rows = base.execute("select name, size, time, reason from embedded")
    kept = {name: stamp for name, *stamp in rows}
    # What could not be read is tried again: the disk may have been away.
    stale = [name for name, stamp in kept.items() if [*files.get(name, ()), ""] != stamp]
    base.executemany("delete from embedded where name = ?", [(name,) for name in stale])
    base.commit()
    missing = sorted(files.keys() - (kept.keys() - set(stale)))
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
