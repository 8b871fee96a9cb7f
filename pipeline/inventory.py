"""What lies in a data set, for a person to read: an inventory, and which config suits it."""

import shlex
from collections import Counter

import numpy as np

from configs import DRAWN_LEAVES
from pipeline.files import by_reason, some
from pipeline.near_duplicates import equal_files
from pipeline.sheets import printable

MOST_NAMED = 10  # entries of a list that are printed
SAMPLE = 64  # images that tell what kind they are
SAME_COLOUR = 6  # largest median difference between the channels of grey images
DARK, BRIGHT, TWO_TONE = 40, 215, 0.8  # drawings have this share of their pixels beyond them


def inventory(dataset):
    """What a `Dataset` holds, lines for a person to read."""
    index, cache, splits = dataset.index, dataset.cache, dataset.splits
    per_class = np.bincount(index.labels)
    families = [name for name in index.family_names if name]
    kinds = [f"{kind} x {count}" for kind, count in cache.kinds.items()]
    lines = [
        f"{index.source}: {len(index)} images in {len(index.class_names)} classes",
        f"  images per class: {per_class.min()} to {per_class.max()}, "
        f"median {np.median(per_class):g}",
        f"  families:         {some(families, MOST_NAMED) or 'none'}",
        f"  groups:           {(np.bincount(index.groups) > 1).sum()} of 2 images or more",
        f"  sizes and modes: {some(kinds, MOST_NAMED)}",
    ]
    if index.forged.any():
        forged, genuine = np.flatnonzero(index.forged), np.flatnonzero(~index.forged)
        writers, imitated = (len(np.unique(index.labels[rows])) for rows in (genuine, forged))
        first = genuine[index.labels[genuine] == index.labels[forged[0]]][0]
        lines.append(
            f"  forgeries:        {len(forged)} of {imitated} classes, beside {len(genuine)} "
            f"genuine images of {writers}; '{index.names[forged[0]]}' imitates "
            f"'{index.names[first]}'"
        )
    if index.pairs is not None:
        impostor, genuine = np.bincount(index.pairs[:, 2], minlength=2)
        lines.append(f"  given pairs:      {genuine} genuine, {impostor} impostor")
    for name, rows in splits.items():
        classes = len(np.unique(index.labels[rows]))
        lines.append(f"  {name + ':':<17} {len(rows)} images of {classes} classes")
    lines += [f"Note: {remark}" for remark in index.remarks + splits.remarks]
    single = [index.class_names[label] for label in np.flatnonzero(per_class == 1)]
    if single and index.classes_known:
        named = some(single, MOST_NAMED)
        lines.append(f"Note: {len(single)} classes of one image are impostors only: {named}")
    lines += _equal_lines(index, equal_files(cache.digests, cache.unreadable))
    lines += _copy_lines(index, splits.copies, cache.digests)
    left_out = index.skipped | {index.names[row]: why for row, why in splits.left_out.items()}
    if left_out:
        lines.append(f"Left out: {len(left_out)}")
    reasons = by_reason(left_out, MOST_NAMED)
    lines += [f"  {reason}" for reason in reasons[:MOST_NAMED]]
    if len(reasons) > MOST_NAMED:
        lines.append(f"  and {len(reasons) - MOST_NAMED} other reasons")
    return [printable(line) for line in lines]


def _equal_lines(index, equal):
    """Files of equal content, with a warning where they lie in two classes."""
    if equal:
        yield f"Exact duplicates: {sum(map(len, equal))} files of {len(equal)} contents"
    for rows in equal[:MOST_NAMED]:
        yield "  " + " = ".join(index.names[row] for row in rows)
    classes = (sorted({index.class_names[index.labels[row]] for row in rows}) for rows in equal)
    crossing = Counter(" and ".join(names) for names in classes if len(names) > 1)
    if index.classes_known:
        for names, count in crossing.items():
            yield f"WARNING: {count} files lie in two classes, {names}: none of them is used."


def _copy_lines(index, copies, digests):
    """Near-duplicates that were joined, those across classes first: labels that may be wrong."""
    copies = copies[digests[copies[:, 0]] != digests[copies[:, 1]]]
    across = index.labels[copies[:, 0]] != index.labels[copies[:, 1]]
    if len(copies):
        yield (
            f"Near-duplicates: {len(copies)} pairs, {across.sum()} of them across classes; "
            "each pair stays on one side of the splits"
        )
    for at in np.argsort(~across, kind="stable")[:MOST_NAMED]:
        pair = " ~ ".join(index.names[row] for row in copies[at])
        yield f"  {pair}{'  (two classes: is a label wrong?)' if across[at] else ''}"


def advice(dataset, name):
    """Yields a sentence where another config than 'leaves', if nobody named one, suits better."""
    index = dataset.index
    usable = np.setdiff1d(np.arange(len(index)), list(dataset.splits.left_out))
    sample = dataset.pixels[usable[:: max(1, len(usable) // SAMPLE)]]
    asked = name != "leaves" or str(index.source) == DRAWN_LEAVES
    if asked or index.pairs is not None or sample.shape[3] == 1 or np.ptp(sample) < DARK:
        return
    spread = np.ptp(sample.astype(int), axis=3).mean(axis=(1, 2))  # (images,)
    if index.forged.any():
        kind, name = "genuine images and forgeries", "signatures"
    elif np.median(spread) >= SAME_COLOUR:
        kind, name = "colour photographs", "photographs"
    elif np.mean((sample < DARK) | (sample > BRIGHT)) > TWO_TONE:
        kind, name = "drawings in two tones", "characters"
    else:
        kind, name = "grey photographs", "faces"
    yield (
        f"These are {kind}: the config '{name}' would suit them better than 'leaves'. "
        f"Type: python train.py {name} --data_dir {shlex.quote(str(index.source))}"
    )
