"""Tables of images: `path,label[,group][,split][,forged]`, in any usual separator and encoding."""

import csv
import io
import itertools
import os
import posixpath
import re
from collections import defaultdict, namedtuple
from pathlib import PurePosixPath

from pipeline.files import IMAGE_SUFFIXES, DataError, existing, file_stamp, list_files, some

Row = namedtuple("Row", "name stamp label group split forged")  # of an index; see `ImageIndex`
COLUMNS = {  # and what public data sets call them, letters alone; the first that is there counts
    "path": "path filepath filepaths imagepath imgpath filename imagename imgname image img file "
    "imageid imgid idcode imagefile images paths files fname isicid id name",
    "label": "label labels class classname classid target category individualid individual "
    "identity person subject writer writerid signer breed species diagnosis dx itemid labelgroup "
    "landmarkid hotelid productid",
    "group": "group groupid lesionid patientid patient",
    "split": "split dataset set subset partition evaluationstatus",
    "forged": "forged isforged forgery isforgery",
    "genuine": "genuine isgenuine",
}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "images_background"), "train"),  # Omniglot's own word
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout"), "test"),
    **dict.fromkeys(("query", "gallery"), "test"),  # of people and clothes
}
BOOLEANS = {
    **dict.fromkeys("1 1.0 true yes y".split(), True),
    **dict.fromkeys("0 0.0 -1 false no n".split(), False),
}
FORGED = {
    **dict.fromkeys("forged forgery fake skilled f".split(), True),
    **dict.fromkeys("genuine original real g".split(), False),
}
NO_LABEL = ("", "nan", "na", "n/a", "null")
SPLIT = re.compile(  # train_set, test-data, seg_train, test1
    rf"(?:.+[ _-])?({'|'.join(SPLIT_NAMES)})(?:[ _-]?(?:data|(?:data)?set|images|mini|\d{{1,4}}))?"
)
UTF_16 = b"\xff\xfe", b"\xfe\xff"  # how such a file begins
NO_ROW = re.compile(r"\s*#(?!\S*\.\w)|sep=.?\s*$")  # a comment; how Excel is told the separator


def table_rows(source, rows, skipped, remarks):
    """Yields a `Row` of each file that the lines of `read_cells` name; of one named twice, once."""
    header, lines = _header(source, rows)
    at, classes = _columns(source, header, lines, remarks)
    paths = [cells[at["path"]].replace("\\", "/") for _, cells in lines]
    file_of, found, contradictory = find_listed(source, paths), {}, set()
    for path, (number, cells) in zip(paths, lines, strict=True):
        name, where = file_of[path], f"{source}, line {number}"
        label, group, split = (cells[at[c]] if c in at else "" for c in ("label", "group", "split"))
        if classes:
            label = " + ".join(header[n] for n in classes if BOOLEANS.get(cells[n].lower()))
        if split and not split_of(split):
            raise DataError(
                f"{where}: split must be train, val or test, or a usual word for one of them. "
                f"Received: '{split}'."
            )
        if len(cells) > len(header):
            skipped[name] = f"more cells than columns: are quotes missing about '{label}'?"
        elif label.lower() in NO_LABEL:
            skipped[name] = "no label in its line"
        elif name not in found:
            found[name] = label, group, split_of(split), _is_forged(cells, at, where)
        elif found[name][0] != label:  # the same label again, to balance classes, is one image
            skipped[name] = f"named with two labels, '{found[name][0]}' and '{label}'"
            contradictory.add(name)
    if repeated := len(paths) - len({file_of[path] for path in paths}):
        remarks.append(f"{repeated} lines name a file again: it counts once.")
    for name, described in found.items():
        if name not in contradictory and (stamp := file_stamp(source.parent, name, skipped)):
            yield Row(name, stamp, *described)


def _is_forged(cells, at, where):
    """Whether a line is of a forgery, as its column `genuine` or `forged` says."""
    if "genuine" in at:
        return not is_true(cells[at["genuine"]], f"{where}: genuine")
    said = cells[at["forged"]] if "forged" in at else "no"
    forged = FORGED.get(said.lower())
    return is_true(said or "no", f"{where}: forged") if forged is None else forged


def _header(source, rows):
    """`(names of the columns, lines)`, which have at least as many cells each."""
    if rows and len(rows[0][1]) == 1 and rows[0][1][0].isdecimal():  # how many lines follow
        rows = rows[1:]
    header, lines = (rows[0][1], rows[1:]) if rows else ([], [])
    is_path = [cell.lower().endswith(IMAGE_SUFFIXES) for cell in header]
    if is_path in ([True, False], [False, True]):  # the first image and its label
        header, lines = ["path", "label"] if is_path[0] else ["label", "path"], rows
        labels = {cells[header.index("label")] for _, cells in lines if len(cells) == 2}
        if len(lines) > 2 and len(labels) == len(lines) and all(map(str.isdecimal, labels)):
            raise DataError(
                f"{source}: each line has a number of its own beside its path, so there are no "
                "classes. Is it a list of files? Then give the folder."
            )
    return header, [(number, cells + [""] * (len(header) - len(cells))) for number, cells in lines]


def _columns(source, header, lines, remarks):
    """`(place by column, places of classes)`; the latter where each class is a column of 1 and 0.

    Columns are those of `COLUMNS` that a header has.
    """
    plain = [letters(name) for name in header]
    at = {
        column: plain.index(name)
        for column, names in COLUMNS.items()
        for name in reversed(names.split())
        if name in plain
    }
    dropped = None
    if "split" in at and "split" not in plain:  # its name alone says little
        wrong = [cells[at["split"]] for _, cells in lines if not split_of(cells[at["split"]])]
        if wrong:
            dropped = at.pop("split")
            remarks.append(f"The column '{header[dropped]}' is not read: it holds '{wrong[0]}'.")
    if not at.keys() & {"forged", "genuine"}:
        at |= _column_of_kinds(plain, lines)
    others = [n for n, name in enumerate(header) if name and n not in (*at.values(), dropped)]
    if "label" not in at and len(others) == 1:
        at["label"] = others.pop()
    classes = others if "label" not in at else []
    are_classes = all(cells[n].lower() in ("", *BOOLEANS) for _, cells in lines for n in classes)
    if "path" not in at or not ("label" in at or (classes and are_classes)):
        raise DataError(
            f"{source} needs a header with the columns path and label, or two paths and a label a "
            f"line, as a list of pairs. Received the columns: {header}. Rename the two that name "
            "the image and its class."
        )
    if not {"path", "label"} <= {*plain}:
        named = [header[n] for n in classes or [at["label"]]]
        remarks.append(f"'{header[at['path']]}' names the images, {some(named)} their classes.")
    if others and not classes:
        remarks.append(f"Columns that are not read: {some([header[n] for n in others])}.")
    return at, classes


def _column_of_kinds(plain, lines):
    """`{"forged": n, "label": m}`, where a column n of words as genuine and forged says which are.

    Column m names their classes, some of which have both kinds.
    """
    known = [plain.index(name) for name in COLUMNS["label"].split() if name in plain]
    for n in range(len(plain)):
        label = next((m for m in known if m != n), n)
        labels = {True: set(), False: set(), None: set()}
        for _, cells in lines:
            labels[FORGED.get(cells[n].lower())].add(cells[label])
        if labels[True] & labels[False] and not labels[None]:
            return {"forged": n, "label": label}
    return {}


def find_listed(source, names):
    """Where the files of a list are: listed name -> name relative to the folder of the list.

    A file that is not there may be one whose name differs in case alone. Where most are not there,
    they are looked for in the folders beside the list, whatever their suffix, and then without the
    first folders of their paths, which may be another machine's.

    Raises:
        DataError: If a name may be one of two files.
    """
    names = dict.fromkeys(names)  # in the order of the list
    found = {name: posixpath.normpath(name) for name in names}
    gone = [name for name in names if not os.path.lexists(existing(source.parent, name))]
    files = list_files(source.parent) if gone else ()
    files = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
    if 2 * len(gone) <= len(names):
        written = {file.lower(): file for file in files}
        return found | {name: written.get(found[name].lower(), found[name]) for name in gone}
    files, listed = {file: _parts(file) for file in files}, {name: _parts(name) for name in names}
    for cut in range(max(map(len, listed.values()))):
        ends = {name: parts[cut:] for name, parts in listed.items() if parts[cut:]}
        sizes, by_end = {len(end) for end in ends.values()}, defaultdict(list)
        for (file, parts), size in itertools.product(files.items(), sizes):
            if size <= len(parts):
                by_end[parts[-size:]].append((parts[:-size], file))
        below = defaultdict(dict)  # folder -> listed name -> files in it
        for name, end in ends.items():
            for folder, file in by_end.get(end, ()):
                below[folder].setdefault(name, []).append(file)
        if len(set().union(*below.values())) > (len(names) / 2 if cut else 0):
            return found | _nearest(source, below)
    return found


def _nearest(source, below):
    """Listed name -> file, in the folder with most, and in others that share no name with it.

    A list that is called after a split, as `train.csv`, means folders of that split.
    """
    splits = {folder: {*map(split_of, folder)} - {None} for folder in below}
    named = [folder for folder in below if any(s in source.stem.lower() for s in splits[folder])]
    *others, best = sorted(named or below, key=lambda folder: len(below[folder]))
    found = dict(below[best])
    for other in others:
        shared = sorted(below[other].keys() & below[best].keys())
        if not shared:
            found |= below[other]
        elif len(below[other]) == len(below[best]):  # neither is the one that is meant
            found[shared[0]] = below[other][shared[0]] + found[shared[0]]
    for name, files in found.items():
        exact = [file for file in files if file.endswith(PurePosixPath(name).suffix or "/")]
        found[name], *twins = exact or files
        if twins:
            raise DataError(
                f"{source}: '{name}' may be '{found[name]}' or '{twins[0]}'. Give paths relative "
                "to the folder of the list, or move one of the two away."
            )
    return found


def _parts(name):
    """The parts of a path, in lower case and without the suffix of an image."""
    *folders, file = posixpath.normpath(name).lower().strip("/").split("/")
    stem, dot, suffix = file.rpartition(".")
    return *folders, stem if dot + suffix in IMAGE_SUFFIXES else file


def letters(text):
    """The letters of a name alone, in lower case."""
    return re.sub("[^a-z]", "", text.lower())


def is_true(cell, what, words=None):
    """Whether a cell says 1, true, yes or y, or a true one of `words`; `what` it is, for errors."""
    said = BOOLEANS.get(cell.lower()) if words is None else words.get(letters(cell))
    if said is None:
        expected = "1 or 0, true or false, yes or no"
        if words:
            expected = f"one of {', '.join(words)}, as others are"
        raise DataError(f"{what} must be {expected}. Received: '{cell}'.")
    return said


def read_cells(source, remarks):
    """`(line number, cells)` of the lines of a table: any usual separator and encoding."""
    content, rows, widest = source.read_bytes(), [], 0
    for encoding in ("utf-8-sig", "cp1252") if content[:2] not in UTF_16 else ("utf-16",):
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError as error:
            reason = error
    else:
        raise DataError(f"{source} is neither UTF-8, UTF-16 nor cp1252: {reason}.")
    if encoding != "utf-8-sig":
        remarks.append(f"{source.name} is no UTF-8: it was read as {encoding}.")
    head = "\n".join([line for line in text.strip().splitlines() if not NO_ROW.match(line)][:2])
    separator = max(",;\t|", key=head.count)
    form = {"delimiter": separator if separator in head else " ", "skipinitialspace": True}
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, **form)
    try:
        for cells in lines:
            if any("\n" in cell for cell in cells):
                raise csv.Error("a cell of several lines")
            cells = [cell.strip() for cell in cells]
            while cells and not cells[-1]:  # a separator at the end of a line
                cells.pop()
            is_row = separator in head and 1 < len(cells) == widest
            if cells and (is_row or not NO_ROW.match(cells[0])):
                rows.append((lines.line_num, cells))
                widest = max(widest, len(cells))
    except csv.Error as error:
        raise DataError(
            f"{source}, line {lines.line_num}: {error}. Is a quote not closed?"
        ) from error
    return rows


def split_of(name):
    """ "train", "val" or "test" if a folder or a cell is named so, else None."""
    match = SPLIT.fullmatch(name.strip().lower())
    return match and SPLIT_NAMES[match[1]]
