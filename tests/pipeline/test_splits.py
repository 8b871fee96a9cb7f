"""Splits against brute force: who may meet whom, whole classes, shares, and seeds."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from configs import CONFIGS, Config
from pipeline.files import DataError
from pipeline.splits import SPLITS, make_splits

CONFIG = Config(unseen_share=0.25, test_share=0.15, val_share=0.15)


def distinct(index):
    return np.arange(len(index), dtype=np.uint64)


def split(index, config=CONFIG, digests=None, unreadable=(), **others):
    """Splits of an index whose files all differ unless told otherwise, checked by brute force."""
    digests, unreadable = distinct(index) if digests is None else digests, dict(unreadable)
    splits = make_splits(index, digests, unreadable, config, **others)
    check_by_brute_force(index, digests, unreadable, splits)
    return splits


def sides_of(splits):
    """Row -> side, after making sure that no row has two."""
    rows = [row for _, rows in splits.items() for row in rows.tolist()]
    assert len(rows) == len(set(rows))
    return {row: name for name, rows in splits.items() for row in rows.tolist()}


def check_by_brute_force(index, digests, unreadable, splits):
    side, kinds = sides_of(splits), 2 * index.labels + index.forged
    assert set(side) | set(splits.left_out) == set(range(len(index)))
    assert not set(side) & set(splits.left_out)
    for one, other in itertools.combinations(range(len(index)), 2):
        equal = digests[one] == digests[other] and not {one, other} & set(unreadable)
        if equal and kinds[one] != kinds[other]:
            assert one in splits.left_out and other in splits.left_out
        elif equal and {one, other} <= set(side):
            assert side[one] == side[other] == "train"  # of held-out copies there is one
        if (equal or index.groups[one] == index.groups[other]) and {one, other} <= set(side):
            apart = {side[one], side[other]}
            assert len(apart) == 1 or apart == {"test_known", "test_unseen"}  # neither is trained
    copies = [row for row, why in splits.left_out.items() if "exact copy" in why]
    assert np.isin(digests[copies], digests[[*side]]).all()
    for label in set(index.labels.tolist()):
        of_class = {side[row] for row in side if index.labels[row] == label}
        alone = {"test_unseen"} if index.splits is None else {"test_unseen", "val"}
        assert of_class <= alone or "test_unseen" not in of_class


@pytest.mark.parametrize("validate_on", ["images", "classes"])
@pytest.mark.parametrize("seed", range(10))
def test_untidy_data(seed, validate_on, build_index):
    rng = np.random.default_rng(seed)
    labels = rng.integers(12, size=200) * rng.integers(2, size=200)  # class 0 is the largest
    groups = labels * 50 + rng.integers(12, size=200)
    groups[:6] = groups[6:12]  # some groups span classes
    forged = rng.random(200) < 0.2 * (seed % 2)
    index = build_index(labels, groups=groups, forged=forged)
    digests = rng.integers(400, size=200).astype(np.uint64)  # some files are equal
    unreadable = dict.fromkeys(rng.choice(200, 5, replace=False).tolist(), "broken")
    config = dataclasses.replace(CONFIG, seed=seed, validate_on=validate_on)
    splits = split(index, config, digests, unreadable)
    assert len(splits.train) and len(splits.val) and len(splits.test_unseen)


def test_shares(build_index):
    index = build_index(np.repeat(np.arange(20), 40))
    splits = split(index)
    per_class = {name: {*np.bincount(index.labels[rows])} for name, rows in splits.items()}
    expected = {"train": {0, 28}, "val": {0, 6}, "test_known": {0, 6}, "test_unseen": {0, 40}}
    assert per_class == expected and len(splits.test_unseen) == 5 * 40
    assert splits.left_out == {} and splits.remarks == []
    splits = split(index, dataclasses.replace(CONFIG, validate_on="classes"))
    kept = {name: set(index.labels[rows].tolist()) for name, rows in splits.items()}
    assert [len(kept[name]) for name in SPLITS] == [12, 3, 12, 5]
    assert not kept["val"] & (kept["train"] | kept["test_unseen"])


def test_shares_of_groups(build_index):
    groups = np.repeat(np.arange(80), [1, 2, 3, 4] * 20)
    index = build_index(np.repeat([0, 1], 100), groups=groups)
    splits = split(index, dataclasses.replace(CONFIG, unseen_share=0.0))
    for label in (0, 1):
        for rows in (splits.val, splits.test_known):
            assert 15 <= (index.labels[rows] == label).sum() <= 18  # a group's end may stick out


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ([2] * 10, "whole classes are kept instead"),
        ([2] * 5, "none is kept unseen"),
        ([6] * 2, "none is kept unseen"),
        ([3] * 10, "whole classes are kept instead"),
        ([6] * 4 + [1] * 26, "Of 4 classes"),
    ],
)
def test_few_images(sizes, says, build_index):
    index = build_index(np.repeat(np.arange(len(sizes)), sizes))
    splits = split(index)
    in_train, in_val = (np.bincount(index.labels[rows]) for rows in (splits.train, splits.val))
    assert (in_train >= 2).sum() >= 2 and (in_val >= 2).any() and (in_val > 0).sum() >= 2
    singles = np.flatnonzero(np.bincount(index.labels) == 1)
    assert set(singles) <= set(index.labels[splits.train])
    assert any(says in remark for remark in splits.remarks)


def test_too_little_data(build_index):
    for labels, found in (
        ([0] * 20, "20 usable images in 1 classes"),
        (np.arange(20), "20 usable images in 20 classes, at most 1 in one"),
        ([0, 0, 1, 1], "4 usable images in 2 classes"),
    ):
        with pytest.raises(DataError, match=f"Too little data in 'nowhere'. Found: {found}"):
            split(build_index(labels))
    twice = np.tile(np.arange(10, dtype=np.uint64), 2)  # each file lies in two classes
    with pytest.raises(DataError, match="0 usable.*20 images left out, as '0/0.png': same content"):
        split(build_index(np.repeat([0, 1], 10)), digests=twice)


@pytest.mark.parametrize("sizes", [[4] * 6, [5] * 6, [6] * 3, [7, 5, 4, 9, 3], [20, 5, 5]])
def test_no_single_image_of_a_class_is_held_out(sizes, build_index):
    index = build_index(np.repeat(np.arange(len(sizes)), sizes))
    for seed in range(5):
        config = dataclasses.replace(CONFIG, unseen_share=0.0, seed=seed)
        splits = split(index, config)
        for rows in (splits.val, splits.test_known):
            assert 1 not in np.bincount(index.labels[rows])
        assert np.bincount(index.labels[splits.train]).min() >= 2
        assert sides_of(splits) == sides_of(split(index, config))
        assert (np.argmax(sizes) in index.labels[splits.test_known]) == (max(sizes) >= 6)


def test_what_cannot_be_tested_is_said_before_training(build_index):
    index = build_index(np.repeat(np.arange(4), 4))
    said = " ".join(split(index, copies=None).remarks)
    assert "Too many images to search for near-duplicates" in said
    assert "Nothing is left to test on" in said and "set unseen_share to 0.5" in said
    splits = split(index, dataclasses.replace(CONFIG, unseen_share=0.5))
    assert len(splits.test_unseen) == 8 and "rests on 2 of 4" in " ".join(splits.remarks)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_keeps_some_of_ten_classes_unseen(name, build_index):
    index = build_index(np.repeat(np.arange(10), 8), families=np.repeat(np.arange(5), 2))
    splits = split(index, CONFIGS[name])
    assert len(np.unique(index.labels[splits.test_unseen])) >= 2
    assert len(np.unique(index.labels[splits.train])) >= 2


def test_equal_files_and_copies_join_groups_in_chains(build_index):
    index = build_index(np.repeat(np.arange(4), 10), groups=[0, 0, 1, 1, *range(2, 38)])
    digests = distinct(index)
    digests[[2, 5, 6]] = digests[1], digests[4], 0  # as are rows that cannot be read
    split(index, digests=digests, unreadable={0: "empty file", 6: "empty file"}, copies=[[3, 4]])
    assert len(set(index.groups[:6].tolist())) == 1 and len(set(index.groups[5:].tolist())) == 35


@pytest.mark.parametrize("validate_on", ["images", "classes"])
def test_families_kept_whole(validate_on, build_index):
    family_of = np.repeat(np.arange(12), [1, 2, 3] * 4)
    index = build_index(np.repeat(np.arange(24), 12), families=family_of)
    config = dataclasses.replace(CONFIG, hold_out_by="family", validate_on=validate_on)
    splits = split(index, config)
    families = {name: set(index.families[rows].tolist()) for name, rows in splits.items()}
    assert len(families["test_unseen"]) == 3 and splits.remarks == []
    assert not families["test_unseen"] & (families["train"] | families["val"])
    if validate_on == "classes":
        assert len(families["val"]) == 2 and not families["val"] & families["train"]
    else:
        assert families["val"] == families["train"]


def test_too_few_families_keep_classes_whole(build_index):
    index = build_index(np.repeat(np.arange(12), 12), families=np.repeat([0, 1, 2], 4))
    splits = split(index, dataclasses.replace(CONFIG, hold_out_by="family"))
    assert splits.remarks[0].startswith("Too few families to keep whole ones out (3; hold_out_by")
    assert sides_of(splits) == sides_of(split(index))


def test_given_train_and_test(build_index):
    labels = [*np.repeat(np.arange(4), 20), *np.repeat([0, 1, 4], 5)]
    index = build_index(labels, splits=["train"] * 80 + ["test"] * 15)
    digests = distinct(index)
    digests[80] = digests[0]  # a test image that is a training image too
    splits = split(index, digests=digests)
    assert splits.test_known.tolist() == list(range(81, 90))
    assert splits.test_unseen.tolist() == list(range(90, 95))
    assert np.bincount(index.labels[splits.val]).tolist() == [3, 3, 3, 3]
    assert splits.left_out == {80: "given for test, shows what a train image shows"}


@pytest.mark.parametrize("sides", ["train val", "train test", "train"])
def test_what_is_not_given_is_drawn_from_train(sides, build_index):
    labels = np.repeat(np.arange(10), 10 * len(sides.split()))
    index = build_index(labels, splits=sides.split() * 100)
    splits = split(index)
    for side, rows in (("val", splits.val), ("test", splits.test_known)):
        assert {index.splits[row] for row in rows} == {side if side in sides else "train"}
    assert bool(len(splits.test_unseen)) == (sides == "train")


def test_given_train_val_and_test(build_index):
    sides = ["train"] * 8 + ["val"] * 8 + ["test"] * 8
    index = build_index(np.tile([0, 0, 0, 0, 1, 1, 1, 1], 3), splits=sides)
    digests = distinct(index)
    digests[8] = digests[16]
    splits = split(index, digests=digests)
    assert splits.train.tolist() == list(range(8)) and list(splits.left_out) == [8]
    assert splits.val.tolist() == list(range(9, 16)) and len(splits.test_known) == 8
    with pytest.raises(DataError, match="no train images"):
        split(build_index([0, 1], splits=["test", "val"]))


def test_validation_classes_out_of_a_given_train_split_are_not_known(build_index):
    labels = np.tile(np.repeat(np.arange(6), 5), 2)
    index = build_index(labels, splits=["train"] * 30 + ["test"] * 30)
    splits = split(index, dataclasses.replace(CONFIG, validate_on="classes"))
    trained, known = (set(index.labels[rows]) for rows in (splits.train, splits.test_known))
    assert trained == known and len(trained) == 4 and len(splits.test_unseen) == 10


def test_pairs_of_recurring_images_are_cut_between_images(tmp_path, prepare):
    """Forty pictures in two hundred pairs of each kind, as pair folders are often made."""
    rng = np.random.default_rng(0)
    for kind, number in itertools.product(("similar", "dissimilar"), range(200)):
        folder = tmp_path / f"{kind}_all_images"
        folder.mkdir(exist_ok=True)
        for side, picture in zip(("first", "second"), rng.permutation(40)[:2], strict=True):
            content = np.full((4, 4), 6 * picture, np.uint8)
            Image.fromarray(content).save(folder / f"{kind}_{number}_{side}.png")
    dataset = prepare(tmp_path)
    contents = []
    for name, rows in dataset.splits.items():
        contents.append(set(dataset.cache.digests[rows].tolist()))
        assert contents[-1] or name == "test_unseen"
        stems = [dataset.index.names[row].rpartition("_")[0] for row in rows]
        assert all(stems.count(stem) == 2 for stem in stems), "half a pair"
    assert all(not one & other for one, other in itertools.combinations(contents, 2))
