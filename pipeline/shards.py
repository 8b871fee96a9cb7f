"""Decoded images in shards: raw uint8 files that are never changed, and a table beside each.

They lie on a disk, where they are memory-mapped, or anywhere fsspec reaches (s3://, gcs://,
memory://, file:// for a slow disk), from where whole shards are read in sequence.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import mmap
import os
import shutil

import fsspec
import numpy as np

ROW = np.dtype([("stamp", "u8"), ("digest", "u8"), ("kind", "S24")])  # a line of a table
SHARD_BYTES = 64_000_000  # of pixels; what is decoded between two notes of progress
MANY_FILES = 100  # shards beside which a process may not open enough others
MOST_SMALL = 8  # shards of less than half that, as additions leave them, before they are merged


class ShardFolder:
    """A folder of shards.

    Args:
        path: Where it is, or its URL.
        image_shape: `(height, width, channels)`.

    Attributes:
        is_far: Whether `path` is a URL: it is not memory-mapped, and read shard by shard.
        tables: Name of each shard -> array of `ROW`, read by `refresh`.
        reasons: Stamp of a file that is no image -> reason.
    """

    def __init__(self, path, image_shape):
        self.path, self.image_shape, self.is_far = str(path), image_shape, "://" in str(path)
        self.fs, self.folder = fsspec.core.url_to_fs(self.path)
        self.image_bytes = int(np.prod(image_shape))
        self.refresh()

    def refresh(self):
        """Reads which shards there are; one that a killed process left unfinished is none."""
        self.tables, self.reasons, sizes = {}, {}, {}
        with contextlib.suppress(FileNotFoundError):
            self.fs.invalidate_cache()
            files = self.fs.ls(self.folder, detail=True)
            sizes = {file["name"].rpartition("/")[2]: file["size"] for file in files}
        wanted = [self.file(name) for name in sizes if name.endswith((".rows", ".json"))]
        for path, content in sorted(self.fs.cat(wanted).items()) if wanted else ():
            name, _, kind = path.rpartition("/")[2].rpartition(".")
            if kind == "json":
                self.reasons |= {int(stamp): why for stamp, why in json.loads(content).items()}
            elif sizes.get(f"{name}.pixels", 0) * ROW.itemsize == len(content) * self.image_bytes:
                self.tables[name] = np.frombuffer(content, ROW)

    def file(self, name):
        """Path of a file in the folder."""
        return f"{self.folder}/{name}"

    @property
    def images_per_shard(self):
        """How many images fill a shard."""
        return max(1, SHARD_BYTES // self.image_bytes)

    def make_room(self, stamps):
        """Makes the folder ready to take the images that it lacks of these.

        What is of little use goes: shards mostly of images that are gone, and many small ones.
        What they held of `stamps` is missing then.

        Returns:
            The missing ones, their places in `stamps`.

        Raises:
            OSError: If the disk has too little room.
        """
        self.fs.makedirs(self.folder, exist_ok=True)
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
        needed = len(missing) * self.image_bytes
        if not self.is_far and needed > (free := shutil.disk_usage(self.folder).free):
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
        parts = {"pixels": np.ascontiguousarray(images).data, "rows": rows.tobytes()}
        if reasons:
            parts = {"json": json.dumps(reasons).encode(), **parts}
        try:
            for kind, content in parts.items():
                with self.fs.open(self.file(f"{name}.{kind}"), "wb") as file:
                    file.write(content)
                    if not self.is_far:
                        file.flush()
                        os.fsync(file.fileno())
        except OSError:
            self.remove([name])
            raise

    def remove(self, names):
        """Removes shards."""
        for path in (self.file(f"{name}.{kind}") for name in names for kind in KINDS):
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(path)

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


KINDS = ("rows", "pixels", "json")  # the table goes first: without it there is no shard


class Shards:
    """Images by row, to be read like a uint8 array (images, height, width, channels).

    Args:
        folder: A `ShardFolder`.
        shards: Number of the shard that holds each row, (images,); -1: a row of zeros.
        places: Place of each row in its shard.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, folder, shards, places):
        self.folder, self.shards, self.places = folder, shards, places
        self.shape = (len(shards), *folder.image_shape)
        self.files = [folder.file(f"{name}.pixels") for name in folder.tables]
        self.sizes = [len(table) for table in folder.tables.values()]
        self.open()

    def open(self):
        """Maps every shard, so that a later run may remove what this one reads."""
        if len(self.files) > MANY_FILES:
            _allow_many_files()
        self.maps = [
            np.memmap(file, np.uint8, "r", shape=(size, *self.shape[1:]))
            for file, size in zip(self.files, self.sizes, strict=True)
        ]

    def _announce(self, shards, places):
        """Has the disk fetch images all at once; touched one by one, each would wait for it."""
        if not hasattr(mmap, "MADV_WILLNEED"):  # Windows
            return
        size = self.folder.image_bytes
        for shard, start in zip(shards.tolist(), (places.astype(int) * size).tolist(), strict=True):
            if shard >= 0:
                page = start % mmap.PAGESIZE
                self.maps[shard].base.madvise(mmap.MADV_WILLNEED, start - page, size + page)

    def __len__(self):
        return len(self.shards)

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, rows):
        shards, places = self.shards[rows], self.places[rows]
        images = np.zeros((*np.shape(shards), *self.shape[1:]), np.uint8)
        self.fill(np.atleast_1d(shards), np.atleast_1d(places), images.reshape(-1, *self.shape[1:]))
        return images

    def fill(self, shards, places, images):
        """Reads some images into an array."""
        self._announce(shards, places)
        for shard in np.unique(shards[shards >= 0]):
            at = np.flatnonzero(shards == shard)
            images[at] = self.maps[shard][places[at]]


class FarShards(Shards):
    """As `Shards`: those that `hold` names are in memory, others are read image by image."""

    def open(self):
        """Nothing is read yet."""
        self.reader, self.held = concurrent.futures.ThreadPoolExecutor(1), {}

    def hold(self, shards):
        """Keeps these shards in memory, and no others; they are read in this order, beside."""
        self.held = {n: self.held.get(n) or self.reader.submit(self._read, n) for n in shards}

    def _read(self, shard):
        content = self.folder.fs.cat_file(self.files[shard])
        return np.frombuffer(content, np.uint8).reshape(-1, *self.shape[1:])

    def fill(self, shards, places, images):
        """Reads some images into an array: those of held shards from memory."""
        held = np.isin(shards, list(self.held))
        for shard in np.unique(shards[held]):
            at = np.flatnonzero(shards == shard)
            images[at] = self.held[shard].result()[places[at]]
        at = np.flatnonzero(~held & (shards >= 0))
        files, starts = [self.files[n] for n in shards[at]], places[at] * self.folder.image_bytes
        ends = starts + self.folder.image_bytes
        parts = self.folder.fs.cat_ranges(files, starts.tolist(), ends.tolist()) if len(at) else []
        for place, part in zip(at, parts, strict=True):
            images[place] = np.frombuffer(part, np.uint8).reshape(self.shape[1:])


def _allow_many_files():
    """A map keeps its file open, and many systems allow 256 or 1,024 of them unless asked."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
