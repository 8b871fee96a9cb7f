"""Writes a trained run for other programs: encoder and pair model, raw pixels (0 to 255) in.

python export.py RUN --format onnx litert tf_saved_model [--out DIR] [--images FOLDER]

Each file is checked against Keras on images: those of --images, else the run's own, else random.
Beside it lies a program that uses it, for which NumPy, Pillow and the runtime are enough.
"""

import argparse
import inspect
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from inference.gallery import image_files
from inference.similarity_model import SimilarityModel
from pipeline import reading
from run_directory import RunError, require_package, write_text

CHECKED = 8  # images that Keras and the exported file must agree on
LARGEST_DIFFERENCE = 1e-3

EXAMPLE = """# The distance between two images:  python example_{form}.py A B

{reading}

{runner}

if __name__ == "__main__":
    import pathlib, sys, types
    config = types.SimpleNamespace(image_shape={shape}, fit="{fit}", ink={ink})
    files = [pathlib.Path(name).read_bytes() for name in sys.argv[1:3]]
    left, right = [np.float32(decode(file, config, {ranges})[0])[None] for file in files]
    path = str(pathlib.Path(__file__).with_name("pair{suffix}"))
    distance = run_{form}(path, {{"left": left, "right": right}}).item()
    print(f"distance {{distance:.4f}}:", "same" if distance < {threshold!r} else "different")
"""


def run_onnx(path, inputs):
    """The output of a file on a dict of inputs."""
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, inputs)[0]


def run_litert(path, inputs):
    """The output of a file on a dict of inputs."""
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(path).get_signature_runner()(**inputs)["output_0"]


def run_tf_saved_model(path, inputs):
    """The output of a folder on a dict of inputs."""
    import tensorflow

    model = tensorflow.saved_model.load(path)
    return model.signatures["serving_default"](**inputs)["output_0"].numpy()


FORMATS = {  # suffix, what runs it (here and in the example), packages
    "onnx": (".onnx", run_onnx, ["tf2onnx", "onnx", "onnxruntime"]),
    "litert": (".tflite", run_litert, ["ai_edge_litert"]),
    "tf_saved_model": ("", run_tf_saved_model, []),
}


def export_all(model, forms, out, images):
    """Writes encoder, pair model and example of a `SimilarityModel` into a folder, in each format.

    They are compared with Keras on `images`, a folder. Returns the largest difference.
    """
    out.mkdir(parents=True, exist_ok=True)
    pixels, source = sample_pixels(model, images)
    networks = {
        "encoder": (portable(model.encoder), {"pixels": pixels}),
        "pair": (portable(model.run.load_model()), {"left": pixels, "right": pixels[::-1].copy()}),
    }
    differences = []
    for form in forms:
        for name, (network, inputs) in networks.items():
            path = out / f"{name}{FORMATS[form][0]}"
            differences.append(export(network, inputs, form, path))
            print(f"{path}: differs from Keras by at most {differences[-1]:.1e} on {source}")
        write_example(model, form, out / f"example_{form}.py")
    return max(differences)


def sample_pixels(model, folder):
    """Images to check on, float32 array (n, height, width, channels), and what they are."""
    try:
        paths = [Path(folder, name) for name in image_files(folder)]
        pixels = [model.pixels(path) for path in paths[:: len(paths) // CHECKED or 1][:CHECKED]]
        return np.stack(pixels).astype(np.float32), f"{len(pixels)} images of {folder}"
    except (ValueError, OSError):  # another machine, or a zip
        pixels = np.random.default_rng(0).integers(256, size=(CHECKED, *model.config.image_shape))
        return pixels.astype(np.float32), f"{CHECKED} random images"


def portable(network):
    """A network in float32, whatever precision it was trained in: converters ask for it."""
    import keras

    text = re.sub("mixed_b?float16", "float32", network.to_json())
    copy = keras.models.model_from_json(text)
    copy.set_weights(network.get_weights())
    return copy


def export(network, inputs, form, path):
    """Writes a Keras model in one of `FORMATS`, whole or not at all, and compares it with Keras.

    `inputs` are its inputs' names and arrays. Returns the largest difference between the outputs.
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
    return float(np.abs(FORMATS[form][1](str(path), inputs) - expected).max())


def write_example(model, form, path):
    """Writes a program that reads two images as training did and compares them."""
    config, (suffix, runner, _) = model.config, FORMATS[form]
    text = EXAMPLE.format(
        form=form, suffix=suffix, reading=inspect.getsource(reading),
        runner=inspect.getsource(runner), threshold=model.threshold, shape=config.image_shape,
        fit=config.fit, ink=config.ink, ranges=dict(model.run.ranges),
    )  # fmt: skip
    write_text(path, text)


def main(args=None):
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a finished run directory")
    parser.add_argument("--format", nargs="+", choices=FORMATS, required=True)
    parser.add_argument("--out", type=Path, help="folder for the files; RUN/export by default")
    parser.add_argument("--images", help="folder of images to check on")
    options = parser.parse_args(args)
    try:
        if options.images:
            image_files(options.images)
        for form in options.format:
            for package in FORMATS[form][2]:
                require_package(package, f"Exporting to {form}")
        model = SimilarityModel(options.run)
        out, images = options.out or model.run / "export", options.images or model.config.data_dir
        worst = export_all(model, options.format, out, images)
    except (ValueError, OSError) as error:  # DataError and RunError are ValueErrors
        print(error, file=sys.stderr)
        return 2
    if worst > LARGEST_DIFFERENCE:
        print(f"A file differs from Keras by more than {LARGEST_DIFFERENCE}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
