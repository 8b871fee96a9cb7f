"""Using a run that was copied to a place without its data: compare, identify, search."""

import json
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

import gallery
import predict
import train
from image_cache import BadImage
from similarity import SimilarityModel

TINY = (
    "--image_size 16 --classes_per_batch 4 --images_per_class 4 --steps_per_epoch 25 --epochs 2 "
    "--embedding_dim 8 --precision float32 --unseen_share 0.25"
).split()
NUM_CLASSES, PER_CLASS = 8, 14


def noise_folder(folder):
    """Classes of noise about a colour each."""
    rng = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        color = 75 + 100 * np.array([label & 1, label >> 1 & 1, label >> 2])
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = (color + rng.normal(0, 40, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder `images`, and a run on images that are gone, copied from elsewhere."""
    folder = tmp_path_factory.mktemp("predict")
    noise_folder(folder / "gone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.main(["leaves", "--data_dir", "gone", *TINY, "--run_name", "run"]) == 0
    shutil.move(folder / "runs" / "run", folder / "copy")
    shutil.move(folder / "gone", folder / "images")
    for name in ("runs", "data"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    shutil.rmtree("copy/embeddings", ignore_errors=True)
    return place


@pytest.fixture(scope="module")
def model(place):
    return SimilarityModel.load(place / "copy")


def ask(capsys, *args, status=0):
    """Runs predict with --json; gives the answers and what it said on standard error."""
    capsys.readouterr()
    assert predict.main([args[0], "copy", *args[1:], "--json"]) == status
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def embed_plainly(paths):
    """Embeddings by Keras and Pillow alone; the images have the network's size already."""
    encoder = keras.saving.load_model("copy/encoder.keras", compile=False)
    return encoder.predict(
        np.stack([np.asarray(Image.open(p), np.float32) for p in paths]), verbose=0
    )


def test_compare_agrees_with_the_two_input_model(here, capsys):
    paths = ["images/class0/0.png", "images/class0/1.png", "images/class7/0.png"]
    answers, _ = ask(capsys, "compare", *paths, "--figure", "pairs.png")
    assert [(one["a"], one["b"]) for one in answers] == [
        (paths[0], paths[1]),
        (paths[0], paths[2]),
        (paths[1], paths[2]),
    ]
    import siamese_network_funcs  # noqa: F401  registers the distance

    pair_model = keras.saving.load_model("copy/model.keras", compile=False)
    decision = json.loads((here / "copy" / "threshold.json").read_text())
    slope, intercept = decision["calibration"]
    for one in answers:
        sides = [np.asarray(Image.open(one[k]), np.float32)[None] for k in "ab"]
        distance = pair_model.predict(sides, verbose=0).item()
        assert one["distance"] == pytest.approx(distance, abs=1e-4)
        odds = np.exp(-slope * distance - intercept)
        assert one["probability"] == pytest.approx(1 / (1 + odds), abs=1e-3)
        assert one["same"] == (one["distance"] < decision["threshold"])
    assert np.asarray(Image.open("pairs.png")).std() > 1


def write_odd_files(folder):
    """Files as they come; the readable ones show one picture."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    grey = rng.integers(256, size=(16, 16), dtype=np.uint8)
    (folder / "text.jpg").write_text("no picture")
    Image.fromarray(grey).save(folder / "plain.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.tiff")
    alpha = np.dstack([np.zeros((16, 16, 3), np.uint8), 255 - grey])  # black ink on nothing
    Image.fromarray(alpha).save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    Image.fromarray(np.rot90(grey)).save(folder / "turned.png", exif=exif)
    Image.new("RGB", (1, 1), "white").save(folder / "one.png")
    (folder / "empty").mkdir()


def test_odd_files_are_read_upright_or_reported_one_by_one(here, capsys, tmp_path):
    odd = tmp_path / "odd"
    write_odd_files(odd)
    names = ["plain.png", "deep.tiff", "clear.png", "turned.png", "one.png"]
    bad = [str(odd / "text.jpg"), str(odd / "missing.png"), str(odd / "empty")]
    answers, errors = ask(capsys, "compare", *[str(odd / n) for n in names], *bad, status=1)
    assert len(answers) == 10
    for one in answers:
        alike = not {str(odd / "one.png")} & {one["a"], one["b"]}
        assert (one["distance"] < 0.02) == alike, one
    for path in bad:
        assert path in errors
    assert "not an image" in errors and "no such file" in errors and "No images" in errors
    for verb, option in (("identify", "--references"), ("search", "--gallery")):
        answers, errors = ask(capsys, verb, *bad, str(odd / "one.png"), option, "images", status=1)
        assert [one["query"] for one in answers] == [str(odd / "one.png")]
        answers, errors = ask(capsys, verb, "images/class0/0.png", option, str(odd), status=1)
        assert f"{odd / 'text.jpg'}: not an image" in errors and len(answers) == 1
        answers, _ = ask(capsys, verb, str(odd / "text.jpg"), option, "images", status=2)
        assert answers == []


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["compare", "copy", "nowhere.png", "images/class0/0.png"], "needs at least 2 images"),
        (["compare", "nowhere", "images/class0"], "no run directory"),
        (["identify", "copy", "images/class0", "--references", "nowhere"], "which is none"),
        (["search", "copy", "images/class0", "--gallery", "empty"], "No images in the folder"),
        (["search", "copy", "empty", "--gallery", "images"], "needs at least 1 image"),
        (["serve", "copy", "--gallery", "nowhere"], "which is none"),
    ],
)
def test_wrong_paths_are_a_sentence_before_keras_starts(here, capsys, monkeypatch, args, sentence):
    (here / "empty").mkdir(exist_ok=True)
    monkeypatch.setattr("similarity.start_keras", lambda: pytest.fail("Keras was started"))
    assert predict.main(args) == 2
    assert sentence in capsys.readouterr().err


def test_folders_and_globs_are_expanded(here, capsys):
    answers, _ = ask(capsys, "search", "images/class0", "images/class[12]/3.png",
                     "--gallery", "images", "--top", "1")  # fmt: skip
    expected = {f"images/class0/{n}.png" for n in range(PER_CLASS)}
    expected |= {"images/class1/3.png", "images/class2/3.png"}
    assert {one["query"] for one in answers} == expected
    assert all(one["results"][0]["path"] == one["query"] for one in answers)


def test_identify_takes_the_nearest_reference_and_turns_strangers_away(here, capsys, model):
    queries = [f"images/class{label}/{n}.png" for label in range(NUM_CLASSES) for n in (5, 6)]
    for label in range(5):  # three references a class, but one for class 4
        for number in range(3) if label < 4 else [0]:
            source = f"images/class{label}/{number}.png"
            name = f"class{label}/{number}.png" if label < 4 else "class4.png"
            (here / "references" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, here / "references" / name)
    answers, _ = ask(capsys, "identify", *queries, "--references", "references")
    members = {
        f"class{label}": embed_plainly(
            [f"images/class{label}/{n}.png" for n in (range(3) if label < 4 else [0])]
        )
        for label in range(5)
    }
    embeddings = np.concatenate(list(members.values()))
    labels = np.repeat(np.arange(5), [len(group) for group in members.values()])
    reach = model.reach(13, 0.01) * model.crowding(embeddings, labels, 0.01)
    for answer, embedding in zip(answers, embed_plainly(queries), strict=True):
        distances = np.linalg.norm(embeddings - embedding, axis=1)
        best = f"class{labels[distances.argmin()]}"
        assert answer["candidates"][0]["class"] == best
        assert answer["distance"] == pytest.approx(distances.min(), abs=1e-4)
        assert answer["class"] == (best if distances.min() < reach else None)
        likely = model.probability_at(distances.min())
        assert answer["probability"] == pytest.approx(likely, abs=1e-3)
    assert {"query", "class", "probability", "distance", "candidates"} == set(answers[0])
    assert {one["class"] for one in answers} > {None, "class0"}
    stranger = next(one["query"] for one in answers if one["class"] is None)
    assert predict.main(["identify", "copy", stranger, "--references", "references"]) == 0
    assert "none of these" in capsys.readouterr().out


def test_reach_keeps_the_rate_for_all_references_together(model):
    """Strangers whose distance to every reference is drawn from the validation impostors'."""
    rng = np.random.default_rng(0)
    impostors = rng.beta(5, 3, 200_000)
    shares = np.geomspace(1e-5, 0.5, 60)
    decision = {"threshold": 0.5, "calibration": [-1.0, 0.0]}
    decision["impostor_quantiles"] = [[s, np.quantile(impostors, s)] for s in shares]
    other = SimilarityModel(model.run, model.config, model.encoder, decision)
    for references, rate in ((1, 0.01), (20, 0.01), (20, 0.1), (100, 0.05)):
        nearest = rng.choice(impostors, (20_000, references)).min(axis=1)
        accepted = np.mean(nearest < other.reach(references, rate))
        assert abs(accepted - rate) < 4 * np.sqrt(rate / 20_000) + 0.03 * rate
    del decision["impostor_quantiles"]
    assert other.reach(20, 0.01) == 0.5  # a run that did not keep them


def test_strangers_of_a_crowded_kind_are_turned_away(model):
    """Classes lie closer than those of validation, as unseen ones do; so do their strangers."""
    rng = np.random.default_rng(1)

    def distances(centres):
        pairs = np.linalg.norm(centres[:, None] - centres, axis=2)
        return pairs[np.triu_indices(len(centres), 1)]

    table = np.array([
        [share, np.quantile(distances(rng.normal(size=(400, 8))), share)]
        for share in np.geomspace(1e-4, 0.5, 40)
    ])  # fmt: skip
    decision = {"threshold": 0.5, "calibration": [-1.0, 0.0], "impostor_quantiles": table.tolist()}
    other = SimilarityModel(model.run, model.config, model.encoder, decision)
    accepted, uncorrected = [], []
    for _ in range(100):
        references, strangers = (0.6 * rng.normal(size=(n, 8)) for n in (20, 200))
        nearest = np.linalg.norm(strangers[:, None] - references, axis=2).min(axis=1)
        reach = other.reach(20, 0.05)
        uncorrected.append(np.mean(nearest < reach))
        accepted.append(np.mean(nearest < reach * other.crowding(references, np.arange(20), 0.05)))
    assert np.mean(uncorrected) > 0.3 and 0.01 < np.mean(accepted) < 0.09
    assert other.crowding(references[:1], np.arange(1), 0.05) == 1.0
    assert other.crowding(3 * references, np.arange(20), 0.05) == 1.0


def test_search_agrees_with_brute_force(here, capsys):
    paths = sorted(str(path) for path in (here / "images").rglob("*.png"))
    query = "images/class3/2.png"
    answers, _ = ask(capsys, "search", query, "--gallery", str(here / "images"), "--top", "5",
                     "--figure", "found.png")  # fmt: skip
    distances = np.linalg.norm(embed_plainly(paths) - embed_plainly([query]), axis=1)
    order = np.argsort(distances, kind="stable")[:5]
    assert [one["path"] for one in answers[0]["results"]] == [paths[row] for row in order]
    found = [one["distance"] for one in answers[0]["results"]]
    assert found == pytest.approx(distances[order].tolist(), abs=1e-3)
    assert np.asarray(Image.open("found.png")).std() > 1
    answers, _ = ask(capsys, "search", query, "--gallery", "images/class1", "--top", "99")
    assert len(answers[0]["results"]) == PER_CLASS


class Counting:
    """Stands in for the encoder: the mean colour, and a note of what it was asked."""

    def __init__(self, fail_after=None):
        self.asked, self.fail_after = [], fail_after

    def __call__(self, paths):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += paths
        means = [np.asarray(Image.open(path), np.float32).mean(axis=(0, 1)) for path in paths]
        return np.stack(means), {}


def test_gallery_embeds_only_what_is_new_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "PART", 10)
    noise_folder(tmp_path / "images")
    folder, store = tmp_path / "images", tmp_path / "store"
    killed, resumed, again, refreshed = Counting(35), Counting(), Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        gallery.open_gallery(folder, store, killed)
    assert len(killed.asked) == 40
    gallery.open_gallery(folder, store, resumed)
    total = NUM_CLASSES * PER_CLASS
    assert len(resumed.asked) == total - 40 and not set(resumed.asked) & set(killed.asked)
    opened = gallery.open_gallery(folder, store, again)
    assert not again.asked and len(list(store.iterdir())) == 1
    (folder / "class0" / "0.png").unlink()
    shutil.copy(folder / "class7" / "0.png", folder / "class1" / "0.png")
    shutil.copy(folder / "class7" / "0.png", folder / "new.png")
    opened = gallery.open_gallery(folder, store, refreshed)
    assert {str(p) for p in refreshed.asked} == {
        str(folder / "new.png"),
        str(folder / "class1" / "0.png"),
    }
    assert "class0/0.png" not in opened.names and len(opened.names) == total
    for row in (0, 20, opened.names.index("new.png")):
        pixels = np.asarray(Image.open(opened.path(row)), np.float32)
        assert opened.embeddings[row] == pytest.approx(pixels.mean(axis=(0, 1)), rel=1e-6)


def clustered(count, rng):
    """Embeddings of unit length, in clusters as a network makes them, and queries near some."""
    centres = rng.normal(size=(count // 50, 64))
    points = centres[rng.integers(len(centres), size=count)] + rng.normal(size=(count, 64)) / 2
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    queries = points[rng.choice(count, 100)] + rng.normal(size=(100, 64)) / 50
    return points.astype(np.float32), queries.astype(np.float32)


def index_recall(tmp_path, count):
    """Share of the ten true neighbours that the index finds, and the gallery."""
    points, queries = clustered(count, np.random.default_rng(0))
    names = [f"{row}.png" for row in range(count)]
    opened = gallery.Gallery("images", names, [""] * count, points, tmp_path)
    assert opened._index is not None
    hits = []
    for query in queries:
        rows, distances = opened.search(query, 10)
        true = np.linalg.norm(points - query, axis=1)
        hits.append(np.isin(rows, np.argsort(true)[:10]).mean())
        assert distances == pytest.approx(true[rows], rel=1e-5) and (np.diff(distances) >= 0).all()
    return np.mean(hits), opened, queries


def test_index_of_a_large_gallery_agrees_with_brute_force(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "MOST_EXACT", 1000)
    recall, _, _ = index_recall(tmp_path, 3000)
    assert recall >= 0.98 and (tmp_path / "neighbours.usearch").exists()


@pytest.mark.slow
def test_search_over_100_000_is_fast_and_finds_98_percent(tmp_path):
    import time

    recall, opened, queries = index_recall(tmp_path, 100_000)
    begin = time.perf_counter()
    for query in queries:
        opened.search(query, 10)
    assert (time.perf_counter() - begin) / len(queries) < 0.020 and recall >= 0.98


def test_python_interface(here, model):
    paths = ["images/class0/0.png", "images/class0/1.png"]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    assert model.embed(paths) == pytest.approx(embed_plainly(paths), abs=1e-5)
    assert (model.embed(arrays) == model.embed(paths)).all()
    assert model.distance(*paths) == model.distance(arrays[0], paths[1])
    assert model.probability(*paths) == model.probability_at(model.distance(*paths))
    with pytest.raises(BadImage, match="uint8"):
        model.embed([arrays[0] / 255])
    with pytest.raises(BadImage, match="nowhere.png"):
        model.embed([paths[0], "nowhere.png"])
    answer = model.identify(arrays[:1], "images", false_accept_rate=0.1)[0]
    assert answer["query"] == "array (16, 16, 3)"


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("run_directory.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(gallery, "MOST_EXACT", 10)
    with pytest.raises(ValueError, match=r"usearch: pip install -r requirements-extra\.txt"):
        index_recall(tmp_path, 100)
