"""The files of a folder or zip: which there are, and their bytes. Nothing of classes here."""

import functools
import hashlib
import lzma
import os
import re
import stat
import zipfile
import zlib
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".jpe", ".jp2", ".avif", ".heic", ".heif"),
)
SYSTEM_FOLDERS = {  # that systems make: thumbnails, recycle bins, what a disk check found
    *("@eadir", "#recycle", "$recycle.bin", "lost+found", "__macosx", "system volume information"),
    *(".thumbnails", "thumbs", "@tmp"),
}
MAX_FILE_BYTES = 200_000_000  # a larger file is no photograph; it is skipped, and said
TOO_LARGE = f"larger than {MAX_FILE_BYTES // 10**6} MB"


class DataError(ValueError):
    """The data cannot be used as it is; the message says what was found and how to mend it."""


def list_files(source):
    """All files of a folder or zip: name -> (size, time or checksum).

    Raises:
        DataError: If it is neither.
    """
    return {name: (size, time) for name, size, time in walk(Path(source), {})}


def read_bytes(source, name):
    """The bytes of one file of an index.

    Raises:
        OSError: If it cannot be read.
        DataError: If it is too large, or a damaged member of a zip.
    """
    source = Path(source)
    if source.is_dir() or source.suffix.lower() == ".csv":
        path = (source if source.is_dir() else source.parent) / name
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(TOO_LARGE)
        return path.read_bytes()
    archive = _open_zip(source, os.getpid(), source.stat().st_mtime_ns)
    try:
        if archive.getinfo(name).file_size > MAX_FILE_BYTES:  # it unpacks to no more than that
            raise DataError(TOO_LARGE)
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"damaged in the zip: {error}") from error
    except (RuntimeError, KeyError) as error:  # encrypted, packed in an unknown way, gone
        raise DataError(f"cannot be unpacked: {error.args[0]}") from error


@functools.lru_cache(maxsize=4)
def _open_zip(path, process, time):  # a forked process must not share the file position
    return zipfile.ZipFile(path)


def walk(source, skipped):
    """Yields `(name, size, time or checksum)` of every file of a folder or zip but hidden ones."""
    if source.is_dir():
        yield from _walk_folder(source, skipped)
        return
    try:
        with zipfile.ZipFile(source) as archive:
            members = {member.filename: member for member in archive.infolist()}
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(
            f"data_dir must be a folder, a .zip or a .csv. Received: '{source}'."
        ) from error
    for name, member in members.items():
        hidden = re.search(r"(^|/)\.[^/.]", name)
        if member.is_dir() or hidden or SYSTEM_FOLDERS & {*name.lower().split("/")[:-1]}:
            continue
        if member.file_size > MAX_FILE_BYTES:
            skipped[name] = TOO_LARGE
            continue
        yield name, member.file_size, member.CRC


def _walk_folder(root, skipped):
    """As `walk`; links are followed, and a folder that is met again is left out."""

    def skip(error):
        skipped[os.path.relpath(error.filename, root)] = error.strerror

    seen = set()
    for path, folders, files in os.walk(root, onerror=skip, followlinks=True):
        folder, status = Path(path).relative_to(root).as_posix(), os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            skipped[folder] = "a link to a folder that was read already"
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if {"config.json", "environment.json"} <= {*files}:
            skipped[folder] = "a run directory of this package"
            folders.clear()
            continue
        systems = [name for name in folders if name.lower() in SYSTEM_FOLDERS]
        skipped |= {f"{folder}/{name}".removeprefix("./"): "made by the system" for name in systems}
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in systems
        )
        if not folders and not any(name.lower().endswith(IMAGE_SUFFIXES) for name in files):
            skipped[folder] = "a folder without images"
        for file in files:
            name = file if folder == "." else f"{folder}/{file}"
            found = None if file.startswith(".") else file_status(root, name, skipped)
            if found:
                yield name, *found


def file_status(root, name, skipped):
    """`(size, time)` of a file, or None, with the reason noted, where it cannot be used."""
    try:
        name.encode()
        status = os.stat(os.path.join(root, name))
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
            return status.st_size, status.st_mtime_ns
        reason = TOO_LARGE if stat.S_ISREG(status.st_mode) else "not a file"
    except OSError as error:  # a link to nowhere, or to itself
        reason = error.strerror
    except ValueError:
        reason = "its name is not UTF-8"
    skipped[name.encode(errors="backslashreplace").decode()] = reason
    return None


def file_stamp(name, size, time):
    content = f"{name}\0{size}\0{time}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
