"""What folders are named after: classes and splits. Names alone; no file is read."""

import os
import unicodedata
from collections import Counter, defaultdict

from pipeline.files import some
from pipeline.forgeries import class_folders
from pipeline.tables import split_of

MOST_PARENTS = 5  # of equal class names: more are families, as alphabets are


def place_images(names, skipped):
    """Class and split of each image, and whether it is a forgery.

    The folder of an image is its class, without the part of its path that names a split: two
    splits side by side, or all folders in some split, at any depth; see also `class_folders`.

    Args:
        names: File names ("train/oak/1.png").
        skipped: Dict that gains those without a class -> reason.

    Returns:
        `(places, remarks)`: name -> (class, split or None, forged); sentences for the user.
    """
    folders = class_folders(names)
    classes, why, remarks = _place_folders(Counter(folder for folder, _ in folders.values()))
    skipped |= {name: why[folder] for name, (folder, _) in folders.items() if folder not in classes}
    places = {
        name: (*classes[folder], forged)
        for name, (folder, forged) in folders.items()
        if folder in classes
    }
    return places, remarks


def _place_folders(counts):
    """Of folders -> number of images directly in them.

    Returns:
        `(classes, reasons, remarks)`: folder -> (class, split or None); folder -> why it is none.
    """
    reasons = {"": "lies beside the class folders, not in one"}
    folders = _without_shared_start({name: tuple(name.split("/")) for name in counts if name})
    at, remarks = _split_parts(folders), []
    splits = {name: split_of(folders[name][where]) for name, where in at.items()}
    if at:
        beside = folders.keys() - at.keys()
        reasons |= dict.fromkeys(beside, "lies beside train/ and test/, not in one")
        folders = _without_splits(folders, at)
        direct = [name for name, parts in folders.items() if not parts]
        reasons |= dict.fromkeys(direct, "lies directly in a folder of a split, in no class folder")
        folders = _without_shared_start({name: parts for name, parts in folders.items() if parts})
    elif named := sorted({part for parts in folders.values() for part in parts if split_of(part)}):
        remarks.append(
            f"Folders called {some(named)} are taken for classes: a split needs another one "
            "beside it (train, val, test), and most folders below them."
        )
    places = {name: ("/".join(parts), splits.get(name)) for name, parts in folders.items()}
    return places, reasons, [*remarks, *_nested(places, counts)]


def _without_shared_start(folders):
    """Drops the leading parts that all folders share, down to the class folder."""
    shared = len(os.path.commonprefix([*folders.values()]))
    shared = min(shared, min(map(len, folders.values()), default=1) - 1)
    return {name: parts[shared:] for name, parts in folders.items()}


def _split_parts(folders):
    """Folder -> which part of its path names its split; empty where there are no splits."""
    beside = defaultdict(set)  # the path above -> splits named there
    for parts in folders.values():
        for at, part in enumerate(parts):
            beside[parts[:at]].add(split_of(part))
    named = {
        name: [at for at, part in enumerate(parts) if split_of(part)]
        for name, parts in folders.items()
    }
    if not all(named.values()) or len({split_of(folders[n][at[0]]) for n, at in named.items()}) < 2:
        named = {
            name: [at for at in places if len(beside[folders[name][:at]] - {None}) > 1]
            for name, places in named.items()
        }
    found = {name: places[0] for name, places in named.items() if places}
    return found if 2 * len(found) >= len(folders) else {}


def _without_splits(folders, at):
    """Folder -> parts of its path but the split, and a folder of the same name alone in it."""
    inside = defaultdict(set)
    for name, where in at.items():
        inside[folders[name][: where + 1]] |= {*folders[name][where + 1 : where + 2]}
    left = {}
    for name, where in at.items():
        parts = folders[name]
        below = inside[parts[: where + 1]]
        doubled = len(below) == 1 and split_of(min(below)) == split_of(parts[where])
        left[name] = parts[:where] + parts[where + 1 + doubled :]
    return left


def _nested(places, counts):
    """A remark where a class folder holds class folders."""
    above = {name[:at] for name in places for at, sign in enumerate(name) if sign == "/"}
    if both := sorted(above & places.keys()):
        shown = some([f"'{name}' ({counts[name]})" for name in both])
        yield (
            f"Images lie in {shown} and in folders below: each folder is a class of its own. "
            "If they show the same, move them into one folder."
        )


def class_remarks(class_names):
    """Sentences about classes whose names are suspiciously alike."""
    written = defaultdict(list)
    for name in class_names:
        written[unicodedata.normalize("NFKC", name).casefold().strip()].append(name)
    if twins := [" and ".join(map(repr, names)) for names in written.values() if len(names) > 1]:
        yield (
            f"Classes whose names differ only in case, spaces or encoding: {some(twins)}. "
            "They are taken as different; rename one if they are the same."
        )
    below = defaultdict(set)
    for name in class_names:
        parent, _, own = name.rpartition("/")
        below[parent].add(own)
    times = Counter(name for names in below.values() for name in names)
    shared = sorted(name for name, count in times.items() if count > 1)
    alike = [len(names & {*shared}) * 2 > len(names) for names in below.values()]
    if 2 <= len(below) <= MOST_PARENTS and sum(alike) >= 2:
        parents = some(sorted(map(repr, below)))
        yield (
            f"Classes of the same names ({some(shared)}) lie in {parents}: they are taken as "
            "different. Are they parts of one data set? Then join the folders, or name them train, "
            "val and test."
        )
