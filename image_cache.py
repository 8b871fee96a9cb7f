"""Every image decoded once: files -> one row each of a memory-mapped uint8 array on disk."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import glob
import hashlib
import io
import json
import math
import os
import shutil
import socket
import sys
import warnings
from collections import Counter
from pathlib import Path

import filelock
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from image_index import DataError, read_bytes

VERSION = 2  # part of the key: raise it when decode() changes its result
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others could start programs
DEEP_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
ROW = np.dtype([("stamp", "u8"), ("digest", "u8"), ("kind", "S24")])  # stamp 0: no pixels (yet)
CHUNK, PART = 64, 16_384  # images that a thread decodes at a time; after which progress is kept
PIXELS, ROWS, FACTS = "pixels.npy", "rows.npy", "facts.json"  # the files of a cache
NEW_ROWS = "new-rows.npy"  # on its way to be the rows
ELSEWHERE = "~/.cache/siamese_networks"  # where a cache_dir is not for writing
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
LOCK_SECONDS = 3600  # that a run waits for another one decoding the same images

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode() refuses, not warns


class BadImage(ValueError):
    """A file that cannot be read as an image; the message is the reason."""


@dataclasses.dataclass
class ImageCache:
    """Decoded images, row by row as in the index.

    Attributes:
        folder: Where the cache lies.
        pixels: uint8 array (images, size, size, channels), memory-mapped; zeros where unreadable.
        rows: Array of `ROW`, memory-mapped.
        unreadable: Row -> reason.
    """

    folder: Path
    pixels: np.ndarray
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


def decode(data, image_size, channels):
    """Turns the bytes of an image file into pixels, upright and of one size.

    The first frame counts; transparency is laid on white; 16-bit grey is scaled to 8;
    an oblong image is stretched to the square.

    Args:
        data: Bytes of the file.
        image_size: Height and width of the result in pixels.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        `(pixels, kind)`: uint8 array (image_size, image_size, channels), and size and mode of
        the original, as "256x256 RGB".

    Raises:
        BadImage: With the reason, whatever is wrong with the file. More than 89 million pixels
            are refused (Pillow's guard against decompression bombs).
    """
    if not data:
        raise BadImage("empty file")
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise BadImage(f"a decompression bomb of {image.width}x{image.height} pixels")
            kind = f"{image.width}x{image.height} {image.mode}"
            image.draft(mode, (image_size, image_size))  # JPEG decodes straight to 1/2, 1/4, 1/8
            ImageOps.exif_transpose(image, in_place=True)
            upright = _to_eight_bits(image).convert(mode)
            small = upright.resize((image_size, image_size), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's readers raise nearly anything on a broken file
        raise BadImage(_reason(error)) from error
    return np.asarray(small).reshape(image_size, image_size, channels), kind


def _to_eight_bits(image):
    """Deep grey scaled to 0..255, transparency laid on white."""
    if image.mode in DEEP_GREY_MODES:
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        scale = 255 if values.max() <= 1 else 1
        return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _reason(error):
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return getattr(error, "strerror", None) or str(error).strip().rstrip(".") or repr(error)


def open_cache(index, config):
    """Opens the decoded images of an index, decoding first what was not decoded before.

    Rows of an earlier cache of the same source are taken over where files are unchanged.

    Args:
        index: An `ImageIndex`.
        config: A `Config`: `cache_dir`, `image_size`, `channels`, `on_bad_image`.

    Returns:
        An `ImageCache`.

    Raises:
        DataError: If the cache cannot be written, no image is readable, or one is not and
            `on_bad_image` is "error".
    """
    settings = [VERSION, str(index.source.resolve()), config.image_size, config.channels]
    source = f"{index.source.stem[:40]}-{_hash(json.dumps(settings).encode())}"
    folder = Path(config.cache_dir) / f"{source}-{_hash(index.stamps.tobytes())}"
    try:
        if _must_build(folder):
            with one_at_a_time(folder.parent / source):
                if _must_build(folder):  # no other process did it meanwhile
                    _build(folder, index, config)
        facts = json.loads((folder / FACTS).read_text())
    except OSError as error:
        elsewhere = str(Path(ELSEWHERE).expanduser())
        if error.errno in READ_ONLY and config.cache_dir != elsewhere:
            said = f"cache_dir '{config.cache_dir}' is not for writing ({_reason(error)})"
            print(f"{said}: decoded images go to '{elsewhere}'.", file=sys.stderr)
            return open_cache(index, dataclasses.replace(config, cache_dir=elsewhere))
        raise DataError(
            f"The cache '{folder}' cannot be written: {_reason(error)}. "
            "Make room or set another cache_dir."
        ) from error
    unreadable = {int(row): reason for row, reason in facts["unreadable"].items()}
    if unreadable and (config.on_bad_image == "error" or len(unreadable) == len(index)):
        row, reason = next(iter(unreadable.items()))
        raise DataError(
            f"{len(unreadable)} of {len(index)} images cannot be read. First: "
            f"'{index.names[row]}': {reason}. Remove them or set on_bad_image='skip'."
        )
    return ImageCache(folder, *_arrays(folder), unreadable)


def _hash(content):
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def _arrays(folder):
    return [np.load(folder / name, mmap_mode="r") for name in (PIXELS, ROWS)]


def _must_build(folder):
    """Whether there is no whole cache, or one that lacks what a disk refused to read."""
    facts = folder / FACTS
    return not facts.exists() or json.loads(facts.read_text())["retry"]


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


def _build(folder, index, config):
    """Decodes into a folder beside, which a killed run leaves to the next, and renames it whole."""
    partial, source = Path(f"{folder}.partial"), folder.name.rpartition("-")[0]
    older = [path for path in folder.parent.glob(f"{glob.escape(source)}-*") if path != partial]
    try:
        rows = _begin(partial, index, config, older)
        errors = _decode_missing(partial, rows, index, config)
        if not index.source.exists():
            raise DataError(f"'{index.source}' vanished while its images were read.")
        retry = any(by_disk for _, by_disk in errors.values())
        unreadable = {row: reason for row, (reason, _) in sorted(errors.items())}
        (partial / FACTS).write_text(json.dumps({"unreadable": unreadable, "retry": retry}))
        _flush(partial / ROWS, partial / FACTS)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # of no use on a full disk
        raise
    for path in older:
        shutil.rmtree(path)
    os.rename(partial, folder)


def _begin(partial, index, config, older):
    """The rows that are done: by a killed run, or in older caches, whose pixels are copied."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return np.load(partial / ROWS)
    partial.mkdir(exist_ok=True)
    shape = (len(index), config.image_size, config.image_size, config.channels)
    needed, free = math.prod(shape), shutil.disk_usage(partial).free
    if needed > free:
        raise OSError(f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB free")
    np.lib.format.open_memmap(partial / PIXELS, "w+", np.uint8, shape)
    rows = np.zeros(len(index), ROW)
    for path in older:
        with contextlib.suppress(FileNotFoundError, ValueError):
            pixels, known = _arrays(path)
            _, theirs, ours = np.intersect1d(known["stamp"], index.stamps, return_indices=True)
            order = np.argsort(ours)
            for part in _parts(order, CHUNK):
                _write_rows(partial / PIXELS, ours[part], pixels[theirs[part]])
                rows[ours[part]] = known[theirs[part]]
    return rows


def _decode_missing(partial, rows, index, config):
    """Decodes with a thread a core: Pillow frees the others while it decodes and resizes."""
    missing, errors = np.flatnonzero(rows["stamp"] != index.stamps), {}
    decode_rows = functools.partial(_decode_rows, partial / PIXELS, index, config)
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        with tqdm(total=len(missing), desc="decoding images", unit="image", delay=0.5) as progress:
            for part in _parts(missing, PART) or [missing]:  # once at least, to note copied rows
                for chunk, done, failed in pool.map(decode_rows, _parts(part, CHUNK)):
                    rows[chunk] = done
                    errors |= failed
                    progress.update(len(chunk))
                _flush(partial / PIXELS)  # first, so that rows noted as done are
                np.save(partial / NEW_ROWS, rows)
                os.replace(partial / NEW_ROWS, partial / ROWS)
    finally:
        pool.shutdown(cancel_futures=True)
    return errors


def _decode_rows(path, index, config, chunk):
    """Decodes some files into their rows; returns these, and row -> (reason, by the disk?)."""
    images = np.zeros((len(chunk), config.image_size, config.image_size, config.channels), np.uint8)
    done, errors = np.zeros(len(chunk), ROW), {}
    for at, row in enumerate(chunk.tolist()):
        try:
            data = read_bytes(index.source, index.names[row])
            images[at], kind = decode(data, config.image_size, config.channels)
            digest = hashlib.blake2b(data, digest_size=8).digest()
            done[at] = index.stamps[row], int.from_bytes(digest, "little"), kind
        except Exception as error:  # the image, the disk, the zip
            errors[row] = _reason(error), isinstance(error, OSError)
    _write_rows(path, chunk, images)
    return chunk, done, errors


def _write_rows(path, rows, images):
    """Writes images into their rows; on a full disk, a memory map would end the process."""
    start = np.load(path, mmap_mode="r").offset
    with open(path, "r+b") as file:
        for row, image in zip(rows.tolist(), images, strict=True):
            file.seek(start + row * image.nbytes)
            file.write(image)


def _parts(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _flush(*paths):
    for path in paths:
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
