"""Folders and zips as people have them: every file that was given is indexed or named."""

import csv
import posixpath
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
CASES = {  # file > its class, F if forged, @ its split; or - why it is left out; ! a remark
    "class folders": "oak/1.png > oak | oak/2.JPG > oak | ash/1.png > ash",
    "subjects": "s1/1.pgm > s1 | s2/1.pgm > s2 | s10/1.pgm > s10",
    "families": "Latin/a/1.png > Latin/a | Latin/b/1.png > Latin/b | Greek/c/1.png > Greek/c",
    "any depth": "x/y/a/1.png > x/y/a | x/b/1.png > x/b | c/1.png > c",
    "crops": "Fig___rust/1.png > Fig___rust | Fig___well 2/1.png > Fig___well 2",
    "shared folders on top": "all/raw/oak/1.png > oak | all/raw/ash/1.png > ash",
    "a single class": "oak/1.png > oak",
    "train alone": "train/oak/1.png > oak | train/ash/1.png > ash",
    "split folders": """Train/oak/1.png > oak@train | validation/oak/2.png > oak@val |
        test/elm/3.png > elm@test | train.txt > - not an image (.txt)""",
    "training_set": "training_set/cat/1.png > cat@train | test_set/cat/2.png > cat@test",
    "train data": "Train-Data/cat/1.png > cat@train | devset/cat/2.png > cat@val",
    "years": "train2017/cat/1.png > cat@train | Val_images/cat/2.png > cat@val",
    "eval": "TRAINING/cat/1.png > cat@train | eval/cat/2.png > cat@test",
    "a prefix": "seg_train/seg_train/a/1.png > a@train | seg_test/seg_test/a/2.png > a@test",
    "splits below one folder of two": f"""data/outer/train/cat/1.png > cat@train |
        data/outer/train/dog/1.png > dog@train | data/outer/valid/cat/2.png > cat@val |
        data/extra/cat/3.png > {BESIDE}""",
    "splits below families": """Fig/train/rust/1.png > Fig/rust@train |
        Fig/test/rust/2.png > Fig/rust@test | Ash/train/mould/3.png > Ash/mould@train""",
    "splits below classes": """cat/train/1.png > cat@train | cat/test/2.png > cat@test |
        dog/train/3.png > dog@train""",
    "splits below images/": """train/images/cat/1.png > cat@train |
        test/images/cat/2.png > cat@test""",
    "doubled split folders": """train/train/cat/1.png > cat@train | test/test/cat/2.png > cat@test |
        train/train/dog/1.png > dog@train""",
    "a doubled test folder without classes": f"""train/cat/1.png > cat@train |
        train/dog/1.png > dog@train | test/test/2.png > {DIRECT}""",
    "images directly in a split folder": f"""train/cat/1.png > cat@train | train/0.png > {DIRECT} |
        test/cat/2.png > cat@test | beside.png > - lies beside the class folders""",
    "a class that is called test": """test/1.png > test | oak/1.png > oak |
        ! called test are taken for classes""",
    "two of many classes are called so": """f/val/1.png > val | f/test/1.png > test |
        f/oak/1.png > oak | f/ash/1.png > ash | f/elm/1.png > elm |
        ! called test, val are taken for classes""",
    "images of its own and folders below": """cat/1.png > cat | cat/black/2.png > cat/black |
        ! Images lie in 'cat' (1) and in folders below""",
    "parts of unknown names": """set A/cat/1.png > set A/cat | set B/cat/2.png > set B/cat |
        ! Classes of the same names (cat) lie in 'set A', 'set B'""",
    "views of people": " | ".join(
        f"{person}/{view}/1.png > {person}/{view}" for person in "abcdefgh" for view in ("L", "R")
    )
    + " | ! Classes of the same names (L, R) lie in 'a', 'b', 'c' and 5 more",
    "names that look alike": """Zoe\u0301/1.png > Zoe\u0301 | zo\u00e9/2.png > zo\u00e9 |
        ! Classes whose names differ only in case""",
    "forgeries beside": """01/a.png > 01 | 01_forg/a.png > 01 F | x/a.png > x |
        X_Forged/a.png > x F | y/a.png > y | y-forgeries/b.png > y F | z/a.png > z |
        z forge/a.png > z F | reforg/a.png > reforg""",
    "forgeries in split folders": """train/01/a.png > 01@train | train/01_forg/a.png > 01 F@train |
        train/02/a.png > 02@train | test/03/a.png > 03@test | test/03_forg/a.png > 03 F@test""",
    "forgeries two folders of folders": """sigs/genuine/a/1.png > a | sigs/genuine/b/1.png > b |
        sigs/Forged/a/1.png > a F""",
    "forgeries with names of their own": """Offline Genuine/7/1.png > 7 |
        Offline Genuine/8/1.png > 8 | Offline Forgeries/7/1.png > 7 F""",
    "forgeries both in each": """a/original/1.png > a | a/forgeries/1.png > a F |
        b/original/1.png > b | b/forged/1.png > b F""",
    "forgeries CEDAR": """full_org/original_1_1.png > 1 | full_org/original_12_1.png > 12 |
        full_forg/forgeries_1_1.png > 1 F | full_forg/forgeries_12_24.png > 12 F""",
    "forgeries CEDAR in one folder": """x/original_1_1.png > 1 | x/original_2_1.png > 2 |
        x/forgeries_2_1.png > 2 F""",
    "forgeries SigComp 2009": """genuine/NFI-00101001.png > 001 | genuine/NFI-00201002.png > 002 |
        forged/NFI-00301001.png > 001 F""",
    "forgeries SigComp 2011": """Genuine/001_01.png > 001 | Genuine/014_24.PNG > 014 |
        Forgeries/0119001_01.png > 001 F | Forgeries/0202014_02.PNG > 014 F""",
    "forgeries SigComp 2011 by writers": """train/001/001_01.PNG > 001@train |
        train/001_forg/0119001_02.png > 001 F@train | test/049/049_01.png > 049@test |
        test/049_forg/0114049_01.PNG > 049 F@test""",
    "files of eight digits": "a/00000000.png > a | a/00000001.png > a | b/00100001.png > b",
    "forgeries SigComp 2011, test set": """Dutch/Reference(4)/001/01_001.PNG > 001 |
        Dutch/Reference(4)/002/01_002.PNG > 002 | Dutch/Questioned(5)/001/05_001.PNG > 001 |
        Dutch/Questioned(5)/001/02_0119001.PNG > 001 F""",
    "forgeries BHSig260": """Hindi/001/H-S-1-G-01.tif > 001 | Hindi/001/H-S-1-F-01.tif > 001 F |
        Hindi/2/H-S-2-G-01.tif > 2""",
    "forgeries GPDS": """001/c-001-01.jpg > 001 | 001/cf-001-01.jpg > 001 F |
        002/c-002-24.jpg > 002""",
    "forgeries of nobody": """a/1.png > a | a_forg/1.png > a F | b/1.png > b | genuine/c/1.png > c |
        forged/c/1.png > c F | forged/d/1.png > - a forgery of 'd', of which there is no""",
    "forgeries MCYT-75": """0/0000v00.bmp > 0 | 0/0000f14.bmp > 0 F | 1/0001v00.bmp > 1""",
    "two kinds of nothing": """original/1.png > original | forged/1.png > forged""",
    "forged classes alone": """a_forg/1.png > a_forg | b_forg/1.png > b_forg""",
    "forged in a name": """georg/1.png > georg | original art/1.png > original art | b/1.png > b""",
    "forgeries of several kinds": """UTSig/Genuine/1/1.tif > 1 | UTSig/Genuine/2/1.tif > 2 |
        UTSig/Forgery/Skilled/1/1.tif > 1 F | UTSig/Forgery/Opposite Hand/2/1.tif > 2 F""",
    "forgeries called fake": """a/real/1.png > a | a/fake/1.png > a F | b/real/1.png > b""",
    "real and fake in splits": """train/REAL/1.png > REAL@train | train/FAKE/1.png > FAKE@train |
        test/REAL/2.png > REAL@test""",
    "real and fake, in file names": """train/real/real_1.png > real@train |
        train/fake/fake_1.png > fake@train | test/fake/fake_2.png > fake@test""",
    "a class of images, one of text": """image/1.png > image | text/2.png > text |
        images/3.png > images""",
    "forgeries SigComp 2009, shortened": """set/real/00100001.png > 001 |
        set/real/00200002.png > 002 | set/forge/02100001.png > 001 F""",
    "Omniglot, both halves": """images_background/Greek/a/1.png > Greek/a@train |
        images_evaluation/Oriya/b/1.png > Oriya/b@test""",
    "training, validation, evaluation": """training/Bread/1.png > Bread@train |
        validation/Bread/2.png > Bread@val | evaluation/Bread/3.png > Bread@test""",
    "images below classes": f"""train/n014/images/n014_0.png > n014@train |
        train/n016/images/n016_0.png > n016@train | val/images/val_0.png > {DIRECT} |
        train/n014/n014_boxes.txt > - not an image""",
    "a folder in itself": """x/x/train/cat/1.png > cat@train | x/x/test/cat/2.png > cat@test |
        x/train/cat/1.png > cat@train | x/test/cat/2.png > cat@test |
        x/val/cat/3.png > cat@val | ! 'x/x/test/cat' repeats 'x/test/cat' and 1""",
    "a folder beside what it holds": """rose/1.png > rose | ivy/1.png > ivy | ivy/2.png > ivy |
        flowers/rose/1.png > rose | flowers/ivy/1.png > ivy | ! 'flowers/ivy' repeats 'ivy'""",
    "classes in file names": """train/cat.0.png > cat@train | train/cat.1.png > cat@train |
        train/dog.0.png > dog@train | train/dog.10.png > dog@train | test1/1.png > - no class in |
        ! File names tell the classes, not folders: 'train/cat.0.png' is of 'cat'""",
    "pets, and their outlines": """images/Abyssinian_1.png > Abyssinian |
        images/Abyssinian_12.png > Abyssinian | images/great_pyrenees_1.png > great_pyrenees |
        images/great_pyrenees_3.png > great_pyrenees | annotations/list.txt > - not an image |
        annotations/trimaps/Abyssinian_1.png > - in a folder of annotations | ! File names""",
    "masks beside images": """benign/benign (1).png > benign | malignant/a_mask.png > malignant |
        benign/benign (1)_mask.png > - the mask of | benign/benign (1)_mask_1.png > - the mask of |
        COVID/images/COVID-1.png > COVID | COVID/masks/COVID-1.png > - in a folder of annot""",
    "people seen by cameras": """m/bounding_box_train/0002_c1s1_000451_03.png > 0002@train |
        m/bounding_box_train/0002_c2s1_000451_03.png > 0002@train |
        m/bounding_box_test/0003_c1s1_000051_01.png > 0003@test |
        m/bounding_box_test/-1_c1s1_000051_01.png > - no class in its name |
        m/query/0003_c2s1_000051_00.png > 0003@test | ! File names tell""",
    "fingers": """SOCO/Real/1__M_Left_index_finger.BMP > 1__M_Left_index_finger |
        SOCO/Altered/Easy/1__M_Left_index_finger_CR.BMP > 1__M_Left_index_finger |
        SOCO/Real/2__F_Right_thumb_finger.BMP > 2__F_Right_thumb_finger |
        SOCO/Altered/Easy/2__F_Right_thumb_finger_Obl.BMP > 2__F_Right_thumb_finger | ! File""",
    "faces of AR": """faces/M-001-01.bmp > M-001 | faces/M-001-14.bmp > M-001 |
        faces/w-002-01.bmp > w-002 | faces/w-002-02.bmp > w-002 | ! File names tell""",
    "faces of JAFFE": """j/KA.AN1.39.tiff > KA | j/KA.HA2.30.tiff > KA | j/YM.AN1.61.tiff > YM |
        j/YM.SU3.60.tiff > YM | ! File names tell""",
    "forgeries beside genuine files": """s/w1/genuine_1.png > w1 | s/w1/forged_1.png > w1 F |
        s/w2/genuine_1.png > w2 | s/w2/forged_2.png > w2 F""",
    "forgeries of several sets": """C/C/1/original_1_1.png > C/C/1 |
        C/C/1/forgeries_1_1.png > C/C/1 F | H/H/7/H-S-7-G-01.tif > H/H/7 |
        H/H/7/H-S-7-F-01.tif > H/H/7 F | H/H/8/H-S-8-F-01.tif > H/H/8 F |
        H/H/8/H-S-8-G-01.tif > H/H/8""",
    "forgeries of numbered writers": """real/001_01.png > 001 | real/002_01.png > 002 |
        forge/001_01.png > 001 F | forge/002_02.png > 002 F""",
    "forgeries in words": "1/1_real_1.png > 1 | 1/1_forged_1.png > 1 F | 2/2_real_1.png > 2",
    "forgeries in letters": "01/G_01.png > 01 | 01/F_01.png > 01 F | 02/G_02.png > 02",
    "fingers in parts": """DB1/101_1.tif > DB1 | DB1/101_2.tif > DB1 | DB1/102_1.tif > DB1 |
        DB1/102_2.tif > DB1 | DB2/103_1.tif > DB2 | DB2/103_2.tif > DB2 | DB2/104_1.tif > DB2 |
        DB2/104_2.tif > DB2 | ! Files in 'DB1' are named after several things (101, 102)""",
    "left and right of people": """1/left/1.png > 1/left | 1/right/1.png > 1/right |
        2/left/1.png > 2/left | 2/right/1.png > 2/right | ! Classes of the same names (left""",
    "clips of people": " | ".join(
        f"{person}/{clip}/1.png > {person}/{clip}"
        for person in "abcdefghijklm"
        for clip in "123456"
    )
    + " | ! Classes of the same names (1, 2, 3 and 3 more)",
    "labels beside images": """k1/P0.jpg > k1 | k1/P0_label.bmp > - the mask of | k2/P.jpg > k2""",
    "left and right of a pair": """left/01.png > 01 | right/01.jpg > 01 | left/2.png > 2 |
        right/2.png > 2 | ! File names tell""",
    "left and right": "left/01.png > left | right/01.png > right | left/2.png > left",
    "photographs of cameras": """all/IMG_0001.png > all | all/IMG_0002.png > all |
        all/DSC_0001.png > all | all/DSC_0002.png > all""",
    "what systems make": """a/1.png > a | a/@eaDir/SYNO@.png > - made by the system |
        lost+found/2.png > - made by the system | $RECYCLE.BIN/x/3.png > - made by the system |
        FOUND.000/4.png > - made by the system | __MACOSX/a/1.png > - made by the system |
        a/Thumbs.db > - not an image (.db) | b/all.rar > - an archive (.rar) |
        .trash/1.png > - hidden | b/2.png > b | b/._2.png > - hidden""",
    "what this package makes": """a/1.png > a | b/2.png > b |
        contact_sheet.png > - a contact sheet of this package |
        runs/x/config.json > - a run directory of this package |
        runs/x/environment.json > - a run directory of this package |
        runs/x/figures/roc.png > - a run directory of this package |
        data/cache/CACHEDIR.TAG > - a cache | data/cache/sheet/3.png > - a cache""",
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
    expected = dict(line.split(" > ") for line in lines if line[0] != "!")
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


def test_a_listed_name_is_found_in_either_encoding_of_its_letters(tmp_path):
    write_folder(tmp_path, {"Zoe\u0301/a\u0301.png": image_bytes(), "b/1.png": image_bytes()})
    (tmp_path / "list.csv").write_text("path,label\nZo\u00e9/\u00e1.png,a\nb/1.png,b\n")
    index = read_index(tmp_path / "list.csv")
    assert len(index) == 2 and not index.skipped
    assert read_bytes(index.source, index.names[0]) == image_bytes()


TABLES = {  # files; lines of list.csv; file > class
    "a header of a competition": (
        "train/1.jpg test/1.jpg train/2.jpg",
        "image_id,label / 1.jpg,0 / 2.jpg,1",
        "train/1.jpg > 0 | train/2.jpg > 1",
    ),
    "names without suffix, another column": (
        "train/0a.jpg train/1b.jpg",
        "id,breed / 0a,dingo / 1b,boston_bull",
        "train/0a.jpg > dingo | train/1b.jpg > boston_bull",
    ),
    "a class a column": (
        "images/a.jpg images/b.jpg images/c.jpg",
        "image_id,healthy,rust / a,1,0 / b,0,1 / c,1,1",
        "images/a.jpg > healthy | images/b.jpg > rust | images/c.jpg > healthy + rust",
    ),
    "no header, a doubled folder, spaces": (
        "img/img/000001.jpg img/img/000002.jpg",
        "000001.jpg 2880 / 000002.jpg 2937",
        "img/img/000001.jpg > 2880 | img/img/000002.jpg > 2937",
    ),
    "several columns that name classes, and splits": (
        "train/A/1.jpg valid/A/2.jpg",
        "class id,filepaths,labels,data set / 0,train/A/1.jpg,A,train / 0,valid/A/2.jpg,A,valid",
        "train/A/1.jpg > A@train | valid/A/2.jpg > A@val",
    ),
    "forgeries": (
        "1.jpg 2.jpg 3.jpg",
        "filename,writer,is_forged / 1.jpg,a,0 / 2.jpg,b,0 / 3.jpg,b,1",
        "1.jpg > a | 2.jpg > b | 3.jpg > b F",
    ),
    "genuine signatures and others": (
        "1.jpg 2.jpg 3.jpg",
        "filename,writer,genuine / 1.jpg,a,1 / 2.jpg,b,yes / 3.jpg,b,0",
        "1.jpg > a | 2.jpg > b | 3.jpg > b F",
    ),
    "signatures of two types": (
        "1.jpg 2.jpg 3.jpg",
        "image,type,writer / 1.jpg,genuine,a / 2.jpg,genuine,b / 3.jpg,Forged,b",
        "1.jpg > a | 2.jpg > b | 3.jpg > b F",
    ),
    "forgeries in a column of labels": (
        "1.jpg 2.jpg 3.jpg",
        "image,writer,label / 1.jpg,a,genuine / 2.jpg,b,genuine / 3.jpg,b,skilled",
        "1.jpg > a | 2.jpg > b | 3.jpg > b F",
    ),
    "real and fake in two columns": (
        "1.jpg 2.jpg",
        "path,label,label_str / 1.jpg,1,real / 2.jpg,0,fake",
        "1.jpg > 1 | 2.jpg > 0",
    ),
    "forgeries by their folders": (
        "a/1.jpg b/2.jpg b_forg/3.jpg",
        "path,label / a/1.jpg,a / b/2.jpg,b / b_forg/3.jpg,b",
        "a/1.jpg > a | b/2.jpg > b | b_forg/3.jpg > b F",
    ),
    "forgeries by their labels": (
        "1.jpg 2.jpg 3.jpg",
        "image,label / 1.jpg,a / 2.jpg,b / 3.jpg,b_forged",
        "1.jpg > a | 2.jpg > b | 3.jpg > b F",
    ),
    "two classes called left and right": (
        "1.jpg 2.jpg",
        "image,left,right / 1.jpg,1,0 / 2.jpg,0,1",
        "1.jpg > left | 2.jpg > right",
    ),
    "a column called name, numbers": (
        "t/0.jpg t/1.jpg",
        "name,class,group / 0.jpg,0,1 / 1.jpg,5,3",
        "t/0.jpg > 0 | t/1.jpg > 5",
    ),
    "types that are the classes": (
        "1.jpg 2.jpg",
        "image,type / 1.jpg,real / 2.jpg,fake",
        "1.jpg > real | 2.jpg > fake",
    ),
    "the individual, not the species": (
        "1.jpg 2.jpg",
        "filename,species,individual / 1.jpg,whale,w1 / 2.jpg,whale,w2",
        "1.jpg > w1 | 2.jpg > w2",
    ),
    "neither a split nor forgeries": (
        "1.jpg 2.jpg",
        "img,partition,kind,species / 1.jpg,0,leaf,oak / 2.jpg,1,leaf,elm",
        "1.jpg > oak | 2.jpg > elm",
    ),
    "the label first, no header": (
        "a/1.jpg b/2.jpg",
        "oak a/1.jpg / elm b/2.jpg",
        "a/1.jpg > oak | b/2.jpg > elm",
    ),
    "forgeries, and a column a class": (
        "1.jpg 2.jpg 3.jpg",
        "image,forged,oak,elm / 1.jpg,0,1,0 / 2.jpg,0,0,1 / 3.jpg,1,0,1",
        "1.jpg > oak | 2.jpg > elm | 3.jpg > elm F",
    ),
    "two folders": (
        "part_1/a.jpg part_2/b.jpg",
        "lesion_id,image_id,dx / 1,a,nv / 1,b,bkl",
        "part_1/a.jpg > nv | part_2/b.jpg > bkl",
    ),
    "more of the names in a folder of another split": (
        "train/1.jpg train/2.jpg test/1.jpg test/2.jpg test/3.jpg",
        "id,label / 1,a / 2,b / 3,b",
        "train/1.jpg > a | train/2.jpg > b | 3 > - No such file",
    ),
    "paths of another machine": (
        "set/a/1.JPG set/b/1.JPG",
        r"path,label / C:\Users\me\set\a\1.jpg,a / C:\Users\me\set\b\1.jpg,b",
        "set/a/1.JPG > a | set/b/1.JPG > b",
    ),
    "most are there: no other is taken for one that is not": (
        "a/1.jpg a/2.jpg b/3.jpg",
        "path,label / a/1.jpg,a / a/2.jpg,a / a/3.jpg,a",
        "a/1.jpg > a | a/2.jpg > a | a/3.jpg > - No such file",
    ),
    "cells without quotes, or without a class": (
        "a.jpg b.jpg c.jpg d.jpg",
        "path|label / ./a.jpg|x / b.jpg|y|z / c.jpg|N/A / d.jpg|y",
        "a.jpg > x | b.jpg > - more cells than columns | c.jpg > - no label | d.jpg > y",
    ),
    "comments, a count, the word of Excel": (
        "a.jpg b.jpg",
        "# of 2026 / sep=, / 2 / image_name,item_id / a.jpg,x / # b.jpg is a copy / b.jpg,y",
        "a.jpg > x | b.jpg > y",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_of_public_data_sets(case, tmp_path):
    names, lines, expected = TABLES[case]
    write_folder(tmp_path, {name: image_bytes(name) for name in names.split()})
    (tmp_path / "train_list.csv").write_text(lines.replace(" / ", "\n"))
    index = read_index(tmp_path / "train_list.csv")
    found, expected = outcome(index), dict(line.split(" > ") for line in expected.split(" | "))
    assert found.keys() == expected.keys()
    assert all(found[name].startswith(what) for name, what in expected.items())
    assert bool(index.remarks) != lines.startswith(("path,label /", "path|", "000001", "oak"))


def test_a_listed_name_that_may_be_two_files_is_asked_for(tmp_path):
    write_folder(tmp_path, {name: image_bytes(name) for name in ("a/1.jpg", "b/1.jpg")})
    (tmp_path / "list.csv").write_text("path,label\n1.jpg,x\n")
    with pytest.raises(DataError, match="'1.jpg' may be 'a/1.jpg' or 'b/1.jpg'. Give paths"):
        read_index(tmp_path / "list.csv")
    (tmp_path / "list.csv").rename(tmp_path / "list_of_test.csv")
    (tmp_path / "b").rename(tmp_path / "test")
    assert outcome(read_index(tmp_path / "list_of_test.csv")) == {"test/1.jpg": "x"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("id,label / 1,x / 2,y", "'1' may be 'im/1.jpg' or 'im/1.png'"),
        ("1 im/1.jpg / 2 im/1.png / 3 im/2.jpg", "number of its own.* give the folder"),
        ("image_id,partition / 1.jpg,0 / 2.jpg,7", "needs a header with the columns path and"),
        ("image,writer,genuine / 1.jpg,a,1 / 2.jpg,b,", "line 3: genuine must be 1 or 0"),
        ("1.jpg\tn01\t0\t32\t44\t62 / 2.jpg\tn02\t1\t32\t4\t2", "needs a header"),
        ("im/1.jpg 3 1 / im/2.jpg 4 1", "needs a header with the columns path and label"),
    ],
)
def test_tables_that_do_not_say_enough(lines, message, tmp_path):
    write_folder(
        tmp_path, {f"im/{name}": image_bytes(name) for name in ("1.jpg", "1.png", "2.jpg")}
    )
    (tmp_path / "list.csv").write_text(lines.replace(" / ", "\n"))
    with pytest.raises(DataError, match=message):
        read_index(tmp_path / "list.csv")


def test_a_table_beside_the_images_is_named(tmp_path):
    """Folders may be no more than parts; lesions are groups once the table is given."""
    write_folder(
        tmp_path, {name: image_bytes(name) for name in ("p1/1.jpg", "p1/2.jpg", "p2/3.jpg")}
    )
    (tmp_path / "set.csv").write_text("lesion_id,image_id,dx\nH1,1,nv\nH1,2,nv\nH2,3,mel\n")
    assert "'set.csv' names 3 of the images" in read_index(tmp_path).remarks[0]
    index = read_index(tmp_path / "set.csv")
    assert index.class_names == ["mel", "nv"] and index.groups.tolist() == [0, 0, 1]


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
