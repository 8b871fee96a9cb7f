"""Evaluation end to end on tiny sets, and Lake's protocol on runs of its form."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import encoded, write_colors, write_zip
from keras import ops
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_auc_score

import evaluate
from configs import Config
from evaluation.held_out import held_out_rows
from run_directory import RunDirectory


@pytest.fixture(scope="module")
def place(place):
    """A folder with a finished run, the images it was trained on, and others."""
    write_colors(place / "fresh", name="new", seed=1)
    return place


def score(*args):
    assert evaluate.main(["runs/run", *args, "--trials", "200"]) == 0
    out = args[args.index("--out") + 1] if "--out" in args else "runs/run"
    return json.loads((Path(out) / "metrics.json").read_text())


def test_own_held_out_images_from_the_command_line_and_python(here, capsys):
    metrics = score()
    assert metrics["known"]["classes"] == 6 and metrics["unseen"]["classes"] == 2
    splits = json.loads(Path("runs/run/splits.json").read_text())
    for name in ("known", "unseen"):
        assert metrics[name]["images"] == len(splits[f"test_{name}"])
        low, high = metrics[name]["intervals"]["auc"]
        assert low <= metrics[name]["auc"] <= high + 1e-9 and metrics[name]["auc"] > 0.5
    output = capsys.readouterr().out
    for said in ("2-way, not 20-way", "report.html", "WARNING: Unseen classes: Mean colour alone"):
        assert said in output
    again, figures = evaluate.evaluate(RunDirectory("runs/run"), trials=200, verbose=0)
    assert again == metrics and isinstance(figures["roc"], Figure)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="does not exist"):
        evaluate.evaluate("runs/run", "nowhere", verbose=0)


def constant_encoder():
    pixels = keras.Input((16, 16, 3))
    return keras.Model(pixels, ops.zeros_like(pixels[:, 0, :4, 0]) + 0.5)


def mean_colour_encoder():
    """Knows the answer: the classes are colours."""
    pixels = keras.Input((16, 16, 3))
    return keras.Model(pixels, ops.mean(pixels, axis=(1, 2)))


def scored(monkeypatch, encoder, distance=None, **options):
    """Metrics of the run's images by another network."""
    monkeypatch.setattr(RunDirectory, "load_encoder", lambda run: encoder)
    monkeypatch.setattr(RunDirectory, "load_distance", lambda run: distance)
    return evaluate.evaluate("runs/run", trials=100, verbose=0, **options)[0]


@pytest.mark.filterwarnings("error::RuntimeWarning")  # as of a histogram of equal distances
def test_constant_network_scores_one_in_n_and_a_perfect_one_all(here, monkeypatch):
    asked = {"data": "fresh", "ways": (2, 5, 8), "shots": 1}
    result = scored(monkeypatch, constant_encoder(), **asked)["unseen"]
    assert [row["ways"] for row in result["curve"]] == [2, 3, 4, 5, 6, 7, 8]
    for row in result["few_shot"] + result["curve"]:
        assert row["model"]["accuracy"] == pytest.approx(1 / row["ways"])
    perfect = scored(monkeypatch, mean_colour_encoder(), **asked)["unseen"]
    assert all(row["model"]["accuracy"] == 1 for row in perfect["few_shot"])
    assert perfect["auc"] == 1


def test_a_learned_distance_counts_everywhere(here, tmp_path, monkeypatch):
    """One that says the contrary turns every score of the perfect encoder over."""

    def contrary(left, right):
        return 1 - np.tanh(np.abs(left - right).sum(axis=1) / 100)

    result = scored(monkeypatch, mean_colour_encoder(), contrary, data="fresh")["unseen"]
    assert result["auc"] == result["recall_at_1"] == 0
    assert all(row["model"]["accuracy"] == 0 for row in result["few_shot"])
    lake_zip(tmp_path / "all_runs.zip")
    asked = {"data": tmp_path / "all_runs.zip", "protocol": "omniglot-lake"}
    found = scored(monkeypatch, mean_colour_encoder(), contrary, **asked)["protocol"]
    assert found["rows"][0]["error"] > 0.9


def test_what_was_trained_on_is_recognised_and_left_out(here, tmp_path, capsys):
    splits = json.loads(Path("runs/run/splits.json").read_text())
    copied, encoded, mirrored = splits["train"][:3]
    write_colors(tmp_path / "mixed", 2, 5, seed=2)  # known by the name of their class
    write_colors(tmp_path / "mixed", 2, 5, name="new", seed=3)
    shutil.copy(Path("images") / copied, tmp_path / "mixed/new0/copy.png")
    larger = Image.open(Path("images") / encoded).resize((64, 64), Image.Resampling.BICUBIC)
    larger.save(tmp_path / "mixed/class0/larger.jpg")
    mirror = np.asarray(Image.open(Path("images") / mirrored))[:, ::-1]
    Image.fromarray(mirror).save(tmp_path / "mixed/class1/mirror.png")
    dataset, sides, left_out = held_out_rows(RunDirectory("runs/run"), tmp_path / "mixed")
    assert left_out == {"images": 3, "of": 23, "near_duplicates": 2, "classes": 3}
    names = {side: {*dataset.index.names[rows]} for side, rows in sides.items()}
    known = itertools.product(("class0", "class1", "new0"), range(5))
    assert names["known"] == {f"{name}/{number}.png" for name, number in known}
    assert names["unseen"] == {f"new1/{number}.png" for number in range(5)}
    assert evaluate.main(["runs/run", "--data", str(tmp_path / "mixed"), "--strict"]) == 2
    assert "3 of 23 images of 'mixed', of 3 classes, were trained" in capsys.readouterr().err


def test_class_names_alone_make_no_known_classes(here, tmp_path, capsys):
    run = RunDirectory("runs/run")
    write_colors(tmp_path / "other", per_class=3, seed=4)  # 6 of its 8 names were trained on
    _, sides, left_out = held_out_rows(run, tmp_path / "other")
    assert left_out["images"] == 0 and len(sides["known"]) == 18 and len(sides["unseen"]) == 6
    assert "6 of 8 class names are names the run was trained on" in capsys.readouterr().out
    write_colors(tmp_path / "other", per_class=3, name="new", seed=5)
    _, sides, _ = held_out_rows(run, tmp_path / "other")
    assert list(sides) == ["unseen"] and len(sides["unseen"]) == 48
    assert "6 of 16 class names" in (said := capsys.readouterr().out) and "count as unseen" in said
    shutil.copytree("images/class0", tmp_path / "other/copies")
    _, sides, _ = held_out_rows(run, tmp_path / "other")
    assert len(sides["known"]) >= 18 and "count as known" in capsys.readouterr().out


def test_the_runs_own_folder_gives_its_own_held_out_images(here):
    run = RunDirectory("runs/run")
    sides, (_, others, left_out) = held_out_rows(run)[1], held_out_rows(run, "images")
    assert sides.keys() == others.keys() == {"known", "unseen"}
    assert all((sides[name] == others[name]).all() for name in sides)
    assert left_out["images"] == 112 - sum(map(len, sides.values()))


@pytest.mark.parametrize(
    ("size", "status", "message"),
    [((1, 5), 2, "at least 2 classes"), ((4, 1), 2, "at least 2"), ((3, 3), 0, "6 images each")],
)
def test_too_little_data_is_a_sentence(here, tmp_path, capsys, size, status, message):
    write_colors(tmp_path / "few", *size, name="few", seed=2)
    asked = ["runs/run", "--data", str(tmp_path / "few"), "--out", str(tmp_path)]
    assert evaluate.main(asked) == status
    assert message in "".join(capsys.readouterr())


def test_unfinished_and_missing_runs_are_sentences(here, tmp_path, capsys):
    assert evaluate.main([str(tmp_path)]) == 2
    (tmp_path / "config.json").write_text(Config().to_json())
    assert evaluate.main([str(tmp_path)]) == 2
    assert evaluate.main(["runs/run", "--data", "nowhere"]) == 2
    assert evaluate.main(["runs/run", "--ways", "1"]) == 2
    errors, ways = capsys.readouterr().err, "ways must be 2 or more. Received: [1]"
    assert all(said in errors for said in (ways, "no config.json", "not finished", "not exist"))


def lake_zip(path):
    """Three within-alphabet runs whose five characters are bars of different heights."""
    rng, files = np.random.default_rng(0), {}
    for run in ("run01", "run02", "run03"):
        files[f"{run}/class_labels.txt"] = ""
        for number, item in enumerate(rng.permutation(5), 1):
            pair = f"{run}/test/item{item}.png", f"{run}/training/class{number}.png"
            files[f"{run}/class_labels.txt"] += " ".join(pair) + "\n"
            for name in pair:
                image = Image.new("1", (105, 105), 1)
                image.paste(0, (40, 10, 50 + rng.integers(3), 10 + 15 * number))
                files[name] = encoded(image)
    write_zip(path, files)


def test_lake_runs(here, tmp_path, capsys, monkeypatch):
    lake = ["runs/run", "--protocol", "omniglot-lake", "--data", str(tmp_path / "all_runs.zip")]
    lake_zip(tmp_path / "all_runs.zip")
    assert evaluate.main(lake) == 0
    found = json.loads(Path("runs/run/evaluation-omniglot-lake/metrics.json").read_text())
    rows = {row["name"]: row for row in found["protocol"]["rows"]}
    assert 0 <= rows["model"]["interval"][0] <= rows["model"]["error"] <= 1
    assert rows["centred, blurred"]["error"] < 0.3  # heights are easy for it
    card = Path("runs/run/evaluation-omniglot-lake/model_card.md").read_text()
    assert "trained on has not been looked at" in card and "No sign" not in card
    output = capsys.readouterr().out
    assert "Lake's 3 one-shot runs" in output and "siamese network, Koch et al. 2015" in output
    asked = {"data": lake[-1], "protocol": lake[2]}
    found = scored(monkeypatch, constant_encoder(), **asked)["protocol"]
    assert found["rows"][0]["error"] == pytest.approx(1 - 1 / 5)
    write_zip(lake[-1], {"run01/class_labels.txt": "run01/test/a.png run01/training/b.png\n"})
    assert evaluate.main(lake) == 2 and "Missing" in capsys.readouterr().err


def test_a_list_of_pairs_with_folds(here, capsys):
    """AUC against a loop over the listed pairs; pairs of trained images are left out."""
    lines = ["fold,left,right,same"]
    for fold, label in itertools.product(range(10), range(6)):
        left = f"{fold},fresh/new{label}/{fold}.png"
        lines.append(f"{left},fresh/new{label}/{fold + 1}.png,1")
        lines.append(f"{left},fresh/new{label + 1}/{fold}.png,0")
    lines.append("3,images/class0/0.png,images/class0/1.png,1")
    Path("pairs.csv").write_text("\n".join(lines))
    metrics, figures = evaluate.evaluate("runs/run", "pairs.csv", verbose=0)
    found = metrics["unseen"]
    assert metrics["left_out"]["images"] >= 1 and figures["roc"]
    encoder = RunDirectory("runs/run").load_encoder()
    distances, same = [], [line[-1] == "1" for line in lines[1:-1]]
    for line in lines[1:-1]:
        sides = [encoder(np.asarray(Image.open(path))[None]) for path in line.split(",")[1:3]]
        distances.append(np.linalg.norm(sides[0] - sides[1]))
    assert found["num_genuine"] == sum(same) and found["folds"]["folds"] == 10
    assert found["auc"] == pytest.approx(roc_auc_score(same, -np.array(distances)), abs=1e-3)
    assert score("--pairs", "pairs.csv", "--out", "listed")["unseen"]["auc"] == found["auc"]
    run = RunDirectory("runs/run")  # of a list whose labels mean the contrary
    run.config = dataclasses.replace(run.config, pair_label="different")
    index = held_out_rows(run, "pairs.csv")[0].index
    assert index.pairs[:, 2].sum() == sum(same) + 1
    Path("other.csv").write_text("\n".join(lines).replace("same", "label"))
    index = held_out_rows(run, "other.csv")[0].index
    assert index.pairs[:, 2].sum() == len(same) - sum(same)
    assert "means different" in capsys.readouterr().out


def test_of_copies_one_is_scored(here):
    """A set that lies twice, in a folder of its own name, scores as it does once."""
    shutil.copytree("fresh", "twice")
    shutil.copytree("fresh", "twice/fresh")
    once, twice = (held_out_rows(RunDirectory("runs/run"), data)[1] for data in ("fresh", "twice"))
    assert {name: len(rows) for name, rows in twice.items()} == {
        name: len(rows) for name, rows in once.items()
    }
