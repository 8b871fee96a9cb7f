"""The files of a folder or zip: which there are, which are images, and their bytes."""

import functools
import hashlib
import itertools
import lzma
import os
import posixpath
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path, PurePosixPath

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".jpe", ".jp2", ".avif", ".heic", ".heif"),
)
IMAGE_START = re.compile(  # JPEG, PNG, GIF, BMP, TIFF, WebP, HEIC and AVIF, JPEG 2000, PNM
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0\0\0\0|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|"
    rb"....ftyp(hei|hev|mif|msf|avi)|\0\0\0\x0cjP  |\xff\x4f\xff\x51|P([1-6]|f|F)\s",
    re.DOTALL,
)
SYSTEM_FOLDER = re.compile(  # that systems make: thumbnails, recycle bins, what a disk check found
    r"@eadir|@tmp|@recycle|[@#]recently-snapshot|@sharebin|#recycle|#snapshot|\$recycle\.bin|"
    r"recycler|lost\+found|found\.\d{3}|__macosx|__pycache__|system volume information|"
    r"network trash folder|temporary items|_?thumb(nail)?s"
)
OWN_FOLDERS = {  # by what lies in them
    ("config.json", "environment.json"): "a run directory of this package",
    ("CACHEDIR.TAG",): "a cache",
}
CONTACT_SHEET = "contact_sheet.png"
TABLES = (".csv", ".tsv", ".txt")  # that name images beside them
MOST_TABLES = 20  # that are looked into, in a folder of images
ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz")
MENDED = {  # what else people give, and how it can be read
    **dict.fromkeys(ARCHIVES[1:], "Unpack it, and give the folder"),
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".json", ".jsonl"), "Save the table as a .csv"),
    **dict.fromkeys(
        (".npz", ".npy", ".h5", ".hdf5", ".mat", ".pkl", ".parquet"),
        "Load it in Python, and give train() images and labels",
    ),
}
MAX_FILE_BYTES = 200_000_000  # a larger file is no photograph; it is skipped, and said
TOO_LARGE = f"larger than {MAX_FILE_BYTES // 10**6} MB"
BROKEN_ZIP = (zipfile.BadZipFile, UnicodeDecodeError, EOFError, struct.error, NotImplementedError)


class DataError(ValueError):
    """The data cannot be used as it is; the message says what was found and how to mend it."""


def find_images(source, skipped):
    """The image files, by suffix or first bytes, of a folder or zip: sorted name -> `file_stamp`.

    `skipped` is a dict that gains every other file, or the folder that it lies in -> reason.

    Raises:
        DataError: If the source is neither a folder nor a zip.
    """
    files = list_files(source, skipped)
    skipped |= {name: reason for name in files if (reason := _why_no_image(source, name))}
    return {name: files[name] for name in sorted(files) if name not in skipped}


def list_files(source, skipped=None):
    """As `find_images`, of every kind: not hidden, not made by systems or this package."""
    source, skipped = Path(source), {} if skipped is None else skipped
    entries = (_folder_entries if source.is_dir() else _zip_entries)(source, skipped)
    folders, kept = {folder_of(name) for name in entries}, {}
    own = {
        folder: reason
        for folder, (marks, reason) in itertools.product(folders, OWN_FOLDERS.items())
        if all(f"{folder}/{mark}".lstrip("/") in entries for mark in marks)
    }
    left_out = {folder: _why_no_data(folder, own) for folder in folders}
    for name, stamp in entries.items():
        folder, _, file = name.rpartition("/")
        if left_out[folder]:
            place, skipped[place] = left_out[folder]
        elif file.startswith("."):
            skipped[name] = "hidden"
        elif file == CONTACT_SHEET:
            skipped[name] = "a contact sheet of this package"
        else:
            kept[name] = stamp
    return kept


def read_bytes(source, name, count=-1):
    """The bytes of one file of an index, or the first `count` of them.

    Raises:
        OSError: If it cannot be read.
        DataError: If it is too large, or a damaged member of a zip.
    """
    source = Path(source)
    if source.is_dir() or source.suffix.lower() in TABLES:
        path = existing(source if source.is_dir() else source.parent, name)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(TOO_LARGE)
        with open(path, "rb") as file:
            return file.read(count)
    archive, members, _ = _open_zip(source, os.getpid(), source.stat().st_mtime_ns)
    try:
        if members[name].file_size > MAX_FILE_BYTES:  # it unpacks to no more than that
            raise DataError(TOO_LARGE)
        with archive.open(members[name]) as file:
            return file.read(count)
    except (zlib.error, lzma.LZMAError, *BROKEN_ZIP) as error:
        raise DataError(f"damaged in the zip: {error}") from error
    except (RuntimeError, KeyError) as error:  # encrypted, packed in an unknown way, gone
        raise DataError(f"cannot be unpacked: {error.args[0]}") from error


def by_reason(skipped, most_named):
    """Lines as `2 x hidden: .a.png, .b.png` of what was skipped, the commonest reason first."""
    names_of = defaultdict(list)
    for name, reason in skipped.items():
        names_of[reason].append(name)
    ordered = sorted(names_of.items(), key=lambda item: -len(item[1]))
    return [f"{len(names)} x {reason}: {some(names, most_named)}" for reason, names in ordered]


def tables_in(skipped):
    """What to do where a table among the other files may say what the images show."""
    tables = _tables(skipped)
    said = f" If a table ({some(tables)}) says what they show, give that as data_dir, unpacked."
    return said if tables else ""


def tables_of(source, names, skipped):
    """A remark on each table among the other files that names most of some images."""
    tables = _tables(skipped)
    stems = {PurePosixPath(name).stem for name in names} if tables else ()
    for table in [name for name in tables if PurePosixPath(name).stem not in stems][:MOST_TABLES]:
        try:
            words = re.split(r"[\s,;|/\\\"]+", read_bytes(source, table).decode("utf-8", "ignore"))
        except (OSError, DataError):
            continue
        there = stems & {word.rpartition(".")[0] or word for word in words}
        if 2 * len(there) > len(stems):
            yield (
                f"'{table}' names {len(there)} of the images. If it says what they show, give "
                "it as data_dir, unpacked: folders count here."
            )


def _tables(names):
    """Which files may be tables, those of text alone last."""
    tables = [name for name in sorted(names) if name.lower().endswith(TABLES)]
    tables = [name for name in tables if not re.search("readme|licen[cs]e", name, re.I)]
    return sorted(tables, key=lambda name: name.lower().endswith(".txt"))


def folder_of(name):
    """The folder that a file lies in, "" for none."""
    return name.rpartition("/")[0]


def stem_of(name):
    """A file's own name without its suffix."""
    return name.rpartition("/")[2].rpartition(".")[0]


def some(names, most=3):
    """The first few of a list of names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@functools.lru_cache(maxsize=4)
def _open_zip(path, process, time):  # a forked process must not share the file position
    """`(archive, name -> member, member -> reason)`; of two members of a name the last counts."""
    try:
        if mended := MENDED.get(path.suffix.lower()):  # some of these are zips, too
            raise zipfile.BadZipFile(mended)
        try:
            archive = zipfile.ZipFile(path, metadata_encoding="utf-8")
        except UnicodeDecodeError:  # cp437; programs of macOS write UTF-8 and do not say so
            archive = zipfile.ZipFile(path)
    except BROKEN_ZIP as error:
        raise DataError(
            f"data_dir must be a folder, a .zip or a .csv. Received: '{path}' ({error})."
        ) from error
    members, skipped = {}, {}
    for number, member in reversed([*enumerate(archive.infolist(), 1)]):
        slashed = member.filename.replace("\\", "/")
        name = posixpath.normpath(f"/{slashed}").lstrip("/")  # without `.`, `..`, leading slashes
        is_folder = slashed.endswith("/") and not member.file_size
        if name and not is_folder and members.setdefault(name, member) is not member:
            skipped[f"{member.filename} (member {number})"] = "a later member has the same name"
    return archive, members, skipped


def _zip_entries(path, skipped):
    """Name -> stamp of the members of a zip that can be used."""
    _, members, doubled = _open_zip(path, os.getpid(), path.stat().st_mtime_ns)
    large = [name for name, member in members.items() if member.file_size > MAX_FILE_BYTES]
    skipped |= doubled | dict.fromkeys(large, TOO_LARGE)
    return {
        name: _stamp(name, member.file_size, member.CRC)
        for name, member in members.items()
        if name not in skipped
    }


def _folder_entries(root, skipped):
    """As `_zip_entries`; links are followed, and a folder that is met again is left out."""

    def skip(error):
        skipped[os.path.relpath(error.filename, root)] = error.strerror

    entries, seen = {}, {}
    for path, folders, files in os.walk(root, onerror=skip, followlinks=True):
        folder, status = Path(path).relative_to(root).as_posix(), os.stat(path)
        if seen.setdefault((status.st_dev, status.st_ino), folder) != folder:
            first = seen[status.st_dev, status.st_ino]
            skipped[folder] = f"the same folder as '{first}', which was read"
            folders.clear()
            continue
        before = "" if folder == "." else f"{folder}/"
        skipped |= {before + n: why[1] for n in folders if (why := _why_no_data(n, {}))}
        folders[:] = sorted(name for name in folders if before + name not in skipped)
        entries |= {before + name: file_stamp(root, before + name, skipped) for name in files}
    return {name: stamp for name, stamp in entries.items() if stamp}


def _why_no_data(folder, own):
    """`(folder, reason)` of the outermost folder on a path that holds no data, or None."""
    for place in ("", *itertools.accumulate(folder.split("/"), "{}/{}".format)):
        name = place.rpartition("/")[2].lower()
        if name.startswith("."):
            return place, "hidden"
        if SYSTEM_FOLDER.fullmatch(name):
            return place, "made by the system"
        if place in own:
            return place or ".", own[place]
    return None


def _why_no_image(source, name):
    """ "" for an image, else the reason."""
    if name.lower().endswith(IMAGE_SUFFIXES):
        return ""
    try:
        start = read_bytes(source, name, 32)
    except OSError as error:
        return error.strerror
    except DataError as error:
        return str(error)
    suffix = PurePosixPath(name).suffix.lower() or "no suffix"
    if suffix in ARCHIVES:
        return f"an archive ({suffix}): unpack it, or give a .zip itself as data_dir"
    return "" if IMAGE_START.match(start) else f"not an image ({suffix})"


def file_stamp(root, name, skipped):
    """uint64 that changes with a file's name, size or time; None, and why, where it is no use."""
    try:
        name.encode()
        status = os.stat(existing(root, name))
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
            return _stamp(name, status.st_size, status.st_mtime_ns)
        reason = TOO_LARGE if stat.S_ISREG(status.st_mode) else "not a file"
    except OSError as error:  # a link to nowhere, or to itself
        reason = error.strerror
    except ValueError:
        reason = "its name is not UTF-8"
    skipped[name] = reason
    return None


def existing(root, name):
    """Path of a file, whose name may be written in composed or in decomposed letters."""
    path = Path(root, name)
    if name.isascii() or os.path.lexists(path):
        return path
    path = Path(root)
    for part in PurePosixPath(name).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        path = next((path / form for form in forms if os.path.lexists(path / form)), path / part)
    return path


def _stamp(name, size, time):
    content = f"{name}\0{size}\0{time}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
