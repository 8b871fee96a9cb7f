"""Galleries that stay on disk against brute force; what came, went and changed."""

import os

import numpy as np
import pytest

from inference import gallery

DIM = 16


@pytest.fixture
def vectors(tmp_path, monkeypatch):
    """Name -> embedding of a thousand files, which counts as large here."""
    for name, value in {"MOST_SCANNED": 50, "SHARD": 400, "SHARD_PART": 150}.items():
        monkeypatch.setattr(gallery, name, value)
    points = np.random.default_rng(0).normal(size=(1000, DIM)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    made = {f"{number:04d}.png": point for number, point in enumerate(points)}
    for name in made:
        (tmp_path / name).touch()
    return made


def opened(folder, vectors):
    asked = []

    def embed(paths):
        asked.extend(os.path.basename(path) for path in paths)
        return np.stack([vectors[os.path.basename(path)] for path in paths]), [""] * len(paths)

    return gallery.open_gallery(folder, folder / "kept/store.sqlite", embed), asked


def names_found(large, query, distance=None):
    rows, distances = large.search(query, 10, distance)
    assert (np.diff(distances) >= 0).all()
    return [os.path.basename(large.path(row)) for row in rows]


def nearest(vectors, query, order=2):
    by_distance = sorted(vectors, key=lambda name: np.linalg.norm(vectors[name] - query, order))
    return by_distance[:10]


def test_a_large_gallery_agrees_with_brute_force_and_follows_changes(tmp_path, vectors):
    queries = np.random.default_rng(1).normal(size=(20, DIM)).astype(np.float32)
    large, asked = opened(tmp_path, vectors)
    assert isinstance(large, gallery.LargeGallery) and len(asked) == 1000
    for query in queries:
        assert names_found(large, query) == nearest(vectors, query)
    learned = names_found(large, queries[0], lambda left, right: np.abs(left - right).sum(axis=1))
    assert learned == nearest(vectors, queries[0], order=1)

    shards = sorted((tmp_path / "kept").glob("*.usearch"))
    written = [path.stat().st_mtime_ns for path in shards]
    assert len(shards) == 3
    gone, changed, _ = nearest(vectors, queries[0])[:3]
    (tmp_path / gone).unlink()
    del vectors[gone]
    (tmp_path / changed).write_bytes(b"another")
    (tmp_path / "new.png").touch()
    vectors[changed], vectors["new.png"] = -vectors[changed], queries[0]
    large, asked = opened(tmp_path, vectors)
    assert sorted(asked) == sorted([changed, "new.png"])
    for query in queries:
        assert names_found(large, query) == nearest(vectors, query)
    assert [path.stat().st_mtime_ns for path in shards[:2]] == written[:2]
    assert list(large.names) == list(map(os.path.basename, map(large.path, range(1000))))
    assert np.asarray(large.embeddings).shape == (1000, DIM)
