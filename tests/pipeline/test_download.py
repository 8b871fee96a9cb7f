"""Downloads from a server on the loopback address, and zips that mean harm."""

import functools
import hashlib
import http.server
import io
import re
import threading
import zipfile

import pytest

from pipeline.download import DATASETS, DownloadError, fetch

HALVES = {
    "images_background.zip": {
        "images_background/": b"",
        "images_background/Greek/character01/0001_01.png": b"1",
        "images_background/Greek/.DS_Store": b"",
        "__MACOSX/images_background/Greek/character01/._0001_01.png": b"",
    },
    "images_evaluation.zip": {"images_evaluation/Tengwar/character02/0002_02.png": b"2"},
}
CHARACTERS = [list(HALVES["images_background.zip"])[1], *HALVES["images_evaluation.zip"]]
COLOR = "PlantVillage-Dataset-master/raw/color/"
LEAF = "Apple___Apple_scab/00075aa8___FREC_Scab 3335.JPG"
PLANTS = {
    "PlantVillage-Dataset-master/README.md": b"read me",
    COLOR + LEAF: b"leaf",
    COLOR.replace("color", "segmented") + LEAF: b"cut out",
    COLOR + "Apple___Apple_scab/.DS_Store": b"",
    "PlantVillage-Dataset-master/leaf_grouping/leaf-map.json": b"{}",
}


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Folder of zips on the loopback address; patterns and folders stay those of the real ones."""
    folder, zips = tmp_path / "served", HALVES | {"master.zip": PLANTS}
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        for name, entries in DATASETS.items():
            local = []
            for url, known_hash, *others in entries:
                file, address = url.rpartition("/")[2], f"http://127.0.0.1:{server.server_port}"
                (folder / file).write_bytes(make_zip(zips[file]))
                if known_hash:
                    known_hash = "md5:" + hashlib.md5((folder / file).read_bytes()).hexdigest()
                local.append((f"{address}/{file}", known_hash, *others))
            monkeypatch.setitem(DATASETS, name, local)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield folder
        server.shutdown()


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_what_is_missing_is_fetched(served, tmp_path):
    data = tmp_path / "data"
    (data / "omniglot/images_evaluation").mkdir(parents=True)  # empty: no data
    (data / ".plantvillage.part").mkdir()
    (data / ".plantvillage.part/half.JPG").write_bytes(b"left by a kill")
    for _ in range(2):
        assert fetch("omniglot", data) == data / "omniglot"
        fetch("plantvillage", data)
        assert files_below(data / "omniglot") == CHARACTERS
        assert files_below(data / "plantvillage") == [LEAF, "leaf-map.json"]
        assert len(files_below(data)) == 4
        for path in served.iterdir():  # the second time nothing is asked for
            path.unlink()


def test_what_cannot_be_fetched_is_placed_by_hand(served, tmp_path):
    data = tmp_path / "data"
    (served / "images_evaluation.zip").write_bytes(make_zip({"another": b"one"}))
    with pytest.raises(DownloadError, match="hash"):
        fetch("omniglot", data)
    assert files_below(data) == [f"omniglot/{CHARACTERS[0]}"]
    (served / "images_evaluation.zip").unlink()
    with pytest.raises(DownloadError, match="404") as caught:
        fetch("omniglot", data)
    found = re.search(r"bringing (\S+) to (\S+) by other means", str(caught.value))
    assert found[1] == DATASETS["omniglot"][1][0] and "\n" not in str(caught.value)
    with open(found[2], "wb") as file:
        file.write(make_zip(HALVES["images_evaluation.zip"]))
    fetch("omniglot", data)
    assert files_below(data / "omniglot") == CHARACTERS


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("leave its folder", make_zip({COLOR + "../evil": b"evil"})),
        ("Bad CRC", make_zip({COLOR + LEAF: b"leaf"}).replace(b"leaf", b"loaf")),
        ("not a zip", make_zip(PLANTS)[:-50]),
        ("not a zip", b"<html>sign in</html>"),
        ("should hold", make_zip({"README.md": b"of another data set"})),
        ("should hold 1 to 2,000,000", make_zip({COLOR + f"a/{i}": bytes(10**6) for i in "abc"})),
    ],
)
def test_zips_of_no_use(reason, content, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.download.MAX_BYTES", 2_000_000)
    (tmp_path / "plantvillage-master.zip").write_bytes(content)
    with pytest.raises(DownloadError, match=f"{reason}.*; remove that file first"):
        fetch("plantvillage", tmp_path)
    assert files_below(tmp_path) == ["plantvillage-master.zip"]
