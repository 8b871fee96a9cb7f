"""Embedding by equal batches, the next one read meanwhile, against the network asked at once."""

import keras
import numpy as np
import pytest

from networks import embedding


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_batches_agree_with_the_network_asked_at_once(monkeypatch, count):
    monkeypatch.setattr(embedding, "EMBED_BATCH", 4)
    encoder = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Flatten()])
    rng = np.random.default_rng(0)
    pixels, rows = (
        rng.integers(256, size=(20, 6, 5, 3), dtype=np.uint8),
        rng.permutation(20)[:count],
    )
    sizes = []

    def read(rows):
        sizes.append(len(rows))
        return pixels[rows]

    for given in (pixels, read):
        found = embedding.embed(encoder, given, rows)
        assert found.dtype == np.float32 and (found == pixels[rows].reshape(count, -1)).all()
    assert len({*sizes}) == 1 and sizes[0] <= 4


def test_what_cannot_be_read_is_raised():
    encoder = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Flatten()])
    with pytest.raises(IndexError):
        embedding.embed(encoder, np.zeros((2, 6, 5, 3), np.uint8), np.arange(3))


def test_a_backend_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "nowhere")
    with pytest.raises(ValueError, match="KERAS_BACKEND=nowhere: no such package. Expected"):
        embedding.start_keras()
