"""Which images there are and what they show: folder, zip or CSV -> ImageIndex. No pixels here."""

import csv
import dataclasses
import functools
import json
import os
import re
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".pgm", ".ppm", ".pbm", ".pnm"),
)
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
PAIR_FOLDERS = {"similar_all_images", "dissimilar_all_images"}
PAIR_NAME = re.compile(r"(similar|dissimilar)_(\d+)_(first|second)$")
MAX_FILE_BYTES = 200_000_000  # a larger file is no photograph; it is skipped, and said


class DataError(ValueError):
    """The data cannot be used as it is; the message says what was found and how to mend it."""


@dataclasses.dataclass
class ImageIndex:
    """The images of one data set, row by row.

    Attributes:
        source: Path of the folder, zip or CSV.
        names: File names relative to the source (zip: members), one a row.
        stamps: `(size, time)` of each file, by which a change is noticed.
        labels: Class of each row, int array.
        class_names: Name of each class.
        class_families: Family of each class, int array; all 0 where there are no families.
        family_names: Name of each family.
        groups: Rows with equal numbers must stay on one side of a split, int array.
        splits: "train", "val" or "test" of each row where the source says so, else None.
        impostors: Rows of given impostor pairs, (n, 2), in the pair-folder layout, else None.
        skipped: Name -> reason for what was left out.
    """

    source: Path
    names: list
    stamps: list
    labels: np.ndarray
    class_names: list
    class_families: np.ndarray
    family_names: list
    groups: np.ndarray
    splits: list | None = None
    impostors: np.ndarray | None = None
    skipped: dict = dataclasses.field(default_factory=dict)

    def __len__(self):
        return len(self.names)

    @property
    def families(self):
        """Family of each row, int array."""
        return self.class_families[self.labels]


def read_index(source):
    """Finds the images of a data set and reads their classes from the layout.

    Args:
        source: Path of a folder or zip (`class/image`, `family/class/image`,
            `Crop___condition/image`, any of these inside `train/`, `val/`, `test/`, or pair
            folders), or of a CSV with the columns `path,label[,group][,split]`.

    Returns:
        An `ImageIndex`.

    Raises:
        DataError: If the source does not exist or holds no images in a known layout.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(
            f"data_dir does not exist. Received: '{source}'. "
            "Expected a folder with one sub-folder of images per class, a .zip of one, or a .csv."
        )
    if source.suffix.lower() == ".csv":
        return _read_csv(source)
    files, skipped = _list(source)
    images = {}
    for name in sorted(files):
        path = PurePosixPath(name)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if len(path.parts) == 1:
            skipped[name] = "lies beside the class folders, not in one"
        elif files[name][0] > MAX_FILE_BYTES:
            skipped[name] = f"larger than {MAX_FILE_BYTES // 10**6} MB"
        else:
            images[path] = files[name]
    if not images:
        raise DataError(
            f"No images in class folders. Received: '{source}' with {_examples(files)}. "
            "Expected one sub-folder per class with the images of that class in it."
        )
    folders = {path: path.parts[:-1] for path in images}
    if {parts[-1] for parts in folders.values()} >= PAIR_FOLDERS:
        return _index_pairs(source, images, skipped)
    return _index_classes(source, images, folders, _leaf_groups(source, files), skipped)


def list_files(source):
    """All files of a folder or zip: name -> (size, time or checksum).

    Args:
        source: Path of a folder or zip.

    Raises:
        DataError: If it is neither.
    """
    return _list(Path(source))[0]


def _list(source):
    if source.is_dir():
        return _walk(source)
    if zipfile.is_zipfile(source):
        return _walk_zip(source)
    raise DataError(f"data_dir must be a folder, a .zip or a .csv. Received: '{source}'.")


def read_bytes(source, name):
    """The bytes of one file of an index.

    Args:
        source: `ImageIndex.source`.
        name: One of `ImageIndex.names`.

    Raises:
        OSError, zipfile.BadZipFile, RuntimeError: If it cannot be read.
    """
    source = Path(source)
    if source.is_dir():
        return (source / name).read_bytes()
    if source.suffix.lower() == ".csv":
        return (source.parent / name).read_bytes()
    return _open_zip(source, os.getpid(), source.stat().st_mtime_ns).read(name)


@functools.lru_cache(maxsize=4)
def _open_zip(path, process, time):  # a forked process must not share the file position
    return zipfile.ZipFile(path)


def _walk(root):
    """All files below a folder: name -> (size, time); links to folders are followed once."""
    files, skipped, seen, waiting = {}, {}, set(), [""]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(root / folder)
        if real in seen:
            skipped[folder] = "a link to a folder that was read already"
            continue
        seen.add(real)
        entries = [e for e in os.scandir(root / folder) if not e.name.startswith(".")]
        entries.sort(key=lambda entry: entry.name)
        if not entries and folder:
            skipped[folder] = "an empty folder"
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                status = entry.stat()
            except OSError as error:  # a link to nowhere, or to itself
                skipped[name] = error.strerror
                continue
            if entry.is_dir():
                waiting.insert(0 if entry.is_symlink() else len(waiting), name)  # links come last
            elif entry.is_file():
                files[name] = (status.st_size, status.st_mtime_ns)
    return files, skipped


def _walk_zip(path):
    """All members of a zip: name -> (size, checksum)."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    hidden = re.compile(r"(^|/)(\.|__MACOSX)")
    files = {m.filename: (m.file_size, m.CRC) for m in members if not hidden.search(m.filename)}
    return {name: stamp for name, stamp in files.items() if not name.endswith("/")}, {}


def _examples(names):
    """How many files, and the first few by name, for an error message."""
    return f"{len(names)} files" + (f" ({', '.join(sorted(names)[:3])})" if names else "")


def _leaf_groups(source, files):
    """Stem -> leaves from `leaf-map.json`, by which PlantVillage names photographs of one leaf."""
    maps = sorted((n for n in files if PurePosixPath(n).name == "leaf-map.json"), key=len)
    if not maps:
        return {}
    try:
        leaves = json.loads(read_bytes(source, maps[0]))
        leaves = {stem: [of] if isinstance(of, str) else of for stem, of in leaves.items()}
        return {stem.lower(): [str(leaf) for leaf in of] for stem, of in leaves.items() if of}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise DataError(
            f"{source}/{maps[0]} must be a JSON object of file stem -> [leaf]. Received: {error}."
        ) from error


def _leaf(stem, label, leaves):
    """The leaf on a photograph; maps know it by its whole stem or by what follows `___`."""
    short = stem.split("___")[-1].split("copy")[0].strip()
    found = leaves.get(stem) or leaves.get(short) or [None]
    return next((leaf for leaf in found if leaf and leaf.startswith(label)), found[0])


def _without_common_prefix(folders):
    """Drops the leading folders that all images share, down to the class folder."""
    while (
        len({parts[0] for parts in folders.values()}) == 1 and min(map(len, folders.values())) > 1
    ):
        folders = {path: parts[1:] for path, parts in folders.items()}
    return folders


def _index_classes(source, images, folders, leaves, skipped):
    folders = _without_common_prefix(folders)
    splits = None
    named = {path: SPLIT_FOLDERS.get(parts[0].lower()) for path, parts in folders.items()}
    if len(set(named.values()) - {None}) > 1:
        beside = [path for path, split in named.items() if split is None]
        skipped |= {str(path): "lies beside train/ and test/, not in one" for path in beside}
        images = {path: stamp for path, stamp in images.items() if named[path]}
        splits = [named[path] for path in images]
        folders = {path: folders[path][1:] for path in images}
        if not all(folders.values()):
            raise DataError(
                f"Images lie directly in a split folder of '{source}'. Expected class folders "
                "inside train/ and test/."
            )
        folders = _without_common_prefix(folders)
    labels = ["/".join(parts) for parts in folders.values()]
    groups = [
        _leaf(path.stem.lower(), label, leaves) or str(path)
        for path, label in zip(images, labels, strict=True)
    ]
    names = [str(path) for path in images]
    return _assemble(source, names, list(images.values()), labels, groups, splits, skipped)


def _index_pairs(source, images, skipped):
    """`similar_all_images/similar_3_first.jpg` and the like: every pair its own group."""
    rows, names = {}, []
    for path in images:
        match = PAIR_NAME.fullmatch(path.stem)
        if match is None:
            skipped[str(path)] = "not named similar_<i>_first, dissimilar_<i>_second or the like"
            continue
        key = match.group(1), int(match.group(2)), match.group(3)
        if key in rows:
            skipped[str(path)] = f"the same side of the same pair as '{names[rows[key]]}'"
            continue
        rows[key] = len(names)
        names.append(str(path))
    labels, groups, impostors = [None] * len(names), [None] * len(names), []
    for (kind, number, side), row in rows.items():
        pair = f"{kind}_{number}"
        groups[row] = pair
        labels[row] = pair if kind == "similar" else f"{pair}_{side}"
        if kind == "dissimilar" and side == "first" and (kind, number, "second") in rows:
            impostors.append((row, rows[kind, number, "second"]))
    stamps = [images[PurePosixPath(name)] for name in names]
    index = _assemble(source, names, stamps, labels, groups, None, skipped)
    index.impostors = np.array(impostors, dtype=int).reshape(-1, 2)
    return index


def _read_csv(source):
    """`path,label[,group][,split]`, paths relative to the CSV."""
    with open(source, newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    columns = set(lines[0]) if lines else set()
    if not {"path", "label"} <= columns:
        raise DataError(
            f"{source} needs a header with the columns path and label, and lines below it. "
            f"Received the columns: {sorted(map(str, columns))}."
        )
    names, stamps, labels, groups, splits, skipped = [], [], [], [], [], {}
    for line in lines:
        name, label = line["path"] or "", (line["label"] or "").strip()
        if not label:
            skipped[name] = "no label in its line"
            continue
        try:
            status = os.stat(source.parent / name)
        except OSError as error:
            skipped[name] = error.strerror or str(error)
            continue
        split = (line.get("split") or "").strip().lower()
        if split and split not in SPLIT_FOLDERS:
            raise DataError(
                f"{source}: split must be one of {sorted(SPLIT_FOLDERS)}. Received: '{split}'."
            )
        names.append(name)
        stamps.append((status.st_size, status.st_mtime_ns))
        labels.append(label)
        groups.append(line.get("group") or name)
        splits.append(SPLIT_FOLDERS.get(split))
    if not names:
        raise DataError(
            f"None of the {len(lines)} lines in {source} has a label and a path that exists. "
            f"First: {lines[0]}."
        )
    if any(splits) and not all(splits):
        raise DataError(f"{source}: give every line a split, or none.")
    splits = splits if any(splits) else None
    return _assemble(source, names, stamps, labels, groups, splits, skipped)


def _assemble(source, names, stamps, labels, groups, splits, skipped):
    """Numbers classes, families and groups."""
    class_names, labels = np.unique(labels, return_inverse=True)
    family_names, class_families = np.unique(
        [_family(name) for name in class_names], return_inverse=True
    )
    _, groups = np.unique(groups, return_inverse=True)
    return ImageIndex(
        source=source,
        names=names,
        stamps=stamps,
        labels=labels.astype(np.int32),
        class_names=[str(name) for name in class_names],
        class_families=class_families.astype(np.int32),
        family_names=[str(name) for name in family_names],
        groups=groups.astype(np.int32),
        splits=splits,
        skipped=skipped,
    )


def _family(class_name):
    """`Latin/character01` -> `Latin`; `Apple___scab` -> `Apple`; else no family."""
    folder, _, name = class_name.rpartition("/")
    return folder or (name.split("___")[0] if "___" in name else "")
