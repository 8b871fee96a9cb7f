"""The embeddings of a folder of images: computed once, kept, refreshed, searched. No Keras here.

A store holds `.npz` parts of file keys (name, size, time) and embeddings. Parts are written while
a large folder is being embedded, so that a killed run loses little, and joined at the end.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from image_index import IMAGE_SUFFIXES, DataError, list_files
from run_directory import need, write_whole

PART = 2048  # images embedded between two writes: what a kill can cost
MOST_EXACT = 50_000  # images; above it, comparing with every one takes longer than the index
EXPANSION = 200  # candidates the index keeps while it searches: more finds more, and takes longer


class Gallery:
    """The readable images of a folder, embedded.

    Attributes:
        names: File names below the folder.
        embeddings: float32 array (images, embedding_dim).
        unreadable: Path -> reason.
    """

    def __init__(self, folder, names, reasons, embeddings, store):
        fine = [row for row, reason in enumerate(reasons) if not reason]
        self.folder = folder
        self.names = [names[row] for row in fine]
        self.embeddings = embeddings[fine]
        named = zip(names, reasons, strict=True)
        self.unreadable = {os.path.join(folder, name): reason for name, reason in named if reason}
        if not fine:
            path, reason = next(iter(self.unreadable.items()))
            raise DataError(f"No image in '{folder}' can be read. First: {path}: {reason}.")
        self._squares = np.einsum("ij,ij->i", self.embeddings, self.embeddings)
        self._index = _open_index(store, self.embeddings) if len(fine) > MOST_EXACT else None

    def path(self, row):
        """Path of one of its images, as text."""
        return os.path.join(self.folder, self.names[row])

    def search(self, embedding, top):
        """The most similar images.

        Args:
            embedding: Array (embedding_dim,).
            top: How many.

        Returns:
            `(rows, distances)`, nearest first.
        """
        if self._index is None:
            squared = self._squares - 2 * self.embeddings @ embedding  # but for a constant
            rows = np.argpartition(squared, min(top, len(squared)) - 1)[:top]
        else:
            rows = self._index.search(embedding, top).keys.astype(np.int64)
        distances = np.linalg.norm(self.embeddings[rows] - embedding, axis=1)
        order = np.argsort(distances, kind="stable")
        return rows[order], distances[order]


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
        embed: Called with a list of paths; gives `(embeddings, path -> reason)`, NaN where
            a file cannot be read.

    Returns:
        A `Gallery`.
    """
    wanted = [(name, *stamp) for name, stamp in image_files(folder).items()]
    store.mkdir(parents=True, exist_ok=True)
    keys, reasons, embeddings = _read_parts(store)
    if keys != wanted:
        known = set(keys)
        _embed_missing(folder, store, embed, [key for key in wanted if key not in known])
        keys, reasons, embeddings = _join_parts(store, wanted)
    return Gallery(folder, [key[0] for key in keys], reasons, embeddings, store)


def _embed_missing(folder, store, embed, missing):
    with tqdm(total=len(missing), desc=f"embedding {folder}", unit="image", delay=0.5) as progress:
        for start in range(0, len(missing), PART):
            keys = missing[start : start + PART]
            paths = [os.path.join(folder, key[0]) for key in keys]
            embeddings, unreadable = embed(paths)
            reasons = [unreadable.get(path, "") for path in paths]
            _write_part(store / f"{time.time_ns()}.npz", keys, reasons, embeddings)
            progress.update(len(keys))


def _join_parts(store, wanted):
    """Writes one part of just the wanted keys, in their order, and removes the others."""
    keys, reasons, embeddings = _read_parts(store)
    row_of = {key: row for row, key in enumerate(keys)}
    rows = [row_of[key] for key in wanted]
    reasons, embeddings = [reasons[row] for row in rows], embeddings[rows]
    old = [*store.glob("*.npz"), *store.glob("*.usearch")]
    _write_part(store / f"{time.time_ns()}.npz", wanted, reasons, embeddings)
    for path in old:
        path.unlink(missing_ok=True)
    return wanted, reasons, embeddings


def _write_part(path, keys, reasons, embeddings):
    facts = np.frombuffer(json.dumps([keys, reasons]).encode(), np.uint8)

    def write(partial):
        with open(partial, "wb") as file:
            np.savez(file, facts=facts, embeddings=embeddings)

    write_whole(path, write)


def _read_parts(store):
    keys, reasons, parts = [], [], []
    for path in sorted(store.glob("[0-9]*.npz")):
        with np.load(path, allow_pickle=False) as file:
            part_keys, part_reasons = json.loads(file["facts"].tobytes())
            parts.append(file["embeddings"])
        keys += map(tuple, part_keys)
        reasons += part_reasons
    return keys, reasons, np.concatenate(parts) if parts else None


def _open_index(store, embeddings):
    """The approximate index of all embeddings, memory-mapped; built where it is missing."""
    need("usearch", f"Searching more than {MOST_EXACT} images")
    from usearch.index import Index

    path = store / "neighbours.usearch"
    if not path.exists():
        print(f"Building the index of {len(embeddings)} images, once.", file=sys.stderr)
        index = Index(ndim=embeddings.shape[1], metric="l2sq", dtype="f32")
        index.add(np.arange(len(embeddings)), embeddings)
        write_whole(path, index.save)
    index = Index.restore(path, view=True)
    index.expansion_search = EXPANSION
    return index
