"""The embeddings of a folder of images: computed once, kept, refreshed, searched. No Keras here."""

import contextlib
import os
import sqlite3
from pathlib import Path

import numpy as np
from tqdm import tqdm

from image_index import IMAGE_SUFFIXES, DataError, list_files
from run_directory import need
from scores import all_distances

PART = 2048  # images embedded between two writes: what a kill can cost
MOST_PLAIN = 50_000  # images; above it, a matrix product takes longer than an answer should
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
            self._bytes = self._to_bytes(embeddings)
        else:
            self._squares = np.einsum("ij,ij->i", embeddings, embeddings)

    def path(self, row):
        """Path of one of its images, as text."""
        return os.path.join(self.folder, self.names[row])

    def search(self, embedding, top, distance=None):
        """The most similar images.

        Args:
            embedding: Array (embedding_dim,).
            top: How many.
            distance: As in `scores`; a learned one is asked about every image.

        Returns:
            `(rows, distances)`, nearest first.
        """
        rows = np.arange(len(self.names)) if distance else self._finalists(embedding, top)
        distances = all_distances(embedding[None], self.embeddings[rows], distance)[0]
        order = np.argsort(distances, kind="stable")[:top]
        return rows[order], distances[order]

    def _finalists(self, embedding, top):
        """Rows that hold the nearest: by a matrix product, or a quarter of its traffic in bytes."""
        if len(self.names) <= MOST_PLAIN:
            squared = self._squares - self.embeddings @ (2 * embedding)  # but for a constant
            return np.argpartition(squared, min(top, len(squared)) - 1)[:top]
        from usearch.index import MetricKind, search

        count, query = min(FINALISTS * top, len(self.names)), self._to_bytes(embedding)
        found = search(self._bytes, query, count, MetricKind.L2sq, exact=True)
        return found.keys.astype(np.int64)

    def _to_bytes(self, embeddings):
        return np.rint(embeddings * self._scale).clip(-127, 127).astype(np.int8)


def image_files(folder):
    """The image files below a folder: name -> (size, time).

    Raises:
        DataError: If there is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise DataError(f"Expected a folder of images. Received: '{folder}', which is none.")
    files = list_files(folder)
    images = {n: files[n] for n in sorted(files) if n.lower().endswith(IMAGE_SUFFIXES)}
    if not images:
        raise DataError(f"No images in the folder '{folder}' ({len(files)} other files).")
    return images


def open_gallery(folder, store, embed):
    """Opens the embeddings of a folder; embeds what came or changed, forgets what went.

    Args:
        folder: Folder of images, of any depth.
        store: File (SQLite) to keep the embeddings in.
        embed: Called with a list of paths; gives `(embeddings, reasons)`, a text for each path
            that is empty where it can be read.

    Returns:
        A `Gallery`.

    Raises:
        DataError: If there is no readable image, or the store cannot be written.
    """
    files = {os.fsencode(name): stamp for name, stamp in image_files(folder).items()}
    store.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(store, timeout=60)) as base:
            _refresh(base, folder, files, embed)
            rows = base.execute("select name, reason, embedding from images order by name")
            rows = [(os.fsdecode(name), *values) for name, *values in rows]
    except sqlite3.Error as error:
        raise DataError(f"The embeddings in '{store}' cannot be kept: {error}.") from error
    unreadable = {os.path.join(folder, name): reason for name, reason, _ in rows if reason}
    fine = [(name, values) for name, reason, values in rows if not reason]
    if not fine:
        path, reason = next(iter(unreadable.items()))
        raise DataError(f"No image in '{folder}' can be read. First: {path}: {reason}.")
    names, values = zip(*fine, strict=True)
    embeddings = np.frombuffer(b"".join(values), np.float32).reshape(len(names), -1)
    return Gallery(folder, names, embeddings, unreadable)


def _refresh(base, folder, files, embed):
    base.execute(
        "create table if not exists images (name primary key, size, time, reason, embedding)"
    )
    kept = {name: stamp for name, *stamp in base.execute("select name, size, time from images")}
    stale = [name for name, stamp in kept.items() if files.get(name) != tuple(stamp)]
    base.executemany("delete from images where name = ?", [(name,) for name in stale])
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
            base.executemany("insert or replace into images values (?, ?, ?, ?, ?)", rows)
            base.commit()
            progress.update(len(names))
