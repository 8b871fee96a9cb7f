"""Which named config suits a folder, from what lies in it: one sentence, and nothing is changed."""

import contextlib
import shlex

import numpy as np

from configs import Config
from pipeline.files import DataError, read_bytes
from pipeline.reading import decode

SAMPLE, LOOK = 64, Config(image_size=64)  # images looked at, and how
SAME_COLOUR = 6  # largest median difference between the channels of grey images
DARK, BRIGHT, TWO_TONE = 40, 215, 0.8  # drawings have this share of their pixels beyond them


def advice(index):
    """Which named config suits the images of an `ImageIndex`, a sentence; "" if none does.

    Raises:
        DataError: If none of the images looked at can be read.
    """
    sample = _look(index)
    spread = np.ptp(sample.astype(int), axis=3).mean(axis=(1, 2))  # (images,)
    if np.ptp(sample) == 0 or index.pairs is not None or index.forged is not None:
        return ""
    if np.median(spread) >= SAME_COLOUR:
        kind, name = "colour photographs", "photographs"
    elif np.mean((sample < DARK) | (sample > BRIGHT)) > TWO_TONE:
        kind, name = "drawings in two tones", "characters"
    else:
        kind, name = "grey photographs", "faces"
    return (
        f"These are {kind}: the config '{name}' would suit them better than 'leaves'. "
        f"Type: python train.py {name} --data_dir {shlex.quote(str(index.source))}"
    )


def _look(index):
    """Some images in colour, uint8 array (images, 64, 64, 3)."""
    images = []
    for row in np.linspace(0, len(index) - 1, min(SAMPLE, len(index))).astype(int):
        with contextlib.suppress(ValueError, OSError):  # BadImage, DataError
            images.append(decode(read_bytes(index.source, index.names[row]), LOOK)[0])
    if not images:
        raise DataError(f"None of the images of '{index.source}' looked at can be read.")
    return np.stack(images)
