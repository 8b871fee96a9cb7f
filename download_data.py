"""Fetches the public data sets into data/.  python prepare_data.py omniglot"""

import calendar
import contextlib
import dataclasses
import hashlib
import http.client
import os
import re
import shutil
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PureWindowsPath

ATTEMPTS = 4  # connections tried in one command; the next command goes on where it ended
PAUSE = 2.0  # seconds before the second attempt, twice that before the third, and so on
TIMEOUT = 30.0  # seconds of silence after which a connection counts as dropped
CHUNK = 1 << 18  # bytes moved at a time
MAX_BYTES = 8 << 30  # one archive may unpack to this much; PlantVillage's zip has about 2 GB
MAX_RATIO = 100  # and to this many times its own size; photographs stay near 1


class DownloadError(Exception):
    """A data set could not be fetched. The message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """One zip of a data set, and what to take from it."""

    url: str
    md5: str | None  # None where the publisher's bytes are not always the same
    members: str  # pattern of the members to take; the group that matches is their new path
    folder: str = ""  # folder within the data set that it fills; "" for all of it

    def pick(self, member):
        match = re.fullmatch(self.members, member)
        return match[match.lastindex] if match else None


def _omniglot(half, md5):
    url = f"https://github.com/brendenlake/omniglot/raw/master/python/{half}.zip"
    return Archive(url, md5, rf"{half}/(.+\.png)", half)


DATASETS = {
    # Two halves that share no alphabet; the evaluation half is Lake's test set.
    "omniglot": (
        _omniglot("images_background", "68d2efa1b9178cc56df9314c21c6e718"),
        _omniglot("images_evaluation", "6b91aef0f799c5bb55b94e3f2daec811"),
    ),
    # GitHub packs this zip anew now and then, so it has no stable checksum: the zip's own CRCs
    # are checked on unpacking. The leaf map is found in whichever folder it is kept.
    "plantvillage": (
        Archive(
            "https://github.com/spMohanty/PlantVillage-Dataset/archive/refs/heads/master.zip",
            None,
            r"[^/]+/raw/color/([^/]+/[^/.][^/]*)|[^/]+/(?:.+/)?(leaf-map\.json)",
        ),
    ),
}


def fetch(name, folder="data", report=print):
    """Downloads and unpacks a data set, or the part of it that is missing.

    Args:
        name: A key of `DATASETS`.
        folder: Where data sets are kept; this one lands in `folder/name`.
        report: Called with each line of progress.

    Returns:
        The path `folder/name`.

    Raises:
        DownloadError: If the name is unknown, or as `download` and `unpack` raise it.
    """
    if name not in DATASETS:
        raise DownloadError(f"No data set is called {name!r}. Expected one of {list(DATASETS)}.")
    target = Path(folder) / name
    for archive in DATASETS[name]:
        if not _is_filled(target / archive.folder):
            zipped = Path(folder) / f"{name}-{archive.url.rpartition('/')[2]}"
            download(archive.url, zipped, archive.md5, report)
            unpack(zipped, target / archive.folder, archive.pick, report)
            zipped.unlink()
    return target


def download(url, path, md5=None, report=print):
    """Downloads a file, going on from where an earlier attempt broke off.

    Bytes gather in `path` + ".part"; `path` itself appears once they are all there and right.

    Args:
        url: An http or https address.
        path: The file to write. If it is there and right, nothing is fetched.
        md5: Checksum as hexadecimal digits. With None, a broken download starts over.
        report: Called with each line of progress.

    Returns:
        `path` as a `Path`.

    Raises:
        DownloadError: If the file cannot be fetched or its checksum is wrong.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    by_hand = f"or place the file at {path} by other means: the same command goes on from there."
    if path.exists():
        if md5 in (None, _md5(path)):
            return path
        report(f"{path} has not the checksum {md5}: fetching it again")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _receive(url, part, md5, report)
            break
        except urllib.error.HTTPError as error:
            reason, refused = str(error), error.code < 500
        except (OSError, http.client.HTTPException) as error:
            reason, refused = str(getattr(error, "reason", error)), False
        if refused or attempt == ATTEMPTS:
            raise DownloadError(
                f"{url} cannot be fetched ({reason}; attempts: {attempt}). "
                f"Check connection and disc, and run the command again, {by_hand}"
            )
        report(f"{reason}: attempt {attempt + 1} of {ATTEMPTS} in {PAUSE * attempt:.0f} s")
        time.sleep(PAUSE * attempt)
    if md5 and (received := _md5(part)) != md5:
        part.unlink()
        raise DownloadError(
            f"{url} came with a wrong checksum. Received: md5 {received}. Expected: {md5}. "
            f"The file was removed; run the command again, {by_hand}"
        )
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    return path


def unpack(archive_path, folder, pick, report=print):
    """Unpacks chosen members of a zip. The folder appears complete or not at all.

    Args:
        archive_path: The zip.
        folder: The folder to make; it may exist if it is empty.
        pick: Takes a member's name; returns its path below `folder`, or None to leave it out.
        report: Called with each line of progress.

    Raises:
        DownloadError: If the zip is damaged, holds nothing that `pick` takes, would write
            outside `folder`, or grows beyond `MAX_BYTES` or `MAX_RATIO`.
    """
    archive_path, folder = Path(archive_path), Path(folder)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
    try:
        if folder.exists():
            folder.rmdir()  # Only an empty one may go.
        with zipfile.ZipFile(archive_path) as archive:
            _extract(archive, _choose(archive, pick), temporary, report)
        os.replace(temporary, folder)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DownloadError(
            f"{archive_path} cannot be unpacked to {folder}: {error}. If the zip is damaged, "
            "remove it; if the disc is full, make room. Then run the command again."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _receive(url, part, md5, report):
    """Fetches what `part` lacks, in one connection."""
    part.parent.mkdir(parents=True, exist_ok=True)
    # Without a checksum nobody would notice if the rest came from another file.
    have = part.stat().st_size if md5 and part.exists() else 0
    if have and _md5(part) == md5:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        part.unlink()  # 416: it is as long as the whole file or longer, and wrong.
        return _receive(url, part, md5, report)
    with response:
        have = have if response.status == 206 else 0  # 200: the server sends all of it again.
        total = None if response.length is None else have + response.length
        meter = _Meter(part.stem, total, report, have)
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                meter.add(len(chunk))
    if total is not None and meter.done < total:
        raise ConnectionError(f"the connection ended after {meter.done:,} of {total:,} bytes")
    meter.add(0, last=True)


def _choose(archive, pick):
    """Returns the picked members as (info, path); refuses those that could leave the folder."""
    files = [info for info in archive.infolist() if not info.is_dir()]
    chosen = [(info, path) for info in files if (path := pick(info.filename))]
    for info, path in chosen:
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the zip does not say
        if kind not in (0, stat.S_IFREG) or _escapes(info.filename) or _escapes(path):
            raise DownloadError(
                f"{archive.filename} holds {info.filename!r}. Expected plain files, below the "
                "folder. Remove the zip and take it from its publisher."
            )
    if not chosen:
        raise DownloadError(
            f"{archive.filename} holds {len(files)} files, none of them of this data set. "
            "Remove it and take it from its publisher, or look whether the layout has changed."
        )
    return chosen


def _escapes(name):
    unsafe = name.startswith("/") or "\\" in name or ".." in name.split("/")
    return unsafe or bool(PureWindowsPath(name).drive)


def _extract(archive, chosen, folder, report):
    source_path = Path(archive.filename)
    limit = min(MAX_BYTES, MAX_RATIO * source_path.stat().st_size)
    total = sum(info.file_size for info, _ in chosen)  # for show; the limit goes by real bytes
    meter = _Meter(f"unpacking {source_path.name}", total, report)
    for info, path in chosen:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, target.open("wb") as file:
            while chunk := source.read(CHUNK):
                meter.add(len(chunk))
                if meter.done > limit:
                    raise DownloadError(
                        f"{source_path} unpacks to more than {limit:,} bytes. Expected at most "
                        f"{MAX_BYTES:,} and {MAX_RATIO} times its size. Nothing was kept."
                    )
                file.write(chunk)
        with contextlib.suppress(ValueError):  # Some zips carry a month 0.
            seconds = calendar.timegm(info.date_time)  # A zip knows no time zone.
            os.utime(target, (seconds, seconds))
    meter.add(0, last=True)


class _Meter:
    """Counts bytes and reports them: one rewritten line on a terminal, else a line at times."""

    def __init__(self, label, total, report, done=0):
        self.label, self.total, self.report = label, total, report
        self.done = self.start = done
        self.live = report is print and sys.stdout.isatty()
        self.began = self.shown = time.monotonic()

    def add(self, count, last=False):
        self.done += count
        now = time.monotonic()
        if last or now - self.shown > (0.2 if self.live else 5.0):
            self.shown = now
            line = self.line(max(self.done - self.start, 1) / max(now - self.began, 1e-3))
            if self.live:
                print(f"{line:<78}", end="\n" if last else "\r", flush=True)
            else:
                self.report(line)

    def line(self, speed):
        text = f"{self.label}: {self.done / 1e6:.1f} MB"
        if self.total:
            minutes, seconds = divmod(round((self.total - self.done) / speed), 60)
            text += f" of {self.total / 1e6:.1f} ({self.done / self.total:.0%})"
            text += f", {minutes}:{seconds:02} left"
        return f"{text}, {speed / 1e6:.1f} MB/s"


def _md5(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _is_filled(folder):
    return folder.is_dir() and any(folder.iterdir())
