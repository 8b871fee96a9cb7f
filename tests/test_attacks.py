"""Files made to run code, to fill the memory or the disk, or to leave their folder: none does."""

import json
import pickle
import re
import shutil
import struct
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import encoded, write_zip
from PIL import Image

import evaluate
import predict
import prepare_data
import train
from inference.similarity_model import SimilarityModel
from pipeline.files import DataError, read_bytes
from pipeline.image_index import read_index
from run_directory import STATE, RunDirectory, RunError


@pytest.fixture
def here(tiny_run, tmp_path, monkeypatch):
    """A copy of a finished run and its images, as current directory."""
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Touch:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return Path.touch, (Path("it-ran").absolute(),)


def test_no_pickle_is_read(here):
    run = RunDirectory("runs/run")
    run.save_state({"model": [np.zeros(2)]}, {"epoch": 1})
    run.load_state()
    with np.load(run / STATE) as before:
        names = before.files
    np.savez(run / STATE, **dict.fromkeys(names, np.array([Touch()], dtype=object)))
    with pytest.raises(ValueError, match="allow_pickle=False|Python objects"):
        run.load_state()
    assert not (here / "it-ran").exists()


def lambda_model(path):
    """A model file with Python code in a Lambda."""
    pixels = keras.Input((16, 16, 3))
    code = keras.layers.Lambda(
        lambda x: [x, __import__("pathlib").Path("it-ran").touch()][0], output_shape=(16, 16, 3)
    )
    keras.Model(pixels, code(pixels)).save(path)


def system_model(path):
    """A model file whose Lambda is os.system."""
    lambda_model(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    layer = config["config"]["layers"][1]["config"]
    assert layer["function"]["class_name"] == "__lambda__"
    layer["function"] = dict(module="os", class_name="function", config="system",
                             registered_name="system")  # fmt: skip
    layer["arguments"] = {}
    write_zip(path, files | {"config.json": json.dumps(config)})


def pickle_model(path):
    path.write_bytes(pickle.dumps(Touch()))


@pytest.mark.parametrize("evil", [lambda_model, system_model, pickle_model])
@pytest.mark.parametrize("name", ["encoder.keras", "model.keras"])
def test_no_code_in_a_model_file_runs(here, capsys, evil, name):
    evil(here / "runs/run" / name)
    (here / "it-ran").unlink(missing_ok=True)  # building the Lambda ran it
    with pytest.raises(RunError, match=f"{name}' cannot be loaded"):
        RunDirectory("runs/run")._load(name)
    if name == "encoder.keras":
        for command in (evaluate.main, lambda args: predict.main(["compare", *args, *["images"]])):
            assert command(["runs/run"]) == 2
        assert "cannot be loaded" in capsys.readouterr().err
    assert not (here / "it-ran").exists()


# Zips


def pngs(names, size=8):
    return {name: encoded(Image.new("L", (size + n, 9))) for n, name in enumerate(names)}


FOUR = pngs(["a/1.png", "a/2.png", "b/1.png", "b/2.png"])


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """`pack({name: bytes})` makes a zip, and moves to a folder below it."""

    def write(members):
        (tmp_path / "a/b").mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / "a/b")
        return write_zip(Path("data.zip"), members)

    return write


def test_zip_slip(pack, tmp_path):
    names = ["../../out/1.png", "/tmp/out/2.png", "x/../../../out/3.png", "c:\\out\\4.png"]
    source = pack(FOUR | pngs(names, size=30))
    prepare_data.main([str(source), "--image_size", "8"])
    made = [p.relative_to(tmp_path / "a/b").parts[0] for p in tmp_path.rglob("*") if p.is_file()]
    assert set(made) == {"data.zip", "data"}


def test_zip_bombs(pack, monkeypatch):
    monkeypatch.setattr("pipeline.files.MAX_FILE_BYTES", 10_000)
    path = pack(FOUR | {"b/3.png": bytes(20_000)})
    lying = path.read_bytes().replace(struct.pack("<I", 20_000), struct.pack("<I", 9))
    for leaves, said in ((b"{" + bytes(20_000), ".*larger than"), (b"[" * 9000, "")):
        with pytest.raises(DataError, match=rf"leaf-map\.json{said}"):
            read_index(pack(FOUR | {"leaf-map.json": leaves}))
    path.write_bytes(lying)  # it says that a member unpacks to 9 bytes
    with pytest.raises(DataError, match="damaged in the zip"):
        read_bytes(path, "b/3.png")


def test_damaged_and_locked_zips_are_a_sentence(pack, capsys):
    path = pack(FOUR)
    content = bytearray(path.read_bytes())
    for at in range(len(content)):
        if content[at : at + 4] in (b"PK\1\2", b"PK\3\4"):
            content[at + (8 if content[at + 2] == 1 else 6)] |= 1  # "encrypted"
    path.write_bytes(content)
    assert train.main(["--data_dir", str(path)]) == train.WRONG_INPUT
    said = capsys.readouterr().err
    assert re.search("None of 4 images can be read.*cannot be unpacked: .*encrypted", said)


# Names that are HTML


def test_file_names_in_the_report_are_text(here):
    evil = "<img src=x onerror=alert(1)>"
    for number, folder in enumerate(sorted((here / "images").iterdir())):
        for path in list(folder.iterdir()):
            path.rename(folder / f"{evil}'\"{path.name}")
        folder.rename(folder.with_name(f"{number}\"><svg onload='alert(1)'>"))
    options = "--trials 20 --ways 2 --shots 1 --out out".split()
    assert evaluate.main(["runs/run", "--data", "images", *options]) == 0
    parser, tags = HTMLParser(), []
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed((here / "out/report.html").read_text())
    assert not {"script", "svg", "iframe", "object", "link"} & {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert all(given["src"].startswith("data:image/") for tag, given in tags if tag == "img")


def test_a_run_from_elsewhere_writes_nothing_elsewhere(here):
    """A search with a run whose config names other folders stays in the run."""
    run = here / "runs/run"
    config = json.loads((run / "config.json").read_text())
    config |= {"cache_dir": "../elsewhere", "runs_dir": "../elsewhere", "run_name": None}
    (run / "config.json").write_text(json.dumps(config))
    SimilarityModel(run).open("images")
    assert not (here.parent / "elsewhere").exists()
