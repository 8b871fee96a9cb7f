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
from siamese_network_funcs import build_encoder, build_siamese_network

FORMATS = ["onnx", "litert", "tf_saved_model"]


@pytest.fixture(scope="module")
def place(tiny_run, tmp_path_factory):
    """A folder with images, a finished run on them, and what was exported of it."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(tiny_run, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, open(folder / "said", "w") as said:
        patch.chdir(folder)
        with contextlib.redirect_stdout(said):
            assert export.main(["runs/run", "--format", *FORMATS, "--out", "out"]) == 0
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def images():
    paths = ["images/class0/0.png", "images/class5/1.png", "images/class7/2.png"]
    return paths, np.stack([np.asarray(Image.open(path), np.float32) for path in paths])


def keras_outputs():
    _, pixels = images()
    encoder = keras.saving.load_model("runs/run/encoder.keras", compile=False)
    embeddings = encoder.predict(pixels, verbose=0)
    return embeddings, np.linalg.norm(embeddings - np.roll(embeddings, 1, axis=0), axis=1)


def run_in_onnxruntime(name, *inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(f"out/{name}.onnx")
    feed = {"pixels": inputs[0]} if len(inputs) == 1 else {"left": inputs[0], "right": inputs[1]}
    return session.run(None, feed)[0]


def run_in_litert(name, *inputs):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(f"out/{name}.tflite")
    details = interpreter.get_input_details()
    for detail in details:
        interpreter.resize_tensor_input(detail["index"], inputs[0].shape)
    interpreter.allocate_tensors()
    for detail in details:
        interpreter.set_tensor(detail["index"], inputs["right" in detail["name"]])
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def run_saved_model(name, *inputs):
    import tensorflow

    loaded = tensorflow.saved_model.load(f"out/{name}")
    signature = loaded.signatures["serving_default"]
    names = ["pixels"] if len(inputs) == 1 else ["left", "right"]
    feed = {key: tensorflow.constant(value) for key, value in zip(names, inputs, strict=True)}
    return signature(**feed)["output_0"].numpy()


@pytest.mark.parametrize("run", [run_in_onnxruntime, run_in_litert, run_saved_model])
def test_files_agree_with_keras_on_raw_pixels(here, run):
    _, pixels = images()
    embeddings, distances = keras_outputs()
    assert run("encoder", pixels) == pytest.approx(embeddings, abs=1e-4)
    found = run("pair", pixels, np.roll(pixels, 1, axis=0))
    assert found.ravel() == pytest.approx(distances, abs=1e-4)
    assert np.ptp(distances) > 0.01


@pytest.mark.parametrize("form", FORMATS)
def test_example_prints_the_distance(here, form, tmp_path):
    paths, _ = images()
    done = subprocess.run(
        [sys.executable, here / "out" / f"example_{form}.py", *paths[:2]],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert len((here / "out" / f"example_{form}.py").read_text().splitlines()) == 10
    distance = float(done.stdout.split()[1].rstrip(":"))
    assert distance == pytest.approx(keras_outputs()[1][1], abs=1e-3), done.stderr


def test_the_check_says_on_what_and_fails_on_a_difference(here, capsys, monkeypatch):
    said = (here / "said").read_text().splitlines()
    assert len(said) == 6 and all("on 8 images of images" in line for line in said)
    monkeypatch.setitem(export.RUNNERS, "onnx", lambda *given: export.run_onnx(*given) + 0.01)
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
    assert {layer.compute_dtype for layer in portable._flatten_layers()} == {"float32"}
    pixels = np.random.default_rng(0).integers(256, size=(8, 16, 16, 3)).astype(np.float32)
    inputs = {"left": pixels, "right": pixels[::-1].copy()}
    expected = network.predict(inputs, verbose=0)
    assert np.ptp(expected) > 0.01
    assert portable.predict(inputs, verbose=0) == pytest.approx(expected, abs=0.05)
    for form in FORMATS:
        path = tmp_path / f"pair{export.SUFFIXES[form]}"
        assert export.export(portable, inputs, form, path) < export.LARGEST_DIFFERENCE


def test_wrong_input_is_a_sentence(here, capsys, monkeypatch):
    assert export.main(["nowhere", "--format", "onnx"]) == 2
    assert export.main(["runs/run", "--format", "onnx", "--images", "nowhere"]) == 2
    monkeypatch.setattr("run_directory.importlib.util.find_spec", lambda name: None)
    assert export.main(["runs/run", "--format", "litert"]) == 2
    errors = capsys.readouterr().err
    assert "no run directory" in errors and "which is none" in errors
    assert "ai_edge_litert: pip install -r requirements-extra.txt" in errors
