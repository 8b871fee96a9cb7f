"""Lists of pairs as programs, people and LFW write them, and how their images are split."""

import numpy as np
import pytest

from configs import Config
from pipeline.image_index import DataError, read_index
from pipeline.pairs import PairBatches
from prepare_data import inventory

FILES = ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
PAIRS = {("a/1.png", "a/2.png", 1), ("a/1.png", "b/1.png", 0), ("b/1.png", "b/2.png", 1)}


def given(index):
    """The pairs of an index as names and label."""
    left, right, same = index.pairs.T
    return set(zip(index.names[left], index.names[right], same.tolist(), strict=True))


def write_list(folder, lines, name="pairs.csv"):
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def signatures(write_images):
    """A list as a well-known set has it: label 1 means different, below `test/`, no header."""
    lines, names = [], set()
    for who in "abcdefghij":
        first, *others = (f"{who}/{n}.png" for n in range(4))
        forged = [f"{who}_forg/{n}.png" for n in range(3)]
        lines += [f"{first},{other},0" for other in others]
        lines += [f"{first},{other},1" for other in forged]
        names |= {first, *others, *forged}
    folder = write_images(*(f"test/{name}" for name in names))
    (folder / "train").mkdir()
    return write_list(folder, [*lines, "a/0.png,j/0.png,1"], "test_data.csv")


LISTS = [  # what label 1 means, where the list does not say it; the lines of a list of `PAIRS`
    (None, "left,right,same / a/1.png,a/2.png,1 / a/1.png,b/1.png,0 / b/1.png,b/2.png,1"),
    (None, "genuine,one,other / 1,a/1.png,a/2.png / 0,a/1.png,b/1.png / 1,b/1.png,b/2.png"),
    ("different", "a/1.png,a/2.png,0 / a/1.png,b/1.png,1 / b/1.png,b/2.png,0"),
    ("different", "kin,img1,img2 / 0,a/1.png,a/2.png / 1,a/1.png,b/1.png / 0,b/1.png,b/2.png"),
    (None, "image1,image2,label / a/1,a/2,same / b/1,b/2,same / a/1,b/1,different"),
    (None, "n,id_a,id_b,is_duplicate / 0,a/1,a/2,1 / 1,b/2,b/1,1 / 2,b/1,a/1,0"),
    (None, "left,right,class / a/1.png,a/2.png,Genuine / b/1,b/2,genuine / a/1,b/1,forged"),
    (None, "left,right,same / a/1.png,a/2.png,1 / a/1.png,b/1.png,0 / b/1.png,B/2.PNG,1"),
    (None, "Anchor,Positive,Negative / a/1.png,a/2.png,b/1.png / b/1.png,b/2.png,a/1.png"),
]


@pytest.mark.parametrize("separator", [",", ";", "\t", " ", "  "])
@pytest.mark.parametrize(("means", "lines"), LISTS)
def test_lists_as_programs_and_people_write_them(means, lines, separator, write_images):
    """Names without a suffix or in another case too, as files of the images are called."""
    lines = lines.replace(",", separator).split(" / ")
    source = write_list(write_images(*FILES), lines)
    if means:
        look = "'a/1.png' and 'a/2.png' have label 0.*pair_label same if 1 means"
        with pytest.raises(DataError, match=look):
            read_index(source)
    index = read_index(source, means)
    assert {(*sorted(pair), same) for *pair, same in given(index)} == PAIRS
    assert index.class_names == ["a", "b"] and index.classes_known and not index.skipped
    assert not index.forged.any() and index.pair_folds is None


def test_labelled_faces_in_the_wild(write_images):
    people = [f"lfw/{who}/{who}_{n:04d}.jpg" for who in ("Ann", "Bo", "Cy") for n in (1, 2, 12)]
    folder = write_images(*people, folder="sets")
    lines = ["2\t2", "Ann\t1\t12", "Bo\t1\t2", "Ann\t1\tBo\t2", "Ann\t2\tCy\t1"]
    lines += ["Bo\t2\t12", "Cy\t1\t2", "Bo\t1\tCy\t2", "Bo\t2\tCy\t12"]
    index = read_index(write_list(folder, lines, "pairs.txt"))
    expected = [("Ann", 1, "Ann", 12), ("Bo", 1, "Bo", 2), ("Ann", 1, "Bo", 2), ("Ann", 2, "Cy", 1)]
    expected += [("Bo", 2, "Bo", 12), ("Cy", 1, "Cy", 2), ("Bo", 1, "Cy", 2), ("Bo", 2, "Cy", 12)]
    assert given(index) == {
        (f"lfw/{a}/{a}_{i:04d}.jpg", f"lfw/{b}/{b}_{j:04d}.jpg", int(a == b))
        for a, i, b, j in expected
    }
    assert index.pair_folds.tolist() == [0] * 4 + [1] * 4


def test_what_counts_once_and_what_is_left_out(write_images):
    lines = ["left,right,same,fold,split", "a/1.png,a/2.png,1,x,val", "a/2.png,a/1.png,1,y,val"]
    lines += ["a/1.png,b/1.png,0,y,val", "b/1.png,b/2.png,1,y,val", "b/2.png,b/1.png,0,y,val"]
    lines += ["a/1.png,gone.png,0,y,val", "b/2.png,gone.png,0,y,val", "a/1.png,a/1.png,1,y,val"]
    index = read_index(write_list(write_images(*FILES), lines))
    assert given(index) == {("a/1.png", "a/2.png", 1), ("a/1.png", "b/1.png", 0)}
    assert index.pair_folds.tolist() == [0, 1]
    assert index.remarks == ["Columns that are not read: split (give a list of each)."]
    assert index.skipped == {
        "gone.png": "No such file or directory",
        "2 pairs": "a file of theirs is missing",
        "b/1.png, b/2.png": "listed as the same and as different",
        "a/1.png, a/1.png": "a pair of an image with itself",
    }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a/1.png,a/2.png,maybe"], "line 1: label must be 1 or 0.*'maybe'"),
        (["a/1.png,a/2.png,1", "a/1.png,b/1.png"], "line 2: expected 3 cells"),
        (["left,right,x,z", "a/1.png,a/2.png,1,1"], "two columns of paths and one label"),
        (["left,right,y", "a/1.png,a/2.png,same", "a/1.png,b/1.png,?"], "one of same.*'[?]'"),
        (["left,right,label", "no.png,none.png,1"], "none of its 1 pairs .* .2 x No such file"),
        (["left,right,same", "a/1.png,a/2.png,1"], "what they mean. Received: pair_label='diff"),
        (["name,id,x", "a/1,1,1", "a/1.png,b/1.png,0"], "two columns of paths and one label"),
    ],
)
def test_lists_that_do_not_load(lines, message, write_images):
    with pytest.raises(DataError, match=message):
        read_index(write_list(write_images(*FILES), lines), "different")


def test_one_wrong_label_among_many_is_left_out(write_images):
    source = signatures(write_images)
    source.write_text(
        source.read_text().replace("j/0.png,j_forg/2.png,1", "j/0.png,j_forg/2.png,0")
    )
    index = read_index(source, "different")
    assert index.class_names == [*"abcdefghij"] and index.forged.sum() == 30
    assert "contradicts the folders" in index.skipped["test/j/0.png, test/j_forg/2.png"]
    assert index.pairs[:, 2].sum() == 30 and len(index.pairs) == 60
    source.write_text(source.read_text().replace("a/0.png,a/3.png,0", "a/0.png,a/3.png,1"))
    assert read_index(source, "different").class_names == [*"abcdefghij"]
    with pytest.raises(DataError, match="29 of 30 pairs of an image and its forgery.*contrary"):
        read_index(source, "same")


def test_forgeries_of_a_list_and_writers_on_one_side(write_images, prepare):
    source = signatures(write_images)
    settings = {"pair_label": "different", "unseen_share": 0.3}
    dataset = prepare(source, **settings)
    index, splits = dataset.index, dataset.splits
    assert index.classes_known and index.class_names == list("abcdefghij")
    assert index.family_names == [""] and index.forged.sum() == 30
    assert all(index.forged[index.pairs[index.pairs[:, 2] == 1, :2]].ravel() == 0)
    writers = [set(index.labels[rows].tolist()) for _, rows in splits.items()]
    assert len(splits.test_unseen) and not len(splits.test_known)
    assert sum(map(len, writers)) == 10 == len(set().union(*writers))
    left, right, same = dataset.given_pairs(splits.train)
    drawn = PairBatches(index, None, splits.train, Config(pairs_per_batch=40))
    drawn = {tuple(pair) for step in range(40) for pair in np.stack(drawn.rows(step), axis=1)}
    rows = splits.train[left], splits.train[right], same
    assert drawn == {tuple(pair) for pair in np.stack(rows, axis=1)}
    assert "  given pairs:      30 genuine, 31 impostor" in inventory(dataset)
    apart = index.labels[[list(index.names).index(f"test/{who}/0.png") for who in "aj"]]
    if len({who in set(index.labels[splits.train].tolist()) for who in apart.tolist()}) > 1:
        assert any("1 of 61 given pairs cross a split" in line for line in inventory(dataset))


def test_folders_of_splits_are_no_families(write_images):
    names = ["train/a/1.png", "train/a/2.png", "test/a/3.png", "test/b/1.png", "test/b/2.png"]
    pairs = [(0, 1, 1), (3, 4, 1), (0, 3, 0)]
    for pair, known in ((1, 2, 1), True), ((1, 2, 0), False):  # not one class, whatever its name
        lines = [f"{names[left]},{names[right]},{same}" for left, right, same in [*pairs, pair]]
        index = read_index(write_list(write_images(*names), ["left,right,same", *lines]))
        assert index.classes_known == known and index.family_names == [""]
        assert not known or index.class_names == ["a", "b"]


def test_images_in_one_folder_are_joined_by_genuine_pairs(write_images, prepare):
    folder = write_images(*(f"{n}.png" for n in range(40)))
    rows = [f"{n}.png,{n + 1}.png,1" for n in range(0, 40, 2)]
    rows += [f"{n}.png,{(n + step) % 40}.png,0" for n in range(0, 40, 2) for step in (2, 4, 6, 8)]
    source = write_list(folder, ["left,right,same", *rows])
    dataset = prepare(source, test_share=0.2, val_share=0.3)
    assert not dataset.index.classes_known and len(dataset.index.class_names) == 20
    for name, rows in dataset.splits.items():
        labels, counts = np.unique(dataset.index.labels[rows], return_counts=True)
        assert (counts == 2).all() and len(labels) == {"test_unseen": 0}.get(name, len(labels))
    assert any("given pairs cross a split" in line for line in inventory(dataset))


def test_a_list_without_one_kind_in_training_says_so(write_images, prepare):
    rows = [f"{who}/1.png,{who}/2.png,1" for who in "abcdef"]
    names = [f"{who}/{n}.png" for who in "abcdef" for n in (1, 2)]
    source = write_list(write_images(*names), ["left,right,same", *rows])
    with pytest.raises(DataError, match="Both kinds of pairs.*genuine and 0 impostor"):
        prepare(source)


SIDES = "similar_all_images/similar_{0}_first.jpg similar_all_images/similar_{0}_second.jpg"
FOLDERS = [  # two images and whether they show the same; then what is left out
    (
        [SIDES.format(3) + " 1", SIDES.format(10) + " 1"]
        + [SIDES.replace("similar", "dissimilar").format(3) + " 0"],
        "dissimilar_all_images/dissimilar_4_first.jpg "  # its second is missing
        "similar_all_images/similar_3_first.png similar_all_images/holiday.jpg",
    ),
    (
        ["x/anchor/a.jpg x/positive/c.jpg 1", "x/anchor/b.jpg x/positive/d.jpg 1"]
        + ["x/anchor/a.jpg x/negative/e.jpg 0", "x/anchor/b.jpg x/negative/f.jpg 0"],
        "x/negative/g.jpg",
    ),
]


@pytest.mark.parametrize(("lines", "left_out"), FOLDERS, ids=["pairs", "triples"])
def test_folders_of_pairs(lines, left_out, write_images):
    pairs = [tuple(line.split()) for line in lines]
    index = read_index(
        write_images(*(name for *pair, _ in pairs for name in pair), *left_out.split())
    )
    assert given(index) == {(left, right, int(same)) for left, right, same in pairs}
    assert {*index.skipped} == {*left_out.split()} and not index.classes_known
