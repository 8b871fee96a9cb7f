"""Galleries: what came, went and changed; kills."""

import os

import numpy as np
import pytest

from inference import gallery
from inference.gallery import Gallery

DIM = 16


@pytest.fixture
def vectors(tmp_path):
    """Name -> embedding of a thousand files of a folder."""
    points = np.random.default_rng(0).normal(size=(1000, DIM)).astype(np.float32)
    made = {f"{number:04d}.png": point for number, point in enumerate(points)}
    for name in made:
        (tmp_path / name).touch()
    return made


def opened(folder, vectors, fail_after=2000):
    """The gallery, and the names whose embeddings were asked for."""
    asked = []

    def embed(paths, unreadable):
        if len(asked) >= fail_after:
            raise KeyboardInterrupt
        names = [os.path.basename(path) for path in paths]
        asked.extend(names)
        return np.stack([vectors[name] for name in names])

    try:
        return Gallery(folder, folder / "kept/store", embed, DIM), asked
    except KeyboardInterrupt:
        return None, asked


def test_what_came_went_and_changed_is_noticed(tmp_path, vectors):
    for asked in (1000, 0):
        found, names = opened(tmp_path, vectors)
        assert len(names) == asked and found.names == sorted(vectors)
    gone, changed = found.names[3], found.names[7]
    (tmp_path / gone).unlink()
    del vectors[gone]
    (tmp_path / changed).write_bytes(b"another")
    (tmp_path / "new.png").touch()
    vectors[changed], vectors["new.png"] = -vectors[changed], np.ones(DIM, np.float32)
    found, names = opened(tmp_path, vectors)
    assert sorted(names) == [changed, "new.png"]
    assert found.names == sorted(vectors) and found.path(0) == str(tmp_path / "0000.png")
    assert (found.embeddings == np.stack([vectors[name] for name in found.names])).all()


def test_a_kill_costs_what_was_not_written_yet(tmp_path, vectors, monkeypatch):
    monkeypatch.setattr(gallery, "PART", 100)
    killed = opened(tmp_path, vectors, fail_after=350)[1]
    resumed = opened(tmp_path, vectors)[1]
    assert len(killed) == 400 and sorted(killed + resumed) == sorted(vectors)


def test_what_cannot_be_read_is_told_and_tried_again(tmp_path, vectors):
    def fail(paths, unreadable):
        unreadable |= dict.fromkeys(paths, "away")
        return np.full((len(paths), DIM), np.nan, np.float32)

    with pytest.raises(ValueError, match=r"No image in .* can be read\. First: .*0000\.png: away"):
        Gallery(tmp_path, tmp_path / "kept/store", fail, DIM)
    assert len(opened(tmp_path, vectors)[1]) == 1000
