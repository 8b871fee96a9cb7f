"""Downloads from a real server on the loopback address, and zips that mean harm."""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import os
import re
import stat
import struct
import threading
import time
import zipfile

import pytest

import download_data
from download_data import DATASETS, DownloadError, download, fetch, unpack

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes
MD5 = hashlib.md5(BODY).hexdigest()
OTHER = bytes(reversed(BODY))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; each request uses up one entry of `server.faults`, if any is left."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        fault = self.server.faults.pop(0) if self.server.faults else ""
        asked = self.headers["Range"]
        body = self.server.files.get(self.path)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and fault != "no range" else 0
        if fault == "stall":
            time.sleep(0.5)
        if body is None or fault == "busy":
            return self.answer(404 if body is None else 503, b"", asked)
        if start and start >= len(body):
            return self.answer(416, b"", asked)
        body = body[start:]
        sent = body[: len(body) // 2] if fault in ("drop", "drop chunks", "hang") else body
        self.server.hangs = fault == "hang"
        self.answer(206 if start else 200, sent, asked, len(body), start, "chunks" in fault)

    def answer(self, status, sent, asked, length=0, start=0, chunked=False):
        self.server.log.append((status, asked, len(sent)))
        self.send_response(status)
        if status == 206:
            end = start + length
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        if chunked:  # the way of servers that make an archive while they send it
            self.send_header("Transfer-Encoding", "chunked")
            sent = f"{length:x}\r\n".encode() + sent
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # from a client that did not wait
            self.wfile.write(sent)
        if len(sent) < length and self.server.hangs:
            time.sleep(0.5)
        if chunked and len(sent) > length:
            self.wfile.write(b"\r\n0\r\n\r\n")

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download_data, "PAUSE", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.faults, server.log = {"/a.zip": BODY}, [], []
        server.url = f"http://127.0.0.1:{server.server_port}/a.zip"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def nowhere(monkeypatch):
    """The address of a port that nobody listens on."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download_data, "PAUSE", 0.0)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        return f"http://127.0.0.1:{closed.server_port}/a.zip"


def quiet(line):
    pass


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def make_zip(members, path=None):
    """Writes {name: bytes} as a zip, dated 2015-06-07 08:09:10; returns its bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, (2015, 6, 7, 8, 9, 10))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    if path:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


# Downloading


def test_whole_file(server, tmp_path):
    lines = []
    path = download(server.url, tmp_path / "new" / "a.zip", MD5, lines.append)
    assert path.read_bytes() == BODY
    assert server.log == [(200, None, len(BODY))]
    assert files_below(tmp_path) == ["new/a.zip"]
    assert "1.0 MB of 1.0 (100%)" in lines[-1]


def test_file_that_is_there_and_right_is_not_fetched(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(BODY)
    download(server.url, tmp_path / "a.zip", MD5, quiet)
    download(server.url, tmp_path / "a.zip", None, quiet)
    assert server.log == []


def test_file_that_is_there_and_wrong_is_replaced(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(OTHER)
    lines = []
    assert download(server.url, tmp_path / "a.zip", MD5, lines.append).read_bytes() == BODY
    assert "fetching it again" in lines[0]


def test_resume_fetches_only_the_rest(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(BODY[:1_000_000])
    assert download(server.url, tmp_path / "a.zip", MD5, quiet).read_bytes() == BODY
    assert server.log == [(206, "bytes=1000000-", 24_000)]


def test_broken_connection_is_retried_from_where_it_broke(server, tmp_path):
    server.faults = ["drop", "drop"]
    assert download(server.url, tmp_path / "a.zip", MD5, quiet).read_bytes() == BODY
    assert [entry[:2] for entry in server.log] == [
        (200, None),
        (206, "bytes=512000-"),
        (206, "bytes=768000-"),
    ]
    assert sum(sent for _, _, sent in server.log) == len(BODY)


def test_connection_that_falls_silent_loses_nothing_received(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_data, "TIMEOUT", 0.2)
    server.faults = ["hang"]
    assert download(server.url, tmp_path / "a.zip", MD5, quiet).read_bytes() == BODY
    assert server.log[1] == (206, "bytes=512000-", 512_000)


def test_file_is_on_the_disc_before_it_gets_its_name(server, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        download_data.os, "fsync", lambda number: sizes.append(os.fstat(number).st_size)
    )
    monkeypatch.setattr(download_data.os, "replace", lambda *paths: sizes.append(paths))
    download(server.url, tmp_path / "a.zip", MD5, quiet)
    assert sizes == [len(BODY), (tmp_path / "a.zip.part", tmp_path / "a.zip")]


@pytest.mark.parametrize("fault", ["drop", "drop chunks"])
def test_broken_connection_without_checksum_starts_over(server, tmp_path, fault):
    server.faults = [fault]
    (tmp_path / "a.zip.part").write_bytes(OTHER[:1000])
    assert download(server.url, tmp_path / "a.zip", None, quiet).read_bytes() == BODY
    assert [entry[:2] for entry in server.log] == [(200, None), (200, None)]


def test_answer_of_unknown_length(server, tmp_path):
    server.faults = ["chunks"]
    lines = []
    assert download(server.url, tmp_path / "a.zip", None, lines.append).read_bytes() == BODY
    assert len(server.log) == 1
    assert re.fullmatch(r"a\.zip: 1\.0 MB, [\d.]+ MB/s", lines[-1])


def test_server_that_ignores_the_range(server, tmp_path):
    server.faults = ["no range"]
    (tmp_path / "a.zip.part").write_bytes(BODY[:1000])
    assert download(server.url, tmp_path / "a.zip", MD5, quiet).read_bytes() == BODY
    assert server.log == [(200, "bytes=1000-", len(BODY))]


def test_part_that_was_complete_already(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(BODY)
    assert download(server.url, tmp_path / "a.zip", MD5, quiet).read_bytes() == BODY
    assert server.log == []


@pytest.mark.parametrize("part", [BODY + b"more", OTHER], ids=["too long", "as long, but wrong"])
def test_part_that_the_server_cannot_add_to_is_fetched_anew(server, tmp_path, part):
    (tmp_path / "a.zip.part").write_bytes(part)
    assert download(server.url, tmp_path / "a.zip", MD5, quiet).read_bytes() == BODY
    assert [status for status, _, _ in server.log] == [416, 200]


def test_changed_file_is_noticed_and_the_next_command_mends_it(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(OTHER[:1000])  # of the file as it was before
    with pytest.raises(DownloadError, match="wrong checksum"):
        download(server.url, tmp_path / "a.zip", MD5, quiet)
    assert files_below(tmp_path) == []
    assert download(server.url, tmp_path / "a.zip", MD5, quiet).read_bytes() == BODY


def test_wrong_bytes(server, tmp_path):
    server.files["/a.zip"] = OTHER
    with pytest.raises(DownloadError) as caught:
        download(server.url, tmp_path / "a.zip", MD5, quiet)
    assert f"Received: md5 {hashlib.md5(OTHER).hexdigest()}" in str(caught.value)
    assert f"Expected: {MD5}" in str(caught.value)
    assert files_below(tmp_path) == []


def test_missing_file_is_asked_for_once(server, tmp_path):
    with pytest.raises(DownloadError, match=r"HTTP Error 404: Not Found; attempts: 1\)"):
        download(server.url.replace("a.zip", "b.zip"), tmp_path / "b.zip", MD5, quiet)
    assert len(server.log) == 1


@pytest.mark.parametrize("fault", ["busy", "stall"])
def test_server_that_is_busy_or_silent_is_asked_again(server, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(download_data, "TIMEOUT", 0.2)
    server.faults = [fault]
    lines = []
    assert download(server.url, tmp_path / "a.zip", MD5, lines.append).read_bytes() == BODY
    assert lines[0].split(": attempt ")[0] == {
        "busy": "HTTP Error 503: Service Unavailable",
        "stall": "timed out",
    }.get(fault)
    assert "attempt 2 of 4" in lines[0]


def test_no_server(nowhere, tmp_path):
    lines = []
    with pytest.raises(DownloadError) as caught:
        download(nowhere, tmp_path / "a.zip", MD5, lines.append)
    message = str(caught.value)
    assert nowhere in message and "refused; attempts: 4)" in message and "urlopen" not in message
    assert f"place the file at {tmp_path / 'a.zip'}" in message
    assert len(lines) == 3


def test_pauses_between_attempts_grow(nowhere, tmp_path, monkeypatch):
    monkeypatch.setattr(download_data, "PAUSE", 2.0)
    pauses = []
    monkeypatch.setattr(download_data.time, "sleep", pauses.append)
    with pytest.raises(DownloadError):
        download(nowhere, tmp_path / "a.zip", MD5, quiet)
    assert pauses == [2.0, 4.0, 6.0]


def test_line_of_progress():
    meter = download_data._Meter("a.zip", 200_000_000, quiet, done=50_000_000)
    assert meter.line(2e6) == "a.zip: 50.0 MB of 200.0 (25%), 1:15 left, 2.0 MB/s"


def test_speed_counts_only_what_this_connection_brought(monkeypatch):
    monkeypatch.setattr(download_data.time, "monotonic", iter([100.0, 110.0]).__next__)
    lines = []
    download_data._Meter("a", 90_000_000, lines.append, done=50_000_000).add(10_000_000)
    assert lines == ["a: 60.0 MB of 90.0 (67%), 0:30 left, 1.0 MB/s"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_one_line_on_a_terminal_and_rare_elsewhere(monkeypatch, capsys, terminal):
    clock = iter(range(100))  # seconds; every call takes one
    monkeypatch.setattr(download_data.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(download_data.sys.stdout, "isatty", lambda: terminal, raising=False)
    meter = download_data._Meter("a", 20, print)
    for _ in range(20):
        meter.add(1)
    meter.add(0, last=True)
    printed = capsys.readouterr().out
    assert printed.count("\r") == (20 if terminal else 0)
    assert printed.count("\n") == (1 if terminal else 4)  # one in 6 s, and the last


# Unpacking


def test_unpack_picks_renames_and_keeps_times(tmp_path, monkeypatch):
    members = {"top/": b"", "top/sub/": b"", "top/a.png": b"A", "top/sub/b.png": b"B", "c": b"C"}
    make_zip(members, tmp_path / "z")
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # A cache must not go stale when its owner travels.
    time.tzset()
    try:
        unpack(
            tmp_path / "z",
            tmp_path / "deep" / "out",
            lambda name: name[4:] if name.startswith("top/") else None,
            quiet,
        )
    finally:
        monkeypatch.undo()
        time.tzset()
    assert files_below(tmp_path / "deep") == ["out/a.png", "out/sub/b.png"]
    assert (tmp_path / "deep/out/sub/b.png").read_bytes() == b"B"
    assert os.path.getmtime(tmp_path / "deep/out/a.png") == 1433664550  # date -u -d ... +%s


def test_unpack_accepts_a_month_0(tmp_path):
    content = bytearray(make_zip({"a": b"A"}))
    for signature, offset in ((b"PK\x03\x04", 12), (b"PK\x01\x02", 14)):
        struct.pack_into("<H", content, content.index(signature) + offset, 0)
    (tmp_path / "z").write_bytes(content)
    unpack(tmp_path / "z", tmp_path / "out", str, quiet)
    assert files_below(tmp_path / "out") == ["a"]


def test_killed_unpack_leaves_no_folder(tmp_path, monkeypatch):
    make_zip({"a": b"A", "b": b"B"}, tmp_path / "z")
    seen = []

    def killed(path, times):
        seen.append((path.name, (tmp_path / "out").exists()))
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(download_data.os, "utime", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "z", tmp_path / "out", str, quiet)
    assert seen == [("a", False), ("b", False)]
    assert files_below(tmp_path) == ["z"]


def test_folder_appears_in_one_step(tmp_path, monkeypatch):
    make_zip({"a": b"A"}, tmp_path / "z")

    def killed(source, target):
        assert not (tmp_path / "out").exists() and files_below(source) == ["a"]
        raise KeyboardInterrupt

    monkeypatch.setattr(download_data.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "z", tmp_path / "out", str, quiet)
    assert not (tmp_path / "out").exists()


def test_what_a_killed_unpack_left_does_not_get_in(tmp_path):
    make_zip({"a": b"A"}, tmp_path / "z")
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half").write_bytes(b"half")
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "z", tmp_path / "out", str, quiet)
    assert files_below(tmp_path) == ["out/a", "z"]


ESCAPES = ["../evil", "a/../../evil", "/tmp/evil", "C:evil", "C:/evil", "..\\evil", "a\\b"]
ESCAPES += ["//host/share/evil", ".."]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("by", ["member", "pick"])
def test_members_that_would_leave_the_folder(tmp_path, name, by):
    folder = tmp_path / "deep" / "er"
    member = name if by == "member" else "plain"
    make_zip({"good": b"G", member: b"evil"}, tmp_path / "z")
    with pytest.raises(DownloadError) as caught:
        new_path = "plain" if by == "member" else name
        unpack(tmp_path / "z", folder, lambda m: new_path if m == member else m, quiet)
    assert f"holds {member!r}. Expected plain files" in str(caught.value)
    assert files_below(tmp_path) == ["z"]


def test_members_left_out_may_be_called_anything(tmp_path):
    make_zip({"good": b"G", "../evil": b"evil"}, tmp_path / "z")
    unpack(tmp_path / "z", tmp_path / "out", lambda m: m if m == "good" else None, quiet)
    assert files_below(tmp_path) == ["out/good", "z"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_members_that_are_no_plain_files(tmp_path, kind):
    link = zipfile.ZipInfo("link")
    link.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr(link, "/etc")
        archive.writestr("link/passwd", "evil")
    with pytest.raises(DownloadError, match="holds 'link'. Expected plain files"):
        unpack(tmp_path / "z", tmp_path / "out", str, quiet)
    assert files_below(tmp_path) == ["z"]


def test_zip_bomb_by_ratio(tmp_path):
    size = len(make_zip({"a": bytes(3_000_000)}, tmp_path / "z"))
    assert size < 30_000  # so that the ratio is beyond 100
    with pytest.raises(DownloadError, match=f"more than {size * 100:,} bytes"):
        unpack(tmp_path / "z", tmp_path / "out", str, quiet)
    assert files_below(tmp_path) == ["z"]


@pytest.mark.parametrize("room, fits", [(2000, True), (1999, False)])
def test_limit_on_all_members_together(tmp_path, monkeypatch, room, fits):
    monkeypatch.setattr(download_data, "MAX_BYTES", room)
    make_zip({"a": os.urandom(1000), "b": os.urandom(1000), "left out": bytes(9)}, tmp_path / "z")
    try:
        unpack(tmp_path / "z", tmp_path / "out", lambda m: m if len(m) == 1 else None, quiet)
    except DownloadError as error:
        assert "more than 1,999 bytes" in str(error)
    assert (tmp_path / "out").exists() == fits


def test_bomb_stops_before_it_fills_the_disc(tmp_path, monkeypatch):
    monkeypatch.setattr(download_data, "CHUNK", 1000)
    monkeypatch.setattr(download_data, "MAX_BYTES", 50_000)
    monkeypatch.setattr(download_data.shutil, "rmtree", lambda *args, **kwargs: None)
    make_zip({"a": os.urandom(200_000)}, tmp_path / "z")
    with pytest.raises(DownloadError, match="more than 50,000 bytes"):
        unpack(tmp_path / "z", tmp_path / "out", str, quiet)
    assert (tmp_path / ".out.part" / "a").stat().st_size == 50_000


def test_member_larger_than_its_header_says(tmp_path):
    content = bytearray(make_zip({"a": bytes(1_000_000)}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + offset, 10)
    (tmp_path / "z").write_bytes(content)
    with pytest.raises(DownloadError, match="Bad CRC"):
        unpack(tmp_path / "z", tmp_path / "out", str, quiet)
    assert files_below(tmp_path) == ["z"]


def spoil(content, how):
    if how == "one byte":
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if how == "encrypted":  # bit 0 of the flags, in both headers of the only member
        content = bytearray(content)
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(signature) + offset] |= 1
        return bytes(content)
    return {"cut short": content[:-50], "a web page": b"<html>sign in</html>"}[how]


@pytest.mark.parametrize("how", ["one byte", "cut short", "encrypted", "a web page"])
def test_damaged_zip(tmp_path, how):
    content = make_zip({"a": os.urandom(10_000)})
    (tmp_path / "z").write_bytes(spoil(content, how))
    with pytest.raises(DownloadError, match="If the zip is damaged, remove it"):
        unpack(tmp_path / "z", tmp_path / "out", str, quiet)
    assert files_below(tmp_path) == ["z"]


def test_zip_without_anything_expected(tmp_path):
    make_zip({"a": b"A"}, tmp_path / "z")
    with pytest.raises(DownloadError, match="holds 1 files, none of them"):
        unpack(tmp_path / "z", tmp_path / "out", lambda name: None, quiet)
    assert not (tmp_path / "out").exists()


def test_folder_that_holds_files_is_left_alone(tmp_path):
    make_zip({"a": b"A"}, tmp_path / "z")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="not empty"):
        unpack(tmp_path / "z", tmp_path / "out", str, quiet)
    assert files_below(tmp_path) == ["out/mine", "z"]


# Whole data sets

PNG = b"\x89PNG"
BACKGROUND = {
    "images_background/": b"",
    "images_background/Greek/character01/0001_01.png": PNG + b"1",
    "images_background/Greek/.DS_Store": b"",
    "__MACOSX/images_background/Greek/character01/._0001_01.png": b"",
}
EVALUATION = {"images_evaluation/Tengwar/character02/0002_02.png": PNG + b"2"}
LEAF = "PlantVillage-Dataset-master/raw/color/Apple___Apple_scab/00075aa8___FREC_Scab 3335.JPG"
PLANTS = {
    "PlantVillage-Dataset-master/README.md": b"read me",
    LEAF: b"leaf",
    LEAF.replace("color", "segmented"): b"cut out",
    LEAF.replace("Apple___Apple_scab", "Corn_(maize)___healthy"): b"corn",
    "PlantVillage-Dataset-master/raw/color/Apple___Apple_scab/.DS_Store": b"",
}


@pytest.fixture
def omniglot(server, monkeypatch):
    serve(server, monkeypatch, "omniglot", [make_zip(BACKGROUND), make_zip(EVALUATION)])
    return server


def serve(server, monkeypatch, name, contents):
    """Puts local addresses into the table; patterns and folders stay those of the real one."""
    entries = []
    for entry, content in zip(DATASETS[name], contents, strict=True):
        local = "/" + entry.url.rpartition("/")[2]
        server.files[local] = content
        md5 = entry.md5 and hashlib.md5(content).hexdigest()
        url = server.url.replace("/a.zip", local)
        entries.append(dataclasses.replace(entry, url=url, md5=md5))
    monkeypatch.setitem(DATASETS, name, tuple(entries))


def test_omniglot_from_end_to_end(omniglot, tmp_path):
    assert fetch("omniglot", tmp_path / "data", quiet) == tmp_path / "data" / "omniglot"
    assert files_below(tmp_path) == [
        "data/omniglot/images_background/Greek/character01/0001_01.png",
        "data/omniglot/images_evaluation/Tengwar/character02/0002_02.png",
    ]
    fetch("omniglot", tmp_path / "data", quiet)
    assert len(omniglot.log) == 2


def test_checksum_in_the_table_counts(omniglot, tmp_path):
    omniglot.files["/images_evaluation.zip"] = make_zip(EVALUATION | {"added": b""})
    with pytest.raises(DownloadError, match="images_evaluation.zip came with a wrong checksum"):
        fetch("omniglot", tmp_path, quiet)
    assert [path.name for path in (tmp_path / "omniglot").iterdir()] == ["images_background"]


def test_only_the_missing_half_is_fetched(omniglot, tmp_path):
    half = tmp_path / "omniglot" / "images_background"
    half.mkdir(parents=True)
    (half / "mine.png").write_bytes(PNG)
    fetch("omniglot", str(tmp_path), quiet)
    assert len(omniglot.log) == 1
    assert files_below(tmp_path / "omniglot") == [
        "images_background/mine.png",
        "images_evaluation/Tengwar/character02/0002_02.png",
    ]


@pytest.mark.parametrize("place", ["", "leaf_grouping/"])
def test_plantvillage_from_end_to_end(server, tmp_path, monkeypatch, place):
    leaf_map = {f"PlantVillage-Dataset-master/{place}leaf-map.json": b"{}"}
    serve(server, monkeypatch, "plantvillage", [make_zip(PLANTS | leaf_map)])
    (tmp_path / "plantvillage").mkdir()  # An empty folder is no data set.
    fetch("plantvillage", tmp_path, quiet)
    assert files_below(tmp_path) == [
        "plantvillage/Apple___Apple_scab/00075aa8___FREC_Scab 3335.JPG",
        "plantvillage/Corn_(maize)___healthy/00075aa8___FREC_Scab 3335.JPG",
        "plantvillage/leaf-map.json",
    ]
    assert (tmp_path / "plantvillage" / LEAF.partition("color/")[2]).read_bytes() == b"leaf"
    fetch("plantvillage", tmp_path, quiet)
    assert len(server.log) == 1


def test_offline_then_placed_by_hand(nowhere, tmp_path, monkeypatch):
    entry = dataclasses.replace(DATASETS["plantvillage"][0], url=nowhere)
    monkeypatch.setitem(DATASETS, "plantvillage", (entry,))
    with pytest.raises(DownloadError) as caught:
        fetch("plantvillage", tmp_path, quiet)
    place = re.search(r"place the file at (\S+) by", str(caught.value))[1]
    with open(place, "wb") as file:
        file.write(make_zip(PLANTS))
    fetch("plantvillage", tmp_path, quiet)
    assert len(files_below(tmp_path / "plantvillage")) == 2


def test_zip_stays_when_it_cannot_be_unpacked(omniglot, tmp_path, monkeypatch):
    monkeypatch.setattr(download_data, "MAX_BYTES", 1)
    with pytest.raises(DownloadError, match="Nothing was kept"):
        fetch("omniglot", tmp_path, quiet)
    assert files_below(tmp_path) == ["omniglot-images_background.zip"]


def test_unknown_name(tmp_path):
    with pytest.raises(DownloadError, match="'omnigloth'.*'omniglot', 'plantvillage'"):
        fetch("omnigloth", tmp_path)


def test_the_table_holds_addresses_and_checksums_that_could_be_right():
    archives = [archive for entries in DATASETS.values() for archive in entries]
    assert len({archive.url for archive in archives}) == 3
    for archive in archives:
        assert archive.url.startswith("https://github.com/") and archive.url.endswith(".zip")
        assert archive.md5 is None or re.fullmatch("[0-9a-f]{32}", archive.md5)
