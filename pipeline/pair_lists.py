"""Given pairs: a list of two paths and a label a line, LFW's `pairs.txt`, or folders of pairs."""

import re
from collections import defaultdict

import numpy as np

from pipeline.files import IMAGE_SUFFIXES, DataError, by_reason, file_stamp, folder_of, some
from pipeline.layout import Place, place_images
from pipeline.near_duplicates import join_groups
from pipeline.tables import COLUMNS, Row, find_listed, is_true, letters

# Columns in which 1 means that both images show one class, and labels that say it themselves.
SAYS_SAME = ("same", "is_same", "genuine", "is_genuine", "match", "is_match", "is_duplicate")
SAID = {
    **dict.fromkeys("same genuine match matched similar".split(), True),
    **dict.fromkeys("different diff dissimilar mismatch nonmatch unmatched".split(), False),
    **dict.fromkeys("impostor imposter forged forgery skilled random".split(), False),
}
NUMBERS = ("fold", "split", "id", "index", "")  # columns that are no label
FEW = 0.05  # of the pairs: if more contradict the folders, these are no classes
LABELS = (*SAYS_SAME, "label", "target", "class", "y")  # in a list of more columns
LFW_NAME = "{0}/{0}_{1:04d}.jpg"
SIDES = re.compile(r"([a-z].*?)[ _-]?(?:1|2|a|b|left|right)|left|right")  # img1 and img2, id_a...
PAIR_FOLDERS = {"similar_all_images", "dissimilar_all_images"}
TRIPLES = ("anchor", "positive", "negative")  # columns; folders whose first images go together
PAIR_NAME = re.compile(r".*/(similar|dissimilar)_(\d+)_(first|second)\.\w+")


def is_pair_list(rows):
    """Whether the lines of a text file, as `read_cells` gives them, name two images each."""
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    if not rows or {"path", "label"} <= {*header}:
        return False
    named = _sides(header) or {*header} >= {*TRIPLES} or _lfw_pairs(rows[:2])
    return bool(named) or any(len(_paths(cells)) == 2 for _, cells in rows[:2])


def read_pairs(source, rows, pair_label, skipped, remarks):
    """The pairs of a list whose files exist; one listed twice or in both orders counts once.

    Args:
        source: Path of the list. Its paths are relative to it, or to a folder beside it.
        rows: Its lines, from `read_cells`.
        pair_label: What label 1 means, "same" or "different", where no column says it.
        skipped: Dict that gains what is left out -> reason.
        remarks: List that gains sentences for the user.

    Returns:
        `(pairs, stamps)`: names `(left, right)` -> `(same, fold or None)`; stamp of each file.

    Raises:
        DataError: If the list cannot be read, or nobody says what label 1 means.
    """
    pairs = _lfw_pairs(rows) or _labelled_pairs(source, rows, pair_label, remarks)
    file_of = find_listed(source, (name for left, right, *_ in pairs for name in (left, right)))
    files = dict.fromkeys(file_of.values())
    stamps = {name: file_stamp(source.parent, name, skipped) for name in files}
    found, missing = {}, 0
    for left, right, *said in pairs:
        pair = file_of[left], file_of[right]
        if pair[::-1] in found:
            pair = pair[::-1]
        if left == right:
            skipped[f"{left}, {right}"] = "a pair of an image with itself"
        elif not all(stamps[name] for name in pair):
            missing += 1
        elif found.setdefault(pair, tuple(said))[0] != said[0]:
            skipped[", ".join(pair)] = "listed as the same and as different"
    if missing:
        skipped[f"{missing} pairs"] = "a file of theirs is missing"
    found = {pair: said for pair, said in found.items() if ", ".join(pair) not in skipped}
    if not found:
        why = "; ".join(by_reason(skipped, 1)[:3])
        raise DataError(
            f"{source}: none of its {len(pairs)} pairs can be used ({why}). Its paths are relative "
            "to its folder: put the list above its images."
        )
    return found, stamps


def folder_pairs(images, skipped):
    """As `read_pairs`, of folders whose names or whose images' names say it; None for others.

    These are `similar_all_images/similar_3_first.jpg` and the like, or folders called `anchor`,
    `positive` and `negative`, whose images go together in the order of their names.
    """
    folders = defaultdict(list)
    for name in images:
        folders[folder_of(name.lower()).rpartition("/")[2]].append(name)
    if folders.keys() >= PAIR_FOLDERS:
        return _pairs_by_name(images, skipped)
    if folders.keys() != {*TRIPLES}:
        return None
    anchors, positives, negatives = (folders[kind] for kind in TRIPLES)
    pairs = dict.fromkeys(zip(anchors, positives, strict=False), (True, None))
    pairs |= dict.fromkeys(zip(anchors, negatives, strict=False), (False, None))
    alone = sorted(images.keys() - {name for pair in pairs for name in pair})
    skipped |= dict.fromkeys(alone, "the other folders have fewer images")
    return pairs


def _pairs_by_name(images, skipped):
    sides, pairs = defaultdict(dict), {}  # (kind, number) of a pair -> its sides
    for name in images:
        match = PAIR_NAME.fullmatch(name)
        if match is None:
            skipped[name] = "not named similar_<i>_first, dissimilar_<i>_second or the like"
            continue
        kind, number, side = match.groups()
        first = sides[kind, int(number)].setdefault(side, name)
        if first != name:
            skipped[name] = f"the same side of the same pair as '{first}'"
    for (kind, _), names in sides.items():
        if len(names) == 2:
            pairs[names["first"], names["second"]] = kind == "similar", None
        else:
            skipped[min(names.values())] = "the other image of its pair is missing"
    return pairs


def pair_rows(pairs, stamps, skipped):
    """Rows of the images of some pairs, whose classes are their folders as far as the pairs agree.

    A `train/` or `test/` above the folders is no part of them. Where pairs do not agree, classes
    are what genuine pairs join. Groups are folders where each genuine pair lies in one, and some
    impostor pair does not. A few pairs that contradict the folders are left out.

    Args:
        pairs: As from `read_pairs`; loses what is left out.
        stamps: By name.
        skipped: Dict that gains what is left out -> reason.

    Returns:
        `(rows, known)`: rows as of an index; whether classes are folders.

    Raises:
        DataError: If most pairs of an image and its forgery are said to show the same.
    """
    names = sorted({name for pair in pairs for name in pair})
    places = {name: Place(folder_of(name), None, False) for name in names}
    places |= place_images(names, {})[0]
    _check_forgeries(pairs, places)
    shown = {name: name if place.forged else place.label for name, place in places.items()}
    alike = {(left, right) for left, right in pairs if shown[left] == shown[right]}
    contrary = [pair for pair, (same, _) in pairs.items() if same != (pair in alike)]
    agreed = {same for pair, (same, _) in pairs.items() if same == (pair in alike)}
    if len(contrary) <= FEW * len(pairs) and len(agreed) == 2:
        reason = "its label contradicts the folders of its images, which those of others do not"
        for pair in contrary:
            skipped[", ".join(pair)] = reason
            del pairs[pair]
        alike.difference_update(contrary)
    genuine = [pair for pair, (same, _) in pairs.items() if same]
    grouped = len(alike) < len(pairs) and alike.issuperset(genuine)
    known = grouped and len(alike) == len(genuine)
    row_of = {name: row for row, name in enumerate(names)}
    links = np.array([(row_of[left], row_of[right]) for left, right in genuine], int)
    joined = join_groups(np.arange(len(names)), links.reshape(-1, 2))
    first = np.unique(joined, return_index=True)[1][joined]  # row of those that pairs join
    rows = []
    for row, (name, place) in enumerate(places.items()):
        label = place.label if known else names[first[row]]
        group = place.label if grouped else name
        rows.append(Row(name, stamps[name], label, group, None, place.forged and known))
    return rows, known


def _check_forgeries(pairs, places):
    """A DataError where most pairs of an image and its forgery are said to show the same."""
    said = {  # of pairs of one class and two kinds
        pair: same
        for pair, (same, _) in pairs.items()
        if len({places[name].label for name in pair}) < len({places[name].forged for name in pair})
    }
    if 2 * sum(said.values()) > len(said):
        shown = next(" and ".join(map(repr, pair)) for pair, same in said.items() if same)
        raise DataError(
            f"{sum(said.values())} of {len(said)} pairs of an image and its forgery, as {shown}, "
            "are said to show the same. Does label 1 mean the contrary? Then change --pair_label."
        )


def _paths(cells):
    """Which cells of a line name images."""
    return [at for at, cell in enumerate(cells) if cell.lower().endswith(IMAGE_SUFFIXES)]


def _sides(header):
    """Which two columns of a header name the images of a pair; none where they do not tell."""
    stems, paths = defaultdict(list), {*COLUMNS["path"].split()}
    if not paths & {*map(letters, header)}:  # beside a path, left and right may be classes
        paths.add("")
    for at, name in enumerate(header):
        if match := SIDES.fullmatch(name):
            stems[letters(match[1] or "")].append(at)
    if any(map(str.isdecimal, header)):
        return []
    return next((at for stem, at in stems.items() if stem in paths and len(at) == 2), [])


def _labelled_pairs(source, rows, pair_label, remarks):
    """`(left, right, same, fold)` of lines of two paths and a label, with or without a header."""
    first, width = rows[0][1], len(rows[0][1])
    header = [] if _paths(first) else [cell.lower() for cell in first]
    rows = rows[bool(header) :]
    for number, cells in rows:
        if len(cells) < width:
            raise DataError(f"{source}, line {number}: expected {width} cells. Received: {cells}.")
    rows = [(number, [cell.replace("\\", "/") for cell in cells]) for number, cells in rows]
    if {*header} >= {*TRIPLES}:
        anchor, positive, negative = map(header.index, TRIPLES)
        genuine = [(cells[anchor], cells[positive], True, None) for _, cells in rows]
        return genuine + [(cells[anchor], cells[negative], False, None) for _, cells in rows]
    header = header or [""] * width
    paths = _sides(header) or _paths(rows[0][1])
    others = [at for at in range(width) if at not in paths]
    others = [at for at in others if header[at] not in NUMBERS] or others
    labels = [at for at in others if header[at] in LABELS] or others
    if len(paths) != 2 or len(labels) != 1:
        raise DataError(
            f"{source}: expected two columns of paths and one label, called one of {LABELS} where "
            f"there are more. Received: {header if any(header) else first}."
        )
    (left, right), (label,) = paths, labels
    fold = header.index("fold") if "fold" in header else None
    words = any(letters(cells[label]) in SAID for _, cells in rows)
    pairs = []
    for number, cells in rows:
        said = is_true(cells[label], f"{source}, line {number}: label", SAID if words else None)
        pairs.append((cells[left], cells[right], said, None if fold is None else cells[fold]))
    unread = [header[at] for at in others if at != label]
    unread += ["split (give a list of each)"] * ("split" in header)
    if unread:
        remarks.append(f"Columns that are not read: {some(unread)}.")
    says = "same" if words or header[label] in SAYS_SAME else None
    means = _meaning(source, pairs, says, pair_label)
    return [(left, right, said == (means == "same"), fold) for left, right, said, fold in pairs]


def _meaning(source, pairs, says, pair_label):
    """What label 1 means: as the column says, or as the user does; never guessed."""
    if says and pair_label not in (None, says):
        raise DataError(
            f"{source}: its labels say what they mean. Received: pair_label='{pair_label}'. "
            "Leave it out."
        )
    if says or pair_label:
        return says or pair_label
    shown = {
        said: f"'{left}' and '{right}' have label {said:d}" for left, right, said, _ in pairs[::-1]
    }
    raise DataError(
        f"{source} does not say what its labels mean. Look at two pairs: "
        f"{'; '.join(shown.values())}. Then give --pair_label same if 1 means that both show the "
        "same, else --pair_label different."
    )


def _lfw_pairs(rows):
    """As `_labelled_pairs`, of lines `Name 1 4` and `NameA 1 NameB 2`; none if it is no such list.

    The first line may tell how many pairs of a kind there are, or folds and pairs of a kind in each
    (Huang et al., "Labeled Faces in the Wild", 2007).
    """
    pairs, first = [], rows[0][1]
    sizes = [int(cell) for cell in first if cell.isdecimal()]
    is_size = len(sizes) == len(first)
    fold_size = 2 * sizes[1] if is_size and len(sizes) == 2 else None
    for at, (_, cells) in enumerate(rows[is_size or first[0].lower() == "name" :]):
        is_number = [cell.isdecimal() for cell in cells]
        if is_number not in ([False, True, True], [False, True, False, True]) or _paths(cells):
            return []
        left, number, *others = cells
        right, other = (left, *others) if len(cells) == 3 else others
        names = LFW_NAME.format(left, int(number)), LFW_NAME.format(right, int(other))
        pairs.append((*names, len(cells) == 3, at // fold_size if fold_size else None))
    return pairs
