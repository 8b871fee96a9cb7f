"""Writes a trained run for other programs: encoder and pair model, raw pixels (0 to 255) in.

python export.py RUN --format onnx litert tf_saved_model [--out DIR] [--images FOLDER]

Each file is checked against Keras on images: those of --images, else the run's own, else random.
Beside it lies a program that uses it, for which NumPy, Pillow and the runtime are enough.
"""

import argparse
import inspect
import sys
import tempfile
from pathlib import Path

import numpy as np

from inference.gallery import image_files
from inference.similarity_model import SimilarityModel
from pipeline import reading
from run_directory import RunDirectory, RunError, need, write_whole

CHECKED = 8  # images that Keras and the exported file must agree on
LARGEST_DIFFERENCE = 1e-3
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite", "tf_saved_model": ""}
PACKAGES = {"onnx": ["tf2onnx", "onnx", "onnxruntime"], "litert": ["ai_edge_litert"]}

EXAMPLE = """# The distance between two images:  python example_{form}.py A B

{reading}

if __name__ == "__main__":
    import pathlib, sys, types, {module}
    config = types.SimpleNamespace(image_shape={shape}, fit="{fit}", ink={ink})
    files = [pathlib.Path(name).read_bytes() for name in sys.argv[1:3]]
    left, right = [np.float32(decode(file, config, {ranges})[0])[None] for file in files]
    model = {module}.{load}(str(pathlib.Path(__file__).with_name("pair{suffix}")))
    distance = model.{ask}.item()
    print(f"distance {{distance:.4f}}:", "same" if distance < {threshold!r} else "different")
"""
IN_EXAMPLE = {  # module, what opens a file, and what it is asked
    "onnx": ("onnxruntime", "InferenceSession", 'run(None, {"left": left, "right": right})[0]'),
    "litert": (
        "ai_edge_litert.interpreter",
        "Interpreter",
        'get_signature_runner()(left=left, right=right)["output_0"]',
    ),
    "tf_saved_model": ("tensorflow", "saved_model.load", "serve([left, right]).numpy()"),
}


def run_onnx(path, inputs):
    """The output of a file on a dict of inputs, as the two below."""
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, inputs)[0]


def run_litert(path, inputs):
    """The output of a .tflite file on a dict of inputs."""
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(path).get_signature_runner()(**inputs)["output_0"]


def run_tf_saved_model(path, inputs):
    """The output of a SavedModel folder on a dict of inputs."""
    import tensorflow

    model = tensorflow.saved_model.load(path)
    return model.signatures["serving_default"](**inputs)["output_0"].numpy()


RUNNERS = {"onnx": run_onnx, "litert": run_litert, "tf_saved_model": run_tf_saved_model}


def portable(network):
    """A network in float32, whatever precision it was trained in: converters ask for it."""
    import keras

    text = network.to_json()
    for reduced in ("mixed_bfloat16", "mixed_float16"):
        text = text.replace(reduced, "float32")
    copy = keras.models.model_from_json(text)
    copy.set_weights(network.get_weights())
    return copy


def sample_pixels(model, folder):
    """Images to check on, float32 array (n, height, width, channels), and what they are."""
    try:
        paths = [Path(folder, name) for name in image_files(folder)]
        pixels = [model.pixels(path) for path in paths[:: len(paths) // CHECKED or 1][:CHECKED]]
        return np.stack(pixels).astype(np.float32), f"{len(pixels)} images of {folder}"
    except (ValueError, OSError):  # another machine, or a zip
        shape = (CHECKED, *model.encoder.input_shape[1:])
        pixels = np.random.default_rng(0).integers(256, size=shape)
        return pixels.astype(np.float32), f"{CHECKED} random images"


def export(network, inputs, form, path):
    """Writes one network in one format, whole or not at all, and compares it with Keras.

    Args:
        network: A Keras model.
        inputs: Dict of the names of its inputs to arrays.
        form: One of `SUFFIXES`.
        path: File, or folder for `tf_saved_model`.

    Returns:
        The largest difference between its output and Keras's.

    Raises:
        RunError: If it cannot be written.
    """
    expected = network.predict_on_batch(inputs.get("pixels", inputs))
    try:
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
            partial = Path(folder, path.name)
            network.export(partial, format=form, verbose=False)
            if path.is_dir():
                path.rename(Path(folder, "old"))
            partial.rename(path)
    except Exception as error:  # TensorFlow, ONNX, the disk: each has its own
        why = str(error).strip().splitlines()[0]
        raise RunError(f"'{path}' cannot be written: {why}") from error
    return float(np.abs(RUNNERS[form](str(path), inputs) - expected).max())


def write_example(model, form, out):
    """Writes `example_FORMAT.py`, which reads two images as training did and compares them."""
    config, ranges = model.config, {mode: tuple(both) for mode, both in model.run.ranges.items()}
    module, load, ask = IN_EXAMPLE[form]
    text = EXAMPLE.format(
        form=form, suffix=SUFFIXES[form], module=module, load=load, ask=ask, ranges=ranges,
        reading=inspect.getsource(reading), threshold=model.threshold,
        shape=config.image_shape, fit=config.fit, ink=config.ink,
    )  # fmt: skip
    write_whole(out / f"example_{form}.py", lambda path: path.write_text(text))


def export_all(model, options):
    """Writes and checks encoder and pair model in each format; returns whether all agree."""
    out = Path(options.out or model.run / "export")
    out.mkdir(parents=True, exist_ok=True)
    pixels, source = sample_pixels(model, options.images or model.config.data_dir)
    sides = {"left": pixels, "right": pixels[::-1].copy()}
    encoder, pair = portable(model.encoder), portable(model.run.load_model())
    worst = 0.0
    for form in options.format:
        for name, *given in (("encoder", encoder, {"pixels": pixels}), ("pair", pair, sides)):
            path = out / f"{name}{SUFFIXES[form]}"
            worst = max(worst, difference := export(*given, form, path))
            print(f"{path}: differs from Keras by at most {difference:.1e} on {source}")
        write_example(model, form, out)
    return worst <= LARGEST_DIFFERENCE


def main(args=None):
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a finished run directory")
    parser.add_argument("--format", nargs="+", choices=SUFFIXES, required=True)
    parser.add_argument("--out", help="folder for the files; RUN/export by default")
    parser.add_argument("--images", help="folder of images to check on")
    options = parser.parse_args(args)
    try:
        RunDirectory(options.run).read_json("threshold.json")
        if options.images:
            image_files(options.images)
        for form in options.format:
            for package in PACKAGES.get(form, ()):
                need(package, f"Exporting to {form}")
        agrees = export_all(SimilarityModel.load(options.run), options)
    except (ValueError, OSError) as error:  # DataError and RunError are ValueErrors
        print(error, file=sys.stderr)
        return 2
    if not agrees:
        print(f"A file differs from Keras by more than {LARGEST_DIFFERENCE}.", file=sys.stderr)
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
