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

from pipeline.image_index import DataError, read_bytes
from pipeline.reading import decode, say_why
from pipeline.shards import ROW, FarShards, ShardFolder, Shards

VERSION = 4  # part of the key: raise it when decode() changes its result
CHUNK, RUN = 16, 32  # images that a thread decodes at a time; images of one class side by side
ELSEWHERE = "~/.cache/siamese_networks"  # where a cache_dir is not for writing
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
LOCK_SECONDS = 3600  # that a run waits for another one decoding the same images


@dataclasses.dataclass
class ImageCache:
    """Decoded images, row by row as in the index.

    Attributes:
        folder: Where the cache lies.
        pixels: `Shards` of (images, height, width, channels); zeros where unreadable.
        rows: Array of `shards.ROW`; the kind is empty where unreadable.
        unreadable: Row -> reason.
    """

    folder: Path
    pixels: Shards
    rows: np.ndarray
    unreadable: dict

    @property
    def digests(self):
        """uint64 array, equal for files of equal content."""
        return self.rows["digest"]

    @property
    def kinds(self):
        """ "256x256 RGB" -> number of files, before decoding, the commonest first."""
        kinds = Counter(self.rows["kind"].tolist())
        return {kind.decode(): count for kind, count in kinds.most_common() if kind}


def open_cache(index, config):
    """Opens the decoded images of an index, decoding first those that were not decoded before.

    Args:
        index: An `ImageIndex`.
        config: A `Config`: `cache_dir`, `image_size`, `channels`, `on_bad_image`.

    Returns:
        An `ImageCache`.

    Raises:
        DataError: If the cache cannot be reached or written, no image is readable, or one is not
            and `on_bad_image` is "error".
    """
    settings = [VERSION, str(index.source.resolve()), config.image_shape, config.fit, config.ink]
    key = hashlib.blake2b(json.dumps(settings).encode(), digest_size=6).hexdigest()
    path = f"{config.cache_dir.rstrip('/')}/{index.source.stem[:40]}-{key}"
    try:
        folder, refused = _folder(path, config), {}
        shards, places, rows = folder.find(index.stamps)
        if (shards < 0).any():
            # Shards are named by their content: far away, two at once only do the work twice.
            with contextlib.nullcontext() if folder.is_far else one_at_a_time(path):
                refused = _decode_missing(folder, index, config)
            shards, places, rows = folder.find(index.stamps)
    except OSError as error:
        elsewhere = str(Path(ELSEWHERE).expanduser())
        if error.errno in READ_ONLY and config.cache_dir != elsewhere:
            said = f"cache_dir '{config.cache_dir}' is not for writing ({say_why(error)})"
            print(f"{said}: decoded images go to '{elsewhere}'.", file=sys.stderr)
            return open_cache(index, dataclasses.replace(config, cache_dir=elsewhere))
        raise DataError(
            f"The cache '{path}' cannot be written: {say_why(error)}. "
            "Make room or set another cache_dir."
        ) from error
    stamps = index.stamps[rows["kind"] == b""].tolist()
    unreadable = dict(zip(np.flatnonzero(rows["kind"] == b"").tolist(), stamps, strict=True))
    unreadable = {row: folder.reasons.get(s) or refused[s] for row, s in unreadable.items()}
    if unreadable and (config.on_bad_image == "error" or len(unreadable) == len(index)):
        row, reason = next(iter(unreadable.items()))
        raise DataError(
            f"{len(unreadable)} of {len(index)} images cannot be read. First: "
            f"'{index.names[row]}': {reason}. Remove them or set on_bad_image='skip'."
        )
    pixels = (FarShards if folder.is_far else Shards)(folder, shards, places)
    return ImageCache(Path(path), pixels, rows, unreadable)


def _folder(path, config):
    try:
        return ShardFolder(path, config.image_shape)
    except (ImportError, ValueError) as error:  # what fsspec says of a URL that it cannot follow
        raise DataError(f"cache_dir '{config.cache_dir}' cannot be reached: {error}") from error


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


def _decode_missing(folder, index, config):
    """Decodes, shard by shard, what the folder lacks.

    Returns:
        Stamp -> reason of what the disk refused to read: it is tried again the next time.
    """
    missing = _in_runs(folder.make_room(index.stamps), index)
    # Pillow frees the other cores while it decodes and resizes; one thread more hides the rest.
    refused, decoders = {}, concurrent.futures.ThreadPoolExecutor(os.cpu_count() + 1)
    writer, written = concurrent.futures.ThreadPoolExecutor(1), None
    try:
        with tqdm(total=len(missing), desc="decoding images", unit="image", delay=0.5) as progress:
            for part in _parts(missing, folder.images_per_shard):
                images = np.zeros((len(part), *folder.image_shape), np.uint8)
                rows, reasons = np.zeros(len(part), ROW), {}
                decode_some = functools.partial(_decode_some, index, config, part, images, rows)
                places = _parts(range(len(part)), CHUNK)
                for bad, by_disk, count in decoders.map(decode_some, places):
                    reasons |= bad
                    refused |= by_disk
                    progress.update(count)
                if not index.source.exists():
                    raise DataError(f"'{index.source}' vanished while its images were read.")
                if written:
                    written.result()
                done = rows["stamp"] > 0
                if done.any():  # written while the next ones are decoded
                    written = writer.submit(folder.write, images[done], rows[done], reasons)
            if written:
                written.result()
    finally:
        decoders.shutdown(cancel_futures=True)
        writer.shutdown()
    folder.refresh()
    return refused


def _in_runs(missing, index):
    """Rows in the order of the shards: a few of one class, a few of another, in any order.

    So that any few shards hold many classes, and more than one image of each.
    """
    # Images of a given pair belong together; elsewhere those of a class do.
    kind = index.labels if index.pairs is None else index.groups
    ordered = missing[np.argsort(kind[missing], kind="stable")]
    first = np.flatnonzero(np.diff(kind[ordered], prepend=-1))
    place = np.arange(len(ordered)) - np.repeat(first, np.diff(first, append=len(ordered)))
    starts = np.flatnonzero(place % RUN == 0)
    runs = np.split(ordered, starts[1:])
    return np.concatenate([runs[n] for n in np.random.default_rng(0).permutation(len(runs))])


def _decode_some(index, config, part, images, rows, places):
    """Decodes files into their places; returns stamp -> reason twice, by image and disk; count."""
    bad, by_disk = {}, {}
    for place in places:
        row, stamp = part[place], int(index.stamps[part[place]])
        try:
            data = read_bytes(index.source, index.names[row])
            digest = hashlib.blake2b(data, digest_size=8).digest()
            rows[place] = stamp, int.from_bytes(digest, "little"), b""
            images[place], rows[place]["kind"] = decode(data, config)
        except OSError as error:
            rows[place], by_disk[stamp] = np.zeros((), ROW), say_why(error)
        except Exception as error:  # the image, the zip
            rows[place]["stamp"], bad[stamp] = stamp, say_why(error)
    return bad, by_disk, len(places)


def _parts(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]
