"""Arrays by the stamp of the file they are made of: images, features, embeddings, each made once.

A store is a folder of
    values  one array after another, raw; memory-mapped, and only growing
    rows    a table, appended once its values are on the disk: it says what is whole
"""

import contextlib
import math
import mmap
import os
import shutil
import sys
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

from pipeline.files import DataError
from pipeline.reading import say_why

ROW = np.dtype([("stamp", "u8")])  # what a table holds of an array at least
LOCK_SECONDS = 3600  # that a process waits for another one filling the same store
CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n"  # bford.info/cachedir: no data in here


def open_store(path, shape, stamps, fill, kind=np.uint8, row=ROW):
    """The `RowStore` at a path, after `fill(store)`, by one process, where it lacks stamps.

    A DataError if it cannot be written.
    """
    try:
        store = RowStore(path, shape, kind, row)
        if (store.find(stamps) < 0).any():
            with one_at_a_time(path):
                store = RowStore(path, shape, kind, row)  # as another may have written
                store.path.mkdir(parents=True, exist_ok=True)
                (store.path / "CACHEDIR.TAG").write_bytes(CACHE_TAG)
                fill(store)
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be written: {say_why(error)}. Make room there, or take another "
            "place: another cache_dir, or a copy of the run."
        ) from error
    return store


@contextlib.contextmanager
def one_at_a_time(path):
    """Holds the lock of a path, which ends with the process; waits while another one holds it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{path}.lock", LOCK_SECONDS)
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"Waiting for another process, which prepares '{path}'.", file=sys.stderr)
        held = lock.acquire()
    with held:
        yield


class RowStore:
    """The files of a store; one process at a time may change them.

    Arrays are of one `shape` and NumPy type `kind`, rows of the table of the type `row`. `table`
    has those that are whole, in the order of their values.
    """

    def __init__(self, path, shape, kind=np.uint8, row=ROW):
        self.path, self.shape, self.kind, self.row = Path(path), shape, kind, row
        self.array_bytes = math.prod(shape) * np.dtype(kind).itemsize
        values, rows = self.path / "values", self.path / "rows"
        whole = values.stat().st_size // self.array_bytes if values.exists() else 0
        self.table = np.fromfile(rows, row)[:whole] if rows.exists() else np.zeros(0, row)

    def find(self, stamps):
        """Line of the table for each stamp, (stamps,); -1 where there is none."""
        known = np.append(self.table["stamp"], 0)  # no file has this stamp
        order = np.argsort(known)
        line = order[np.searchsorted(known, stamps, sorter=order) % len(known)]
        return np.where(known[line] == stamps, line, -1)

    def clear(self):
        """Begins anew. Who has the old values mapped keeps them."""
        for name in ("values", "rows"):  # rows without values count for nothing
            (self.path / name).unlink(missing_ok=True)
        self.table = self.table[:0]

    def lacking(self, stamps, size, title):
        """Yields which of some stamps it lacks, up to `size` at once, with the bar to `update`.

        An OSError where the disk has no room for them.
        """
        missing = np.flatnonzero(self.find(stamps) < 0)
        self._prepare(len(missing))
        with tqdm(total=len(missing), desc=title, unit="image", delay=0.5) as progress:
            for start in range(0, len(missing), size):
                yield missing[start : start + size], progress

    def _prepare(self, count):
        """Cuts off what a kill left behind what is whole; makes sure that `count` more fit."""
        for name, size in (("rows", self.row.itemsize), ("values", self.array_bytes)):
            with open(self.path / name, "ab") as file:
                file.truncate(len(self.table) * size)
        needed, free = count * self.array_bytes, shutil.disk_usage(self.path).free
        if needed > free:
            raise OSError(f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB free")

    def append(self, arrays, rows):
        """Adds arrays, (n, *shape), and their rows of the table, (n,)."""
        for name, content in (("values", arrays.astype(self.kind, copy=False)), ("rows", rows)):
            with open(self.path / name, "ab") as file:
                file.write(content.tobytes())
                file.flush()
                os.fsync(file.fileno())
        self.table = np.append(self.table, rows)

    def map(self):
        """All values, memory-mapped: (rows, *shape)."""
        whole = (len(self.table), *self.shape)
        return np.memmap(self.path / "values", self.kind, "r", shape=whole)


class StoredRows:
    """Arrays of a `RowStore`, to be read like one array (places, *shape).

    `places` are the lines of its table, as `find` gives them; -1: an array of zeros.
    """

    def __init__(self, store, places):
        self.places, self.array_bytes = places, store.array_bytes
        self.shape, self.map = (len(places), *store.shape), store.map()

    def __len__(self):
        return len(self.places)

    def __getitem__(self, rows):
        places = self.places[rows]
        found = np.ravel(places)
        self._fetch(found[found >= 0])
        arrays = self.map[found]
        arrays[found < 0] = 0
        return arrays.reshape(*np.shape(places), *self.shape[1:])

    def _fetch(self, places):
        """Has the disk fetch arrays all at once; touched one by one, each would wait for it."""
        if hasattr(mmap, "MADV_WILLNEED"):  # not on Windows
            for start in (places * self.array_bytes).tolist():
                page = start % mmap.PAGESIZE
                self.map.base.madvise(mmap.MADV_WILLNEED, start - page, self.array_bytes + page)
