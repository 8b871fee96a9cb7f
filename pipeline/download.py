"""Fetches the public data sets into data/.  python prepare_data.py omniglot"""

import re
import zipfile
from pathlib import Path

OMNIGLOT = "https://github.com/brendenlake/omniglot/raw/master/python/images_"
PLANTVILLAGE = "https://github.com/spMohanty/PlantVillage-Dataset/archive/refs/heads/master.zip"
DATASETS = {  # of each zip: address, hash, the folder of the data set that it fills
    "omniglot": [  # the halves share no alphabet; the second is Lake's test set
        (OMNIGLOT + "background.zip", "md5:68d2efa1b9178cc56df9314c21c6e718", "images_background"),
        (OMNIGLOT + "evaluation.zip", "md5:6b91aef0f799c5bb55b94e3f2daec811", "images_evaluation"),
    ],
    "plantvillage": [(PLANTVILLAGE, None, "")],  # packed anew now and then: no hash holds
}
MEMBERS = r"(images_\w+/.+)|.+/raw/color/(.+)|.+/(leaf-map\.json)"  # what to unpack, and where


class DownloadError(OSError):
    """A data set could not be fetched. The message says why and what to do."""


def fetch(name, folder="data"):
    """Downloads and unpacks what is missing of a key of `DATASETS`; returns `folder/name`.

    Raises:
        DownloadError: If a zip cannot be fetched, is damaged, or holds nothing of the data set.
    """
    import pooch  # late: who has images needs none

    for url, known_hash, part in DATASETS[name]:
        target, zipped = Path(folder, name, part), Path(folder, f"{name}-{Path(url).name}")
        if any(target.glob("*")) and not zipped.exists():  # the zip goes when all is unpacked
            continue
        try:
            pooch.retrieve(url, known_hash, zipped.name, folder, progressbar=True)
            with zipfile.ZipFile(zipped) as archive:
                for member in archive.infolist():
                    if match := re.fullmatch(MEMBERS, member.filename):
                        member.filename = match[match.lastindex]
                        archive.extract(member, Path(folder, name))
            if not any(target.glob("*")):
                raise ValueError(f"{zipped} holds nothing of it")
        except Exception as error:  # the net, the zip, the disk: each has its own
            raise DownloadError(
                f"'{name}' cannot be fetched ({error}). Run the command again with a connection "
                f"and room on the disc, or bring {url} to {zipped} by other means; remove that "
                "file first if it is damaged."
            ) from error
        zipped.unlink()
    return Path(folder, name)
