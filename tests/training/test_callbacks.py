"""What callbacks find between two epochs."""

from types import SimpleNamespace

import keras
import numpy as np

from configs import Config
from pipeline.pairs import PairBatches
from training import callbacks


def test_neighbours_are_the_nearest_images_of_other_classes(build_index, monkeypatch):
    monkeypatch.setattr(callbacks, "NEAREST", 3)
    index = build_index([0, 0, 1, 1, 2, 0])
    pixels = np.uint8([10, 200, 14, 90, 120, 11]).reshape(-1, 1, 1, 1)
    inputs = keras.Input((1, 1, 1))
    encoder = keras.Model(inputs, keras.layers.Flatten()(inputs))
    batches = PairBatches(index, pixels, np.arange(6), Config())
    task = SimpleNamespace(encoder=encoder, pixels=pixels, batches=batches)
    found = callbacks.nearest_of_other_classes(task)
    nearest = {row: {*others} for row, *others in found.tolist()}
    of_two = {0: {2, 3, 4}, 1: {2, 3, 4}, 5: {2, 3, 4}, 2: {0, 5, 4}, 3: {4, 0, 5}, 4: {3, 1, 2}}
    assert nearest == of_two
