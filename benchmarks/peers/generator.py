"""Peer (b): a Keras data loader that decodes the files of every batch, two towers, in colour."""

import time

import numpy as np
from PIL import Image


def train(files, labels, seconds, watch, seed=0):
    """Trains on pairs decoded batch by batch. Takes what `published.train` takes."""
    import keras
    from keras import layers, ops

    keras.utils.set_random_seed(seed)
    begin = time.perf_counter()
    labels = np.asarray(labels)

    class Pairs(keras.utils.PyDataset):
        """Half genuine, half impostor."""

        def __init__(self):
            super().__init__(workers=2)
            self.epoch = 0

        def __len__(self):
            return 20

        def __getitem__(self, number):
            rng = np.random.default_rng([seed, self.epoch, number])
            rows = [pair(labels, rng, genuine=k < 32) for k in range(64)]
            left, right = (np.stack([read(files[row[side]]) for row in rows]) for side in (0, 1))
            return (left, right), (np.arange(64) < 32).astype("float32")[:, None]

        def on_epoch_end(self):
            self.epoch += 1

    tower = keras.Sequential([keras.Input((112, 112, 3)), layers.Rescaling(1 / 255)])
    for filters in (32, 64, 128):
        tower.add(layers.Conv2D(filters, 3, activation="relu"))
        tower.add(layers.MaxPooling2D(2))
    tower.add(layers.GlobalAveragePooling2D())
    tower.add(layers.Dense(64))
    left, right = keras.Input((112, 112, 3)), keras.Input((112, 112, 3))
    squared = ops.sum(ops.square(tower(left) - tower(right)), axis=1, keepdims=True)
    model = keras.Model([left, right], ops.sqrt(ops.maximum(squared, 1e-7)))

    def loss(same, distance):
        gap = ops.maximum(1.0 - distance, 0.0)
        return ops.mean(same * ops.square(distance) + (1 - same) * ops.square(gap))

    model.compile("adam", loss=loss)
    pairs = Pairs()
    while time.perf_counter() - begin < seconds:
        model.fit(pairs, verbose=0)
        watch(time.perf_counter() - begin, lambda paths: embed(tower, paths))


def pair(labels, rng, genuine):
    """Two rows of one class, or of two."""
    one = rng.integers(len(labels))
    others = np.flatnonzero((labels == labels[one]) == genuine)
    return one, rng.choice(others[others != one])


def read(path):
    """One image in colour."""
    return np.asarray(Image.open(path).convert("RGB").resize((112, 112)), np.float32)


def embed(tower, paths):
    """Embeddings of files."""
    return tower.predict(np.stack([read(path) for path in paths]), verbose=0)
