"""Who trains and who tests: every image on one side only, some classes kept out whole."""

import dataclasses

import numpy as np

from image_index import DataError

SPLITS = ("train", "val", "test_known", "test_unseen")


@dataclasses.dataclass
class Splits:
    """Rows of the index for each purpose, sorted, and what was noticed on the way.

    Attributes:
        train: Images trained on.
        val: Images that choose the best epoch and the threshold.
        test_known: New images of classes trained on.
        test_unseen: All usable images of classes kept out of training whole.
        left_out: Row -> reason, for images on no side.
        remarks: Sentences for the user.
    """

    train: np.ndarray
    val: np.ndarray
    test_known: np.ndarray
    test_unseen: np.ndarray
    left_out: dict
    remarks: list

    def items(self):
        """`(name, rows)` of the four sides."""
        return [(name, getattr(self, name)) for name in SPLITS]


def make_splits(index, digests, unreadable, config):
    """Splits by image (whole groups) within known classes, and by class for the unseen ones.

    Files of equal content count as one group. A file that lies in two classes is left out,
    as nobody knows what it shows.

    Args:
        index: An `ImageIndex`.
        digests: Array (images,), equal for equal files.
        unreadable: Row -> reason.
        config: A `Config`: `seed`, `validate_on` and the shares.

    Returns:
        `Splits`.

    Raises:
        DataError: If fewer than two classes, or none with two images, would be left to train on.
    """
    left_out = unusable(index, digests, unreadable)
    groups = merge_equal_files(index.groups, digests, skip=unreadable)
    usable = np.setdiff1d(np.arange(len(index)), list(left_out))
    remarks = []
    if index.splits:
        sides = _given_sides(index, usable, groups, config, left_out, remarks)
    elif index.impostors is not None:
        groups = _pair_groups(usable, groups, digests, remarks)
        sides = _group_sides(index, usable, groups, config, left_out)
    else:
        sides = _drawn_sides(index, usable, groups, config, remarks)
    for row in usable[sides[usable] == ""]:
        left_out.setdefault(row, "shows what another held-out class shows too")
    splits = Splits(
        *(np.flatnonzero(sides == name) for name in SPLITS), left_out=left_out, remarks=remarks
    )
    _check_enough(index, splits)
    check_disjoint(index, groups, splits)
    return splits


def merge_equal_files(groups, digests, skip=()):
    """Group of each row after joining the groups that share a file of equal content."""
    parent = list(range(groups.max(initial=-1) + 1))

    def root(group):
        while parent[group] != group:
            parent[group] = parent[parent[group]]  # keeps the way short
            group = parent[group]
        return group

    for first, *others in equal_files(digests, skip):
        for other in others:
            parent[root(groups[other])] = root(groups[first])
    return np.array([root(group) for group in range(len(parent))], dtype=int)[groups]


def equal_files(digests, skip=()):
    """Lists of rows whose files have equal content, two rows or more in each."""
    rows_of = {}
    for row, digest in enumerate(digests.tolist()):
        if row not in skip:
            rows_of.setdefault(digest, []).append(row)
    return [rows for rows in rows_of.values() if len(rows) > 1]


def unusable(index, digests, unreadable):
    """Row -> reason for images that are unreadable or lie in two classes with equal content.

    Takes what `make_splits` takes.
    """
    reasons = dict(unreadable)
    if index.impostors is not None:  # there every pair counts as classes of its own
        return reasons
    for rows in equal_files(digests, unreadable):
        one_of = {index.labels[row]: row for row in rows}  # a row of each class
        for row in rows:
            twins = [twin for label, twin in one_of.items() if label != index.labels[row]]
            if twins:
                reasons[row] = f"same content as '{index.names[twins[0]]}' of another class"
    return reasons


def _drawn_sides(index, usable, groups, config, remarks):
    """Side of each row, drawn; whole classes validate where there are too few images."""
    config = _affordable(index, usable, config, remarks)
    sides = _draw_sides(index, usable, groups, config)
    if config.validate_on == "classes" or _is_enough(index.labels[sides == "val"]):
        return sides
    remarks.append(
        "Too few images per class to keep two of each for validation: whole classes are "
        "kept instead (validate_on='classes')."
    )
    by_class = dataclasses.replace(config, validate_on="classes")
    return _draw_sides(index, usable, groups, _affordable(index, usable, by_class, remarks))


def _draw_sides(index, usable, groups, config):
    """Draws classes first, then groups within each known class."""
    rng = np.random.default_rng(config.seed)
    sides = np.full(len(index), "", dtype="<U11")
    group_side = {}  # a group may span classes; the first class to place it decides
    classes, counts = np.unique(index.labels[usable], return_counts=True)
    drawn = rng.permutation(classes[counts >= 2])
    num_unseen = _num_classes(config.unseen_share, len(drawn))
    num_val = _num_classes(config.val_share, len(drawn)) if config.validate_on == "classes" else 0
    rows_of = {label: usable[index.labels[usable] == label] for label in classes}
    for position, label in enumerate(drawn[: num_unseen + num_val]):
        side = "test_unseen" if position < num_unseen else "val"
        for row in rows_of[label]:
            if group_side.setdefault(groups[row], side) == side:  # else it is left out
                sides[row] = side
    whole = set(drawn[: num_unseen + num_val].tolist())
    val_share = config.val_share if config.validate_on == "images" else 0.0
    shares = {"val": val_share, "test_known": config.test_share}
    for label in classes:
        if label not in whole:
            _place_groups(rows_of[label], groups, shares, group_side, sides, rng)
    return sides


def _affordable(index, usable, config, remarks):
    """The config without unseen classes where there are too few classes to keep any out."""
    num_classes = (np.bincount(index.labels[usable]) >= 2).sum()
    num_kept = _num_classes(config.unseen_share, num_classes)
    if config.validate_on == "classes":
        num_kept += _num_classes(config.val_share, num_classes)
    if num_kept == 0 or num_classes - num_kept >= 2:
        return config
    remarks.append(f"Only {num_classes} classes of 2 images or more: none is kept unseen.")
    return dataclasses.replace(config, unseen_share=0.0)


def _num_classes(share, num_classes):
    """How many classes a share is: two at least, as one alone makes no impostor pair."""
    return max(2, round(share * num_classes)) if share > 0 else 0


def _place_groups(rows, groups, shares, group_side, sides, rng):
    """Places the groups of one known class; at least two images stay in training."""
    wanted = {side: max(2, round(share * len(rows))) for side, share in shares.items() if share > 0}
    placed = dict.fromkeys(wanted, 0)
    rest = len(rows)
    for group in rng.permutation(np.unique(groups[rows])):
        members = rows[groups[rows] == group]
        if group not in group_side:
            open_sides = [side for side in wanted if placed[side] < wanted[side]]
            spare = rest - len(members) >= 2
            group_side[group] = open_sides[0] if open_sides and spare else "train"
        side = "test_known" if group_side[group] == "test_unseen" else group_side[group]
        sides[members] = side
        if side in placed:
            placed[side] += len(members)
        rest -= len(members) * (side != "train")


def _pair_groups(usable, groups, digests, remarks):
    """Groups of a pair-folder layout; contents where recurring images tie all pairs together."""
    _, sizes = np.unique(groups[usable], return_counts=True)
    if max(sizes, default=0) <= len(usable) / 2:
        return groups
    remarks.append("Images recur in many pairs: pairs across a split are left out.")
    return np.unique(digests, return_inverse=True)[1]


def _group_sides(index, usable, groups, config, left_out):
    """Side of each row where only groups count: pair folders."""
    order = np.random.default_rng(config.seed).permutation(np.unique(groups[usable]))
    num_val = max(1, round(config.val_share * len(order)))
    num_test = round(config.test_share * len(order))
    sides = np.full(len(groups), "", dtype="<U11")
    cuts = np.cumsum([num_val, num_test])
    parts = zip(("val", "test_known", "train"), np.split(order, cuts), strict=True)
    for side, members in parts:
        sides[usable[np.isin(groups[usable], members)]] = side
    order = np.argsort(index.labels, kind="stable")
    twins = np.flatnonzero(np.diff(index.labels[order]) == 0)
    genuine = np.stack([order[twins], order[twins + 1]], axis=1)
    pairs = np.concatenate([genuine, index.impostors])
    parted = pairs[sides[pairs[:, 0]] != sides[pairs[:, 1]]].ravel()
    sides[parted] = ""
    left_out |= {row: "the other image of its pair is on another side" for row in parted}
    return sides


def _given_sides(index, usable, groups, config, left_out, remarks):
    """Side of each row from the source's own train, val and test; validation drawn if missing."""
    given = np.array(index.splits)
    sides = np.full(len(index), "", dtype="<U11")
    sides[usable] = given[usable]
    if not (sides == "train").any():
        raise DataError(f"'{index.source}' has test images and no train images. Add a train split.")
    for side, others in (("test", ["train"]), ("val", ["train", "test"])):
        taken = np.isin(groups, groups[np.isin(sides, others)])
        leaks = np.flatnonzero((sides == side) & taken)
        sides[leaks] = ""
        left_out |= dict.fromkeys(leaks, f"shows what a {' or '.join(others)} image shows")
        if len(leaks):
            remarks.append(
                f"{len(leaks)} images given for {side} show what a {' or '.join(others)} image "
                "shows (same file or same group); they are left out."
            )
    if not (sides == "val").any():
        inner = dataclasses.replace(config, unseen_share=0.0, test_share=0.0)
        train = np.flatnonzero(sides == "train")
        sides[train] = _drawn_sides(index, train, groups, inner, remarks)[train]
    known = np.isin(index.labels, index.labels[sides == "train"])
    sides[(sides == "test") & known] = "test_known"
    sides[sides == "test"] = "test_unseen"
    return sides


def _is_enough(labels):
    """Two classes and a genuine pair are the least that can be trained and validated on."""
    counts = np.bincount(labels, minlength=1)
    return (counts > 0).sum() >= 2 and counts.max() >= 2


def _check_enough(index, splits):
    for name in ("train", "val"):
        labels = index.labels[getattr(splits, name)]
        if not _is_enough(labels):
            counts = np.bincount(labels, minlength=1)
            raise DataError(
                f"Too little data for the {name} split of '{index.source}'. Received: "
                f"{(counts > 0).sum()} classes with at most {counts.max()} images there. Expected "
                "at least 2 classes, one with 2 images. Add images, or lower unseen_share, "
                "val_share or test_share."
            )


def check_disjoint(index, groups, splits):
    """Makes sure that no image, group or unseen class is on two sides.

    Raises:
        DataError: Naming the first image that is.
    """
    side_of_group, side_of_row = {}, {}
    for name, rows in splits.items():
        for row in rows:
            if row in side_of_row:
                raise DataError(f"'{index.names[row]}' is in {name} and in {side_of_row[row]}.")
            side_of_row[row] = name
            other = side_of_group.setdefault(groups[row], name)
            if other != name and {other, name} != {"test_known", "test_unseen"}:
                raise DataError(f"'{index.names[row]}' is in {name}, its like in {other}.")
    trained_on = set(index.labels[splits.train].tolist())
    for row in splits.test_unseen:
        if index.labels[row] in trained_on:
            raise DataError(f"'{index.names[row]}' is of a class trained on, yet in test_unseen.")
