"""The encoders: raw pixels (0 to 255) -> what describes an image. Knows no files but weights.

Each `build_*` function takes `input_shape`, `(height, width, channels)`, and `embedding_dim`, and
gives a `keras.Model` from pixels (batch, height, width, channels) to (batch, embedding_dim).
"""

import sys

import keras
import numpy as np
from keras import initializers, layers, ops, regularizers

BACKBONE = "backbone"  # layer that holds pretrained weights
SPREAD = 0.23  # of centred ink: root mean square distance from the middle, as a share of the side
MOST_ZOOM = 1.6  # of ink that is centred, in or out


def build_base_network(input_shape, embedding_dim=50):
    """Recipe 1: three convolutions of 16, 32, 16 filters with dropout, and two dense layers."""
    parts = []
    for filters in (16, 32, 16):
        parts += [layers.Conv2D(filters, 3, activation="relu")]
        parts += [layers.MaxPooling2D(2), layers.Dropout(0.25)]
    parts += [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dropout(0.1)]
    parts += [layers.Dense(embedding_dim, activation="relu")]
    return _chain("leaf_cnn", input_shape, parts)


def build_compact_network(input_shape, embedding_dim=128):
    """Ours, for photographs: strided 3x3 convolutions, batch norm, global pooling."""
    parts = _block(32, strides=2) + _block(64) + _block(128) + _block(256, pooled=False)
    parts += [layers.GlobalAveragePooling2D(), layers.Dense(embedding_dim)]
    return _chain("compact", input_shape, parts)


def build_spatial_network(input_shape, embedding_dim=256, name="spatial", before=()):
    """Ours, for what is centred and upright, as faces: it keeps where things are."""
    parts = _block(32, strides=2, pooled=False, size=5) + _block(64) + _block(96) + _block(128)
    parts += [layers.Flatten(), layers.Dense(embedding_dim)]
    return _chain(name, input_shape, parts, before)


def build_drawing_network(input_shape, embedding_dim=256):
    """Ours, for characters: what is drawn is centred and brought to one size, then as `spatial`.

    The network sees three quarters of the pixels along each side.
    """
    centring = _build_centring(input_shape, 3 * input_shape[0] // 4)
    return build_spatial_network(input_shape, embedding_dim, "drawing", [centring])


def _chain(name, input_shape, parts, before=()):
    """Layers one after another, from raw pixels on."""
    parts = [keras.Input(input_shape), *before, layers.Rescaling(1 / 255), *parts]
    return keras.Sequential(parts, name=name)


def _block(filters, strides=1, pooled=True, size=3):
    """Layers of one block; pooling comes early, as what follows has a quarter of the work then."""
    convolution = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)
    pooling = [layers.MaxPooling2D(2, padding="same")] if pooled else []
    # Keras's momentum of 0.99 lags behind a short training by hundreds of steps.
    return [convolution, *pooling, layers.BatchNormalization(momentum=0.9), layers.ReLU()]


class FusedBatchNormalization(layers.BatchNormalization):
    """Keras's batch norm, in the one kernel that TensorFlow has for it, while it trains.

    Keras makes some ten passes in float32 of it; a training step is 15% shorter in bfloat16.
    """

    def call(self, inputs, training=None):
        """As Keras's."""
        if self.synchronized or not (training and self.trainable):
            return super().call(inputs, training=training)
        import tensorflow as tf  # keras.ops has no such operation

        outputs, mean, variance, *_ = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma.value, self.beta.value, epsilon=self.epsilon
        )
        count = ops.cast(ops.size(inputs) // inputs.shape[-1], "float32")
        variance *= (count - 1) / count  # Keras's is the biased one
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + new * (1 - self.momentum))
        return outputs


def fuse(encoder):
    """The same encoder, its layers shared, for training alone: with `FusedBatchNormalization`.

    On other backends than TensorFlow it stays as it is.
    """
    if keras.backend.backend() != "tensorflow":
        return encoder

    def of(layer):
        if type(layer) is not layers.BatchNormalization:
            return layer
        return FusedBatchNormalization.from_config(layer.get_config())

    return keras.models.clone_model(encoder, clone_function=of, recursive=True)


def _build_centring(input_shape, size):
    """Raw pixels (batch, height, width, channels) to (batch, size, size, channels).

    The ink, all that differs from the corners, comes to the middle and to one spread, its aspect
    half way to a square. Sampling is two products with matrices of triangles, as the attention of
    Gregor et al., "DRAW", 2015.
    """
    pixels = keras.Input(input_shape)
    corners = pixels[:, :: input_shape[0] - 1, :: input_shape[1] - 1]
    ground = ops.mean(corners, axis=(1, 2), keepdims=True)
    drawn = pixels - ground
    ink = ops.sum(ops.abs(drawn), axis=-1)  # (batch, height, width)
    places = [_mean_and_variance(ops.sum(ink, axis=axis)) for axis in (2, 1)]
    (row, down), (column, across) = places
    step = ops.sqrt(down + across) / (SPREAD * size)  # input pixels an output pixel
    aspect = ops.power(down / across, 0.125)  # half of the deviations' ratio, to either side
    to_rows = _sampling(row, step * aspect, input_shape[0], size)
    to_columns = _sampling(column, step / aspect, input_shape[1], size)
    planes = ops.transpose(drawn, (0, 3, 1, 2))
    planes = ops.matmul(to_rows[:, None], planes)
    planes = ops.matmul(planes, ops.transpose(to_columns, (0, 2, 1))[:, None])
    return keras.Model(pixels, ops.transpose(planes, (0, 2, 3, 1)) + ground, name="centring")


def _mean_and_variance(ink):
    """Of the places along one side, in pixels, weighted by ink (batch, side): each (batch, 1)."""
    places = np.arange(ink.shape[1], dtype="float32")
    share = ink / ops.maximum(ops.sum(ink, axis=1, keepdims=True), 1.0)
    mean = ops.sum(share * places, axis=1, keepdims=True)
    variance = ops.sum(share * ops.square(mean - places), axis=1, keepdims=True)
    return mean, variance + 1.0  # a dot, or nothing, has a spread too


def _sampling(middle, step, side, size):
    """Matrices (batch, size, side) that sample one side around a middle, both (batch, 1)."""
    step = ops.clip(step, side / size / MOST_ZOOM, side / size * MOST_ZOOM)
    offsets = np.arange(size, dtype="float32") - (size - 1) / 2
    at = (middle + step * offsets)[:, :, None]
    width = ops.maximum(step, 1.0)[:, :, None]  # where pixels are merged, all count
    reach = ops.abs(at - np.arange(side, dtype="float32")) / width
    return ops.maximum(1.0 - reach, 0.0) / width


def build_koch_network(input_shape, embedding_dim=4096):
    """Recipe 2: four convolutions of 10, 7, 4 and 4 pixels, one dense sigmoid layer.

    Reference:
        Koch, Zemel & Salakhutdinov, "Siamese neural networks for one-shot image recognition", 2015.
    """

    def settings(penalty):
        return {
            "kernel_initializer": initializers.RandomNormal(0.0, 0.01),
            "bias_initializer": initializers.RandomNormal(0.5, 0.01),
            "kernel_regularizer": regularizers.L2(penalty),
        }

    parts = []
    for filters, size in ((64, 10), (128, 7), (128, 4), (256, 4)):
        parts += [layers.Conv2D(filters, size, activation="relu", **settings(2e-4))]
        parts += [layers.MaxPooling2D(2)] if filters < 256 else [layers.Flatten()]
    parts += [layers.Dense(embedding_dim, activation="sigmoid", **settings(1e-3))]
    return _chain("koch", input_shape, parts)


def build_alexnet_network(input_shape, embedding_dim=1):
    """Recipe 4: three large convolutions and three dense layers with no activation between."""
    parts = [layers.Conv2D(256, 11, strides=4, activation="relu")]
    parts += [layers.MaxPooling2D(3, strides=2), layers.Conv2D(256, 5, activation="relu")]
    parts += [layers.MaxPooling2D(2), layers.Conv2D(384, 3, activation="relu")]
    parts += [layers.Flatten()]  # 46,464 at 256 pixels
    parts += [layers.Dense(units) for units in (1024, 256, embedding_dim)]
    return _chain("alexnet", input_shape, parts)


def build_vgg16_network(input_shape, embedding_dim=None):
    """Recipe 3: VGG16's five blocks, flattened: the image decides how many numbers come out."""
    pixels = keras.Input(input_shape)
    maps = _build_backbone("VGG16", input_shape)(pixels)
    return keras.Model(pixels, layers.Flatten()(maps), name="vgg16")


def build_application(name, input_shape, embedding_dim):
    """A network of `keras.applications`, pooled, and one dense layer.

    Its own preprocessing comes before it; grey is repeated to three channels.
    """
    pixels = keras.Input(input_shape)
    maps = _build_backbone(name, input_shape)(pixels)
    pooled = layers.GlobalAveragePooling2D()(maps)
    return keras.Model(pixels, layers.Dense(embedding_dim)(pooled), name=name.lower())


def _build_backbone(name, input_shape, weights=None):
    """Raw pixels to feature maps, as one layer."""
    builder = getattr(keras.applications, name)
    pixels = keras.Input(input_shape)
    colour = ops.repeat(pixels, 3, axis=-1) if input_shape[2] == 1 else pixels
    prepared = sys.modules[builder.__module__].preprocess_input(colour)
    network = builder(include_top=False, weights=weights, input_shape=(*input_shape[:2], 3))
    return keras.Model(pixels, network(prepared), name=BACKBONE)


class WeightsError(ValueError):
    """Pretrained weights cannot be had or do not fit; the message says how to mend it."""


def find_backbone(encoder):
    """The layer of an encoder that can be pretrained, or None."""
    return next((n for n in encoder._flatten_layers() if n.name == BACKBONE), None)


def load_pretrained(encoder, name, weights):
    """Fills the backbone of an encoder, a network of `keras.applications` named `name`.

    Weights are "imagenet" (fetched by Keras) or the path of a weights file, without the top.

    Raises:
        WeightsError: If they cannot be had or do not fit.
    """
    backbone = find_backbone(encoder)
    try:
        filled = _build_backbone(name, backbone.input_shape[1:], weights)
    except Exception as error:  # the net, the disk, h5py: each has its own
        raise WeightsError(
            f"{name} cannot be filled with weights={weights!r}: {str(error).splitlines()[0]} "
            "Expected 'imagenet' (fetched once from the internet) or the weights file of this "
            "network without its top."
        ) from error
    backbone.set_weights(filled.get_weights())


ENCODERS = {
    "leaf_cnn": build_base_network,
    "compact": build_compact_network,
    "spatial": build_spatial_network,
    "drawing": build_drawing_network,
    "koch": build_koch_network,
    "alexnet": build_alexnet_network,
    "vgg16": build_vgg16_network,
}
