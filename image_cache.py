"""Every image decoded once: files -> one row each of a memory-mapped uint8 array on disk."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from image_index import DataError, read_bytes

VERSION = 1  # part of the key: raise it when decode() changes its result
FEW_FILES = 4000  # up to here, starting processes costs more than it saves
DEEP_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class BadImage(ValueError):
    """A file that cannot be read as an image; the message is the reason."""


@dataclasses.dataclass
class ImageCache:
    """Decoded images, row by row as in the index.

    Attributes:
        folder: Where the cache lies.
        pixels: uint8 array (images, size, size, channels), memory-mapped; zeros where unreadable.
        digests: uint64 array, equal for files of equal content.
        unreadable: Row -> reason.
        kinds: "256x256 RGB" -> number of files, before decoding.
    """

    folder: Path
    pixels: np.ndarray
    digests: np.ndarray
    unreadable: dict
    kinds: dict


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
    mode = "L" if channels == 1 else "RGB"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        with image:
            kind = f"{image.width}x{image.height} {image.mode}"
            image.draft(mode, (image_size, image_size))  # JPEG decodes straight to 1/2, 1/4, 1/8
            upright = _to_eight_bits(ImageOps.exif_transpose(image)).convert(mode)
            small = upright.resize((image_size, image_size), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's readers raise nearly anything on a broken file
        raise BadImage(_reason(data, error)) from error
    return np.asarray(small).reshape(image_size, image_size, channels), kind


def _to_eight_bits(image):
    """Deep grey scaled to 0..255, transparency laid on white."""
    if image.mode in DEEP_GREY_MODES:
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        return Image.fromarray(
            (values * (255 if values.max() <= 1 else 1)).clip(0, 255).astype("u1")
        )
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _reason(data, error):
    if not data:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return str(error).strip().rstrip(".") or type(error).__name__


def open_cache(index, config):
    """Opens the decoded images of an index, decoding them first where that was not done before.

    Args:
        index: An `ImageIndex`.
        config: A `Config`: `cache_dir`, `image_size`, `channels`, `on_bad_image`.

    Returns:
        An `ImageCache`.

    Raises:
        DataError: If an image is unreadable and `on_bad_image` is "error", or none is readable.
    """
    folder = Path(config.cache_dir) / f"{index.source.stem}-{_key(index, config)}"
    if not (folder / "facts.json").exists():
        _build(folder, index, config)
    facts = json.loads((folder / "facts.json").read_text())
    unreadable = {int(row): reason for row, reason in facts["unreadable"].items()}
    if unreadable and (config.on_bad_image == "error" or len(unreadable) == len(index)):
        row, reason = next(iter(unreadable.items()))
        raise DataError(
            f"{len(unreadable)} of {len(index)} images cannot be read. First: "
            f"'{index.names[row]}': {reason}. Remove them or set on_bad_image='skip'."
        )
    return ImageCache(
        folder=folder,
        pixels=np.load(folder / "pixels.npy", mmap_mode="r"),
        digests=np.load(folder / "digests.npy"),
        unreadable=unreadable,
        kinds=facts["kinds"],
    )


def _key(index, config):
    """Changes when a file comes, goes or changes, or when it is to be decoded otherwise."""
    settings = [VERSION, str(index.source.resolve()), config.image_size, config.channels]
    content = json.dumps([settings, index.names, index.stamps])
    return hashlib.blake2b(content.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()


def _build(folder, index, config):
    """Decodes into a folder beside, and renames it when it is whole."""
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    _remove_dead(folder)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        shape = (len(index), config.image_size, config.image_size, config.channels)
        pixels_path = partial / "pixels.npy"
        np.lib.format.open_memmap(pixels_path, "w+", np.uint8, shape).flush()
        digests = np.zeros(len(index), dtype=np.uint64)
        unreadable, kinds = {}, Counter()
        with tqdm(total=len(index), desc="decoding images", unit="image", delay=0.5) as progress:
            for first, chunk_digests, chunk_unreadable, chunk_kinds in _decode_all(
                pixels_path, index, config
            ):
                digests[first : first + len(chunk_digests)] = chunk_digests
                unreadable.update(chunk_unreadable)
                kinds.update(chunk_kinds)
                progress.update(len(chunk_digests))
        np.save(partial / "digests.npy", digests)
        facts = {"unreadable": dict(sorted(unreadable.items())), "kinds": dict(kinds.most_common())}
        (partial / "facts.json").write_text(json.dumps(facts))
        with contextlib.suppress(OSError):  # another run may have been faster
            os.rename(partial, folder)
        if not (folder / "facts.json").exists():
            raise DataError(f"The cache '{folder}' cannot be written. Set another cache_dir.")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_dead(folder):
    """Removes what killed processes left half written."""
    for partial in folder.parent.glob(f"{folder.name}.partial-*"):
        try:
            os.kill(int(partial.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(partial, ignore_errors=True)
        except PermissionError:
            pass  # alive, and somebody else's


def _decode_all(pixels_path, index, config):
    """Yields each chunk's result as it is done, on all cores."""
    size = max(1, min(256, len(index) // 32))
    chunks = [
        (pixels_path, index.source, first, index.names[first : first + size])
        for first in range(0, len(index), size)
    ]
    if len(index) <= FEW_FILES:
        yield from (_decode_chunk(*chunk) for chunk in chunks)
        return
    processes = multiprocessing.get_context("spawn")  # forking a process with threads can hang
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), processes) as pool:
        waiting = [pool.submit(_decode_chunk, *chunk) for chunk in chunks]
        try:
            for done in concurrent.futures.as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode_chunk(pixels_path, source, first, names):
    """Decodes some files into their rows; returns what was learned of them."""
    pixels = np.load(pixels_path, mmap_mode="r+")
    digests, unreadable, kinds = [], {}, Counter()
    for row, name in enumerate(names, first):
        data = b""
        try:
            data = read_bytes(source, name)
            pixels[row], kind = decode(data, pixels.shape[1], pixels.shape[3])
            kinds[kind] += 1
        except BadImage as error:
            unreadable[row] = str(error)
        except Exception as error:  # the disk, the zip
            unreadable[row] = _reason(b"?", error)
        digest = hashlib.blake2b(data, digest_size=8).digest()
        digests.append(int.from_bytes(digest, "little"))
    return first, digests, unreadable, kinds
