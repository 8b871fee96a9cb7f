"""Downloads from a real server on the loopback address, and zips that mean harm."""

import hashlib
import http.server
import io
import os
import re
import socket
import struct
import threading
import time
import zipfile

import pytest

from pipeline.download import DATASETS, DownloadError, fetch

PNG = b"\x89PNG"
BACKGROUND = {
    "images_background/": b"",
    "images_background/Greek/character01/0001_01.png": PNG + b"1",
    "images_background/Greek/.DS_Store": b"",
    "__MACOSX/images_background/Greek/character01/._0001_01.png": b"",
}
EVALUATION = {"images_evaluation/Tengwar/character02/0002_02.png": PNG + b"2"}
HALVES = ["images_background/Greek/character01/0001_01.png", *EVALUATION]
COLOR = "PlantVillage-Dataset-master/raw/color/"
LEAF = COLOR + "Apple___Apple_scab/00075aa8___FREC_Scab 3335.JPG"
PLANTS = {
    "PlantVillage-Dataset-master/README.md": b"read me",
    LEAF: b"leaf",
    LEAF.replace("color", "segmented"): b"cut out",
    COLOR + "Corn_(maize)___healthy/1.JPG": b"corn",
    COLOR + "Apple___Apple_scab/.DS_Store": b"",
}
LEAVES = ["Apple___Apple_scab/00075aa8___FREC_Scab 3335.JPG", "Corn_(maize)___healthy/1.JPG"]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; a fault of the server spoils one answer."""

    def do_GET(self):
        name, fault = self.path[1:], self.server.faults.pop() if self.server.faults else None
        self.server.log.append(name)
        body = self.server.files[name]
        self.send_response(503 if fault == "busy" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault in ("cut", "silent") else body)
        if fault == "silent":
            time.sleep(1)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """Both data sets on the loopback address; patterns and folders stay those of the real ones."""
    zips = {"omniglot": [BACKGROUND, EVALUATION], "plantvillage": [PLANTS]}
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.faults, server.log = {}, [], []
        for name, contents in zips.items():
            local = []
            for (url, md5, *others), members in zip(DATASETS[name], contents, strict=True):
                file, body = url.rpartition("/")[2], make_zip(members)
                server.files[file] = body
                md5 = md5 and hashlib.md5(body).hexdigest()
                local.append((f"http://127.0.0.1:{server.server_port}/{file}", md5, *others))
            monkeypatch.setitem(DATASETS, name, local)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def place_by_hand(content, folder):
    """Puts a PlantVillage zip where the message of a failed download says."""
    (folder / "plantvillage-master.zip").write_bytes(content)


def test_omniglot(server, tmp_path):
    (tmp_path / "data" / "omniglot" / "images_evaluation").mkdir(parents=True)  # empty: no data
    for _ in range(2):
        assert fetch("omniglot", tmp_path / "data") == tmp_path / "data" / "omniglot"
        assert files_below(tmp_path / "data" / "omniglot") == HALVES
    assert server.log == ["images_background.zip", "images_evaluation.zip"]
    assert len(files_below(tmp_path)) == 2


def test_only_the_missing_half_is_fetched(server, tmp_path):
    half = tmp_path / "omniglot" / "images_background"
    half.mkdir(parents=True)
    (half / "mine.png").write_bytes(PNG)
    fetch("omniglot", str(tmp_path))
    assert server.log == ["images_evaluation.zip"]
    assert files_below(tmp_path / "omniglot") == ["images_background/mine.png", HALVES[1]]


@pytest.mark.parametrize("place", ["", "leaf_grouping/"])
def test_plantvillage(server, tmp_path, monkeypatch, place):
    leaf_map = {f"PlantVillage-Dataset-master/{place}leaf-map.json": b"{}"}
    server.files["master.zip"] = make_zip(PLANTS | leaf_map)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fetch("plantvillage", "../here/../data")  # A way back in our own path is none in the zip's.
    assert files_below(tmp_path / "data" / "plantvillage") == [*LEAVES, "leaf-map.json"]
    assert (tmp_path / "data" / "plantvillage" / LEAVES[0]).read_bytes() == b"leaf"


def test_wrong_md5(server, tmp_path):
    server.files["images_evaluation.zip"] = make_zip(EVALUATION | {"added": b""})
    with pytest.raises(DownloadError, match="hash"):
        fetch("omniglot", tmp_path)
    assert not (tmp_path / "omniglot-images_evaluation.zip").exists()
    assert files_below(tmp_path / "omniglot") == HALVES[:1]


@pytest.mark.parametrize(
    "fault, reason", [("cut", "got only"), ("silent", "timed out"), ("busy", "503")]
)
def test_broken_connection(server, tmp_path, monkeypatch, fault, reason):
    monkeypatch.setattr("pipeline.download.SILENCE", 0.3)
    server.faults = [fault]
    with pytest.raises(DownloadError, match=reason):
        fetch("plantvillage", tmp_path)
    assert files_below(tmp_path) == []
    fetch("plantvillage", tmp_path)
    assert files_below(tmp_path / "plantvillage") == LEAVES


def test_what_a_kill_left_does_not_count(server, tmp_path):
    (tmp_path / "plantvillage-master.zip.part").write_bytes(server.files["master.zip"][:99])
    (tmp_path / ".plantvillage.part").mkdir()
    (tmp_path / ".plantvillage.part" / "half.JPG").write_bytes(b"half")
    fetch("plantvillage", tmp_path)
    assert files_below(tmp_path) == ["plantvillage/" + leaf for leaf in LEAVES]


def test_stopped_unpacking_leaves_no_folder(server, tmp_path, monkeypatch):
    extract, seen = zipfile.ZipFile.extract, []

    def stop(*args):
        seen.append(extract(*args))
        assert not (tmp_path / "plantvillage").exists()
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "extract", lambda *args: stop(*args) or seen[-1])
    with pytest.raises(KeyboardInterrupt):
        fetch("plantvillage", tmp_path)
    assert files_below(tmp_path) == ["plantvillage-master.zip"]  # is not fetched again


def test_offline_then_placed_by_hand(server, tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/master.zip"
    monkeypatch.setitem(DATASETS, "plantvillage", [(url, *DATASETS["plantvillage"][0][1:])])
    with pytest.raises(DownloadError, match="refused") as caught:
        fetch("plantvillage", tmp_path)
    found = re.search(r"bringing (\S+) to (\S+) by other means", str(caught.value))
    assert found[1] == url and "\n" not in str(caught.value)
    with open(found[2], "wb") as file:
        file.write(make_zip(PLANTS))
    fetch("plantvillage", tmp_path)
    assert files_below(tmp_path) == ["plantvillage/" + leaf for leaf in LEAVES]


ESCAPES = {
    "plantvillage-master.zip": [COLOR + "../evil"],
    "omniglot-images_background.zip": [
        "images_background/../../../evil.png",
        "images_background//tmp/evil.png",
    ],
}


@pytest.mark.parametrize("file, member", [(f, name) for f in ESCAPES for name in ESCAPES[f]])
def test_members_that_would_leave_the_folder(tmp_path, file, member):
    (tmp_path / file).write_bytes(make_zip({member: b"evil"}))
    with pytest.raises(DownloadError, match="leave its folder"):
        fetch(file.partition("-")[0], tmp_path)
    assert files_below(tmp_path) == [file]


def test_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.download.MAX_BYTES", 2_000_000)
    monkeypatch.setattr(zipfile.ZipFile, "extract", None)  # refused before a byte is written
    place_by_hand(make_zip({COLOR + f"a/{i}": bytes(1_000_000) for i in range(3)}), tmp_path)
    with pytest.raises(DownloadError, match="2,000,000 bytes"):
        fetch("plantvillage", tmp_path)


def test_member_larger_than_it_declares(tmp_path):
    content = bytearray(make_zip({LEAF: bytes(1_000_000)}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + offset, 10)
    place_by_hand(content, tmp_path)
    with pytest.raises(DownloadError, match="Bad CRC"):
        fetch("plantvillage", tmp_path)
    assert files_below(tmp_path) == ["plantvillage-master.zip"]


def flip_a_byte(content):
    return content[:500] + bytes([content[500] ^ 1]) + content[501:]


@pytest.mark.parametrize(
    "reason, content",
    [
        ("Bad CRC", flip_a_byte(make_zip({LEAF: os.urandom(10_000)}))),
        ("not a zip", make_zip(PLANTS)[:-50]),
        ("not a zip", b"<html>sign in</html>"),
        ("should hold", make_zip({"README.md": b"of another data set"})),
    ],
)
def test_zip_of_no_use(tmp_path, reason, content):
    place_by_hand(content, tmp_path)
    with pytest.raises(DownloadError, match=f"{reason}.*; remove that file first"):
        fetch("plantvillage", tmp_path)
    assert files_below(tmp_path) == ["plantvillage-master.zip"]


def test_the_table_holds_addresses_and_checksums_that_could_be_right():
    zips = [entry for entries in DATASETS.values() for entry in entries]
    assert len({url for url, *_ in zips}) == 3
    for url, md5, _, _ in zips:
        assert url.startswith("https://github.com/") and url.endswith(".zip")
        assert md5 is None or re.fullmatch("[0-9a-f]{32}", md5)
