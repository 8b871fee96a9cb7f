"""Decoded images in shards: raw uint8 files that are never changed, and a table beside each."""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
from pathlib import Path

import numpy as np

ROW = np.dtype([("stamp", "u8"), ("digest", "u8"), ("kind", "S24")])  # a line of a table
SHARD_BYTES = 64_000_000  # of pixels; what is decoded between two notes of progress
MOST_SMALL = 8  # shards of less than half that, as additions leave them, before they are merged
KINDS = ("rows", "pixels", "json")  # the table goes first: without it there is no shard
CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n"  # bford.info/cachedir: no data in here
MANY_FILES = 100  # shards beside which a process may not open enough others


class ShardFolder:
    """A folder of shards.

    Args:
        path: Where it is.
        image_shape: `(height, width, channels)`.

    Attributes:
        tables: Name of each shard -> array of `ROW`, read by `refresh`.
        reasons: Stamp of a file that is no image -> reason.
        ranges: See `ImageCache`.
    """

    def __init__(self, path, image_shape):
        self.path, self.image_shape = Path(path), image_shape
        self.image_bytes = int(np.prod(image_shape))
        self.images_per_shard = max(1, SHARD_BYTES // self.image_bytes)
        self.refresh()

    def refresh(self):
        """Reads which shards there are; one that a killed process left unfinished is none."""
        self.tables, self.reasons, self.ranges = {}, {}, {}
        for path in sorted(self.path.glob("*.json")):
            values = json.loads(path.read_bytes())
            if path.stem == "ranges":
                self.ranges = values
            else:
                self.reasons |= {int(stamp): why for stamp, why in values.items()}
        for path in sorted(self.path.glob("*.rows")):
            content, pixels = path.read_bytes(), self.file(f"{path.stem}.pixels")
            size = pixels.stat().st_size if pixels.exists() else 0
            if size * ROW.itemsize == len(content) * self.image_bytes:
                self.tables[path.stem] = np.frombuffer(content, ROW)

    def file(self, name):
        """Path of a file in the folder."""
        return self.path / name

    def make_room(self, stamps):
        """Makes the folder ready to take the images that it lacks of these.

        What is of little use goes: shards mostly of images that are gone, and many small ones.
        What they held of `stamps` is missing then.

        Returns:
            The missing ones, their places in `stamps`.

        Raises:
            OSError: If the disk has too little room.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.refresh()
        shards = self.find(stamps)[0]
        sizes = np.array([len(table) for table in self.tables.values()])
        old = np.bincount(shards[shards >= 0], minlength=len(sizes)) < sizes / 2
        small = sizes < self.images_per_shard / 2
        if small.sum() > MOST_SMALL:
            old |= small
        self.remove(np.array([*self.tables])[old])
        self.refresh()
        missing = np.flatnonzero(self.find(stamps)[0] < 0)
        needed, free = len(missing) * self.image_bytes, shutil.disk_usage(self.path).free
        if needed > free:
            raise OSError(f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB free")
        return missing

    def write(self, images, rows, reasons):
        """Writes one shard; it counts once its table is there, which comes last.

        Args:
            images: uint8 array (n, height, width, channels).
            rows: Array of `ROW`, (n,).
            reasons: Stamp -> reason, of those that are no images.
        """
        name = hashlib.blake2b(rows["stamp"].tobytes(), digest_size=8).hexdigest()
        try:
            if reasons:
                self._write(f"{name}.json", json.dumps(reasons).encode())
            self._write(f"{name}.pixels", np.ascontiguousarray(images).data)
            self._write(f"{name}.rows", rows.tobytes())
            if not self.file("CACHEDIR.TAG").exists():
                self._write("CACHEDIR.TAG", CACHE_TAG)
        except OSError:
            self.remove([name])
            raise

    def write_ranges(self, ranges):
        """Notes the ranges by which all shards here are read."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write("ranges.json", json.dumps(ranges).encode())

    def _write(self, name, content):
        with open(self.file(name), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def remove(self, names):
        """Removes shards."""
        for path in (self.file(f"{name}.{kind}") for name in names for kind in KINDS):
            path.unlink(missing_ok=True)

    def find(self, stamps):
        """Where images are.

        Returns:
            `(shards, places, rows)`, each as long as `stamps`: number of the shard (-1: nowhere)
            and place in it, int32, and the lines of the tables.
        """
        shards, places = np.full((2, len(stamps)), -1, np.int32)
        rows, order = np.zeros(len(stamps), ROW), np.argsort(stamps)
        for number, table in enumerate(self.tables.values()):
            at = np.searchsorted(stamps, table["stamp"], sorter=order)
            at = order[np.minimum(at, len(stamps) - 1)]
            known = np.flatnonzero(stamps[at] == table["stamp"])
            shards[at[known]], places[at[known]], rows[at[known]] = number, known, table[known]
        return shards, places, rows


class Shards:
    """Images by row, to be read like a uint8 array (images, height, width, channels).

    Args:
        folder: A `ShardFolder`.
        shards: Number of the shard that holds each row, (images,); -1: a row of zeros.
        places: Place of each row in its shard.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, folder, shards, places):
        self.shards, self.places, self.image_bytes = shards, places, folder.image_bytes
        self.shape = (len(shards), *folder.image_shape)
        if len(folder.tables) > MANY_FILES:
            _allow_many_files()
        self.maps = [  # all at once, so that a later run may remove what this one reads
            np.memmap(folder.file(f"{name}.pixels"), np.uint8, "r", 0, (len(t), *self.shape[1:]))
            for name, t in folder.tables.items()
        ]

    def __len__(self):
        return len(self.shards)

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, rows):
        shards, places = self.shards[rows], self.places[rows]
        images = np.zeros((*np.shape(shards), *self.shape[1:]), np.uint8)
        self._fill(np.ravel(shards), np.ravel(places), images.reshape(-1, *self.shape[1:]))
        return images

    def _fill(self, shards, places, images):
        self._announce(shards, places)
        for shard in np.unique(shards[shards >= 0]):
            at = np.flatnonzero(shards == shard)
            images[at] = self.maps[shard][places[at]]

    def _announce(self, shards, places):
        """Has the disk fetch images all at once; touched one by one, each would wait for it."""
        if not hasattr(mmap, "MADV_WILLNEED"):  # Windows
            return
        size = self.image_bytes
        for shard, start in zip(shards.tolist(), (places.astype(int) * size).tolist(), strict=True):
            if shard >= 0:
                page = start % mmap.PAGESIZE
                self.maps[shard].base.madvise(mmap.MADV_WILLNEED, start - page, size + page)


def _allow_many_files():
    """A map keeps its file open, and many systems allow 256 or 1,024 of them unless asked."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
