"""Episodes of published protocols on made-up embeddings whose answer is known."""

import types

import numpy as np
import pytest

from evaluation import few_shot
from evaluation.protocols import episode_scores
from pipeline.files import DataError


def held_out(build_index, embeddings, labels, families=None):
    index = build_index(labels, families=families)
    return types.SimpleNamespace(
        name="unseen", dataset=types.SimpleNamespace(index=index), rows=np.arange(len(labels)),
        embeddings=embeddings, distance=None,
    )  # fmt: skip


def errors(name, held):
    found = episode_scores(name, [held], seed=0)
    return {row["name"].rpartition(" ")[2]: row["error"] for row in found["rows"]}


def test_5_way_of_perfect_constant_and_noisy_embeddings(build_index):
    rng, labels = np.random.default_rng(0), np.arange(12).repeat(25)
    perfect = np.eye(12)[labels]
    assert errors("5-way", held_out(build_index, perfect, labels)) == {"1-shot": 0, "5-shot": 0}
    constant = errors("5-way", held_out(build_index, perfect * 0, labels))
    assert constant == pytest.approx({"1-shot": 0.8, "5-shot": 0.8})
    noisy = perfect + rng.normal(0, 0.5, perfect.shape)
    found = errors("5-way", held_out(build_index, noisy, labels))
    for shots in (1, 5):
        trials = few_shot.draw_trials(labels, 5, shots, 20_000, rng)
        distances = few_shot.trial_distances(noisy, trials)
        plain = 1 - few_shot.few_shot_accuracy(distances, trials.answers)
        assert found[f"{shots}-shot"] == pytest.approx(plain, abs=0.02)


def test_within_takes_its_classes_from_one_family(build_index):
    labels = np.arange(40).repeat(3)
    embeddings = np.eye(20)[labels % 20]  # across families, each class has a double
    families = np.arange(40) // 20
    assert errors("omniglot-within", held_out(build_index, embeddings, labels, families)) == {
        "1-shot": 0
    }
    with pytest.raises(DataError, match="20 classes of one family with 2 images each"):
        errors("omniglot-within", held_out(build_index, embeddings, labels, np.arange(40) // 10))
