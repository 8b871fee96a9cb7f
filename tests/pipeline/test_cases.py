"""Folders and zips as people have them: every file that was given is indexed or named."""

import csv
import posixpath
import re
import zlib

import numpy as np
import pytest
from conftest import encoded, write_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prepare_data
from inference.gallery import image_files
from pipeline.files import IMAGE_SUFFIXES, DataError, read_bytes
from pipeline.image_index import read_index

BESIDE, DIRECT = "- lies beside train/ and test/, not in one", "- lies directly in a folder of a"
CASES = {  # files > class (or else their folder) F if forged @ split; - why not; ! a remark
    "class folders": "oak/1.png, oak/2.JPG, ash/1.png",
    "any depth": "x/y/a/1.png, x/b/1.png, c/1.png",
    "crops": "Fig___rust/1.png, Fig___well 2/1.png",
    "shared folders on top": "all/raw/oak/1.png > oak | all/raw/ash/1.png > ash",
    "train alone": "train/oak/1.png > oak | train/ash/1.png > ash",
    "split folders": """Train/oak/1.png > oak@train | validation/oak/2.png > oak@val |
        test/elm/3.png > elm@test | train.txt > - not an image (.txt)""",
    "names of splits": """a/training_set/cat/1.png > a/cat@train |
        a/test_set/cat/2.png > a/cat@test | b/Train-Data/cat/1.png > b/cat@train |
        b/devset/cat/2.png > b/cat@val | c/train2017/cat/1.png > c/cat@train |
        c/Val_images/cat/2.png > c/cat@val | d/TRAINING/cat/1.png > d/cat@train |
        d/eval/cat/2.png > d/cat@test | ! Classes of the same""",
    "a prefix": "seg_train/seg_train/a/1.png > a@train | seg_test/seg_test/a/2.png > a@test",
    "splits below one folder of two": f"""data/outer/train/cat/1.png > cat@train |
        data/outer/train/dog/1.png > dog@train | data/outer/valid/cat/2.png > cat@val |
        data/extra/cat/3.png > {BESIDE}""",
    "splits below families": """Fig/train/rust/1.png > Fig/rust@train |
        Fig/test/rust/2.png > Fig/rust@test | Ash/train/mould/3.png > Ash/mould@train""",
    "splits below classes": """cat/train/1.png > cat@train | cat/test/2.png > cat@test |
        dog/train/3.png > dog@train""",
    "splits below images/": "train/images/cat/1.png > cat@train | test/images/cat/2.png > cat@test",
    "a doubled test folder without classes": f"""train/cat/1.png > cat@train |
        train/dog/1.png > dog@train | test/test/2.png > {DIRECT}""",
    "images directly in a split folder": f"""train/cat/1.png > cat@train | train/0.png > {DIRECT} |
        test/cat/2.png > cat@test | beside.png > - lies beside the class folders""",
    "a class that is called test": "test/1.png, oak/1.png | ! called test are taken for classes",
    "two of many classes are called so": """f/val/1.png > val | f/test/1.png > test |
        f/oak/1.png > oak | f/ash/1.png > ash | f/elm/1.png > elm |
        ! called test, val are taken for classes""",
    "images of its own and folders below": """cat/1.png, cat/black/2.png |
        ! Images lie in 'cat' (1) and in folders below""",
    "parts of unknown names": """set A/cat/1.png, set B/cat/2.png |
        ! Classes of the same names (cat) lie in 'set A', 'set B'""",
    "views of people": " | ".join(
        f"{person}/{view}/1.png > {person}/{view}" for person in "abcdefgh" for view in ("L", "R")
    )
    + " | ! Classes of the same names (L, R) lie in 'a', 'b', 'c' and 5 more",
    "names that look alike": """Zoe\u0301/1.png, zo\u00e9/2.png |
        ! Classes whose names differ only in case""",
    "forgeries beside": """01/a.png, x/a.png, y/a.png, z/a.png, reforg/a.png |
        01_forg/a.png > 01 F | X_Forged/a.png > x F | y-forgeries/b.png > y F |
        z forge/a.png > z F""",
    "forgeries in split folders": """train/01/a.png > 01@train | train/01_forg/a.png > 01 F@train |
        train/02/a.png > 02@train | test/03/a.png > 03@test | test/03_forg/a.png > 03 F@test""",
    "forgeries with names of their own": """Offline Genuine/7/1.png > 7 |
        Offline Genuine/8/1.png > 8 | Offline Forgeries/7/1.png > 7 F""",
    "forgeries both in each": """a/original/1.png > a | a/forgeries/1.png > a F |
        b/original/1.png > b | b/forged/1.png > b F""",
    "forgeries CEDAR": """full_org/original_1_1.png > 1 | full_org/original_12_1.png > 12 |
        full_forg/forgeries_1_1.png > 1 F | full_forg/forgeries_12_24.png > 12 F""",
    "forgeries SigComp 2009": """genuine/NFI-00101001.png > 001 | genuine/NFI-00201002.png > 002 |
        forged/NFI-00301001.png > 001 F""",
    "forgeries SigComp 2011": """Genuine/001_01.png > 001 | Genuine/014_24.PNG > 014 |
        Forgeries/0119001_01.png > 001 F | Forgeries/0202014_02.PNG > 014 F""",
    "files of eight digits": "a/00000000.png, a/00000001.png, b/00100001.png",
    "forgeries SigComp 2011, test set": """Dutch/Reference(4)/001/01_001.PNG,
        Dutch/Questioned(5)/001/05_001.PNG > 001 | Dutch/Reference(4)/002/01_002.PNG > 002 |
        Dutch/Questioned(5)/001/02_0119001.PNG > 001 F""",
    "forgeries BHSig260": """Hindi/001/H-S-1-G-01.tif > 001 | Hindi/001/H-S-1-F-01.tif > 001 F |
        Hindi/2/H-S-2-G-01.tif > 2""",
    "forgeries GPDS": "001/c-001-01.jpg, 002/c-002-24.jpg | 001/cf-001-01.jpg > 001 F",
    "forgeries of nobody": """a/1.png, b/1.png | a_forg/1.png > a F | genuine/c/1.png > c |
        forged/c/1.png > c F | forged/d/1.png > - a forgery of 'd', of which there is no |
        e_forg/1.png > - a forgery of 'e', of which there is no""",
    "forgeries MCYT-75": "0/0000v00.bmp, 1/0001v00.bmp | 0/0000f14.bmp > 0 F",
    "two kinds of nothing": "original/1.png, forged/1.png",
    "forged classes alone": "a_forg/1.png, b_forg/1.png",
    "forged in a name": "georg/1.png, original art/1.png, b/1.png",
    "forgeries of several kinds": """UTSig/Genuine/1/1.tif > 1 | UTSig/Genuine/2/1.tif > 2 |
        UTSig/Forgery/Skilled/1/1.tif > 1 F | UTSig/Forgery/Opposite Hand/2/1.tif > 2 F""",
    "forgeries called fake": "a/real/1.png > a | a/fake/1.png > a F | b/real/1.png > b",
    "real and fake, in file names": """train/real/real_1.png > real@train |
        train/fake/fake_1.png > fake@train | test/fake/fake_2.png > fake@test""",
    "a class of images, one of text": "image/1.png, text/2.png, images/3.png",
    "forgeries SigComp 2009, shortened": """set/real/00100001.png > 001 |
        set/real/00200002.png > 002 | set/forge/02100001.png > 001 F""",
    "Omniglot, both halves": """images_background/Greek/a/1.png > Greek/a@train |
        images_evaluation/Oriya/b/1.png > Oriya/b@test""",
    "a folder in itself": """x/x/train/cat/1.png, x/train/cat/1.png > cat@train |
        x/x/test/cat/2.png, x/test/cat/2.png > cat@test | x/val/cat/3.png > cat@val |
        ! 'x/x/test/cat' repeats 'x/test/cat' and 1""",
    "a folder beside what it holds": """rose/1.png, ivy/1.png, ivy/2.png |
        flowers/rose/1.png > rose | flowers/ivy/1.png > ivy | ! 'flowers/ivy' repeats 'ivy'""",
    "classes in file names": """train/cat.0.png, train/cat.1.png > cat@train | train/dog.0.png,
        train/dog.10.png > dog@train | test1/1.png > - no class in |
        ! File names tell the classes, not folders: 'train/cat.0.png' is of 'cat'""",
    "pets, and their outlines": """images/Abyssinian_1.png, images/Abyssinian_12.png > Abyssinian |
        images/great_pyrenees_1.png, images/great_pyrenees_3.png > great_pyrenees |
        annotations/list.txt > - not an image |
        annotations/trimaps/Abyssinian_1.png > - in a folder of annotations | ! File names""",
    "masks beside images": """benign/benign (1).png, malignant/a_mask.png |
        benign/benign (1)_mask.png, benign/benign (1)_mask_1.png > - the mask of |
        COVID/images/COVID-1.png > COVID | COVID/masks/COVID-1.png > - in a folder of annot""",
    "people seen by cameras": """m/bounding_box_train/0002_c1s1_000451_03.png,
        m/bounding_box_train/0002_c2s1_000451_03.png > 0002@train |
        m/bounding_box_test/0003_c1s1_000051_01.png, m/query/0003_c2s1_000051_00.png > 0003@test |
        m/bounding_box_test/-1_c1s1_000051_01.png > - no class in its name | ! File names tell""",
    "fingers": """SOCO/Real/1__M_Left_index_finger.BMP,
        SOCO/Altered/Easy/1__M_Left_index_finger_CR.BMP > 1__M_Left_index_finger |
        SOCO/Real/2__F_Right_thumb_finger.BMP,
        SOCO/Altered/Easy/2__F_Right_thumb_finger_Obl.BMP > 2__F_Right_thumb_finger | ! File""",
    "faces of JAFFE": """j/KA.AN1.39.tiff, j/KA.HA2.30.tiff > KA | j/YM.AN1.61.tiff,
        j/YM.SU3.60.tiff > YM | ! File names tell""",
    "forgeries beside genuine files": """s/w1/genuine_1.png > w1 | s/w1/forged_1.png > w1 F |
        s/w2/genuine_1.png > w2 | s/w2/forged_2.png > w2 F""",
    "forgeries of several sets": """C/C/1/original_1_1.png, H/H/7/H-S-7-G-01.tif,
        H/H/8/H-S-8-G-01.tif | C/C/1/forgeries_1_1.png > C/C/1 F | H/H/7/H-S-7-F-01.tif > H/H/7 F |
        H/H/8/H-S-8-F-01.tif > H/H/8 F""",
    "forgeries of numbered writers": """real/001_01.png > 001 | real/002_01.png > 002 |
        forge/001_01.png > 001 F | forge/002_02.png > 002 F""",
    "forgeries in words": "1/1_real_1.png, 2/2_real_1.png | 1/1_forged_1.png > 1 F",
    "forgeries in letters": "01/G_01.png, 02/G_02.png | 01/F_01.png > 01 F",
    "fingers in parts": """DB1/101_1.tif, DB1/101_2.tif, DB1/102_1.tif, DB1/102_2.tif,
        DB2/103_1.tif, DB2/103_2.tif, DB2/104_1.tif, DB2/104_2.tif |
        ! Files in 'DB1' are named after several things (101, 102)""",
    "clips of people": " | ".join(
        f"{person}/{clip}/1.png > {person}/{clip}"
        for person in "abcdefghijklm"
        for clip in "123456"
    )
    + " | ! Classes of the same names (1, 2, 3 and 3 more)",
    "labels beside images": "k1/P0.jpg, k2/P.jpg | k1/P0_label.bmp > - the mask of",
    "left and right of a pair": """left/01.png, right/01.jpg > 01 | left/2.png, right/2.png > 2 |
        ! File names tell""",
    "left and right": "left/01.png, right/01.png, left/2.png",
    "photographs of cameras": """all/IMG_0001.png, all/IMG_0002.png, all/DSC_0001.png,
        all/DSC_0002.png""",
    "what systems make": """a/1.png, b/2.png | a/@eaDir/SYNO@.png, lost+found/2.png,
        $RECYCLE.BIN/x/3.png, FOUND.000/4.png, __MACOSX/a/1.png > - made by the system |
        a/Thumbs.db > - not an image (.db) | b/all.rar > - an archive (.rar) | .trash/1.png,
        b/._2.png > - hidden""",
    "what this package makes": """a/1.png, b/2.png |
        contact_sheet.png > - a contact sheet of this package | runs/x/config.json,
        runs/x/environment.json, runs/x/figures/roc.png > - a run directory of this package |
        data/cache/CACHEDIR.TAG, data/cache/sheet/3.png > - a cache""",
}


def image_bytes(name="", form="PNG"):
    """What there is to write under a name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return encoded(rng.integers(256, size=(8, 8), dtype=np.uint8), form)


def write_folder(folder, files):
    """Writes name -> bytes."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def outcome(index):
    """File -> class and split, or reason, in the words of `CASES`."""
    found = {}
    for row, name in enumerate(index.names):
        split = "" if index.splits is None else f"@{index.splits[row]}"
        found[name] = index.class_names[index.labels[row]] + " F" * int(index.forged[row]) + split
    assert not found.keys() & index.skipped.keys()
    return found | {name: f"- {why}" for name, why in index.skipped.items()}


def place(name, found):
    """The file, or the outermost folder it lies in, that was indexed or named."""
    places = [*(name[:at] for at, sign in enumerate(name) if sign == "/"), name]
    return [one for one in places if one in found]


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("case", CASES)
def test_every_given_file_is_indexed_or_named(case, form, tmp_path):
    lines = [line.strip() for line in CASES[case].split("|")]
    remarks = [line[2:] for line in lines if line[0] == "!"]
    expected = {
        name: what or name.rpartition("/")[0]
        for names, _, what in (line.partition(" > ") for line in lines if line[0] != "!")
        for name in re.split(r",\s+", names)
    }
    is_image = {name: name.lower().endswith(IMAGE_SUFFIXES) for name in expected}
    files = {name: image_bytes(name) if is_image[name] else b"x" for name in expected}
    write = {"folder": write_folder, "zip": write_zip}[form]
    source = write(tmp_path / f"data.{form}", files)
    index = read_index(source)
    found = outcome(index)
    for name, what in expected.items():
        actual = found[place(name, found)[0]]
        assert actual.startswith(what) if what[0] == "-" else actual == what
    assert {*index.names} == {name for name, what in expected.items() if what[0] != "-"}
    assert len(index.remarks) == len(remarks)
    assert all(said in remark for said, remark in zip(remarks, index.remarks, strict=True))
    assert all(read_bytes(source, name) == files[name] for name in index.names)


def test_zip_members_are_named_in_many_ways(tmp_path):
    names = ["./set/a/0.png", "set\\b\\0.png", "/set/x/../c/0.png", "set/d/\u6f22.png"]
    names += ["set\\.git\\0.png", "../set/a/0.png"]
    files = {name: image_bytes(name) for name in names}
    index = read_index(write_zip(tmp_path / "data.zip", files))
    assert outcome(index) == {
        "set/a/0.png": "a",
        "set/b/0.png": "b",
        "set/c/0.png": "c",
        "set/d/\u6f22.png": "d",
        "set/.git": "- hidden",
        "./set/a/0.png (member 1)": "- a later member has the same name",
    }
    assert read_bytes(index.source, "set/a/0.png") == files[names[5]]
    assert read_bytes(index.source, "set/b/0.png") == files[names[1]]


FORMATS = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"]
HEIC = b"\0\0\0\x18ftypheic" + bytes(20)
NO_IMAGES = {"1": b"BMW and Audi are cars", "2.dat": b"II", "3.TXT": b"P6", "4.xyz": b""}


def test_zip_members_of_macos_are_in_utf_8(tmp_path):
    path = write_zip(
        tmp_path / "data.zip", {"Zo\u00e9/1.png": image_bytes(), "b/1.png": image_bytes()}
    )
    path.write_bytes(path.read_bytes().replace(b"\x00\x08", b"\0\0"))  # the flag that says so
    assert read_index(path).class_names == ["Zo\u00e9", "b"]


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_an_image_is_known_by_its_first_bytes(form, tmp_path):
    files = {f"a/{number}": image_bytes(form=one) for number, one in enumerate(FORMATS)}
    files |= {"b/1.IMG": image_bytes(form="JPEG"), "b/2.dat": HEIC, "b/3.jpe": image_bytes()}
    files |= {f"c/{name}": content for name, content in NO_IMAGES.items()}
    write = {"folder": write_folder, "zip": write_zip}[form]
    source = write(tmp_path / f"data.{form}", files)
    index = read_index(source)
    assert sorted(index.names) == sorted(name for name in files if name[0] != "c")
    assert {*index.skipped.values()} == {
        f"not an image ({suffix})" for suffix in ("no suffix", ".dat", ".txt", ".xyz")
    }
    if form == "folder":  # enrolled references are read alike
        assert image_files(source).keys() == {*index.names}


PARTS = st.sampled_from(
    ["a", "B", "train", "test_set", "test", ".git", "@eaDir", "Z\u00e9", "runs"]
)
PARTS |= st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=4
)
SUFFIXES = st.sampled_from([".png", ".PNG", ".jpg", "", ".txt", ".heic", ".csv"])
CONTENTS = [image_bytes(), image_bytes("other"), image_bytes()[:40], b"", b"path,label", HEIC]
TREES = st.dictionaries(
    st.builds("{0}{1}".format, st.lists(PARTS, min_size=1, max_size=4).map("/".join), SUFFIXES),
    st.sampled_from(CONTENTS),
    min_size=1,
    max_size=12,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(files=TREES, form=st.sampled_from(["folder", "zip", "table"]))
def test_indexed_and_named_are_what_was_given(files, form, tmp_path_factory, capsys):
    folder, names = tmp_path_factory.mktemp("tree"), sorted(files)
    names = [name for name in names if not {".", ".."} & {*name.split("/")}]
    names = [name for name in names if not any(other.startswith(f"{name}/") for other in names)]
    files = {name: files[name] for name in names}
    source = write_folder(folder / "data", files) if form != "zip" else folder / "data.zip"
    if form == "zip":
        write_zip(source, files)
        names = ["/".join(filter(None, name.replace("\\", "/").split("/"))) for name in names]
    if form == "table":
        with open(source / "list.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *((name, name[0]) for name in names)])
        source = source / "list.csv"
    try:
        index = read_index(source)
        found, plain = outcome(index), {name: name.strip().replace("\\", "/") for name in names}
        plain = {name: plain[name] and posixpath.normpath(plain[name]) for name in names}
        for name in names:  # a table names it as other systems do, or it was found nevertheless
            assert place(name, found) or place(plain[name], found) or not plain[name]
        assert {*index.names} <= {*names, *plain.values()}
    except DataError as error:
        assert len(str(error)) > 20
    command = [str(source), "--image_size", "8", "--cache_dir", str(folder / "cache")]
    assert prepare_data.main([*command, "--out", str(folder / "out")]) in (0, 2)
    capsys.readouterr()
