"""Using a run that was copied to a place without its data: compare, identify, search."""

import functools
import itertools
import json
import shutil
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import predict
from evaluation.references import unknown_threshold
from inference.similarity_model import SimilarityModel
from pipeline.reading import BadImage
from run_directory import RunDirectory

NUM_CLASSES, PER_CLASS = 8, 14  # of `tiny_run`


@pytest.fixture(scope="module")
def place(place):
    """A folder `images`, and a run that cannot find what it was trained on."""
    (place / "runs/run").rename(place / "copy")
    config = json.loads((place / "copy/config.json").read_text()) | {"data_dir": "gone"}
    (place / "copy/config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "SimilarityModel", functools.cache(SimilarityModel))
        yield place


@pytest.fixture
def here(here):
    shutil.rmtree("copy/embeddings", ignore_errors=True)
    return here


@pytest.fixture
def model(here):
    return predict.SimilarityModel("copy")


def ask(capsys, *args, status=0):
    """Runs predict with --json; gives the answers and what it said on standard error."""
    capsys.readouterr()
    assert predict.main([args[0], "copy", *args[1:], "--json"]) == status
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


load_by_keras = functools.cache(functools.partial(keras.saving.load_model, compile=False))


def embed_plainly(paths):
    """Embeddings by Keras and Pillow alone; the images have the network's size already."""
    pixels = np.stack([np.asarray(Image.open(path), np.float32) for path in paths])
    return load_by_keras("copy/encoder.keras").predict(pixels, verbose=0)


def decision():
    return json.loads(Path("copy/threshold.json").read_text())


def test_compare_agrees_with_the_two_input_model(here, capsys):
    paths = ["images/class0/0.png", "images/class0/1.png", "images/class7/0.png"]
    answers, _ = ask(capsys, "compare", *paths, "--figure", "pairs.png")
    assert [(one["a"], one["b"]) for one in answers] == [*itertools.combinations(paths, 2)]
    import siamese_network_funcs  # noqa: F401  registers the distance

    pair_model = load_by_keras("copy/model.keras")
    slope, intercept = decision()["calibration"]
    for one in answers:
        sides = [np.asarray(Image.open(one[k]), np.float32)[None] for k in "ab"]
        distance = pair_model.predict(sides, verbose=0).item()
        assert one["distance"] == pytest.approx(distance, abs=1e-4)
        odds = np.exp(-slope * distance - intercept)
        assert one["probability"] == pytest.approx(1 / (1 + odds), abs=1e-3)
        assert one["threshold"] == decision()["threshold"]
        assert one["same"] == (one["distance"] < one["threshold"])
    assert np.asarray(Image.open("pairs.png")).std() > 1


def test_what_cannot_be_read_is_reported_and_the_rest_is_done(here, capsys, tmp_path):
    odd, good = tmp_path / "odd", ["images/class0/0.png", "images/class7/0.png"]
    (odd / "empty").mkdir(parents=True)
    (odd / "text.jpg").write_text("no picture")
    shutil.copy(good[0], odd / "good.png")
    bad = [str(odd / "text.jpg"), str(odd / "missing.png"), str(odd / "empty")]
    answers, errors = ask(capsys, "compare", *good, *bad, status=1)
    assert [(one["a"], one["b"]) for one in answers] == [tuple(good)]
    assert all(path in errors for path in bad)
    assert "not an image" in errors and "no such file" in errors and "No images" in errors
    for verb, option in (("identify", "--references"), ("search", "--gallery")):
        answers, errors = ask(capsys, verb, *bad, good[0], option, "images", status=1)
        assert [one["query"] for one in answers] == good[:1]
        answers, errors = ask(capsys, verb, good[0], option, str(odd), status=1)
        assert f"{bad[0]}: not an image" in errors and len(answers) == 1
        answers, _ = ask(capsys, verb, bad[0], option, "images", status=2)
        assert answers == []


WRONG = {
    "compare copy nowhere.png images/class0/0.png": "needs 2 to 1000 images",
    "compare nowhere images/class0": "no run directory",
    "identify copy images/class0 --references nowhere": "which is none",
    "search copy images/class0 --gallery empty": "No images in the folder",
    "search copy empty --gallery images": "needs at least 1 image",
    "serve copy --gallery nowhere": "which is none",
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_paths_are_a_sentence_before_keras_starts(here, capsys, monkeypatch, command):
    (here / "empty").mkdir(exist_ok=True)
    monkeypatch.setattr(predict, "SimilarityModel", lambda run: pytest.fail("Keras was started"))
    assert predict.main(command.split()) == 2
    assert WRONG[command] in capsys.readouterr().err


def test_folders_and_globs_are_expanded(here, capsys):
    answers, _ = ask(capsys, "search", "images/class0", "images/class[12]/3.png",
                     "--gallery", "images/class0", "--top", "99",
                     "--figure", "found.png")  # fmt: skip
    expected = {f"images/class0/{n}.png" for n in range(PER_CLASS)}
    expected |= {"images/class1/3.png", "images/class2/3.png"}
    assert {one["query"] for one in answers} == expected
    assert all(one["results"][0]["path"] == one["query"] for one in answers[:PER_CLASS])
    assert {len(one["results"]) for one in answers} == {PER_CLASS}
    assert np.asarray(Image.open("found.png")).std() > 1


def test_identify_takes_the_nearest_reference_or_none(here, capsys):
    queries = [f"images/class{label}/{n}.png" for label in range(NUM_CLASSES) for n in (5, 6)]
    references = {}
    for label, number in itertools.product(range(4), range(3)):
        references[f"references/class{label}/{number}.png"] = label
        (here / f"references/class{label}").mkdir(parents=True, exist_ok=True)
        shutil.copy(f"images/class{label}/{number}.png", f"references/class{label}")
    references["references/class4.png"] = 4  # an image by the class's name
    shutil.copy("images/class4/0.png", "references/class4.png")
    answers, _ = ask(capsys, "identify", *queries, "--references", "references",
                     "--false_accept_rate", "0.2")  # fmt: skip
    embeddings, labels = embed_plainly(references), np.array(list(references.values()))
    table = decision()["unknown"]
    threshold = unknown_threshold(table, len(labels), 0.2)
    for answer, embedding in zip(answers, embed_plainly(queries), strict=True):
        distances = np.linalg.norm(embeddings - embedding, axis=1)
        best = f"class{labels[distances.argmin()]}"
        assert answer["candidates"][0]["class"] == best
        assert answer["distance"] == pytest.approx(distances.min(), abs=1e-4)
        assert answer["class"] == (best if distances.min() < threshold else None)
        assert answer["threshold"] == pytest.approx(threshold)
    assert {"query", "class", "distance", "threshold", "candidates"} == set(answers[0])
    assert {one["class"] for one in answers} > {None, "class0"}
    unknown = next(one["query"] for one in answers if one["class"] is None)
    assert predict.main(["identify", "copy", unknown, "--references", "references"]) == 0
    assert "none of these" in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["nearest", "mean", "energy"])
def test_verify_accepts_by_the_rule_of_the_run(rule, here, capsys, model, monkeypatch):
    genuine = [f"images/class0/{number}.png" for number in range(5)]
    (here / "person").mkdir(exist_ok=True)
    for path in genuine:
        shutil.copy(path, here / "person")
    queries = [f"images/class{label}/7.png" for label in range(NUM_CLASSES)]
    table = decision()["enrolled"]
    monkeypatch.setitem(model._decision["enrolled"], "rule", rule)
    answers, _ = ask(capsys, "verify", *queries, "--references", "person",
                     "--false_accept_rate", "0.1")  # fmt: skip
    for answer, embedding in zip(answers, embed_plainly(queries), strict=True):
        known = embed_plainly(genuine)
        distances = np.linalg.norm(known - embedding, axis=1)
        among = np.linalg.norm(known[:, None] - known, axis=2).mean()
        expected = {"nearest": distances.min(), "mean": distances.mean()}
        expected = (expected | {"energy": distances.mean() - among / 2})[rule]
        assert answer["rule"] == rule and answer["distance"] == pytest.approx(expected, abs=1e-4)
        assert answer["threshold"] == pytest.approx(unknown_threshold(table, 5, 0.1))
        assert answer["accepted"] == (answer["distance"] < answer["threshold"])
        assert (answer["false_accept_rate"], answer["references"]) == (0.1, 5)
    assert answers[0]["accepted"] and not all(one["accepted"] for one in answers)
    assert predict.main(["verify", "copy", queries[0], "--references", "person"]) == 0
    assert "rate of images of other classes 0.001, 5 references" in capsys.readouterr().out
    with pytest.raises(ValueError, match="directly in the folder of references"):
        model.verify(queries, "images")


def test_python_interface(here, model):
    paths = ["images/class0/0.png", "images/class0/1.png"]
    array = np.asarray(Image.open(paths[0]))
    [answer] = model.compare(paths)
    assert answer["distance"] == model.distance(array, paths[1])
    assert answer["probability"] == model.probability(*paths)
    for run in (RunDirectory("copy"), types.SimpleNamespace(path=Path("copy"))):
        assert SimilarityModel.load(run).threshold == model.threshold
    with pytest.raises(ValueError, match=r"between 0 and 1. Received: 1.5"):
        model.identify(paths, "images", false_accept_rate=1.5)
    with pytest.raises(ValueError, match="Received: 0"):
        model.search(paths, "images", top=0)
    assert model.search(array, "images")[0]["query"] == "array (16, 16, 3)"


def test_one_image_is_taken_as_one(here, model):
    path = "images/class0/0.png"
    image = np.asarray(Image.open(path))
    one = model.embed([path])
    for given in (path, Path(path), image, image[None], [image], (path,)):
        assert (model.embed(given) == one).all()
    grey = image[..., 0]
    for given in (grey, grey[..., None], [grey], grey[None, ..., None]):
        assert (model.embed(given) == model.embed(np.dstack([grey] * 3))).all(), np.shape(given)
    assert model.embed(np.stack([grey] * 5)).shape == (5, one.shape[1])


def test_what_is_no_image_is_refused_by_name(here, model):
    for shape, dtype, sentence in (
        ((2, 3, 16, 16), "uint8", "Channels come first"),
        ((1, 2, 16, 16, 3), "uint8", "5 axes"),
        ((16,), "uint8", "1 axes"),
        ((16, 16, 3), "float32", "uint8 array .* Received: float32"),
    ):
        for given in (np.zeros(shape, dtype), [np.zeros(shape, dtype)]):
            with pytest.raises(BadImage, match=sentence):
                model.embed(given)
    with pytest.raises(BadImage, match="nowhere.png"):
        model.embed(["images/class0/0.png", "nowhere.png"])


def learned(left, right):
    """A head that says another thing than Euclid, chunk by chunk the same."""
    assert left.shape == right.shape and left.dtype == right.dtype == np.float32
    return 1 - np.exp(-np.abs(left - right) @ np.linspace(0, 0.2, left.shape[1]))


def euclidean(left, right):
    return np.linalg.norm(left - right, axis=1)


@pytest.mark.parametrize("distance", [euclidean, learned])
def test_every_verb_agrees_with_brute_force(here, monkeypatch, distance):
    if distance is learned:
        monkeypatch.setattr(RunDirectory, "load_distance", lambda run: learned)
        monkeypatch.setattr("evaluation.verification.CHUNK", 64)
    model = SimilarityModel(RunDirectory("copy"))
    paths = sorted(str(path) for path in Path("images").rglob("*.png"))
    embeddings = embed_plainly(paths)
    expected = distance(np.repeat(embeddings[:1], len(paths), axis=0), embeddings)
    found = model.search(paths[:1], "images", top=5)[0]["results"]
    assert [one["path"] for one in found] == [paths[row] for row in np.argsort(expected)[:5]]
    assert [one["distance"] for one in found] == pytest.approx(np.sort(expected)[:5], abs=1e-3)
    assert model.compare(paths[:2])[0]["distance"] == pytest.approx(expected[1], abs=1e-4)
    answer = model.identify(paths[:1], "images")[0]
    assert len(answer["candidates"]) == 5
    for one in answer["candidates"]:
        members = [Path(path).parent.name == one["class"] for path in paths]
        assert one["distance"] == pytest.approx(expected[members].min(), abs=1e-3)
