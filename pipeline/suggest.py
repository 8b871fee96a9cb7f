"""A config for a folder nobody tuned for, chosen from what lies in it."""

import contextlib
import dataclasses
import math

import numpy as np

from configs import CONFIGS, Config
from pipeline.image_index import DataError, read_bytes
from pipeline.reading import decode

SAMPLE, LOOK = 64, Config(image_size=64)  # images looked at, and how
SAME_COLOUR = 6  # largest median difference between the channels of grey images
DARK, BRIGHT, TWO_TONE = 40, 215, 0.8  # drawings have this share of their pixels beyond them
BORDER, PLAIN = 4, 40  # pixels along the sides; leaves on a table have 28 there, dogs 49
VIEWS = 200  # of each image, at most: more would learn it by heart


def suggest_config(index):
    """The named config made for the images of an `ImageIndex`, fitted to how many there are.

    Returns:
        `(config, name, reason)`: a `Config`, the name of the config it comes from, and a line
        for the user.

    Raises:
        DataError: If none of the images looked at can be read.
    """
    sample = _look(index)
    spread = np.ptp(sample.astype(int), axis=3).mean(axis=(1, 2))  # (images,)
    grey = np.median(spread) < SAME_COLOUR
    if index.pairs is not None:
        kind, name = "given pairs", "dogs-recipe"
    elif grey and np.mean((sample < DARK) | (sample > BRIGHT)) > TWO_TONE:
        kind, name = "drawings in two tones", "characters"
    elif grey:
        kind, name = "grey photographs", "faces"
    elif _border_contrast(sample) < PLAIN:
        kind, name = "photographs of things on plain ground", "photographs"
    else:
        kind, name = "colour photographs", "photographs"
    base = CONFIGS[name]
    per_step = base.classes_per_batch * base.images_per_class
    useful = math.ceil(VIEWS * len(index) / per_step / base.steps_per_epoch)
    epochs = max(1, min(base.epochs, useful))
    config = dataclasses.replace(base, data_dir=str(index.source), epochs=epochs)
    reason = (
        f"{kind.capitalize()}, so as in config '{name}': {config.image_size} px, {config.channels} "
        f"channels, {config.encoder} encoder, {config.total_steps} steps of {per_step} images."
    )
    return config, name, reason


def _border_contrast(sample):
    """Median over images of the deviation of the pixels along their sides."""
    inner = np.zeros(sample.shape[1:3], bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.median(sample[:, ~inner].astype(float).std(axis=1).mean(axis=-1))


def _look(index):
    """Some images in colour, uint8 array (images, 64, 64, 3)."""
    images = []
    for row in np.linspace(0, len(index) - 1, min(SAMPLE, len(index))).astype(int):
        with contextlib.suppress(ValueError, OSError):  # BadImage, DataError
            images.append(decode(read_bytes(index.source, index.names[row]), LOOK)[0])
    if not images:
        raise DataError(f"None of the images of '{index.source}' looked at can be read.")
    return np.stack(images)
