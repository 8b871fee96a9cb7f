"""Writes a trained run for other programs: encoder and pair model, raw pixels (0 to 255) in.

python export.py RUN --format onnx litert tf_saved_model [--out DIR] [--images FOLDER]

Each file is checked against Keras on images: those of --images, else the run's own, else random.
Beside it lies a short program that uses it.
"""

import argparse
import inspect
import itertools
import shutil
import sys
from pathlib import Path

import numpy as np

from gallery import image_files
from image_cache import BadImage
from image_index import DataError
from run_directory import RunDirectory, need, write_whole
from similarity import SimilarityModel

CHECKED = 8  # images that Keras and the exported file must agree on
LARGEST_DIFFERENCE = 1e-3
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite", "tf_saved_model": ""}
PACKAGES = {
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
    "tf_saved_model": ("tensorflow",),
}

EXAMPLE = """# The distance between two images:  python {name} A B
import pathlib, sys
import numpy as np
from PIL import Image, ImageOps

{runner}
run = {function}(str(pathlib.Path(__file__).with_name("{model}")))
images = [ImageOps.exif_transpose(Image.open(file)).convert("{mode}") for file in sys.argv[1:3]]
small = [np.float32(image.resize(({size}, {size}), 2)) for image in images]
distance = run(*[pixels.reshape(1, {size}, {size}, {channels}) for pixels in small]).item()
print(f"distance {{distance:.4f}}:", "same" if distance < {threshold} else "different")
"""


# These run a model of each format, in the check and, word for word, in the example.


def run_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]
    return lambda *pixels: session.run(None, dict(zip(names, pixels, strict=True)))[0]


def run_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(path).get_signature_runner()
    names = sorted(signature.get_input_details())
    return lambda *pixels: signature(**dict(zip(names, pixels, strict=True)))["output_0"]


def run_tf_saved_model(path):
    import tensorflow

    model = tensorflow.saved_model.load(path)
    return lambda *pixels: model.serve(pixels[0] if len(pixels) == 1 else list(pixels)).numpy()


RUNNERS = {"onnx": run_onnx, "litert": run_litert, "tf_saved_model": run_tf_saved_model}


def portable_encoder(encoder):
    """The encoder in float32, whatever precision it was trained in: converters ask for it."""
    import keras

    text = (
        encoder.to_json().replace("mixed_bfloat16", "float32").replace("mixed_float16", "float32")
    )
    portable = keras.models.model_from_json(text)
    portable.set_weights(encoder.get_weights())
    return portable


def sample_pixels(model, folder):
    """Images to check on, float32 array (CHECKED, size, size, channels), and what they are."""
    shape = (CHECKED, *model.encoder.input_shape[1:])
    pixels = []
    try:
        names = list(image_files(folder))
        for name in names[:: max(1, len(names) // CHECKED)][:CHECKED]:
            pixels.append(model.pixels(Path(folder) / name))
    except (DataError, BadImage, OSError):
        pass  # another machine, or a zip
    if len(pixels) < CHECKED:
        return np.random.default_rng(0).integers(256, size=shape).astype(
            np.float32
        ), "random images"
    return np.stack(pixels).astype(np.float32), f"images of {folder}"


def export(model, network, inputs, form, path):
    """Writes one network in one format, whole or not at all, and compares it with Keras.

    Args:
        model: The `SimilarityModel` it is of.
        network: A Keras model.
        inputs: List of arrays, one an input of the network.
        form: One of `SUFFIXES`.
        path: File, or folder for `tf_saved_model`.

    Returns:
        The largest difference between its output and Keras's.
    """
    expected = network.predict_on_batch(inputs if len(inputs) > 1 else inputs[0])
    partial = path.with_name(f"partial-{path.name}")
    network.export(partial, format=form, verbose=False)
    if path.is_dir():
        shutil.rmtree(path)
    partial.replace(path)
    return float(np.abs(RUNNERS[form](str(path))(*inputs) - expected).max())


def write_example(model, form, out):
    """Writes `example_FORMAT.py`, which prints the distance between two images."""
    name = f"example_{form}.py"
    text = EXAMPLE.format(
        name=name,
        model=f"pair{SUFFIXES[form]}",
        runner=inspect.getsource(RUNNERS[form]),
        function=RUNNERS[form].__name__,
        mode="L" if model.config.channels == 1 else "RGB",
        size=model.config.image_size,
        channels=model.config.channels,
        threshold=round(model.threshold, 6),
    )
    write_whole(out / name, lambda path: path.write_text(text))


def export_all(model, options):
    """Writes and checks encoder and pair model in each format; returns whether all agree."""
    from siamese_network_funcs import build_siamese_network

    out = Path(options.out or model.run / "export")
    out.mkdir(parents=True, exist_ok=True)
    encoder = portable_encoder(model.encoder)
    pixels, source = sample_pixels(model, options.images or model.config.data_dir)
    networks = {
        "encoder": (encoder, [pixels]),
        "pair": (build_siamese_network(encoder), [pixels, pixels[::-1].copy()]),
    }
    worst = 0.0
    for form, (name, (network, inputs)) in itertools.product(options.format, networks.items()):
        path = out / f"{name}{SUFFIXES[form]}"
        difference = export(model, network, inputs, form, path)
        worst = max(worst, difference)
        print(f"{path}: differs from Keras by at most {difference:.1e} on {CHECKED} {source}")
        write_example(model, form, out)
    return worst <= LARGEST_DIFFERENCE


def parse(args):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a finished run directory")
    parser.add_argument("--format", nargs="+", choices=SUFFIXES, required=True)
    parser.add_argument("--out", help="folder for the files; RUN/export by default")
    parser.add_argument("--images", help="folder of images to check on")
    return parser.parse_args(args)


def main(args=None):
    """Runs the command line; returns the exit status."""
    options = parse(args)
    try:
        RunDirectory(options.run).read_json("threshold.json")
        if options.images:
            image_files(options.images)
        for form in options.format:
            for package in PACKAGES[form]:
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
