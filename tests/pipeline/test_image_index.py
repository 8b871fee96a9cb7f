"""Every data layout that loads as it is, and what is said of those that do not."""

import json
import os
import shutil

import numpy as np
import pytest

from pipeline.files import DataError, read_bytes
from pipeline.image_index import read_index


@pytest.mark.parametrize(
    ("names", "families"),
    [
        (["train/A___x/1.png", "train/B/y/1.png", "test/A___x/2.png"], {"A___x": "A", "B/y": "B"}),
        (["x/y/a/1.png", "c/1.png"], {"x/y/a": "x/y", "c": ""}),
    ],
)
def test_families(names, families, write_images):
    index = read_index(write_images(*names))
    found = [index.family_names[family] for family in index.class_families]
    assert dict(zip(index.class_names, found, strict=True)) == families


def test_leaf_map_keeps_photographs_of_one_leaf_together(write_images):
    names = ["a/IMG 1.png", "a/img 2.png", "a/img 3.png", "b/img 4.png", "b/img 5.png"]
    short = ["c/1f___HL 1.png", "c/2e___HL 1 copy.png", "c/3d___HL 2.png", "d/4c___HL 1.png"]
    folder = write_images(*names, *short)
    leaves = {"img 1": ["a:::1"], "img 2": ["a:::1"], "img 4": "b:::2", "img 5": "b:::3", "x": []}
    leaves["HL 1"] = ["d:::8", "c:::7"]  # a leaf of each class
    (folder / "leaf-map.json").write_text(json.dumps(leaves))
    index = read_index(folder)
    together = [{*index.names[index.groups == group].tolist()} for group in {*index.groups}]
    expected = [{*names[:2]}, {*short[:2]}, *({name} for name in names[2:] + short[2:])]
    assert sorted(map(sorted, together)) == sorted(map(sorted, expected))
    (folder / "leaf-map.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"leaf-map\.json must be a JSON object"):
        read_index(folder)


def test_what_is_no_data_set(write_images, tmp_path):
    with pytest.raises(DataError, match="does not exist.*nowhere"):
        read_index(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="No images in class folders.*0 files"):
        read_index(tmp_path / "empty")
    with pytest.raises(DataError, match="2 files; 2 x lies beside.*: beside.png and 1 more"):
        read_index(write_images("beside.png", "other.png", folder="flat"))
    with pytest.raises(DataError, match="2 x lies directly in a folder of a split"):
        read_index(write_images("train/1.png", "test/1.png", folder="classless"))
    empty, damaged = b"PK\5\6" + bytes(18), b"PK\5\6" + b"\xff" * 18
    for name, content, advice in (
        ("empty.zip", empty, "No images"),
        ("notes.zip", b"no zip", "a folder, a .zip or a .csv.*notes.zip"),
        ("damaged.zip", damaged, "a folder, a .zip or a .csv.*damaged.zip"),
        ("a.XLSX", empty, "must be a folder.*a.XLSX.*as a .csv"),
        ("a.tar.gz", b"", "must be a folder.*Unpack it"),
        ("a.npz", empty, r"must be a folder.*give train\(\) images"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=advice):
            read_index(tmp_path / name)


def test_links(write_images, tmp_path):
    folder = write_images("a/1.png", "b/1.png")
    elsewhere = write_images("1.png", folder="elsewhere")
    (folder / "a/up").symlink_to(folder)  # a loop
    (folder / "z").symlink_to(folder / "b")
    (folder / "c").symlink_to(elsewhere)
    (folder / "self").symlink_to("self")
    (folder / "gone.png").symlink_to("nowhere")
    index = read_index(folder)
    assert index.names.tolist() == ["a/1.png", "b/1.png", "c/1.png"]
    assert set(index.skipped) == {"a/up", "z", "self", "gone.png"}
    os.mkfifo(folder / "a/pipe.png")  # reading it would wait for ever
    assert read_index(folder).skipped["a/pipe.png"] == "not a file"


def test_stamps_follow_the_files(write_images, tmp_path):
    folder = write_images("a/1.png", "b/1.png")
    archive = shutil.make_archive(tmp_path / "data", "zip", folder)
    before, zipped = read_index(folder).stamps, read_index(archive).stamps
    old = read_bytes(archive, "b/1.png")
    assert (read_index(folder).stamps == before).all() and before[0] != before[1]
    os.utime(folder / "b/1.png", ns=(1, 1))
    assert (read_index(folder).stamps == before).tolist() == [True, False]
    (folder / "b/1.png").write_bytes(old[::-1])  # of the same size
    shutil.make_archive(tmp_path / "data", "zip", folder)
    assert (read_index(archive).stamps == zipped).tolist() == [True, False]
    assert read_bytes(archive, "b/1.png") == old[::-1]


def test_unusual_names(write_images, tmp_path):
    names = ["Été/1.png", "漢字/🍂 2.png", f"long/{'n' * 251}.png", "/".join("d" * 40) + "/1.png"]
    folder = write_images(*names)
    os.mkdir(os.fsencode(folder) + b"/\xe9")
    shutil.copy(folder / names[0], os.fsencode(folder) + b"/\xe9/1.png")
    index = read_index(folder)
    assert index.names.tolist() == sorted(names) and all(map(str.isprintable, index.names))
    assert index.skipped == {"\udce9/1.png": "its name is not UTF-8"}
    for name in names:
        assert read_bytes(folder, name) == (folder / name).read_bytes()
    listed = folder / "list.csv"
    listed.write_text("path,label\n" + "".join(f"{name},x\n" for name in [*names, "\0"]))
    assert read_index(listed).names.tolist() == names


def test_too_large_a_file_is_skipped(write_images, monkeypatch, tmp_path):
    folder = write_images("a/1.png")
    archive = shutil.make_archive(tmp_path / "data", "zip", folder)
    monkeypatch.setattr("pipeline.files.MAX_FILE_BYTES", 100)
    (folder / "list.csv").write_text("path,label\na/1.png,x\n")
    for source in (folder, archive, folder / "list.csv"):
        with pytest.raises(DataError, match="No images.*1 x larger than 200 MB"):
            read_index(source)


@pytest.mark.parametrize(
    ("name", "num_classes", "per_class", "num_families"),
    [
        ("plantvillage", 18, 100, 9),
        ("omniglot/images_background.zip", 964, 20, 30),
        ("att_faces", 30, 10, 1),
        ("dogs", 45, 16, 1),
    ],
)
def test_real_data(name, num_classes, per_class, num_families, real_data):
    index = read_index(real_data / name)
    assert np.bincount(index.labels).tolist() == [per_class] * num_classes
    assert len(index.family_names) == num_families and index.skipped == {}
