"""The embeddings of a folder of images: computed once, kept, refreshed, searched. No Keras here.

A store holds `.npz` parts of file keys (name, size, time) and embeddings. Parts are written while
a large folder is being embedded, so that a killed run loses little, and joined at the end.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import scores
from image_index import IMAGE_SUFFIXES, DataError, list_files
from run_directory import need, write_whole

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

    def __init__(self, folder, names, reasons, embeddings):
        fine = [row for row, reason in enumerate(reasons) if not reason]
        self.folder, self.names = folder, [names[row] for row in fine]
        self.embeddings = embeddings[fine]
        named = zip(names, reasons, strict=True)
        self.unreadable = {os.path.join(folder, name): reason for name, reason in named if reason}
        if not fine:
            path, reason = next(iter(self.unreadable.items()))
            raise DataError(f"No image in '{folder}' can be read. First: {path}: {reason}.")
        if len(fine) > MOST_PLAIN:
            need("usearch", f"Searching more than {MOST_PLAIN} images")
            self._scale = 127 / (np.abs(self.embeddings).max() or 1)
            self._bytes = self._to_bytes(self.embeddings)
        else:
            self._squares = np.einsum("ij,ij->i", self.embeddings, self.embeddings)

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
        parts = [rows[part] for part in scores.chunks(len(rows), len(embedding))]
        distances = np.concatenate([
            scores.row_distances(embedding, self.embeddings[part], distance) for part in parts
        ])  # fmt: skip
        order = np.argsort(distances, kind="stable")[:top]
        return rows[order], distances[order]

    def _finalists(self, embedding, top):
        """Rows that hold the nearest: by a matrix product, or a quarter of its traffic in bytes."""
        if len(self.names) <= MOST_PLAIN:
            squared = self._squares - 2 * self.embeddings @ embedding  # but for a constant
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
        store: Folder to keep the embeddings in.
        embed: Called with a list of paths; gives `(embeddings, reasons)`, a text for each path
            that is empty where it can be read.

    Returns:
        A `Gallery`.
    """
    wanted = [(name, *stamp) for name, stamp in image_files(folder).items()]
    store.mkdir(parents=True, exist_ok=True)
    keys, reasons, embeddings = _read_parts(store)
    if keys != wanted:
        _embed_missing(folder, store, embed, sorted(set(wanted) - set(keys)))
        keys, reasons, embeddings = _join_parts(store, wanted)
    return Gallery(folder, [key[0] for key in keys], reasons, embeddings)


def _embed_missing(folder, store, embed, missing):
    with tqdm(total=len(missing), desc=f"embedding {folder}", unit="image", delay=0.5) as progress:
        for start in range(0, len(missing), PART):
            keys = missing[start : start + PART]
            embeddings, reasons = embed([os.path.join(folder, key[0]) for key in keys])
            _write_part(store, keys, reasons, embeddings)
            progress.update(len(keys))


def _join_parts(store, wanted):
    """Writes one part of just the wanted keys, in their order, and removes the others."""
    keys, reasons, embeddings = _read_parts(store)
    row_of = {key: row for row, key in enumerate(keys)}
    rows, old = [row_of[key] for key in wanted], list(store.glob("*.npz"))
    joined = wanted, [reasons[row] for row in rows], embeddings[rows]
    _write_part(store, *joined)
    for path in old:
        path.unlink(missing_ok=True)
    return joined


def _write_part(store, keys, reasons, embeddings):
    facts = np.frombuffer(json.dumps([keys, reasons]).encode(), np.uint8)
    arrays = {"facts": facts, "embeddings": embeddings}
    write_whole(store / f"{time.time_ns()}.npz", lambda partial: np.savez(partial, **arrays))


def _read_parts(store):
    keys, reasons, parts = [], [], []
    for path in sorted(store.glob("[0-9]*.npz")):
        with np.load(path, allow_pickle=False) as file:
            part_keys, part_reasons = json.loads(file["facts"].tobytes())
            parts.append(file["embeddings"])
        keys += map(tuple, part_keys)
        reasons += part_reasons
    return keys, reasons, np.concatenate(parts) if parts else None
