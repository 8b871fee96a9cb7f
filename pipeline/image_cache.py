"""Every image decoded once: files -> one row each of memory-mapped uint8 shards."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import socket
import sys
from collections import Counter
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

from pipeline.files import DataError, read_bytes
from pipeline.reading import decode, measure, say_why
from pipeline.shards import ROW, ShardFolder, Shards

VERSION = 4  # part of the key: raise it when decode() changes its result
LOOKED_AT = 200  # images that tell whether any has more than 8 bits
ELSEWHERE = "~/.cache/siamese_networks"  # where a cache_dir is not for writing
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
LOCK_SECONDS = 3600  # that a run waits for another one decoding the same images


@dataclasses.dataclass
class ImageCache:
    """Decoded images, row by row as in the index.

    Attributes:
        folder: Where the cache lies.
        pixels: `Shards` of (images, height, width, channels); zeros where unreadable.
        rows: Array of `ROW`; the kind is empty where unreadable.
        unreadable: Row -> reason.
        ranges: Mode -> (low, high), the range of numbers in use where they have over 8 bits.
    """

    folder: Path
    pixels: Shards
    rows: np.ndarray
    unreadable: dict
    ranges: dict

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
    """Opens the decoded images of an index, decoding first those that were not decoded before.

    Args:
        index: An `ImageIndex`.
        config: A `Config`: `cache_dir`, `image_size`, `channels`, `fit`, `ink`, `on_bad_image`.
        ranges: Ranges of numbers that a run was trained with; None takes those of the data set.

    Returns:
        An `ImageCache`.

    Raises:
        DataError: If the cache cannot be written, no image is readable, or one is not and
            `on_bad_image` is "error".
    """
    if "://" in config.cache_dir:
        raise DataError(
            f"cache_dir must be a folder. Received: '{config.cache_dir}'. Mount what is far away."
        )
    ranges = ranges or None
    settings = [VERSION, str(index.source.resolve()), config.image_shape, config.fit, config.ink]
    key = json.dumps([*settings, ranges]).encode()
    name = f"{index.source.stem[:40]}-{hashlib.blake2b(key, digest_size=6).hexdigest()}"
    path, refused = Path(config.cache_dir).expanduser() / name, {}
    try:
        folder = ShardFolder(path, config.image_shape)
        shards, places, rows = folder.find(index.stamps)
        if (shards < 0).any():
            with one_at_a_time(path):
                refused = _decode_missing(folder, index, config, ranges)
            shards, places, rows = folder.find(index.stamps)
    except OSError as error:
        elsewhere = str(Path(ELSEWHERE).expanduser())
        if error.errno in READ_ONLY and config.cache_dir != elsewhere:
            said = f"cache_dir '{config.cache_dir}' is not for writing ({say_why(error)})"
            print(f"{said}: decoded images go to '{elsewhere}'.", file=sys.stderr)
            return open_cache(index, dataclasses.replace(config, cache_dir=elsewhere), ranges)
        raise DataError(
            f"The cache '{path}' cannot be written: {say_why(error)}. "
            "Make room or set another cache_dir."
        ) from error
    bad = np.flatnonzero(rows["kind"] == b"")
    stamps = zip(bad.tolist(), index.stamps[bad].tolist(), strict=True)
    unreadable = {row: folder.reasons.get(stamp) or refused[stamp] for row, stamp in stamps}
    if unreadable and (config.on_bad_image == "error" or len(unreadable) == len(index)):
        row, reason = next(iter(unreadable.items()))
        raise DataError(
            f"{len(unreadable)} of {len(index)} images cannot be read. First: "
            f"'{index.names[row]}': {reason}. Remove them or set on_bad_image='skip'."
        )
    pixels = Shards(folder, shards, places)
    return ImageCache(path, pixels, rows, unreadable, ranges or folder.ranges)


@contextlib.contextmanager
def one_at_a_time(path):
    """Holds the lock of a path, which ends with the process; waits while another one holds it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock, owner = filelock.FileLock(f"{path}.lock", LOCK_SECONDS), Path(f"{path}.owner")
    with contextlib.suppress(filelock.Timeout):
        lock.acquire(blocking=False)
    if not lock.is_locked:
        who = owner.read_text() if owner.exists() else "another process"
        print(f"Waiting for {who}, which prepares '{path}'.", file=sys.stderr)
        lock.acquire()
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _decode_missing(folder, index, config, ranges):
    """Decodes, shard by shard, what the folder lacks.

    Returns:
        Stamp -> reason of what the disk refused to read: it is tried again the next time.
    """
    # Pillow frees the other cores while it decodes and resizes; one thread more hides the rest.
    refused, decoders = {}, concurrent.futures.ThreadPoolExecutor(os.cpu_count() + 1)
    try:
        ranges = _settle_ranges(folder, index, decoders) if ranges is None else ranges
        missing = folder.make_room(index.stamps)
        with tqdm(total=len(missing), desc="decoding images", unit="image", delay=0.5) as progress:
            for start in range(0, len(missing), folder.images_per_shard):
                part = missing[start : start + folder.images_per_shard]
                images = np.zeros((len(part), *folder.image_shape), np.uint8)
                rows, reasons = np.zeros(len(part), ROW), {}
                read = functools.partial(_read_row, index, config, ranges)
                for place, (row, pixels, why) in enumerate(decoders.map(read, part)):
                    rows[place] = row
                    if pixels is None:
                        stamp = int(index.stamps[part[place]])
                        (reasons if row[0] else refused)[stamp] = why
                    else:
                        images[place] = pixels
                    progress.update()
                if not index.source.exists():
                    raise DataError(f"'{index.source}' vanished while its images were read.")
                done = rows["stamp"] > 0
                if done.any():
                    folder.write(images[done], rows[done], reasons)
    finally:
        decoders.shutdown(cancel_futures=True)
    folder.refresh()
    return refused


def _read_row(index, config, ranges, row):
    """`(ROW values, pixels or None, reason or None)` of a file; stamp 0 if the disk refused it."""
    stamp, digest = int(index.stamps[row]), 0
    try:
        data = read_bytes(index.source, index.names[row])
        digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        pixels, kind = decode(data, config, ranges)
        return (stamp, digest, kind.encode()), pixels, None
    except OSError as error:
        return (0, 0, b""), None, say_why(error)
    except Exception as error:  # the image, the zip
        return (stamp, digest, b""), None, say_why(error)


def _settle_ranges(folder, index, decoders):
    """Mode -> (low, high) over all images; all are decoded anew where new ones reach further."""

    def look(rows):
        found = {}
        for ranges in decoders.map(functools.partial(_measure_row, index), rows):
            _widen(found, ranges)
        return found

    missing = np.flatnonzero(folder.find(index.stamps)[0] < 0)
    some = np.linspace(0, len(missing) - 1, min(len(missing), LOOKED_AT)).astype(int)
    found = look(missing) if look(missing[some]) else {}
    ranges = _widen(dict(folder.ranges), found)
    if ranges != folder.ranges:
        folder.remove(folder.tables)
        folder.write_ranges(ranges)
        for mode, (low, high) in ranges.items():
            said = f"The numbers of {mode} images lie in {low:g}..{high:g}, read as 0..255."
            print(said, file=sys.stderr)
    return ranges


def _measure_row(index, row):
    try:
        return measure(read_bytes(index.source, index.names[row]))
    except (OSError, ValueError):  # decoding names it
        return {}


def _widen(ranges, others):
    """Ranges widened, in place, to hold others too."""
    for mode, (low, high) in others.items():
        lowest, highest = ranges.get(mode, (low, high))
        ranges[mode] = [min(low, lowest), max(high, highest)]
    return ranges
