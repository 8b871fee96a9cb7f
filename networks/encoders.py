"""The encoders: raw pixels (0 to 255) -> embedding. Knows no files but weights.

An encoder is a function `name(pixels, embedding_dim)` from pixels (batch, height, width, channels)
to (batch, embedding_dim), and `--encoder name` takes it. Ours end alike: feature maps pooled, each
of unit length, concatenated, and one dense layer, the head.
"""

import itertools
import sys
from pathlib import Path

import keras
from keras import initializers, layers, ops, regularizers

from configs import ENCODERS
from networks import pretrained
from networks.centring import centre
from networks.embedding import unit_length
from networks.pretrained import WeightsError

HEAD, MAPS = "head", "maps"  # the dense layer that `whitening.py` can fit, and what it is given
CLASSES = "classes"  # where the last of the maps is what a network calls each image
WIDE = 1.2  # times its height: a picture from which more columns are told apart


def build_encoder(config):
    """The encoder that a config describes.

    A `keras.Model` from raw pixels (batch, *config.image_shape), 0 to 255, to float32 embeddings
    (batch, embedding_dim). Pretrained networks have no weights yet: `load_weights`.
    """
    pixels = keras.Input(config.image_shape, name="pixels")
    if config.encoder in ENCODERS:
        embeddings = globals()[config.encoder](pixels, config.embedding_dim)
    else:
        embeddings = application(pixels, config)
    embeddings = ops.cast(embeddings, "float32")
    if config.unit_length:
        embeddings = unit_length(embeddings)
    return keras.Model(pixels, embeddings, name="encoder")


def compact(pixels, embedding_dim):
    """Ours, for photographs: strided 3x3 convolutions, batch norm, three maps pooled."""
    first = _block(layers.Rescaling(1 / 255)(pixels), 32, strides=2)
    second = _block(first, 64)
    third = _block(second, 128)
    fourth = _block(third, 256, pooled=False)
    return head([mean_and_deviation(maps) for maps in (second, third, fourth)], embedding_dim)


def spatial(pixels, embedding_dim):
    """Ours, for what is upright and centred, as faces: its last map keeps where things are."""
    maps = _block(layers.Rescaling(1 / 255)(pixels), 32, strides=2, pooled=False, size=5)
    for filters in (64, 128, 256):
        maps = _block(maps, filters)
    return head([layers.Flatten()(maps)], embedding_dim)


def drawing(pixels, embedding_dim):
    """Ours, for characters: what is drawn is centred and brought to one size, then as `spatial`.

    The network sees three quarters of the pixels along each side.
    """
    return spatial(centre(pixels, 3 * pixels.shape[1] // 4), embedding_dim)


def head(features, embedding_dim):
    """Feature vectors, each brought to unit length, concatenated, and one dense layer."""
    features = [unit_length(vector) for vector in features]
    joined = layers.Concatenate(name=MAPS)(features) if len(features) > 1 else features[0]
    return layers.Dense(embedding_dim, name=HEAD)(joined)


def mean_and_deviation(maps):
    """Mean and standard deviation of maps over their places: (batch, 2 channels)."""
    mean = ops.mean(maps, axis=(1, 2))
    variance = ops.mean(ops.square(maps - mean[:, None, None]), axis=(1, 2))
    return ops.concatenate([mean, ops.sqrt(variance + 1e-6)], axis=-1)


def _block(maps, filters, strides=1, pooled=True, size=3):
    """Pooling comes early, as what follows has a quarter of the work then."""
    maps = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(maps)
    if pooled:
        maps = layers.MaxPooling2D(2, padding="same")(maps)
    # Keras's momentum of 0.99 lags behind a short training by hundreds of steps.
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(maps))


def efficientnet_lite0(pixels, embedding_dim):
    """Pretrained on ImageNet: five maps, pooled, and its classes' probabilities: 2,984 numbers."""
    return upper_half(pretrained.build_lower(pixels.shape[1:])(pixels), embedding_dim)


def efficientnet_lite0_grid(pixels, embedding_dim):
    """As `efficientnet_lite0`, for what is upright and centred, as faces and signatures.

    Maps are pooled within 2 x 2 parts of the picture, of a wide one within 2 x 4.
    """
    return upper_half(pretrained.build_lower(pixels.shape[1:])(pixels), embedding_dim, grid=True)


def upper_half(maps, embedding_dim, grid=False):
    """What the two make of the maps of their lower half."""
    outputs = pretrained.build_upper(maps.shape[1:], classes=not grid)(maps)
    if grid:
        return head([_parts(output) for output in outputs], embedding_dim)
    *five_maps, logits = outputs
    features = [layers.GlobalAveragePooling2D()(maps) for maps in five_maps]
    # Of unit length these are square roots of probabilities, which are compared as they should be.
    features.append(layers.Softmax(name=CLASSES)(logits / 2))
    return head(features, embedding_dim)


def _parts(maps):
    """Means of maps within 2 x 2 or 2 x 4 parts of the picture: (batch, 4 or 8 channels)."""
    columns = 4 if maps.shape[2] > WIDE * maps.shape[1] else 2
    down, across = -(-maps.shape[1] // 2), -(-maps.shape[2] // columns)
    corners = itertools.product(range(0, maps.shape[1], down), range(0, maps.shape[2], across))
    parts = [maps[:, row : row + down, column : column + across] for row, column in corners]
    return layers.Concatenate()([layers.GlobalAveragePooling2D()(part) for part in parts])


def leaf_cnn(pixels, embedding_dim):
    """Recipe 1: three convolutions of 16, 32, 16 filters with dropout, and two dense layers."""
    values = layers.Rescaling(1 / 255)(pixels)
    for filters in (16, 32, 16):
        values = layers.Conv2D(filters, 3, activation="relu")(values)
        values = layers.Dropout(0.25)(layers.MaxPooling2D(2)(values))
    values = layers.Dense(128, activation="relu")(layers.Flatten()(values))
    return layers.Dense(embedding_dim, activation="relu")(layers.Dropout(0.1)(values))


def koch(pixels, embedding_dim):
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

    values = layers.Rescaling(1 / 255)(pixels)
    for filters, size in ((64, 10), (128, 7), (128, 4), (256, 4)):
        values = layers.Conv2D(filters, size, activation="relu", **settings(2e-4))(values)
        values = layers.MaxPooling2D(2)(values) if filters < 256 else layers.Flatten()(values)
    return layers.Dense(embedding_dim, activation="sigmoid", **settings(1e-3))(values)


def signet(pixels, embedding_dim):
    """Recipe 6: four convolutions and two dense layers with weight decay; paper is 0, ink 1.

    Batch normalisation stands where the paper has local response normalisation. What it calls
    RMSprop's momentum of 0.9 is the decay that Keras calls rho.

    Reference:
        Dey et al., "SigNet: Convolutional Siamese network for writer independent offline signature
        verification", 2017.
    """
    settings = {"activation": "relu", "kernel_regularizer": regularizers.L2(5e-4)}
    values = layers.Rescaling(-1 / 255, offset=1)(pixels)
    for filters, size, last in ((96, 11, 0.0), (256, 5, 0.3), (384, 3, None), (256, 3, 0.3)):
        padding = "valid" if size == 11 else "same"
        values = layers.Conv2D(filters, size, padding=padding, **settings)(values)
        if size > 3:
            values = layers.BatchNormalization(momentum=0.9)(values)
        if last is not None:
            values = layers.Dropout(last)(layers.MaxPooling2D(3, strides=2)(values))
    values = layers.Flatten()(values)  # 108,800 at 155 x 220
    values = layers.Dropout(0.5)(layers.Dense(1024, **settings)(values))
    return layers.Dense(embedding_dim, **settings)(values)


def dogs_cnn(pixels, embedding_dim):
    """Recipe 4: three large convolutions and three dense layers with no activation between."""
    values = layers.Rescaling(1 / 255)(pixels)
    values = layers.Conv2D(256, 11, strides=4, activation="relu")(values)
    values = layers.MaxPooling2D(3, strides=2)(values)
    values = layers.Conv2D(256, 5, activation="relu")(values)
    values = layers.Conv2D(384, 3, activation="relu")(layers.MaxPooling2D(2)(values))
    values = layers.Flatten()(values)  # 46,464 at 256 pixels
    for units in (1024, 256, embedding_dim):
        values = layers.Dense(units)(values)
    return values


def vgg16(pixels, embedding_dim):
    """Recipe 3: VGG16's five blocks, flattened: the image decides how many numbers come out."""
    return layers.Flatten()(_backbone("VGG16", pixels.shape[1:])(pixels))


def application(pixels, config):
    """A network of `keras.applications`, pooled, and the head.

    Its own preprocessing comes before it; grey is repeated to three channels.
    """
    network = _backbone(config.encoder, config.image_shape)
    # A few images of a few classes would spoil the batch statistics of pretrained ones.
    maps = network(pixels, training=False) if config.weights else network(pixels)
    return head([layers.GlobalAveragePooling2D()(maps)], config.embedding_dim)


def _backbone(name, input_shape, weights=None):
    """Raw pixels to feature maps, as one layer."""
    builder = getattr(keras.applications, name)
    pixels = keras.Input(input_shape)
    colour = ops.repeat(pixels, 3, axis=-1) if input_shape[2] == 1 else pixels
    prepared = sys.modules[builder.__module__].preprocess_input(colour)
    network = builder(include_top=False, weights=weights, input_shape=(*input_shape[:2], 3))
    return keras.Model(pixels, network(prepared), name="backbone")


def load_weights(encoder, config):
    """Fills an encoder with what `config.weights` names; tells whether its head is filled too.

    That is where a run directory gives a head of the same shape. A WeightsError if the weights
    cannot be had or do not fit.
    """
    if Path(config.weights).is_dir():
        return _copy_run(config.weights, encoder)
    parts = [part for part in encoder.layers if part.name in ("backbone", "lower", "upper")]
    if config.encoder.startswith("efficientnet_lite0"):
        pretrained.fill(parts, None if config.weights == "imagenet" else config.weights)
        return False
    name = "VGG16" if config.encoder == "vgg16" else config.encoder
    try:
        filled = _backbone(name, config.image_shape, config.weights)
    except Exception as error:  # the net, the disk, h5py: each has its own
        raise WeightsError(
            f"{name} cannot be filled with weights={config.weights!r}: "
            f"{str(error).splitlines()[0].rstrip('.')}. Expected 'imagenet' (fetched once from the "
            "internet) or the weights file of this network without its top."
        ) from error
    parts[0].set_weights(filled.get_weights())
    return False


def _copy_run(folder, encoder):
    """Copies a run's encoder, layer by layer; tells whether its head was of the same shape."""
    try:
        trained = keras.saving.load_model(Path(folder, "encoder.keras"), compile=False)
    except Exception as error:  # Keras, h5py, zip: each has its own
        why = str(error).strip().splitlines()[0]
        raise WeightsError(f"'{folder}' holds no encoder that loads: {why}") from error
    givers, takers = ([n for n in model.layers if n.weights] for model in (trained, encoder))
    filled = False
    for giver, taker in itertools.zip_longest(givers, takers):
        if giver and taker and [w.shape for w in giver.weights] == [w.shape for w in taker.weights]:
            taker.set_weights(giver.get_weights())
            filled |= taker.name == HEAD
        elif not (giver and taker and giver.name == taker.name == HEAD):
            raise WeightsError(
                f"'{folder}' holds another network, or one of another size. Take its encoder, "
                "image_size, channels and embedding_dim."
            )
    return filled
