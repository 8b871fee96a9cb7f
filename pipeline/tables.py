"""Tables of images: `path,label[,group][,split][,forged]`, in any usual separator and encoding."""

import csv
import io
import re

from pipeline.files import DataError, file_stamp

COLUMNS = ("path", "label", "group", "split", "forged")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
YES, NO = ("1", "1.0", "true", "yes", "y"), ("0", "0.0", "-1", "false", "no", "n", "")
SPLIT = re.compile(  # train_set, test-data, seg_train
    rf"(?:.+[ _-])?({'|'.join(SPLIT_NAMES)})(?:[ _-]?(?:data|(?:data)?set|images|\d{{4}}))?"
)


def table_rows(source, skipped):
    """Rows of a table, its paths relative to it; a file named twice counts once."""
    (_, header), *lines = read_cells(source) or [(1, [])]
    columns = [name.lower() for name in header]
    if not {"path", "label"} <= set(columns):
        raise DataError(
            f"{source} needs a header with the columns path and label, or two paths and a label a "
            f"line, as a list of pairs. Received the columns: {header}."
        )
    rows, contradictory = {}, set()
    for number, cells in lines:
        line = dict.fromkeys(COLUMNS, "") | dict(zip(columns, cells, strict=False))
        name, label, split = line["path"].replace("\\", "/"), line["label"], line["split"]
        if split and not split_of(split):
            raise DataError(
                f"{source}, line {number}: split must be one of {sorted(SPLIT_NAMES)}. "
                f"Received: '{split}'."
            )
        if not label:
            skipped[name] = "no label in its line"
        elif name not in rows:
            forged = is_true(line["forged"], f"{source}, line {number}: forged")
            rows[name] = label, line["group"] or name, split_of(split), forged
        elif rows[name][0] != label:  # the same label again, to balance classes, is one image
            skipped[name] = f"named with two labels, '{rows[name][0]}' and '{label}'"
            contradictory.add(name)
    for name, (label, *others) in rows.items():
        if name not in contradictory and (stamp := file_stamp(source.parent, name, skipped)):
            yield name, stamp, label, *others


def is_true(cell, what):
    """Whether a cell says 1, true, yes or y; an empty one says no. `what` it is, for the error."""
    if cell.lower() not in (*YES, *NO):
        raise DataError(f"{what} must be 1 or 0, true or false, yes or no. Received: '{cell}'.")
    return cell.lower() in YES


def read_cells(source):
    """`(line number, cells)` of the lines of a table: any usual separator and encoding."""
    text, rows = read_text(source)[0], []
    head = "\n".join(text.strip().splitlines()[:2])
    separator = max(",;\t", key=head.count)
    form = {"delimiter": separator if separator in head else " ", "skipinitialspace": True}
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, **form)
    try:
        for cells in lines:
            if any("\n" in cell for cell in cells):
                raise csv.Error("a cell of several lines")
            cells = [cell.strip() for cell in cells]
            while cells and not cells[-1]:  # a separator at the end of a line
                cells.pop()
            if cells:
                rows.append((lines.line_num, cells))
    except csv.Error as error:
        raise DataError(
            f"{source}, line {lines.line_num}: {error}. Is a quote not closed?"
        ) from error
    return rows


def read_text(source):
    """`(text, encoding)` of a file in UTF-8, UTF-16 with its mark, or cp1252."""
    content = source.read_bytes()
    marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp1252"):
        try:
            return content.decode(encoding), encoding.removesuffix("-sig")
        except UnicodeDecodeError as error:
            reason = error
    raise DataError(f"{source} is neither UTF-8, UTF-16 nor cp1252: {reason}.")


def split_of(name):
    """ "train", "val" or "test" if a folder or a cell is named so, else None."""
    match = SPLIT.fullmatch(name.strip().lower())
    return match and SPLIT_NAMES[match[1]]
