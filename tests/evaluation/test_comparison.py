"""A difference of runs is told from chance, on made-up embeddings whose truth is known."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import evaluate
from configs import Config
from evaluation.comparison import ScoredRun, auc_differences, compare

CLASSES, IMAGES = 12, 10
ALL = np.arange(CLASSES * IMAGES)


def held_out(noise, seed, rows=ALL):
    """Classes whose images lie at a point each, and noise; images are told by their digests."""
    labels = ALL // IMAGES
    truth = np.random.default_rng(0).normal(size=(CLASSES, 8))[labels]
    embeddings = truth + noise * np.random.default_rng(seed).normal(size=truth.shape)
    dataset = SimpleNamespace(cache=SimpleNamespace(digests=ALL))
    parts = {"dataset": dataset, "rows": rows, "forged": np.zeros(len(rows), bool)}
    parts |= {"labels": labels[rows], "embeddings": embeddings[rows]}
    return SimpleNamespace(name="unseen", distance=None, **parts)


def scored(name, noise, seed=0, run_seed=0, auc=0.9, **settings):
    metrics = {"unseen": {"auc": auc, "intervals": {"auc": [auc - 0.1, 0.99]}, "few_shot": []}}
    run = SimpleNamespace(path=Path(name), config=Config(seed=run_seed, **settings))
    return ScoredRun(run, metrics, [held_out(noise, seed)])


def compared(*runs):
    """The rows that `compare` gives, dicts by column."""
    head, *rows = compare(runs)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_better_is_better_and_an_equal_one_is_chance():
    runs = [scored("a", 1.5, 1), scored("b", 0.7, 2, margin=2.0), scored("c", 1.5, 3, margin=3.0)]
    first, better, equal = compared(*runs)
    assert better["unseen verdict"] == "better" and equal["unseen verdict"] == "no more than chance"
    assert first["unseen verdict"] == first["unseen AUC difference"] == ""
    assert [row["margin"] for row in (first, better, equal)] == ["1.0", "2.0", "3.0"]
    assert "encoder" not in first and "run_name" not in first
    worse = compared(runs[1], runs[0])[1]
    assert worse["unseen verdict"] == "worse"
    gain, loss = (row["unseen AUC difference"] for row in (better, worse))
    assert gain[0] == "+" and loss[:6] == "-" + gain[1:6]


def test_the_difference_is_that_of_all_pairs_of_the_shared_images():
    """Every second image is held out by the other run."""
    rows = ALL[::2]
    left, right = np.triu_indices(len(rows), 1)
    both = held_out(1.5, 1), held_out(0.7, 2, rows)
    same = both[1].labels[left] == both[1].labels[right]
    embeddings = both[0].embeddings[rows], both[1].embeddings
    exact = [
        roc_auc_score(same, -np.linalg.norm(each[left] - each[right], axis=1))
        for each in embeddings
    ]
    found = auc_differences(*both)
    assert found[0] == pytest.approx(exact[1] - exact[0], abs=0.03)  # impostors are drawn
    assert not auc_differences(both[0], both[0]).any()
    assert auc_differences(both[0], held_out(1, 1, rows[:1])) is None


def test_equal_runs_differ_by_chance_in_19_of_20():
    verdicts = [
        compared(scored("a", 1.5, one), scored("b", 1.5, other, margin=2.0))[1]["unseen verdict"]
        for one, other in np.random.default_rng(5).integers(10**6, size=(60, 2))
    ]
    assert verdicts.count("no more than chance") >= 53  # 57 are expected


def test_seeds_of_one_config_are_a_row_with_mean_and_range():
    runs = [scored(f"a{seed}", 1.5, seed, seed, 0.7 + seed / 10) for seed in range(3)]
    runs += [scored(f"b{seed}", 0.7, 9 + seed, seed, margin=2.0) for seed in range(3)]
    one, other = compared(*runs)
    assert one["runs"] == "a0 a1 a2" and one["seeds"] == "3"
    assert one["unseen AUC"] == "0.800 [0.700, 0.900]" and other["unseen verdict"] == "better"


def test_command_line(here, capsys):
    shutil.copytree("runs/run", "runs/other")
    config = json.loads((here / "runs/other/config.json").read_text())
    (here / "runs/other/config.json").write_text(json.dumps(config | {"margin": 2.0}))
    asked = "--trials 20 --ways 2 --shots 1 --compare runs/run runs/other --out tables".split()
    assert evaluate.main(asked) == 0
    with open("tables/comparison.csv", newline="") as file:
        one, other = csv.DictReader(file)
    assert one["runs"] == "runs/run" and (one["margin"], other["margin"]) == ("1.0", "2.0")
    assert other["known AUC difference"].startswith("+0.000 [") and "known 2-way 1-shot" in one
    assert other["unseen verdict"] == "no more than chance"
    assert "no more than chance" in capsys.readouterr().out
    assert evaluate.main(["runs/run", "--compare", "runs/other"]) == 2
    assert evaluate.main(["--compare", "runs/run", "nowhere"]) == 2
