"""Starts Keras, quiet and seeded; embeds images by batches; scales embeddings to unit length."""

import concurrent.futures
import contextlib
import importlib.util
import logging
import os
import sys

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow takes oneDNN's kernels by itself on the newest processors alone; on one with AVX2 they
# made EfficientNet-Lite0 2.4 times and the compact encoder's training 1.7 times as fast.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

EMBED_BATCH = 64  # images embedded at once: as fast as any, and little memory
SMALLEST_SQUARED_DISTANCE = 1e-12  # the square root has no gradient at 0


def require_backend():
    """Raises a ValueError where the package of Keras's backend is not installed."""
    name = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if importlib.util.find_spec(name) is None:
        raise ValueError(
            f"KERAS_BACKEND={name}: no such package. Expected tensorflow, jax or torch: "
            f"pip install {name}, or unset KERAS_BACKEND."
        )


def start_keras(seed=0, deterministic=False):
    """Imports Keras and its backend, seeds them; a ValueError if the backend is not installed.

    `deterministic`: TensorFlow must give the same bits every time.
    """
    require_backend()
    with _quiet():
        import keras
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it frets over batches of two sizes

    keras.utils.set_random_seed(seed)
    if deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def _quiet():
    """Hides the dozen lines that TensorFlow greets with; errors still come as exceptions."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def embed(encoder, pixels, rows):
    """Embeds the images of some rows, each once: float32 array (n, embedding_dim).

    `pixels` is a uint8 array (images, height, width, channels), or a function that gives the images
    of an array of rows. The next batch is read while the network embeds one.
    """
    read = pixels if callable(pixels) else pixels.__getitem__
    size = min(len(rows), EMBED_BATCH)
    count = -(-len(rows) // size)
    # Batches of one size, the last filled up: another shape takes a second to compile.
    parts, embeddings = np.resize(rows, (count, size)), []
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, parts[0])
        for following in [*parts[1:], None]:
            batch = coming.result()
            if following is not None:
                coming = reader.submit(read, following)
            embeddings.append(encoder.predict_on_batch(batch))
    return np.concatenate(embeddings)[: len(rows)].astype(np.float32)


def unit_length(embeddings):
    """Scales embeddings (batch, embedding_dim) to length 1; zero stays zero, with a gradient."""
    from keras import ops

    squared = ops.sum(ops.square(embeddings), axis=-1, keepdims=True)  # (batch, 1)
    return ops.multiply(embeddings, ops.rsqrt(ops.maximum(squared, SMALLEST_SQUARED_DISTANCE)))
