"""What folders are named after: classes and splits. Names alone; no file is read."""

import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict, namedtuple

from pipeline.files import folder_of, some, stem_of
from pipeline.forgeries import class_folders, steps_of, without_one_part
from pipeline.tables import split_of

Place = namedtuple("Place", "label split forged")  # of an image: its class, a split or None
LOOKED_AT = 20_000  # names that tell whether folders hold several things
FEW = 5  # parents, or names below them: more names below more parents are as alphabets are
IMAGES = re.compile(r"(jpe?g)?images?|imgs?|jpe?g", re.I)  # folders that alone are no class
ANNOTATIONS = re.compile(
    r"annotations?|labels?|trimaps?|(.+[ _-])?masks?|segmentation(s|class|object)?|"
    r"ground[ _-]?truth|gt",
    re.I,
)
MASK = re.compile(r"(.+)[ _-](?:mask|label|seg|gt)(?:[ _-]?\d+)?", re.I)  # without suffix
KNOWN_FILES = re.compile(  # Market-1501 but for its false boxes, SOCOFing, Yale, AR, JAFFE faces
    r"(?!0000)(\d{4})_c\d.*|(\d+__[MF]_[a-z]+_[a-z]+_finger)(?:_[a-z]+)?|(subject\d\d)(?:\..+)?|"
    r"([mw]-\d{3})-\d\d|([a-z]{2})\.[a-z]{2}\d\.\d+",
    re.I,
)
NUMBERED = re.compile(  # cat.12, great_pyrenees_7, leaf (3); a camera's own numbers tell nothing
    r"(?!(?:img|image|dsc|pxl|photo|screenshot)[^a-z])(.+?)[ ._-]+\(?\d+\)?", re.I
)


def place_images(names, skipped):
    """Class and split of each image, and whether it is a forgery.

    The folder of an image is its class, without the part of its path that names a split: two
    splits side by side, or all folders in some split, at any depth; see also `class_folders`.
    Where no two folders hold classes, file names may tell them, as `cat.12.jpg` does.

    Args:
        names: File names with `/`.
        skipped: Dict that gains those without a class -> reason.

    Returns:
        `(places, remarks)`: name -> `Place`; sentences for the user.
    """
    skipped |= (noted := _annotations(names))
    as_if, copied = _originals([name for name in names if name not in noted])
    folders = class_folders({*as_if.values()})
    classes, remarks = _place_folders(Counter(folder for folder, _ in folders.values()))
    has_splits = any(split for _, split, _ in classes.values())
    few = len({label for label, *_ in classes.values()} - {""}) < 2
    told = _told_by_files(as_if, KNOWN_FILES) or _told_by_sides(as_if)
    if told := told or (few and _told_by_files(as_if, NUMBERED)):
        name, label = min(told.items())
        remarks = [f"File names tell the classes, not folders: '{name}' is of '{label}'."]
    else:
        remarks = [*remarks, *_several_in_a_folder(as_if, folders)]
    places = {}
    for name in as_if:
        folder, forged = folders[as_if[name]]
        label, split, reason = classes[folder]
        if told and (split or not has_splits):
            label, reason = told.get(name, ""), "no class in its name, where others have one"
        if label:
            places[name] = Place(label, split, forged)
        else:
            skipped[name] = reason
    return places, [*copied, *remarks]


def _annotations(names):
    """Name -> reason, of masks and the like beside an image or in a folder beside `images`."""
    without_suffix = {name.rpartition(".")[0] for name in names}
    marked = tuple(
        "/".join((*path, part, ""))
        for path, parts in _children({tuple(folder_of(name).split("/")) for name in names}).items()
        if any(map(IMAGES.fullmatch, parts))
        for part in filter(ANNOTATIONS.fullmatch, parts)
    )
    reasons = {}
    for name in names:
        mask = MASK.fullmatch(name.rpartition(".")[0])
        if name.startswith(marked):
            reasons[name] = "in a folder of annotations, beside one of images"
        elif mask and mask[1] in without_suffix:
            reasons[name] = "the mask of the image beside it"
    return reasons


def _stems_in(names):
    """Folder -> what the files in it are called, without suffix."""
    stems = defaultdict(set)
    for name in names:
        stems[folder_of(name)].add(stem_of(name))
    return stems


def _originals(names):
    """`(name -> itself, or what it repeats, remarks)`: `A/A/x/1.png` beside `A/x/1.png`."""
    stems, originals, as_if = _stems_in(names), {}, {}
    for folder, inside in stems.items():
        for part, shorter in without_one_part(folder):
            if 2 * len(inside & stems.get(shorter, set())) > len(inside) and not split_of(part):
                originals[folder] = shorter
    for name in names:
        folder = folder_of(name)
        as_if[name] = originals.get(folder, folder) + name[len(folder) :]
    said = some([f"'{folder}' repeats '{original}'" for folder, original in originals.items()], 1)
    return as_if, [f"{said}: the classes are the same."] if originals else []


def _told_by_files(names, pattern):
    """Name -> class, by what a pattern finds in file names; empty where most tell none."""
    matches = {name: pattern.fullmatch(stem_of(name)) for name in names}
    found = {name: match[match.lastindex] for name, match in matches.items() if match}
    sizes = Counter(found.values())
    useful = sum(size for size in sizes.values() if size > 1)
    enough = len(sizes) > 1 and 2 * useful > len(names) and not any(map(split_of, sizes))
    return found if enough else {}


def _several_in_a_folder(names, folders):
    """A remark where most folders (see `place_images`) hold several things, as file names tell."""
    things = defaultdict(Counter)
    for name in itertools.islice(names, LOOKED_AT):
        match, (folder, forged) = NUMBERED.fullmatch(stem_of(name)), folders[names[name]]
        things[folder][match[1] if match and not forged else name] += 1
    several = {
        folder: repeated
        for folder, counts in things.items()
        if len(repeated := [thing for thing, count in counts.items() if count > 1]) > 1
    }
    if 2 * len(several) > len(things):
        folder, repeated = min(several.items())
        yield (
            f"Files in '{folder}' are named after several things ({some(repeated)}). If these "
            "are the classes, or each is one thing in several pictures, give a table of "
            "path,label,group."
        )


def _told_by_sides(names):
    """Name -> class, its own name, where each file of `left` has one of that name in `right`."""
    stems = _stems_in(names)
    called = sorted(folder.rpartition("/")[2].lower() for folder in stems)
    alike = called == ["left", "right"] and len({*map(frozenset, stems.values())}) == 1
    return {name: stem_of(name) for name in names} if alike else {}


def _place_folders(counts):
    """Of folders -> number of images directly in them: `(classes, remarks)`.

    Classes are folder -> (class, split or None, why the class is "" where it is).
    """
    parts_of = {folder: tuple(folder.split("/")) for folder in counts}
    parts_of = _without_shared_start(_without_images(parts_of))
    split_at, remarks = _find_splits(parts_of), []
    classes = parts_of
    if split_at:
        classes = _without_shared_start(_without_splits(parts_of, split_at))
    elif named := sorted({part for parts in parts_of.values() for part in parts if split_of(part)}):
        remarks.append(
            f"Folders called {some(named)} are taken for classes: a split needs another one "
            "beside it (train, val, test), and most folders below them."
        )
    places = {}
    for folder in counts:
        split, why = None, "lies beside the class folders, not in one"
        if folder in split_at:
            split = split_of(parts_of[folder][split_at[folder]])
            why = "lies directly in a folder of a split, in no class folder"
        elif split_at and folder in parts_of:
            why = "lies beside train/ and test/, not in one"
        places[folder] = "/".join(classes.get(folder, ())), split, why
    labelled = {folder for folder, (label, *_) in places.items() if label}
    above = {parent for folder in labelled for parent, _ in steps_of(folder)}
    if both := [f"'{folder}' ({counts[folder]})" for folder in sorted(above & labelled)]:
        remarks.append(
            f"Images lie in {some(both)} and in folders below: each folder is a class of its own. "
            "If they show the same, move them into one folder."
        )
    return places, remarks


def _children(paths):
    """Path -> names of the folders directly in it; paths are tuples of their parts."""
    children = defaultdict(set)
    for path in paths:
        for at, part in enumerate(path):
            children[path[:at]].add(part)
    return children


def _without_images(parts_of):
    """Folder -> its parts but those that are called `images` and have no other beside."""
    children = _children(parts_of.values())
    return {
        folder: tuple(
            part
            for at, part in enumerate(parts)
            if len(children[parts[:at]]) > 1 or not IMAGES.fullmatch(part)
        )
        for folder, parts in parts_of.items()
    }


def _without_shared_start(parts_of):
    """Folder -> its parts without those that all share, down to the class; if it has any parts."""
    parts_of = {folder: parts for folder, parts in parts_of.items() if any(parts)}
    shared = len(os.path.commonprefix([*parts_of.values()]))
    shared = min(shared, min(map(len, parts_of.values()), default=1) - 1)
    return {folder: parts[shared:] for folder, parts in parts_of.items()}


def _find_splits(parts_of):
    """Folder -> which of its parts names its split; empty where there are no splits."""
    children = _children(parts_of.values())
    splits_in = {path: {*map(split_of, parts)} - {None} for path, parts in children.items()}
    first = {next(filter(None, map(split_of, parts)), None) for parts in parts_of.values()}
    all_in_splits, found = None not in first and len(first) > 1, {}
    for folder, parts in parts_of.items():
        for at, part in enumerate(parts):
            if split_of(part) and (all_in_splits or len(splits_in[parts[:at]]) > 1):
                found.setdefault(folder, at)
    return found if 2 * len(found) >= len(parts_of) else {}


def _without_splits(parts_of, split_at):
    """Folder -> its parts but that of its split, and one of the same name that is alone in it."""
    children, classes = _children(parts_of.values()), {}
    for folder, at in split_at.items():
        parts = parts_of[folder]
        below = children[parts[: at + 1]]
        doubled = len(below) == 1 and split_of(min(below)) == split_of(parts[at])
        classes[folder] = parts[:at] + parts[at + 1 + doubled :]
    return classes


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
        below[folder_of(name)].add(name.rpartition("/")[2])
    times = Counter(name for names in below.values() for name in names)
    shared = sorted(name for name, count in times.items() if count > 1)
    alike = [names for names in below.values() if 2 * len(names & {*shared}) > len(names)]
    few = min(len(below), len(times)) <= FEW or len(below) > 2 * len(times)
    if few and len(alike) >= 2:
        parents = some(sorted(map(repr, below)))
        yield (
            f"Classes of the same names ({some(shared)}) lie in {parents}: they are taken as "
            "different. Are they parts of one data set? Then join the folders, or name them train, "
            "val and test. Versions of the same images? Then give one of the folders."
        )
