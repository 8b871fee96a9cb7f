"""Every image decoded once: files -> rows of a `row_store`, raw uint8 (height, width, channels).

Beside them lies `ranges.json`, as an `ImageCache` has them. What cannot be read is not in it: it is
tried again the next time.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.files import DataError, read_bytes
from pipeline.reading import decode, measure, say_why
from pipeline.row_store import StoredRows, open_store

VERSION = 9  # part of the key: raise it when decode() changes its result
DECODED = np.dtype([("stamp", "u8"), ("digest", "u8"), ("kind", "S24")])  # a row of the table
PART_BYTES = 64_000_000  # of pixels that are decoded before they are written
LOOKED_AT = 200  # images that tell whether any has more than 8 bits


@dataclasses.dataclass
class ImageCache:
    """Decoded images, row by row as in the index."""

    folder: Path  # where the cache lies
    pixels: StoredRows  # zeros where unreadable
    rows: np.ndarray  # of `DECODED`; the kind is empty where unreadable
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
    store = open_store(path, shape, index.stamps, fill, row=DECODED)
    places = store.find(index.stamps)
    rows = np.append(store.table, np.zeros(1, DECODED))[places]
    if unreadable and len(unreadable) == len(index):
        row, reason = next(iter(unreadable.items()))
        raise DataError(
            f"None of {len(index)} images can be read. First: '{index.names[row]}': {reason}."
        )
    return ImageCache(path, StoredRows(store, places), rows, unreadable, ranges or _ranges(path))


def cache_dir(config):
    """The `Path` of a config's `cache_dir`; a DataError where it is no folder of this machine."""
    if "://" in config.cache_dir:
        raise DataError(
            f"cache_dir must be a folder of this machine. Received: '{config.cache_dir}'. "
            "Mount it and give the folder, or copy what is there to a local disk."
        )
    return Path(config.cache_dir).expanduser()


def _decode_missing(index, config, ranges, unreadable, store):
    """Decodes, part by part, what a store lacks; `unreadable` gains row -> reason."""
    # Pillow frees the other cores while it decodes and resizes; one thread more hides the rest.
    decoders = concurrent.futures.ThreadPoolExecutor(os.cpu_count() + 1)
    try:
        ranges = _settle_ranges(store, index, decoders) if ranges is None else ranges
        read = functools.partial(_read_row, index, config, ranges)
        size = max(1, PART_BYTES // store.array_bytes)
        for part, progress in store.lacking(index.stamps, size, "decoding images"):
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
            store.append(np.array(images, np.uint8), np.array(rows, DECODED))
    finally:
        decoders.shutdown(cancel_futures=True)


def _read_row(index, config, ranges, row):
    """`(pixels, values of a row)` of a file, or None and the reason."""
    try:
        data = read_bytes(index.source, index.names[row])
        pixels, kind = decode(data, config, ranges)
    except Exception as error:  # the disk, the zip, the image
        return None, say_why(error)
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return pixels, (int(index.stamps[row]), digest, kind.encode())


def _settle_ranges(store, index, decoders):
    """Mode -> (low, high) over all images; all are decoded anew where new ones reach further."""
    missing, known = np.flatnonzero(store.find(index.stamps) < 0), _ranges(store.path)
    ranges = dict(known)
    measure_row = functools.partial(_measure_row, index)
    if any(decoders.map(measure_row, missing[:: len(missing) // LOOKED_AT or 1])):
        for found in decoders.map(measure_row, missing):
            for mode, (low, high) in found.items():
                lowest, highest = ranges.get(mode, (low, high))
                ranges[mode] = [min(low, lowest), max(high, highest)]
    if ranges != known:
        store.clear()
        partial = store.path / "ranges.json.partial"
        partial.write_text(json.dumps(ranges))
        partial.replace(store.path / "ranges.json")
        for mode, (low, high) in ranges.items():
            said = f"The numbers of {mode} images lie in {low:g}..{high:g}, read as 0..255."
            print(said, file=sys.stderr)
    return ranges


def _ranges(folder):
    path = folder / "ranges.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def _measure_row(index, row):
    """Ranges of a file, none where decoding will say that it cannot be read."""
    try:
        return measure(read_bytes(index.source, index.names[row]))
    except (OSError, ValueError):
        return {}
