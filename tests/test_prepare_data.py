"""From a folder to a data set: what the inventory says, the contact sheet, the command."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import prepare_data
from configs import DRAWN_LEAVES, Config, parse_command_line
from pipeline.files import DataError
from pipeline.inventory import advice, inventory
from prepare_data import Dataset, create_pairs, load_data, main


def ten_each(*labels):
    return [f"{label}/{i}.png" for label in labels for i in range(10)]


def has_line(lines, *parts):
    return any(all(part in line for part in parts) for line in lines)


def test_inventory(write_images, prepare):
    names = ten_each("Fig___rust", "Fig___well", "Ash___rust", "Ash___well", "Oak___rust")
    folder = write_images(*names, "Oak___one/1.png", "beside.png")
    shutil.copy(folder / "Fig___rust/0.png", folder / "Fig___rust/copy.png")
    shutil.copy(folder / "Ash___rust/3.png", folder / "Ash___well/3.png")
    (folder / "Ash___rust/4.png").write_bytes(b"")
    Image.new("L", (30, 7)).save(folder / "Ash___rust/5.png")
    for name in ["a\nb", *range(19)]:
        (folder / f"Fig___rust/{name}.txt").write_text("x")
    (folder / "leaf-map.json").write_text('{"7": ["Fig___rust:::1"]}')  # five of that stem
    dataset = prepare(folder)
    lines = inventory(dataset)
    assert has_line(lines, "52 images in 6 classes")
    assert has_line(lines, "images per class: 1 to 11, median 10")
    assert has_line(lines, "families", "Ash, Fig, Oak")
    assert has_line(lines, "sizes and modes", "12x10 RGB x 50", "30x7 L x 1")
    assert has_line(lines, "Exact duplicates: 4 files of 2 contents")
    assert has_line(lines, "Fig___rust/0.png = Fig___rust/copy.png")
    assert has_line(lines, "WARNING", "Ash___rust and Ash___well")
    assert not has_line(lines, "WARNING", "Fig___rust")
    assert has_line(lines, "Left out: 25") and has_line(lines, "1 x empty file", "4.png")
    assert has_line(lines, "same content as 'Ash___rust/3.png' of another class: Ash___well/3.png")
    assert has_line(lines, "1 x an exact copy of another held-out image: Fig___rust/copy.png")
    assert has_line(lines, "1 classes of one image", "Oak___one")
    assert has_line(lines, "1 x lies beside the class folders", "beside.png")
    assert has_line(lines, "20 x not an image (.txt): ", "and 10 more")
    assert has_line(lines, "a\\nb.txt") and all(map(str.isprintable, lines))
    for name, rows in dataset.splits.items():
        classes = len({dataset.index.labels[row] for row in rows})
        assert has_line(lines, f"{name}:", f"{len(rows)} images of {classes} classes")
    tidy = inventory(prepare(write_images(*ten_each(*"abcdefghij"), folder="tidy")))
    assert len(tidy) == 9 and has_line(tidy, "families", "none")


def test_near_duplicates_are_listed_across_classes_first(write_images, prepare):
    folder = write_images(*ten_each(*"abcde"), size=(64, 64))
    coarse = np.random.default_rng(0).integers(256, size=(2, 6, 6), dtype=np.uint8)
    for picture, names in zip(coarse, (["a/x", "a/y"], ["b/v", "c/w"]), strict=True):
        for name, quality in zip(names, (95, 60), strict=True):
            image = Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC)
            image.save(folder / f"{name}.jpg", quality=quality)
    lines = inventory(prepare(folder, image_size=64))
    at = next(at for at, line in enumerate(lines) if line.startswith("Near-duplicates: 2 pairs, 1"))
    assert lines[at + 1 : at + 3] == [
        "  b/v.jpg ~ c/w.jpg  (two classes: is a label wrong?)",
        "  a/x.jpg ~ a/y.jpg",
    ]


def test_forgeries_on_every_side_and_in_the_inventory(write_images, prepare):
    names = [f"{writer}/{n}.png" for writer in "abcdefgh" for n in range(12)]
    names += [f"{writer}_forg/{n}.png" for writer in "abcdefgh" for n in range(8)]
    dataset = prepare(write_images(*names))
    for name, rows in dataset.splits.items():
        kinds = zip(dataset.index.labels[rows], dataset.index.forged[rows], strict=True)
        assert len(set(kinds)) == (4 if name == "test_unseen" else 12)
    said = "64 of 8 classes, beside 96 genuine images of 8; 'a_forg/0.png' imitates 'a/0.png'"
    assert has_line(inventory(dataset), "forgeries: ", said)


def test_the_command(write_images, tmp_path, monkeypatch, capsys):
    folder = write_images(*ten_each(*"abcdefghij"))
    monkeypatch.chdir(tmp_path)
    for cache in ("data/cache", "elsewhere"):  # what it leaves in the data folder is no data
        assert main([str(folder), "--cache_dir", cache, "--image_size", "16"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert has_line(lines, "100 images in 10 classes")
        assert has_line(lines, "train.py photographs --data_dir")
    assert has_line(lines, "1 x a cache: cache/data-") and not has_line(lines, "sheet.png:")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "elsewhere"}
    assert {path.name for path in folder.iterdir()} == {*"abcdefghij", "cache"}
    assert main(["no/such/folder"]) == 2
    assert "Received: 'no/such/folder'" in capsys.readouterr().err
    options = ["faces", "--data_dir", str(folder), "--unseen_share", "0.4", "--seed", "3"]
    assert main([*options, "--out", "there"]) == 0
    lines = capsys.readouterr().out.splitlines()
    dataset = load_data(parse_command_line(options, "train.py")[0])  # splits as training makes them
    for name, rows in dataset.splits.items():
        assert has_line(lines, f"{name}:", f"{len(rows)} images of")
    assert Image.open("there/contact_sheet.png").width > 100


KINDS = {  # how to draw one, the config that suits
    "strokes": (lambda rng: 255 * (rng.random((40, 40, 1)) > 0.1) * np.ones(3), "characters"),
    "grey": (lambda rng: rng.integers(60, 200, (40, 40, 1)) * np.ones(3), "faces"),
    "colours": (lambda rng: rng.integers(60, 200, (40, 40, 3)), "photographs"),
    "black": (lambda rng: rng.integers(0, 3, (40, 40, 3)), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_images_decides_which_config_is_named(kind, build_index):
    (draw, name), rng = KINDS[kind], np.random.default_rng(0)
    index = build_index(np.repeat(np.arange(4), 10))
    pixels, splits = np.uint8([draw(rng) for _ in range(40)]), SimpleNamespace(left_out={})
    dataset = SimpleNamespace(index=index, splits=splits, pixels=pixels)
    said = " ".join(advice(dataset, "leaves"))
    assert f"train.py {name} " in said if name else not said
    assert not list(advice(dataset, "photographs"))
    index.forged = np.arange(40) % 10 > 7
    assert not name or "train.py signatures " in " ".join(advice(dataset, "leaves"))


def test_leaves_are_drawn_for_their_own_folder_alone(tmp_path, monkeypatch, write_images, capsys):
    monkeypatch.chdir(tmp_path)
    drawn = []

    def draw(folder):
        drawn.append(folder)
        write_images(*ten_each(*"abcde"), folder=DRAWN_LEAVES)

    monkeypatch.setattr(prepare_data.runpy, "run_path", lambda path: {"draw_leaves": draw})
    with pytest.raises(DataError, match="does not exist"):
        load_data(Config(data_dir="data/leave"))
    assert drawn == []
    for _ in range(2):
        assert len(load_data(Config(image_size=16)).index) == 50
    assert drawn == [DRAWN_LEAVES]
    assert capsys.readouterr().out.count(f"drawing leaves into {DRAWN_LEAVES}, once") == 1


def test_a_sample_has_several_images_of_a_class(build_index):
    index = build_index(np.arange(5000) // 5)  # 1,000 classes
    dataset = Dataset(index, cache=None, splits=None)
    rows = np.arange(2, 4997)
    some = dataset.sample(rows, 200, np.random.default_rng(0))
    _, counts = np.unique(index.labels[some], return_counts=True)
    assert len(counts) == 25 and (np.diff(some) > 0).all() and np.isin(some, rows).all()
    assert counts.min() >= 3 and len(some) <= 200
    assert dataset.sample(rows, 4995, None) is rows


def test_a_sample_of_given_pairs_has_both_kinds(build_index):
    pairs = np.arange(2000).reshape(1000, 2)
    pairs = np.column_stack([pairs, np.arange(1000) < 20])  # few are genuine
    dataset = Dataset(build_index(np.arange(2000), pairs=pairs), cache=None, splits=None)
    some = dataset.sample(np.arange(2000), 100, np.random.default_rng(0))
    left, right, same = dataset.given_pairs(some)
    assert same.sum() == 20 and len(same) == 45 and len(some) == 90


def test_created_pairs_are_what_their_labels_say():
    labels = np.array(list("aabbbcd"))
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)  # each says which it is
    (left, right), same = create_pairs(images, labels)
    assert same.shape == (10, 1) and same.sum() == 5
    for one, other, equal in zip(left.ravel(), right.ravel(), same.ravel(), strict=True):
        assert one != other and (labels[one] == labels[other]) == equal
    for wrong in (["a"] * 7, list("abcdefg")):
        with pytest.raises(ValueError, match="Pairs need two classes or more"):
            create_pairs(images, wrong)
    with pytest.raises(ValueError, match="Each image needs one label"):
        create_pairs(images, labels[:3])


def test_a_data_set_can_be_cut(write_images, prepare):
    folder = write_images(*ten_each(*"abcd"))
    limits = {"max_classes": 3, "max_images_per_class": 5, "unseen_share": 0.0}
    index, again = (prepare(folder, **limits).index for _ in range(2))
    assert index.class_names == [*"abc"] and np.bincount(index.labels).tolist() == [5, 5, 5]
    assert list(again.names) == list(index.names)
