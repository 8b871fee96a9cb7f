"""Forgeries are told from genuine images in the layouts in which people keep them."""

import pytest

from configs import Config
from pipeline.image_index import DataError, read_index
from prepare_data import inventory, load_data

LAYOUTS = {  # file > class, with an F where it is forged
    "beside": """
        01/a.png > 01, 01_forg/a.png > 01 F, x/a.png > x, X_Forged/a.png > x F, y/a.png > y,
        y-forgeries/b.png > y F, z/a.png > z, z forge/a.png > z F, reforg/a.png > reforg""",
    "in split folders": """
        train/01/a.png > 01, train/01_forg/a.png > 01 F, train/02/a.png > 02, test/03/a.png > 03,
        test/03_forg/a.png > 03 F""",
    "two folders of folders": """
        sigs/genuine/a/1.png > a, sigs/genuine/b/1.png > b, sigs/Forged/a/1.png > a F""",
    "with names of their own": """
        Offline Genuine/7/1.png > 7, Offline Genuine/8/1.png > 8,
        Offline Forgeries/7/1.png > 7 F""",
    "both in each": """
        a/original/1.png > a, a/forgeries/1.png > a F, b/original/1.png > b,
        b/forged/1.png > b F""",
    "CEDAR": """
        full_org/original_1_1.png > 1, full_org/original_12_1.png > 12,
        full_forg/forgeries_1_1.png > 1 F, full_forg/forgeries_12_24.png > 12 F""",
    "CEDAR in one folder": """
        x/original_1_1.png > 1, x/original_2_1.png > 2, x/forgeries_2_1.png > 2 F""",
    "SigComp 2009": """
        genuine/NFI-00101001.png > 001, genuine/NFI-00201002.png > 002,
        forged/NFI-00301001.png > 001 F""",
    "SigComp 2011": """
        Genuine/001_01.png > 001, Genuine/014_24.PNG > 014, Forgeries/0119001_01.png > 001 F,
        Forgeries/0202014_02.PNG > 014 F""",
    "SigComp 2011 by writers": """
        train/001/001_01.PNG > 001, train/001_forg/0119001_02.png > 001 F,
        test/049/049_01.png > 049, test/049_forg/0114049_01.PNG > 049 F""",
    "BHSig260": """
        Hindi/001/H-S-1-G-01.tif > 001, Hindi/001/H-S-1-F-01.tif > 001 F,
        Hindi/2/H-S-2-G-01.tif > 2""",
    "GPDS": "001/c-001-01.jpg > 001, 001/cf-001-01.jpg > 001 F, 002/c-002-24.jpg > 002",
    "MCYT-75": "0/0000v00.bmp > 0, 0/0000f14.bmp > 0 F, 1/0001v00.bmp > 1",
    "two kinds of nothing": "original/1.png > original, forged/1.png > forged",
    "one kind": "a_forg/1.png > a_forg, b_forg/1.png > b_forg",
    "a word within": "georg/1.png > georg, original art/1.png > original art, b/1.png > b",
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_layout(layout, write_images):
    lines = [line.strip().split(" > ") for line in LAYOUTS[layout].split(",")]
    expected = {name: (label.removesuffix(" F"), label.endswith(" F")) for name, label in lines}
    index = read_index(write_images(*expected))
    labels = [index.class_names[label] for label in index.labels]
    found = zip(index.names, zip(labels, index.forged.tolist(), strict=True), strict=True)
    assert dict(found) == expected and not index.skipped


def test_forgeries_of_nobody_are_named(write_images):
    index = read_index(write_images("a/1.png", "a_forg/1.png", "b/1.png", "genuine/c/1.png",
                                    "forged/c/1.png", "forged/d/1.png"))  # fmt: skip
    assert index.class_names == ["a", "b", "c"] and index.forged.tolist().count(True) == 2
    assert index.skipped == {
        "forged/d/1.png": "a forgery of 'd', of which there is no genuine image"
    }


def test_a_column_says_forged(write_images):
    folder = write_images(*(f"{n}.png" for n in range(5)))
    table = folder / "table.csv"
    rows = zip("aabbb", ("0", "TRUE", "no", "1", ""), strict=True)
    lines = [f"{n}.png,{label},{forged}" for n, (label, forged) in enumerate(rows)]
    table.write_text("\n".join(["path,label,forged", *lines]))
    assert read_index(table).forged.tolist() == [False, True, False, True, False]
    table.write_text("\n".join(["path,label,forged", *lines, "5.png,a,maybe"]))
    with pytest.raises(DataError, match="line 7: forged must be 1 or 0.*Received: 'maybe'"):
        read_index(table)


def test_forgeries_on_every_side_and_in_the_inventory(write_images, tmp_path):
    genuine = [f"{writer}/{n}.png" for writer in "abcdefgh" for n in range(12)]
    forged = [f"{writer}_forg/{n}.png" for writer in "abcdefgh" for n in range(8)]
    config = Config(data_dir=str(write_images(*genuine, *forged)), cache_dir=str(tmp_path / "c"))
    dataset = load_data(config)
    index, splits = dataset.index, dataset.splits
    for name, rows in splits.items():
        kinds = {(index.labels[row], index.forged[row]) for row in rows.tolist()}
        assert len(kinds) == (4 if name == "test_unseen" else 12)
    line = next(line for line in inventory(dataset) if "imitates" in line)
    assert line.split(":")[1].strip() == (
        "64 of 8 classes, beside 96 genuine images of 8; 'a_forg/0.png' imitates 'a/0.png'"
    )
