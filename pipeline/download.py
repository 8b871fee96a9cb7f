"""Fetches the public data sets into data/.  python prepare_data.py omniglot"""

import hashlib
import re
import shutil
import urllib.request
import zipfile
from pathlib import Path

from tqdm import tqdm

SILENCE = 30  # seconds after which a download gives up
MAX_BYTES = 8 << 30  # one zip may unpack to this much; PlantVillage's colour folders have 1 GB

OMNIGLOT = "https://github.com/brendenlake/omniglot/raw/master/python/"
PLANTVILLAGE = "https://github.com/spMohanty/PlantVillage-Dataset/archive/refs/heads/"

HALVES = {  # they share no alphabet; the evaluation half is Lake's test set
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
LEAVES = r"[^/]+/raw/color/([^/]+/[^/.][^/]*)|[^/]+/(?:.+/)?(leaf-map\.json)"

# Each zip: its address, its md5, the folder within the data set that it fills, and a pattern of
# the members to take, of which the group that matches is the new path. GitHub packs PlantVillage's
# anew now and then, so no md5 fits it for long: unpacking checks the zip's own CRCs.
DATASETS = {
    "omniglot": [
        (f"{OMNIGLOT}{half}.zip", md5, half, rf"{half}/(.+\.png)") for half, md5 in HALVES.items()
    ],
    "plantvillage": [(PLANTVILLAGE + "master.zip", None, "", LEAVES)],
}


class DownloadError(Exception):
    """A data set could not be fetched. The message says why and what to do."""


def fetch(name, folder="data"):
    """Downloads and unpacks what is missing of a key of `DATASETS`; returns `folder/name`.

    Raises:
        DownloadError: If a zip cannot be fetched, is damaged, has nothing of the data set, would
            write outside its folder or unpack to more than `MAX_BYTES`.
    """
    for url, md5, subfolder, members in DATASETS[name]:
        target = Path(folder, name, subfolder)
        if target.is_dir() and any(target.iterdir()):
            continue
        zipped = Path(folder, f"{name}-{url.rpartition('/')[2]}")
        try:
            if not zipped.exists():
                _download(url, zipped, md5)
            _unpack(zipped, target, members)
        except Exception as error:  # the net, the zip, the disk: each has its own
            raise DownloadError(
                f"'{name}' cannot be fetched ({error}). Run the command again with a connection "
                f"and room on the disc, or after bringing {url} to {zipped} by other means; "
                "remove that file first if it is a damaged one."
            ) from error
        zipped.unlink()
    return Path(folder, name)


def _download(url, path, md5):
    """Downloads a file, which appears when it is whole."""
    part, digest = path.with_name(f"{path.name}.part"), hashlib.md5()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as answer, open(part, "wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, desc=path.name, unit="B", unit_scale=True) as progress:
                while chunk := answer.read1(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    progress.update(len(chunk))
        if progress.n < size:
            raise ValueError(f"got only {progress.n} of {size} bytes")
        if md5 and digest.hexdigest() != md5:
            raise ValueError(f"its md5 hash is {digest.hexdigest()}, not {md5}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _unpack(zipped, folder, members):
    """Unpacks the members that fit a pattern; the folder appears when it is whole."""
    part = folder.with_name(f".{folder.name}.part").resolve()
    shutil.rmtree(part, ignore_errors=True)  # left by a killed run
    try:
        with zipfile.ZipFile(zipped) as archive:
            matches = [(info, re.fullmatch(members, info.filename)) for info in archive.infolist()]
            chosen = [(info, match[match.lastindex]) for info, match in matches if match]
            # No member unpacks to more than it declares: zipfile stops there.
            if not 0 < sum(info.file_size for info, _ in chosen) <= MAX_BYTES:
                raise ValueError(f"{zipped} should hold 1 to {MAX_BYTES:,} bytes of it")
            for info, path in tqdm(chosen, f"unpacking {zipped.name}", unit="file"):
                info.filename = path
                # zipfile keeps what it extracts inside the folder, elsewhere than asked.
                if Path(archive.extract(info, part)) != part / path:
                    raise ValueError(f"{zipped} holds {path!r}, which would leave its folder")
        if folder.exists():
            folder.rmdir()  # Only an empty one may go.
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
