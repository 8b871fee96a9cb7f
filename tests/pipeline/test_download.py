"""Downloads from a server on the loopback address: what is fetched, and what is said if not."""

import functools
import hashlib
import http.server
import re
import threading
from pathlib import Path

import pytest
from conftest import write_zip

from pipeline.download import DATASETS, DownloadError, fetch

LEAF = "Apple___Apple_scab/00075aa8___FREC_Scab 3335.JPG"
CHARACTERS = [
    "images_background/Greek/character01/0001_01.png",
    "images_evaluation/Tengwar/character02/0002_02.png",
]
MEMBERS = {  # of the zips as they are published
    "images_background.zip": [CHARACTERS[0], "__MACOSX/images_background/Greek/._0001_01.png"],
    "images_evaluation.zip": [CHARACTERS[1]],
    "master.zip": [
        "PlantVillage-Dataset-master/README.md",
        f"PlantVillage-Dataset-master/raw/color/{LEAF}",
        f"PlantVillage-Dataset-master/raw/segmented/{LEAF}",
        "PlantVillage-Dataset-master/leaf_grouping/leaf-map.json",
    ],
}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Folder of small zips, which the addresses in `DATASETS` point at."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        for name, entries in DATASETS.items():
            local = []
            for url, known_hash, part in entries:
                path = folder / Path(url).name
                write_zip(path, dict.fromkeys(MEMBERS[path.name], b"x"))
                md5 = known_hash and f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
                local.append((f"http://127.0.0.1:{server.server_port}/{path.name}", md5, part))
            monkeypatch.setitem(DATASETS, name, local)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield folder
        server.shutdown()


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_what_is_missing_is_fetched(served, tmp_path):
    data = tmp_path / "data"
    (data / "omniglot/images_evaluation").mkdir(parents=True)  # empty: no data
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
    write_zip(served / "images_evaluation.zip", {"another": b"one"})
    with pytest.raises(DownloadError, match="hash"):
        fetch("omniglot", data)
    assert files_below(data) == [f"omniglot/{CHARACTERS[0]}"]
    (served / "images_evaluation.zip").unlink()
    with pytest.raises(DownloadError, match="404") as caught:
        fetch("omniglot", data)
    found = re.search(r"bring (\S+) to (\S+) by other means", str(caught.value))
    assert found[1] == DATASETS["omniglot"][1][0] and "\n" not in str(caught.value)
    write_zip(found[2], {CHARACTERS[1]: b"x"})
    (data / "omniglot/images_evaluation").mkdir()
    (data / "omniglot/images_evaluation/part").touch()  # left by a kill while it was unpacked
    fetch("omniglot", data)
    assert {*CHARACTERS} < {*files_below(data / "omniglot")}


@pytest.mark.parametrize("reason", ["not a zip", "holds nothing of it"])
def test_zips_of_no_use(reason, tmp_path):
    zipped = tmp_path / "plantvillage-master.zip"
    write_zip(zipped, {"README.md": b"of another"})
    if reason == "not a zip":
        zipped.write_text("<html>sign in</html>")
    with pytest.raises(DownloadError, match=f"{reason}.*; remove that file first"):
        fetch("plantvillage", tmp_path)
    assert files_below(tmp_path) == ["plantvillage-master.zip"]
