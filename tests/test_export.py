"""Exported files in their own runtimes, against Keras."""

import contextlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import export
from configs import Config
from inference.similarity_model import SimilarityModel
from siamese_network_funcs import build_encoder, build_siamese_network

PATHS = ["images/class0/0.png", "images/class5/1.png", "images/class7/2.png"]


@pytest.fixture(scope="module")
def place(place):
    """A folder with images, a finished run on them, and what was exported of it."""
    with pytest.MonkeyPatch.context() as patch, open(place / "said", "w") as said:
        patch.chdir(place)
        with contextlib.redirect_stdout(said):
            assert export.main(["runs/run", "--format", *export.FORMATS, "--out", "out"]) == 0
    return place


@pytest.fixture
def expected(here):
    """Pixels of three images, their embeddings by Keras, and the distances to the one before."""
    pixels = np.stack([np.asarray(Image.open(path), np.float32) for path in PATHS])
    encoder = keras.saving.load_model("runs/run/encoder.keras", compile=False)
    embeddings = encoder.predict(pixels, verbose=0)
    return pixels, embeddings, np.linalg.norm(embeddings - np.roll(embeddings, 1, axis=0), axis=1)


def run_example(here, form, left, right):
    """Distance and verdict that an example prints, in a folder where no module of ours is found."""
    done = subprocess.run(
        [sys.executable, "-I", here / "out" / f"example_{form}.py", left, right],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, distance, verdict = done.stdout.split()
    return float(distance.rstrip(":")), verdict


@pytest.mark.parametrize("form", export.FORMATS)
def test_files_and_example_agree_with_keras_on_raw_pixels(here, form, expected):
    pixels, embeddings, distances = expected
    suffix, run, _ = export.FORMATS[form]
    assert run(f"out/encoder{suffix}", {"pixels": pixels}) == pytest.approx(embeddings, abs=1e-4)
    sides = {"left": pixels, "right": np.roll(pixels, 1, axis=0)}
    assert run(f"out/pair{suffix}", sides).ravel() == pytest.approx(distances, abs=1e-4)
    assert np.ptp(distances) > 0.01
    large = np.random.default_rng(0).integers(256, size=(77, 123, 4), dtype=np.uint8)
    Image.fromarray(large).save("clear.png")
    model = SimilarityModel("runs/run")
    for pair in (PATHS[:2], [PATHS[0], "clear.png"], [PATHS[0]] * 2):
        [answer] = model.compare(pair)
        distance, verdict = run_example(here, form, *pair)
        assert distance == pytest.approx(answer["distance"], abs=1e-3)
        assert verdict == ("same" if answer["same"] else "different")


def test_the_check_says_on_what_and_fails_on_a_difference(here, capsys, monkeypatch):
    said = (here / "said").read_text().splitlines()
    assert len(said) == 6 and all("on 8 images of images" in line for line in said)
    wrong = (".onnx", lambda *given: export.run_onnx(*given) + 0.01, [])
    monkeypatch.setattr(export, "write_example", lambda *given: None)
    monkeypatch.setitem(export.FORMATS, "onnx", wrong)
    shutil.copytree("runs/run", "lonely")
    (here / "images").rename(here / "gone")
    try:
        assert export.main(["lonely", "--format", "onnx", "--out", "moved"]) == 1
    finally:
        (here / "gone").rename(here / "images")
    captured = capsys.readouterr()
    assert "by at most 1.0e-02 on 8 random images" in captured.out
    assert "more than 0.001" in captured.err


def test_a_learned_distance_in_bfloat16_is_exported_in_float32(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        encoder = build_encoder(Config(image_size=16, embedding_dim=8))
        network = build_siamese_network(encoder, "l1_512")
    finally:
        keras.config.set_dtype_policy("float32")
    for variable in network.get_layer("distance").trainable_variables:
        variable.assign(3 * variable)  # far from always one half
    portable = export.portable(network)
    assert "bfloat16" not in portable.to_json()
    pixels = np.random.default_rng(0).integers(256, size=(8, 16, 16, 3)).astype(np.float32)
    inputs = {"left": pixels, "right": pixels[::-1].copy()}
    expected = network.predict(inputs, verbose=0)
    assert np.ptp(expected) > 0.01
    assert portable.predict(inputs, verbose=0) == pytest.approx(expected, abs=0.05)
    path = tmp_path / "pair.onnx"
    assert export.export(portable, inputs, "onnx", path) < export.LARGEST_DIFFERENCE


@pytest.mark.parametrize("form", ["litert", "tf_saved_model"])
def test_names_of_the_pretrained_network_suit_tensorflow(tmp_path, form):
    encoder = build_encoder(Config(encoder="efficientnet_lite0", image_size=32))
    pixels = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3)).astype(np.float32)
    path = tmp_path / f"encoder{export.FORMATS[form][0]}"
    assert export.export(encoder, {"pixels": pixels}, form, path) < export.LARGEST_DIFFERENCE


def test_wrong_input_is_a_sentence(here, capsys, monkeypatch):
    assert export.main(["nowhere", "--format", "onnx"]) == 2
    assert export.main(["runs/run", "--format", "onnx", "--images", "nowhere"]) == 2
    monkeypatch.setattr("run_directory.importlib.util.find_spec", lambda name: None)
    assert export.main(["runs/run", "--format", "litert"]) == 2
    errors = capsys.readouterr().err
    assert "no run directory" in errors and "which is none" in errors
    assert "ai_edge_litert: pip install -r requirements-extra.txt" in errors
