"""Tables as people, programs and public data sets have them; and what is said of the others."""

import pytest
from test_cases import outcome

from pipeline.files import DataError, read_bytes
from pipeline.image_index import read_index

TABLES = {  # lines of a table; file > what becomes of it, as in `CASES`; no > if it is not listed
    "a header of a competition": """image_id,label / 1.jpg,0 / 2.jpg,1
        train/1.jpg > 0 | train/2.jpg > 1 | test/1.jpg""",
    "names without suffix, another column": """id,breed / 0a,dingo / 1b,boston_bull
        train/0a.jpg > dingo | train/1b.jpg > boston_bull""",
    "a class a column": """image_id,healthy,rust / a,1,0 / b,0,1 / c,1,1
        images/a.jpg > healthy | images/b.jpg > rust | images/c.jpg > healthy + rust""",
    "no header, a doubled folder, spaces": """000001.jpg 2880 / 000002.jpg 2937
        img/img/000001.jpg > 2880 | img/img/000002.jpg > 2937""",
    "several columns that name classes, and splits": """
        class id,filepaths,labels,data set / 0,train/A/1.jpg,A,train / 0,valid/A/2.jpg,A,valid
        train/A/1.jpg > A@train | valid/A/2.jpg > A@val""",
    "forgeries": """filename,writer,is_forged / 1.jpg,a,0 / 2.jpg,b,0 / 3.jpg,b,1
        1.jpg > a | 2.jpg > b | 3.jpg > b F""",
    "genuine signatures and others": """
        filename,writer,genuine / 1.jpg,a,1 / 2.jpg,b,yes / 3.jpg,b,0
        1.jpg > a | 2.jpg > b | 3.jpg > b F""",
    "signatures of two types": """
        image,type,writer_id / 1.jpg,genuine,a / 2.jpg,genuine,b / 3.jpg,Forged,b
        1.jpg > a | 2.jpg > b | 3.jpg > b F""",
    "forgeries in a column of labels": """
        image,writer,label / 1.jpg,a,genuine / 2.jpg,b,genuine / 3.jpg,b,skilled
        1.jpg > a | 2.jpg > b | 3.jpg > b F""",
    "labels of forgeries, writers in the names": """
        image,label / original_1_1.png,0 / original_2_1.png,0 / forgeries_2_1.png,1
        original_1_1.png > 1 | original_2_1.png > 2 | forgeries_2_1.png > 2 F""",
    "real and fake in two columns": """path,label,label_str / 1.jpg,1,real / 2.jpg,0,fake
        1.jpg > 1 | 2.jpg > 0""",
    "forgeries by their folders": """path,label / a/1.jpg,a / b/2.jpg,b / b_forg/3.jpg,b
        a/1.jpg > a | b/2.jpg > b | b_forg/3.jpg > b F""",
    "forgeries by their labels": """image,label / 1.jpg,a / 2.jpg,b / 3.jpg,b_forged
        1.jpg > a | 2.jpg > b | 3.jpg > b F""",
    "two classes called left and right": """image,left,right / 1.jpg,1,0 / 2.jpg,0,1
        1.jpg > left | 2.jpg > right""",
    "a column called name, numbers": """name,class,group / 0.jpg,0,1 / 1.jpg,5,3
        t/0.jpg > 0 | t/1.jpg > 5""",
    "types that are the classes": """image,type / 1.jpg,real / 2.jpg,fake
        1.jpg > real | 2.jpg > fake""",
    "the individual, not the species": """
        filename,species,individual / 1.jpg,whale,w1 / 2.jpg,whale,w2
        1.jpg > w1 | 2.jpg > w2""",
    "neither a split nor forgeries": """
        img,partition,kind,species / 1.jpg,0,leaf,oak / 2.jpg,1,leaf,elm
        1.jpg > oak | 2.jpg > elm""",
    "the label first, no header": """oak a/1.jpg / elm b/2.jpg
        a/1.jpg > oak | b/2.jpg > elm""",
    "forgeries, and a column a class": """
        image,forged,oak,elm / 1.jpg,0,1,0 / 2.jpg,0,0,1 / 3.jpg,1,0,1
        1.jpg > oak | 2.jpg > elm | 3.jpg > elm F""",
    "two folders": """lesion_id,image_id,dx / 1,a,nv / 1,b,bkl
        part_1/a.jpg > nv | part_2/b.jpg > bkl""",
    "more of the names in a folder of another split": """id,label / 1,a / 2,b / 3,b
        train/1.jpg > a | train/2.jpg > b | 3 > - No such file | test/1.jpg | test/2.jpg |
        test/3.jpg""",
    "paths of another machine": r"""
        path,label / C:\Users\me\set\a\1.jpg,a / C:\Users\me\set\b\1.jpg,b
        set/a/1.JPG > a | set/b/1.JPG > b""",
    "most are there: no other is taken for one that is not": """
        path,label / a/1.jpg,a / a/2.jpg,a / a/3.jpg,a
        a/1.jpg > a | a/2.jpg > a | a/3.jpg > - No such file | b/3.jpg""",
    "cells without quotes, or without a class": """
        path|label / ./a.jpg|x / b.jpg|y|z / c.jpg|N/A / d.jpg|y
        a.jpg > x | b.jpg > - more cells than columns | c.jpg > - no label | d.jpg > y""",
    "comments, a count, the word of Excel": """
        # of 2026 / sep=, / 2 / image_name,item_id / a.jpg,x / # b.jpg is a copy / b.jpg,y
        a.jpg > x | b.jpg > y""",
    "paths of two depths, without suffix": """id,label / a/1,x / b/c/2,y
        a/1.jpg > x | b/c/2.jpg > y""",
}


def write_table(folder, text, name="train_list.csv"):
    """Writes the lines of a table, `/` between them, as spreadsheets do."""
    (folder / name).write_text(text.replace(" / ", "\n"), encoding="utf-8-sig")
    return folder / name


@pytest.mark.parametrize("case", TABLES)
def test_tables_of_public_data_sets(case, write_images):
    lines, expected = TABLES[case].strip().split("\n", 1)
    files = [file.strip().partition(" > ") for file in expected.split("|")]
    folder = write_images(*(name for name, _, what in files if "No such file" not in what))
    index = read_index(write_table(folder, lines))
    found, expected = outcome(index), {name: what for name, listed, what in files if listed}
    assert found.keys() == expected.keys()
    assert all(found[name].startswith(what) for name, what in expected.items())
    assert bool(index.remarks) != lines.startswith(("path,label /", "path|", "000001", "oak"))


def test_every_column(write_images):
    folder = write_images("1.png", "2.png", "sub/3.png", "4.png", "5.png")
    path = folder / "4.png"
    text = f"""label,path,split,group,forged
        \u00c9t\u00e9,1.png,train,x,0\na/b,{path},validation,,no\noak,2.png,Train,x\n
        oak,sub/3.png,train,,TRUE\noak,2.png,train\noak,gone.png,train\n,2.png
        oak,5.png,train\nash,5.png,train"""
    index = read_index(write_table(folder, text))
    assert index.names.tolist() == ["1.png", str(path), "2.png", "sub/3.png"]
    assert index.skipped.pop("2.png") == "no label in its line"  # in another one it has one
    assert outcome(index) == {
        "1.png": "\u00c9t\u00e9@train",
        str(path): "a/b@val",
        "2.png": "oak@train",
        "sub/3.png": "oak F@train",
        "gone.png": "- No such file or directory",
        "5.png": "- named with two labels, 'oak' and 'ash'",
    }
    first, alone, second, other = index.groups
    assert first == second and len({first, alone, other}) == 3
    assert index.remarks == ["3 lines name a file again: it counts once."]
    for name in index.names:
        assert read_bytes(folder / "list.csv", name) == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a header"),
        ("path,label", "No images.*0 files"),
        ("shape;label / 1.png;a", "'shape', 'label'"),
        ("path,x,y / 1.png,a,b", "Received the columns: .*Rename the two that name"),
        ('path,label / "1.png,a / 2.png,b', "quote not closed"),
        ("path,label / gone.png,a", "1 x No such file.*: gone.png"),
        ("path,label,split / 1.png,a,exam", "Received: 'exam'"),
        ("path,label,split / 1.png,a,train / 2.png,a,", "every line a split, or none"),
        ("path,label,is_forged / 1.png,a,maybe", "line 2: forged must be 1 or 0.*'maybe'"),
        ("image,writer,genuine / 1.png,a,1 / 2.png,b,", "line 3: genuine must be 1 or 0"),
        ("id,label / 1,x / 2,y", "'1' may be '1.jpg' or '1.png'. Give paths"),
        ("path,label / 3.jpg,x", "'3.jpg' may be 'a/3.jpg' or 'b/3.jpg'. Give paths"),
        ("1 1.jpg / 2 1.png / 3 2.png", "number of its own.* give the folder"),
        ("image_id,partition / 1.png,0 / 2.png,7", "needs a header with the columns path and"),
        ("1.png\tn01\t0\t32 / 2.png\tn02\t1\t32", "needs a header"),
    ],
)
def test_tables_that_do_not_say_enough(text, message, write_images):
    with pytest.raises(DataError, match=message):
        read_index(write_table(write_images("1.png", "1.jpg", "2.png", "a/3.jpg", "b/3.jpg"), text))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_programs_write_them(encoding, separator, write_images):
    folder = write_images("1.png", "2.png", "sub/3.png")
    text = "path,label\n1.png,Zo\u00eb\n2.png,Zo\u00e9\nsub\\3.png,Zo\u00e9"
    (folder / "list.csv").write_bytes(text.replace(",", separator).encode(encoding))
    index = read_index(folder / "list.csv")
    assert outcome(index) == {"1.png": "Zo\u00eb", "2.png": "Zo\u00e9", "sub/3.png": "Zo\u00e9"}
    assert [encoding in said for said in index.remarks] == [True] * ("utf-8" not in encoding)


def test_a_listed_name_is_found_in_either_encoding_of_its_letters(write_images):
    folder = write_images("Zoe\u0301/a\u0301.png", "b/1.png")
    index = read_index(write_table(folder, "path,label / Zo\u00e9/\u00e1.png,a / b/1.png,b"))
    assert len(index) == 2 and not index.skipped
    written = (folder / "Zoe\u0301/a\u0301.png").read_bytes()
    assert read_bytes(index.source, index.names[0]) == written


def test_a_table_beside_the_images_is_named(write_images):
    """Folders may be no more than parts; lesions are groups once the table is given."""
    folder = write_images("p1/1.jpg", "p1/2.jpg", "p2/3.jpg")
    table = write_table(folder, "lesion_id,image_id,dx / H1,1,nv / H1,2,nv / H2,3,mel", "set.csv")
    assert "'set.csv' names 3 of the images" in read_index(folder).remarks[0]
    index = read_index(table)
    assert index.class_names == ["mel", "nv"] and index.groups.tolist() == [0, 0, 1]
