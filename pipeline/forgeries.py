"""Which images are forgeries, from the names of their folders and files."""

import re
from collections import defaultdict

from pipeline.files import folder_of, stem_of
from pipeline.tables import split_of

KIND = re.compile(
    r"(?:(.+)[ _-])?(genuines?|originals?|org|reals?|forg(?:e|ed|ery|eries)?|fakes?)", re.I
)
FILES = [  # of known sets of signatures: the kind, and whose signature it shows
    r"(?P<kind>original|genuine|forg(?:e|ed|ery|eries)?)[ _-](?P<writer>\d+)[ _-]\d+",  # CEDAR
    r"(?P<kind>original|genuine|real|forg(?:e|ed|ery)?|fake)[ _-]?(?P<writer>)\d+",  # its folder's
    r"[a-z]-s-(?P<writer>\d+)-(?P<kind>[gf])-\d+",  # BHSig260
    r"(?P<kind>cf?)-(?P<writer>\d+)-\d+",  # GPDS
    r"(?P<writer>\d{4})(?P<kind>[vf])\d\d",  # MCYT-75
    r"nfi-(?P<kind>\d{3})\d\d(?P<writer>\d{3})",  # SigComp 2009; the kind is who wrote it
    r"(?:real|forge)/(?P<kind>\d{3})\d\d(?P<writer>\d{3})",  # the same, renamed
    r"(?P<kind>(?:\d{4})?)(?P<writer>\d{3})_\d\d?",  # SigComp 2011; the kind, if any, is a forger
    r"\d\d?_(?P<kind>(?:\d{4})?)(?P<writer>\d{3})",  # its test set
    r"(?P<kind>genuine|original|real|forg(?:e|ed|ery|eries)?|fake)/(?P<writer>\d+)[ _-]\d+",
    r"(?P<writer>\d+)[ _-](?P<kind>genuine|original|real|forg(?:e|ed|ery)?|fake)[ _-]?\d+",
    r"(?P<kind>[gf])[ _-]?(?P<writer>)\d+",
]
PARTS = re.compile(r"(?:^|/)(?:reference|questioned)(?:\(\d+\))?(?=/|$)", re.I)  # of its test set


def class_folders(names):
    """Name -> `(class folder, forged)` of images: whether they are forgeries of that class.

    Known are `NAME_forg` beside `NAME`, `forged/NAME` beside `genuine/NAME` (or `NAME/forged`
    beside `NAME/genuine`), and the file names of some sets of signatures, whose writer counts
    where one folder holds several. All else keeps its own folder.
    """
    own = {name: folder_of(name) for name in names}
    kinds = _kinds_of_folders(sorted({*own.values()}))
    found = {name: kinds[folder] for name, folder in own.items()}
    told = _writers(names)
    folders = {name: PARTS.sub("", found[name][0]) for name in told}
    writers = {(folders[name], writer) for name, (writer, _) in told.items()}
    several = len(writers) > len({*folders.values()})
    for name, (writer, forged) in told.items():
        found[name] = f"{folders[name]}/{writer}" if several else folders[name], forged
    paths = (folder.split("/") for folder, _ in found.values())
    if len({tuple(part for part in path if not split_of(part)) for path in paths}) < 2:
        return {name: (folder, False) for name, folder in own.items()}  # two kinds of nothing
    return found


def _writers(names):
    """Name -> `(writer, forged)` by the pattern that fits most names, with both kinds in it.

    What it does not fit may be of another set, and is told by the pattern that fits most of it.
    """
    ends = {name: f"{folder_of(name).rpartition('/')[2]}/{stem_of(name)}" for name in names}
    for pattern in FILES:
        whole = re.compile(f"(?:.*/)?{pattern}", re.I)
        told = {}
        for name, end in ends.items():
            if match := whole.fullmatch(end):
                kind, writer = match["kind"], match["writer"]
                forged = kind != writer if kind.isdigit() else kind.lower().startswith(("f", "cf"))
                told[name] = writer, forged
        if 2 * len(told) > len(names) and len({forged for _, forged in told.values()}) == 2:
            return told | _writers([name for name in names if name not in told])
    return {}


def _kinds_of_folders(folders):
    """Folder -> `(class folder, forged)`, where folders of both kinds lie side by side."""
    beside = defaultdict(dict)  # parent -> its folders, in lower case -> as they are written
    for folder in folders:
        for parent, part in steps_of(folder):
            beside[parent][part.lower()] = part
    both, paired = set(), set()  # X of `X genuine` beside `X forged`; parents of X beside `X_forg`
    for parent, parts in beside.items():
        kinds = {_kind(part) for part in parts}
        forged = {base for base, is_forged in kinds if is_forged}
        both |= {base for base in forged if (base, False) in kinds}
        if forged & parts.keys() - {""}:
            paired.add(parent)
    found = {}
    for folder in folders:
        parts, forged = [], False
        for parent, part in steps_of(folder):
            base, is_forged = _kind(part)
            if is_forged and base and parent in paired:
                part, forged = beside[parent].get(base, base), True
            elif is_forged is not None and base in both:
                part, forged = base, forged or is_forged
            parts.append(part)
        found[folder] = "/".join(filter(None, parts)), forged
    genuine = {place for place, forged in found.values() if not forged}
    return {
        folder: (_imitated(place, genuine), forged) for folder, (place, forged) in found.items()
    }


def _imitated(place, genuine):
    """A class folder, without a part that says how it was forged where only then there is one."""
    shorter = (path for _, path in without_one_part(place) if path in genuine)
    return place if place in genuine else next(shorter, place)


def without_one_part(folder):
    """Each part of a path but the last, and the path without it: `a, b/c` and `b, a/c` of a/b/c."""
    parts = folder.split("/")
    return [(part, "/".join(parts[:at] + parts[at + 1 :])) for at, part in enumerate(parts[:-1])]


def steps_of(folder):
    """`("", a), ("a", b), ("a/b", c)` of a/b/c."""
    parts = folder.split("/")
    return [("/".join(parts[:at]), part) for at, part in enumerate(parts)]


def _kind(part):
    """`(name without the kind, whether it says forged)`; the second is None where it says none."""
    match = KIND.fullmatch(part)
    if not match:
        return part.lower(), None
    return (match[1] or "").lower(), match[2][0] in "fF"
