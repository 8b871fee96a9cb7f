"""Embedding by equal batches, the next one read meanwhile, against the network asked at once."""

import keras
import numpy as np
import pytest

from networks import embedding


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_batches_agree_with_the_network_asked_at_once(monkeypatch, rng, count):
    monkeypatch.setattr(embedding, "EMBED_BATCH", 4)
    encoder = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Flatten()])
    pixels, sizes = rng.integers(256, size=(20, 6, 5, 3), dtype=np.uint8), set()
    rows = rng.permutation(20)[:count]

    def read(rows):
        sizes.add(len(rows))
        return pixels[rows]

    for given in (pixels, read):
        found = embedding.embed(encoder, given, rows)
        assert found.dtype == np.float32 and (found == pixels[rows].reshape(count, -1)).all()
    assert sizes == {min(count, 4)}
    with pytest.raises(IndexError):  # what cannot be read is raised
        embedding.embed(encoder, pixels, rows + 20)


def test_a_backend_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "nowhere")
    with pytest.raises(ValueError, match="KERAS_BACKEND=nowhere: no such package. Expected"):
        embedding.start_keras()
