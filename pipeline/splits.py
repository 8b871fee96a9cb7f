"""Who trains and who tests: every image on one side only, some classes kept out whole."""

import dataclasses

import numpy as np

from pipeline.class_batches import training_labels
from pipeline.files import DataError, tables_in
from pipeline.near_duplicates import equal_files, join_groups

SPLITS = ("train", "val", "test_known", "test_unseen")
SIDE = "<U11"  # the longest of them
FEW_CLASSES = 10  # of fewer, those kept unseen say little about other new ones


@dataclasses.dataclass
class Splits:
    """Rows of the index for each purpose, sorted, and what was noticed on the way."""

    train: np.ndarray  # trained on
    val: np.ndarray  # these choose the best epoch and the threshold
    test_known: np.ndarray  # new images of classes trained on
    test_unseen: np.ndarray  # all usable images of classes kept out of training whole
    left_out: dict  # row -> reason, for images on no side
    remarks: list  # sentences for the user
    copies: np.ndarray  # near-duplicates that were joined, (n, 2)

    def items(self):
        """`(name, rows)` of the four sides."""
        return [(name, getattr(self, name)) for name in SPLITS]


def make_splits(index, digests, unreadable, config, copies=()):
    """`Splits` by image (whole groups) within known classes, and by class for the unseen ones.

    Args:
        index: An `ImageIndex`; its groups are joined by equal files and copies.
        digests: Equal for equal files, (images,).
        unreadable: Row -> reason.
        config: A `Config`.
        copies: The `near_duplicates`, (n, 2); None where they were not searched.

    Raises:
        DataError: If fewer than two classes, or none with two images, would be left to train on.
    """
    left_out, remarks = unusable(index, digests, unreadable), []
    if copies is None:
        remarks.append(
            "Too many images to search for near-duplicates: only equal files are joined."
        )
        copies = ()
    copies = np.reshape(copies, (-1, 2)).astype(int)
    # Copies of one file are one thing: a genuine pair of them would teach nothing.
    equal = [(rows[0], row) for rows in equal_files(digests, unreadable) for row in rows[1:]]
    index.groups = join_groups(index.groups, np.array([*equal, *copies], int).reshape(-1, 2))
    usable = np.delete(np.arange(len(index)), list(left_out))
    if index.splits is not None:
        sides = _given_sides(index, usable, config, left_out, remarks)
    elif index.pairs is not None:
        sides = _pair_sides(index, usable, config, left_out, remarks)
    else:
        sides = _drawn_sides(index, usable, config, remarks)
    if index.pairs is None:  # a twin is too easily found
        for first, row in equal:
            if sides[first] == sides[row] and sides[row] not in ("", "train"):
                sides[row], left_out[row] = "", "an exact copy of another held-out image"
    for row in usable[sides[usable] == ""].tolist():
        left_out.setdefault(row, "shows what another held-out class shows too")
    splits = Splits(*(np.flatnonzero(sides == name) for name in SPLITS), left_out, remarks, copies)
    counts = np.bincount(np.delete(index.labels, list(left_out)), minlength=1)  # (classes,)
    for name in ("train", "val"):
        _check_enough(index, splits, name, counts)
    if index.classes_known:
        remarks += _what_cannot_be_known(index, splits, config, (counts >= 2).sum())
    return splits


def unusable(index, digests, unreadable):
    """Row -> reason of images that are unreadable, or of a file that lies in two classes.

    The genuine images of a class and its forgeries are two.
    """
    reasons, kinds = dict(unreadable), 2 * index.labels + index.forged
    equal = equal_files(digests, unreadable) if index.classes_known else []
    for rows in equal:
        row_of = {kinds[row]: row for row in rows}
        for row in rows:
            twin = next((twin for kind, twin in row_of.items() if kind != kinds[row]), None)
            if twin is not None:
                reasons[row] = f"same content as '{index.names[twin]}' of another class"
    return reasons


def _drawn_sides(index, usable, config, remarks):
    """Side of each row, drawn; asks for less where there are too few families, classes, images."""
    by_class = config.hold_out_by == "class"
    unit = index.labels if by_class else index.families
    genuine = usable[~index.forged[usable]]
    genuine = genuine[np.bincount(index.labels[genuine])[index.labels[genuine]] >= 2]
    units = np.unique(unit[genuine])  # that may be kept whole: those of a genuine pair
    shares = config.unseen_share, config.val_share if config.validate_on == "classes" else 0.0
    kept = [max(2, round(share * len(units))) if share > 0 else 0 for share in shares]
    too_many = len(units) - sum(kept) < 2
    if too_many and any(kept) and not by_class:
        remarks.append(
            f"Too few families to keep whole ones out ({len(units)}; hold_out_by='family'): "
            "single classes are kept out instead."
        )
        config = dataclasses.replace(config, hold_out_by="class")
        return _drawn_sides(index, usable, config, remarks)
    # A single class that is kept unseen would have no impostors.
    few = round(config.unseen_share * len(units)) < 2 and len(units) < FEW_CLASSES
    if by_class and (too_many or few):
        kept[0] = 0
    sides = _draw_units_then_groups(index, usable, config, unit, units, kept)
    if config.validate_on == "classes" or _is_enough(training_labels(index)[sides == "val"]):
        return sides
    remarks.append(
        "Too few images per class to keep two of each for validation: whole classes are "
        "kept instead (validate_on='classes')."
    )
    config = dataclasses.replace(config, validate_on="classes")
    return _drawn_sides(index, usable, config, remarks)


def _draw_units_then_groups(index, usable, config, unit, units, kept):
    """Draws `kept` units for test and for validation, then groups within each known class."""
    rng, groups = np.random.default_rng(config.seed), index.groups
    sides, group_side = np.zeros(len(index), SIDE), np.zeros(groups.max() + 1, SIDE)
    *kept, _ = np.split(rng.permutation(units), np.cumsum(kept))
    for side, whole in zip(("test_unseen", "val"), kept, strict=True):
        rows = usable[np.isin(unit[usable], whole)]
        rows = rows[group_side[groups[rows]] == ""]  # the others are left out
        group_side[groups[rows]] = sides[rows] = side
    val_share = config.val_share if config.validate_on == "images" else 0.0
    shares = {"val": val_share, "test_known": config.test_share}
    known = usable[~np.isin(unit[usable], np.concatenate(kept))]
    kinds = 2 * index.labels + index.forged
    known = known[np.argsort(kinds[known], kind="stable")]  # forgeries beside what they imitate
    for rows in np.split(known, np.flatnonzero(np.diff(kinds[known])) + 1):
        _place_groups(rows, groups, shares, group_side, sides, rng)
    return sides


def _place_groups(rows, groups, shares, group_side, sides, rng):
    """Places the groups of some rows; two images at least stay in training, and on a side or none.

    A single image would have no genuine pair there, and be missing in training.
    """
    own, sizes = np.unique(groups[rows], return_counts=True)
    placed = group_side[own]  # by another class
    placed[placed == "test_unseen"] = "test_known"
    order = rng.permutation(len(own))
    free = order[placed[order] == ""]
    for_train = sizes[(placed == "") | (placed == "train")].sum()  # images that may still train
    for side, share in shares.items():
        wanted = max(2, round(share * len(rows))) if share > 0 else 0
        there, left, chosen = sizes[placed == side].sum(), for_train, []
        for group in free:
            if there >= wanted:
                break
            if left - sizes[group] >= 2:
                chosen.append(group)
                there, left = there + sizes[group], left - sizes[group]
        if there >= 2:
            placed[chosen], for_train = side, left
            free = free[placed[free] == ""]
    placed[free] = "train"
    group_side[own] = placed
    sides[rows] = group_side[groups[rows]]


def _pair_sides(index, usable, config, left_out, remarks):
    """Side of each row where pairs are given: whole groups, and whole chains of pairs if they can.

    A pair that crosses is of no use, nor is an image none of whose pairs lies on its side.
    """
    pairs, genuine = index.pairs[:, :2], index.pairs[index.pairs[:, 2] == 1, :2]
    for links in (pairs, genuine, ()):
        joined = join_groups(index.groups, links)
        if np.bincount(joined[usable]).max(initial=0) <= len(usable) / 2:
            break
    sides, group_side = np.zeros(len(index), SIDE), np.zeros(joined.max() + 1, SIDE)
    test = "test_unseen" if index.classes_known else "test_known"
    share = config.unseen_share if index.classes_known else config.test_share
    shares, rng = {"val": config.val_share, test: share}, np.random.default_rng(config.seed)
    _place_groups(usable, joined, shares, group_side, sides, rng)
    left, right = sides[pairs].T
    if crossing := np.sum((left != right) & (left != "") & (right != "")):
        remarks.append(f"{crossing} of {len(pairs)} given pairs cross a split: they are left out.")
    lost = np.setdiff1d(usable, pairs[left == right])
    sides[lost] = ""
    left_out |= dict.fromkeys(lost.tolist(), "the other image of its pair is on another side")
    return sides


def _given_sides(index, usable, config, left_out, remarks):
    """Side of each row from the source's own train, val and test; drawn from train if missing."""
    sides = np.zeros(len(index), SIDE)
    sides[usable] = np.asarray(index.splits)[usable]
    if not (sides == "train").any():
        raise DataError(f"'{index.source}' has test images and no train images. Add a train split.")
    for side, others in (("test", ["train"]), ("val", ["train", "test"])):
        taken = np.isin(index.groups, index.groups[np.isin(sides, others)])
        leaks = np.flatnonzero((sides == side) & taken)
        sides[leaks] = ""
        reason = f"given for {side}, shows what a {' or '.join(others)} image shows"
        left_out |= dict.fromkeys(leaks.tolist(), reason)
    given = [side for side in ("val", "test") if (sides == side).any()]
    if len(given) < 2:
        if given:
            test_share = 0.0 if "test" in given else config.test_share
            config = dataclasses.replace(config, unseen_share=0.0, test_share=test_share)
        train = np.flatnonzero(sides == "train")
        drawn = _drawn_sides(index, train, config, remarks)[train]
        sides[train] = np.where((drawn == "val") & ("val" in given), "train", drawn)
    known = np.isin(index.labels, index.labels[sides == "train"])
    sides[(sides == "test") & known] = "test_known"
    sides[sides == "test"] = "test_unseen"
    return sides


def _what_cannot_be_known(index, splits, config, num_classes):
    """Yields what a test on these splits will not tell."""
    labels, num_unseen = training_labels(index), len(np.unique(index.labels[splits.test_unseen]))
    if not any(_is_enough(labels[rows]) for rows in (splits.test_known, splits.test_unseen)):
        share = f", or set unseen_share to {2 / num_classes:.2g}" if num_classes > 3 else ""
        yield (
            "Nothing is left to test on: evaluate.py will have nothing to score. Add images, 6 in "
            f"a class are enough{share}."
        )
    few = num_classes < FEW_CLASSES
    if few and num_unseen:
        yield (
            f"What is scored on unseen classes rests on {num_unseen} of {num_classes}: it says "
            f"little about other new ones. {FEW_CLASSES} classes or more say more."
        )
    elif not num_unseen and (few or (config.unseen_share and index.splits is None)):
        yield (
            f"Of {num_classes} classes of 2 images or more none is kept unseen: nothing will be "
            "known of how well new ones are told apart."
        )


def _check_enough(index, splits, name, counts):
    """A DataError where a split lacks what it needs; `counts` are usable images of each class."""
    rows = getattr(splits, name)
    if index.pairs is not None:
        same = index.pairs[index.pairs_within(rows), 2]
        if not 0 < same.sum() < len(same):
            raise DataError(
                f"Both kinds of pairs are needed in training and in validation. Received for "
                f"{name}: {same.sum()} genuine and {(same == 0).sum()} impostor pairs of "
                f"'{index.source}'. Change the held-out shares, or list more pairs."
            )
    if _is_enough(training_labels(index)[rows]):
        return
    text = (
        f"Too little data in '{index.source}'. Found: {counts.sum()} usable images in "
        f"{(counts > 0).sum()} classes, at most {counts.max()} in one"
    )
    for row, why in [*splits.left_out.items()][:1]:
        text += f"; {len(splits.left_out)} images left out, as '{index.names[row]}': {why}"
    if index.splits is not None:
        text += f"; too few of them in {name}"
    raise DataError(
        f"{text}. Needed: 2 classes and 4 images in each, so that training and validation have a "
        f"pair of each kind.{tables_in(index.skipped)}"
    )


def _is_enough(labels):
    """Two classes and a genuine pair are the least that can be trained and validated on."""
    counts = np.bincount(labels, minlength=1)
    return (counts > 0).sum() >= 2 and counts.max() >= 2
