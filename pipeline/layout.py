"""What folders are named after: classes and splits. Names alone; no file is read."""

import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict

from pipeline.files import folder_of, some, stem_of
from pipeline.forgeries import class_folders, steps_of
from pipeline.tables import split_of

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
        `(places, remarks)`: name -> (class, split or None, forged); sentences for the user.
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
            places[name] = label, split, forged
        else:
            skipped[name] = reason
    return places, [*copied, *remarks]


def _annotations(names):
    """Name -> reason, of masks and the like beside an image or in a folder beside `images`."""
    stems = {name: name.rpartition(".")[0] for name in names}
    there = {*stems.values()}
    steps = {step for folder in {*map(folder_of, names)} for step in steps_of(folder)}
    above = {parent for parent, part in steps if IMAGES.fullmatch(part)}
    marked = tuple(
        f"{parent}/{part}/".lstrip("/")
        for parent, part in steps
        if parent in above and ANNOTATIONS.fullmatch(part)
    )
    reasons = {}
    for name, stem in stems.items():
        if name.startswith(marked):
            reasons[name] = "in a folder of annotations, beside one of images"
        elif (of := MASK.fullmatch(stem)) and of[1] in there:
            reasons[name] = "the mask of the image beside it"
    return reasons


def _originals(names):
    """`(name -> itself, or what it repeats, remarks)`: `A/A/x/1.png` beside `A/x/1.png`."""
    files, originals = defaultdict(set), {}
    for name in names:
        files[folder_of(name)].add(stem_of(name))
    for folder, inside in files.items():
        parts = folder.split("/")
        for at, part in enumerate(parts[:-1]):
            shorter = "/".join(parts[:at] + parts[at + 1 :])
            if 2 * len(inside & files.get(shorter, set())) > len(inside) and not split_of(part):
                originals[folder] = shorter
    said = some([f"'{folder}' repeats '{original}'" for folder, original in originals.items()], 1)
    as_if = {
        name: originals.get(folder, folder) + name[len(folder) :]
        for name, folder in zip(names, map(folder_of, names), strict=True)
    }
    return as_if, [f"{said}: the classes are the same."] * bool(originals)


def _told_by_files(names, pattern):
    """Name -> class, by what a pattern finds in file names; empty where most tell none."""
    found = {name: pattern.fullmatch(stem_of(name)) for name in names}
    found = {name: match[match.lastindex] for name, match in found.items() if match}
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
        folder: found
        for folder, of in things.items()
        if len(found := [thing for thing, count in of.items() if count > 1]) > 1
    }
    if 2 * len(several) > len(things):
        folder, found = min(several.items())
        yield (
            f"Files in '{folder}' are named after several things ({some(found)}). If these are the "
            "classes, or each is one thing in several pictures, give a table of path,label,group."
        )


def _told_by_sides(names):
    """Name -> class, its own name, where each file of `left` has one of that name in `right`."""
    sides = defaultdict(set)
    for name in names:
        sides[folder_of(name)].add(stem_of(name))
    called = sorted(folder.rpartition("/")[2].lower() for folder in sides)
    alike = called == ["left", "right"] and len({*map(frozenset, sides.values())}) == 1
    return {name: stem_of(name) for name in names} if alike else {}


def _place_folders(counts):
    """Of folders -> number of images directly in them: `(classes, remarks)`.

    Classes are folder -> (class, split or None, why the class is "" where it is).
    """
    beside = defaultdict(set)
    for parent, part in {step for name in counts for step in steps_of(name)}:
        beside[parent].add(part)
    folders = {name: steps_of(name) for name in counts}
    for name, steps in folders.items():
        kept = [part for at, part in steps if len(beside[at]) > 1 or not IMAGES.fullmatch(part)]
        folders[name] = tuple(kept)
    folders = _without_shared_start(folders)
    at, remarks = _split_parts(folders), []
    classes, beside = folders, "lies beside the class folders, not in one"
    if at:
        classes = _without_shared_start(dict(_without_splits(folders, at)))
    elif named := sorted({part for parts in folders.values() for part in parts if split_of(part)}):
        remarks.append(
            f"Folders called {some(named)} are taken for classes: a split needs another one "
            "beside it (train, val, test), and most folders below them."
        )
    places = {name: ("/".join(classes.get(name, ())), None, beside) for name in counts}
    for name in folders.keys() if at else ():
        places[name] = "", None, "lies beside train/ and test/, not in one"
    for name, where in at.items():
        reason = "lies directly in a folder of a split, in no class folder"
        places[name] = "/".join(classes.get(name, ())), split_of(folders[name][where]), reason
    labelled = {name for name, (label, *_) in places.items() if label}
    above = {name[:at] for name in labelled for at, sign in enumerate(name) if sign == "/"}
    if both := [f"'{name}' ({counts[name]})" for name in sorted(above & labelled)]:
        remarks.append(
            f"Images lie in {some(both)} and in folders below: each folder is a class of its own. "
            "If they show the same, move them into one folder."
        )
    return places, remarks


def _without_shared_start(folders):
    """Folders that have parts, without those that all share, down to the class folder."""
    folders = {name: parts for name, parts in folders.items() if any(parts)}
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
    """`(folder, parts of its path but the split and one of the same name alone in it)`."""
    inside = defaultdict(set)
    for name, where in at.items():
        inside[folders[name][: where + 1]] |= {*folders[name][where + 1 : where + 2]}
    for name, where in at.items():
        parts, below = folders[name], inside[folders[name][: where + 1]]
        doubled = len(below) == 1 and split_of(min(below)) == split_of(parts[where])
        yield name, parts[:where] + parts[where + 1 + doubled :]


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
    few = min(len(below), len(times)) <= FEW or len(below) > 2 * len(times)
    if len(below) >= 2 and few and sum(alike) >= 2:
        parents = some(sorted(map(repr, below)))
        yield (
            f"Classes of the same names ({some(shared)}) lie in {parents}: they are taken as "
            "different. Are they parts of one data set? Then join the folders, or name them train, "
            "val and test. Versions of the same images? Then give one of the folders."
        )
