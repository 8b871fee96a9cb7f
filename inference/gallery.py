"""The embeddings of a folder of images: computed once, kept, refreshed. No Keras here."""

import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.files import DataError, find_images
from run_directory import write_atomically

PART = 2048  # images, or a quarter more, embedded between two writes: what a kill can cost


class Gallery:
    """The readable images of a folder, embedded; what came or changed since is embedded anew.

    Args:
        folder: Folder of images, of any depth.
        store: Path of the `.npy` file that keeps the embeddings.
        embed: Function of a list of paths and a dict that gains path -> reason for those that
            cannot be read; gives float32 embeddings (paths, embedding_dim).

    Attributes:
        names: File names below the folder, sorted.
        embeddings: float32 array (names, embedding_dim), memory-mapped unless it has just changed.
        unreadable: Path -> reason. These are tried again when the folder is next opened.

    Raises:
        DataError: If there is no readable image, or the store is damaged.
        RunError: If the store cannot be written.
    """

    def __init__(self, folder, store, embed):
        self.folder, self.unreadable, self._store = folder, {}, Path(store)
        names = {stamp: name for name, stamp in image_files(folder).items()}
        rows = self._embed_missing(names, embed, self._read())
        places = {stamp: place for place, stamp in enumerate(rows["stamp"].tolist())}
        kept = [stamp for stamp in names if stamp in places]
        if not kept:
            path, reason = next(iter(self.unreadable.items()))
            raise DataError(f"No image in '{folder}' can be read. First: {path}: {reason}.")
        if kept != [*places]:
            rows = self._write(rows[[places[stamp] for stamp in kept]])
        self.names, self.embeddings = [names[stamp] for stamp in kept], rows["embedding"]

    def path(self, row):
        """Path of one of its images, as text."""
        return os.path.join(self.folder, self.names[row])

    def _embed_missing(self, names, embed, rows):
        """The rows of the store, stamp and embedding each, and of the images that it lacks."""
        kept = {*rows["stamp"].tolist()}
        missing = [stamp for stamp in names if stamp not in kept]
        title = f"embedding {self.folder}"
        with tqdm(total=len(missing), desc=title, unit="image", delay=0.5) as progress:
            while missing:
                size = max(PART, len(rows) // 4)
                stamps, missing = np.array(missing[:size], np.uint64), missing[size:]
                paths = [os.path.join(self.folder, names[stamp]) for stamp in stamps.tolist()]
                embeddings = embed(paths, self.unreadable)
                readable = [path not in self.unreadable for path in paths]
                row = [("stamp", np.uint64), ("embedding", np.float32, embeddings.shape[1:])]
                fresh = np.empty(sum(readable), row)
                fresh["stamp"], fresh["embedding"] = stamps[readable], embeddings[readable]
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
