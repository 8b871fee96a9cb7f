"""Peer (a): recipe 1 as published. Grey pairs held in memory as float64, a file read for each image
of each pair, pairs (not images) split, two towers."""

import time

import numpy as np
from PIL import Image


def train(files, labels, seconds, watch, seed=0, pairs=2000):
    """Trains as published.

    Args:
        files: Paths of the training images.
        labels: Their classes, (files,).
        seconds: When to stop; reading the pairs counts.
        watch: Called after each epoch with `(seconds so far, embed)`; `embed` takes a list of
            paths and gives embeddings.
        seed: Of weights and pairs.
        pairs: Genuine pairs, and impostor pairs.
    """
    import keras
    from keras import layers, ops

    keras.utils.set_random_seed(seed)
    begin, rng = time.perf_counter(), np.random.default_rng(seed)
    labels, by_class = np.asarray(labels), {c: np.flatnonzero(labels == c) for c in set(labels)}
    classes = np.array(sorted(by_class))
    sides, same = np.zeros((2, 2 * pairs, 112, 112, 1)), np.zeros((2 * pairs, 1))
    for number in range(2 * pairs):
        one, other = rng.choice(classes, 2, replace=False)
        if number < pairs:
            rows, same[number] = rng.choice(by_class[one], 2, replace=False), 1
        else:
            rows = rng.choice(by_class[one]), rng.choice(by_class[other])
        sides[0, number], sides[1, number] = read(files[rows[0]]), read(files[rows[1]])
    order = rng.permutation(2 * pairs)
    sides, same = sides[:, order], same[order]

    tower = keras.Sequential([keras.Input((112, 112, 1))])
    for filters in (16, 32, 16):
        tower.add(layers.Conv2D(filters, 3, activation="relu"))
        tower.add(layers.MaxPooling2D(2))
        tower.add(layers.Dropout(0.25))
    tower.add(layers.Flatten())
    tower.add(layers.Dense(128, activation="relu"))
    tower.add(layers.Dropout(0.1))
    tower.add(layers.Dense(50, activation="relu"))
    left, right = keras.Input((112, 112, 1)), keras.Input((112, 112, 1))
    squared = ops.sum(ops.square(tower(left) - tower(right)), axis=1, keepdims=True)
    model = keras.Model([left, right], ops.sqrt(ops.maximum(squared, 1e-7)))

    def loss(same, distance):
        gap = ops.maximum(1.0 - distance, 0.0)
        return ops.mean(same * ops.square(distance) + (1 - same) * ops.square(gap))

    model.compile("rmsprop", loss=loss)
    while time.perf_counter() - begin < seconds:
        model.fit(list(sides), same, batch_size=256, validation_split=0.2, verbose=0)
        watch(time.perf_counter() - begin, lambda paths: embed(tower, paths))


def read(path):
    """One image as the recipe reads it: grey, every second of 224 pixels."""
    image = Image.open(path).convert("L").resize((224, 224))
    return np.asarray(image, np.float64)[::2, ::2, None] / 255


def embed(tower, paths):
    """Embeddings of files."""
    return tower.predict(np.stack([read(path) for path in paths]), verbose=0)
