"""Fetches the public data sets into data/.  python prepare_data.py omniglot"""

import re
import shutil
import zipfile
from pathlib import Path

MAX_BYTES = 8 << 30  # one zip may unpack to this much; PlantVillage's colour folders have 1 GB

OMNIGLOT = "https://github.com/brendenlake/omniglot/raw/master/python/"
PLANTVILLAGE = "https://github.com/spMohanty/PlantVillage-Dataset/archive/refs/heads/"

HALVES = {  # they share no alphabet; the evaluation half is Lake's test set
    "images_background": "md5:68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "md5:6b91aef0f799c5bb55b94e3f2daec811",
}
LEAVES = r"[^/]+/raw/color/([^/]+/[^/.][^/]*)|[^/]+/(?:.+/)?(leaf-map\.json)"

# Each zip: its address, its hash, the folder within the data set that it fills, and a pattern of
# the members to take, of which the group that matches is the new path. GitHub packs PlantVillage's
# anew now and then, so no hash fits it for long: unpacking checks the zip's own CRCs.
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
    import pooch  # late: who has images needs none

    for url, known_hash, subfolder, members in DATASETS[name]:
        target = Path(folder, name, subfolder)
        if target.is_dir() and any(target.iterdir()):
            continue
        zipped = Path(folder, f"{name}-{url.rpartition('/')[2]}")
        try:
            pooch.retrieve(url, known_hash, zipped.name, folder, progressbar=True)
            _unpack(zipped, target, members)
        except Exception as error:  # the net, the zip, the disk: each has its own
            raise DownloadError(
                f"'{name}' cannot be fetched ({error}). Run the command again with a connection "
                f"and room on the disc, or after bringing {url} to {zipped} by other means; "
                "remove that file first if it is a damaged one."
            ) from error
        zipped.unlink()
    return Path(folder, name)


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
            for info, path in chosen:
                info.filename = path
                # zipfile keeps what it extracts inside the folder, elsewhere than asked.
                if Path(archive.extract(info, part)) != part / path:
                    raise ValueError(f"{zipped} holds {path!r}, which would leave its folder")
        if folder.exists():
            folder.rmdir()  # only an empty one may go
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
