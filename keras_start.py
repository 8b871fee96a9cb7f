"""Starts Keras where it is first needed: quietly, seeded, deterministic if asked."""

import contextlib
import logging
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def start_keras(seed=0, deterministic=False):
    """Imports Keras and its backend.

    Args:
        seed: For Python, NumPy and the backend.
        deterministic: Whether TensorFlow must give the same bits every time.
    """
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
