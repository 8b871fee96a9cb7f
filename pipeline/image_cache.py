"""Every image decoded once: files -> rows of one memory-mapped uint8 file that only grows.

A cache is a folder of
    pixels       raw uint8, (height, width, channels) of one image after another
    rows         a table of `ROW`, appended once its pixels are on the disk: it says what is whole
    ranges.json  as an `ImageCache` has them
What cannot be read is not in it: it is tried again the next time.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import mmap
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

from pipeline.files import DataError, read_bytes
from pipeline.reading import decode, measure, say_why

VERSION = 8  # part of the key: raise it when decode() changes its result
ROW = np.dtype([("stamp", "u8"), ("digest", "u8"), ("kind", "S24")])
PART_BYTES = 64_000_000  # of pixels that are decoded before they are written
LOOKED_AT = 200  # images that tell whether any has more than 8 bits
LOCK_SECONDS = 3600  # that a run waits for another one decoding the same images
CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n"  # bford.info/cachedir: no data in here


@dataclasses.dataclass
class ImageCache:
    """Decoded images, row by row as in the index."""

    folder: Path  # where the cache lies
    pixels: "Pixels"  # zeros where unreadable
    rows: np.ndarray  # of `ROW`; the kind is empty where unreadable
    unreadable: dict  # row -> reason
    ranges: dict  # mode -> (low, high), the range of numbers in use where they have over 8 bits

    @property
    def digests(self):
        """uint64 array, equal for files of equal content."""
        return self.rows["digest"]

    @property
    def kinds(self):
        """ "256x256 RGB" -> number of files, before decoding, the commonest first."""
        kinds = Counter(self.rows["kind"].tolist())
        return {kind.decode(): count for kind, count in kinds.most_common() if kind}


def open_cache(index, config, ranges=None):
    """An `ImageCache` of an index; images that were not decoded before are decoded first.

    Args:
        index: An `ImageIndex`.
        config: A `Config`.
        ranges: Ranges of numbers that a run was trained with; None takes those of the data set.

    Raises:
        DataError: If the cache is no local folder or cannot be written, or no image is readable.
    """
    ranges = ranges or None
    source, shape = str(index.source.resolve()), config.image_shape
    key = json.dumps([VERSION, source, shape, config.fit, config.ink, ranges]).encode()
    name = f"{index.source.stem[:40]}-{hashlib.blake2b(key, digest_size=6).hexdigest()}"
    path, unreadable = cache_dir(config) / name, {}
    fill = functools.partial(_decode_missing, index, config, ranges, unreadable)
    folder = open_folder(path, shape, index.stamps, fill)
    places = folder.find(index.stamps)
    rows = np.append(folder.table, np.zeros(1, ROW))[places]
    if unreadable and len(unreadable) == len(index):
        row, reason = next(iter(unreadable.items()))
        raise DataError(
            f"None of {len(index)} images can be read. First: '{index.names[row]}': {reason}."
        )
    return ImageCache(path, Pixels(folder, places), rows, unreadable, ranges or folder.ranges)


def open_folder(path, image_shape, stamps, fill):
    """The `CacheFolder` at a path, after `fill(folder)`, by one process, where it lacks stamps.

    A DataError if it cannot be written.
    """
    try:
        folder = CacheFolder(path, image_shape)
        if (folder.find(stamps) < 0).any():
            with one_at_a_time(path):
                folder = CacheFolder(path, image_shape)  # as another may have written
                folder.path.mkdir(parents=True, exist_ok=True)
                (folder.path / "CACHEDIR.TAG").write_bytes(CACHE_TAG)
                fill(folder)
    except OSError as error:
        raise DataError(
            f"The cache '{path}' cannot be written: {say_why(error)}. "
            "Make room or set another cache_dir."
        ) from error
    return folder


def cache_dir(config):
    """The `Path` of a config's `cache_dir`; a DataError where it is no folder of this machine."""
    if "://" in config.cache_dir:
        raise DataError(
            f"cache_dir must be a folder of this machine. Received: '{config.cache_dir}'. "
            "Mount it and give the folder, or copy what is there to a local disk."
        )
    return Path(config.cache_dir).expanduser()


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


class CacheFolder:
    """The files of a cache; one process at a time may change them.

    `table` is an array of `ROW`, of the images that are whole, in the order of their pixels.
    """

    def __init__(self, path, image_shape):
        self.path, self.image_shape = Path(path), image_shape
        self.image_bytes = math.prod(image_shape)
        pixels, rows, ranges = (self.path / name for name in ("pixels", "rows", "ranges.json"))
        whole = pixels.stat().st_size // self.image_bytes if pixels.exists() else 0
        self.table = np.fromfile(rows, ROW)[:whole] if rows.exists() else np.zeros(0, ROW)
        self.ranges = json.loads(ranges.read_bytes()) if ranges.exists() else {}

    def find(self, stamps):
        """Line of the table for each stamp, (images,); -1 where there is none."""
        known = np.append(self.table["stamp"], 0)  # no file has this stamp
        order = np.argsort(known)
        line = order[np.searchsorted(known, stamps, sorter=order) % len(known)]
        return np.where(known[line] == stamps, line, -1)

    def clear(self, ranges):
        """Begins anew, by these ranges. Who has the old pixels mapped keeps them."""
        for name in ("pixels", "rows"):  # rows without pixels count for nothing
            (self.path / name).unlink(missing_ok=True)
        self.table, self.ranges = self.table[:0], ranges
        partial = self.path / "ranges.json.partial"
        partial.write_text(json.dumps(ranges))
        partial.replace(self.path / "ranges.json")

    def prepare(self, count):
        """Cuts off what a kill left behind the last whole image; makes sure that `count` more fit.

        An OSError where the disk has no room for them.
        """
        for name, size in (("rows", ROW.itemsize), ("pixels", self.image_bytes)):
            with open(self.path / name, "ab") as file:
                file.truncate(len(self.table) * size)
        needed, free = count * self.image_bytes, shutil.disk_usage(self.path).free
        if needed > free:
            raise OSError(f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB free")

    def append(self, images, rows):
        """Adds images, (n, ...) of `image_bytes` each, and their rows."""
        for name, content in (("pixels", images), ("rows", rows)):
            with open(self.path / name, "ab") as file:
                file.write(content.tobytes())
                file.flush()
                os.fsync(file.fileno())
        self.table = np.append(self.table, rows)


class Pixels:
    """Decoded images, to be read like a uint8 array (images, height, width, channels).

    `places` says where each row lies among the pixels of a `CacheFolder`; -1: a row of zeros.
    """

    def __init__(self, folder, places):
        self.places, self.image_bytes = places, folder.image_bytes
        self.shape = (len(places), *folder.image_shape)
        whole = (len(folder.table), *folder.image_shape)
        self.map = np.memmap(folder.path / "pixels", mode="r", shape=whole)

    def __len__(self):
        return len(self.places)

    def __getitem__(self, rows):
        places = self.places[rows]
        found = np.ravel(places)
        self._fetch(found[found >= 0])
        images = self.map[found]
        images[found < 0] = 0
        return images.reshape(*np.shape(places), *self.shape[1:])

    def _fetch(self, places):
        """Has the disk fetch images all at once; touched one by one, each would wait for it."""
        if hasattr(mmap, "MADV_WILLNEED"):  # not on Windows
            for start in (places * self.image_bytes).tolist():
                page = start % mmap.PAGESIZE
                self.map.base.madvise(mmap.MADV_WILLNEED, start - page, self.image_bytes + page)


def _decode_missing(index, config, ranges, unreadable, folder):
    """Decodes, part by part, what a folder lacks; `unreadable` gains row -> reason."""
    # Pillow frees the other cores while it decodes and resizes; one thread more hides the rest.
    decoders = concurrent.futures.ThreadPoolExecutor(os.cpu_count() + 1)
    try:
        ranges = _settle_ranges(folder, index, decoders) if ranges is None else ranges
        missing = np.flatnonzero(folder.find(index.stamps) < 0)
        folder.prepare(len(missing))
        read = functools.partial(_read_row, index, config, ranges)
        size = max(1, PART_BYTES // folder.image_bytes)
        with tqdm(total=len(missing), desc="decoding images", unit="image", delay=0.5) as progress:
            for part in np.split(missing, range(size, len(missing), size)):
                images, rows = [], []
                for row, (pixels, found) in zip(part, decoders.map(read, part), strict=True):
                    if pixels is None:
                        unreadable[int(row)] = found
                    else:
                        images.append(pixels)
                        rows.append(found)
                    progress.update()
                if not index.source.exists():
                    raise DataError(f"'{index.source}' vanished while its images were read.")
                folder.append(np.array(images, np.uint8), np.array(rows, ROW))
    finally:
        decoders.shutdown(cancel_futures=True)


def _read_row(index, config, ranges, row):
    """`(pixels, values of a ROW)` of a file, or None and the reason."""
    try:
        data = read_bytes(index.source, index.names[row])
        pixels, kind = decode(data, config, ranges)
    except Exception as error:  # the disk, the zip, the image
        return None, say_why(error)
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return pixels, (int(index.stamps[row]), digest, kind.encode())


def _settle_ranges(folder, index, decoders):
    """Mode -> (low, high) over all images; all are decoded anew where new ones reach further."""
    missing, ranges = np.flatnonzero(folder.find(index.stamps) < 0), dict(folder.ranges)
    measure_row = functools.partial(_measure_row, index)
    if any(decoders.map(measure_row, missing[:: len(missing) // LOOKED_AT or 1])):
        for found in decoders.map(measure_row, missing):
            for mode, (low, high) in found.items():
                lowest, highest = ranges.get(mode, (low, high))
                ranges[mode] = [min(low, lowest), max(high, highest)]
    if ranges != folder.ranges:
        folder.clear(ranges)
        for mode, (low, high) in ranges.items():
            said = f"The numbers of {mode} images lie in {low:g}..{high:g}, read as 0..255."
            print(said, file=sys.stderr)
    return ranges


def _measure_row(index, row):
    """Ranges of a file, none where decoding will say that it cannot be read."""
    try:
        return measure(read_bytes(index.source, index.names[row]))
    except (OSError, ValueError):
        return {}
