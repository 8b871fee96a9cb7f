"""The embeddings of a folder of images: computed once, kept, refreshed. No Keras here."""

import functools
import os
from pathlib import Path

import numpy as np

from pipeline.files import DataError, find_images
from pipeline.row_store import ROW, open_store

PART = 2048  # images embedded between two writes: what a kill can cost


class Gallery:
    """The readable images of a folder, embedded; what came or changed since is embedded anew.

    Args:
        folder: Folder of images, of any depth.
        path: The `RowStore` that keeps the embeddings.
        embed: Function of a list of paths and a dict that gains path -> reason for those that
            cannot be read; gives float32 embeddings (paths, embedding_dim).
        embedding_dim: Numbers of an embedding.

    Attributes:
        names: File names below the folder, sorted.
        embeddings: float32 array (names, embedding_dim), memory-mapped where it is the store.
        unreadable: Path -> reason. These are tried again when the folder is next opened.

    Raises:
        DataError: If there is no readable image, or the store cannot be written.
    """

    def __init__(self, folder, path, embed, embedding_dim):
        self.folder, self.unreadable, self._embed = folder, {}, embed
        images = image_files(folder)
        self.names, stamps = [*images], np.array([*images.values()], np.uint64)
        fill = functools.partial(self._fill, stamps)
        store = open_store(path, (embedding_dim,), stamps, fill, np.float32)
        places = store.find(stamps)
        if (places < 0).all():
            path, reason = next(iter(self.unreadable.items()))
            raise DataError(f"No image in '{folder}' can be read. First: {path}: {reason}.")
        self.names = [name for name, place in zip(self.names, places, strict=True) if place >= 0]
        whole, places = store.map(), places[places >= 0]
        in_order = np.array_equal(places, np.arange(len(whole)))
        self.embeddings = whole if in_order else whole[places]

    def path(self, row):
        """Path of one of its images, as text."""
        return os.path.join(self.folder, self.names[row])

    def _fill(self, stamps, store):
        """Embeds the images that a store lacks."""
        for part, progress in store.lacking(stamps, PART, f"embedding {self.folder}"):
            paths = [self.path(row) for row in part]
            embeddings = self._embed(paths, self.unreadable)
            readable = [path not in self.unreadable for path in paths]
            store.append(embeddings[readable], stamps[part[readable]].astype(ROW))
            progress.update(len(part))


def image_files(folder):
    """The image files below a folder: name -> stamp; a `DataError` if there are none."""
    if not Path(folder).is_dir():
        raise DataError(f"Expected a folder of images. Received: '{folder}', which is none.")
    skipped = {}
    images = find_images(folder, skipped)
    if not images:
        first = "".join(f"; first: {name}: {why}" for name, why in [*skipped.items()][:1])
        raise DataError(f"No images in the folder '{folder}' ({len(skipped)} other files{first}).")
    return images
