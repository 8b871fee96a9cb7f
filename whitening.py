"""After the training: a wider embedding that knows more of classes never seen. Needs Keras.

A trained embedding keeps what parts the training classes and forgets the rest. The feature maps
below it still hold the rest, but unevenly: some directions vary much within a class. Dividing by
that variation (within-class covariance normalisation) makes them comparable, and both together
are the finished embedding. Where no side is up, it is averaged over the image and its half turn.
"""

import keras
import numpy as np
from keras import layers, ops

from encoders import BACKBONE
from siamese_network_funcs import embed, unit_length

NUM_MAPS = 2  # feature maps before the last one whose mean and deviation are used
MOST_CHANNELS = 64  # of the map whose covariance is used, the last such one
MIDDLE = 0.5  # width of the middle of a map, which weighs most, as a share of half its side
MOST_NUMBERS = 1024  # that are kept of the whitened features
TRAINED = 0.75  # length of the trained embedding beside the whitened features' 1
COARSE = 4  # places along each side of a map that is whitened place by place
RIDGE = 1.0  # share of the mean variance that is added to each direction's
MOST_IMAGES = 10_000  # more change nothing


def widen_encoder(encoder, dataset, seed, half_turn=False, last=False):
    """Joins a trained encoder's embedding with whitened features of the last feature maps.

    They are fitted to the training images of the dataset, a sample where there are very many.
    With `half_turn` the result is averaged over the image as it is and upside down; with `last`
    the last map counts, too.

    Returns:
        A `keras.Model` from raw pixels to unit-length embeddings.
    """
    pixels = keras.Input(encoder.input_shape[1:], name="pixels")
    rows = dataset.splits.train
    num_classes = len(np.unique(dataset.index.labels[rows]))
    features, _ = _features_and_embeddings(encoder, pixels, num_classes, last)
    if len(rows) > MOST_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_IMAGES, replace=False))
    values = embed(keras.Model(pixels, features), dataset.pixels, rows)
    mean, matrix = fit_whitening(values, dataset.index.labels[rows])
    if len(mean) > MOST_NUMBERS:
        matrix = matrix @ main_directions((values - mean) @ matrix, MOST_NUMBERS, seed)
    views = ops.concatenate([pixels, ops.flip(pixels, (1, 2))], axis=0) if half_turn else pixels
    features, embeddings = _features_and_embeddings(encoder, views, num_classes, last)
    whiten = layers.Dense(matrix.shape[1], name="whiten")
    whitened = unit_length(whiten(features))
    whiten.set_weights([matrix, -mean @ matrix])
    joined = ops.concatenate([whitened, TRAINED * unit_length(embeddings)], axis=-1)
    if half_turn:
        joined = ops.mean(ops.reshape(unit_length(joined), (2, -1, joined.shape[-1])), axis=0)
    return keras.Model(pixels, unit_length(joined), name="encoder")


def _features_and_embeddings(encoder, pixels, num_classes, last):
    """What is whitened, and the embeddings.

    Every layer is applied again, so that the finished model is one flat graph: Keras cannot load
    a model in which two nested ones share layers.
    """
    values, maps, chain = pixels, [], encoder.layers[1].layers  # every encoder is a chain
    for layer in chain:
        if isinstance(layer, layers.InputLayer):
            continue
        values = layer(values)
        if _is_rectified(layer):
            maps.append(values)  # (batch, height, width, filters)
    if not any(isinstance(layer, layers.Flatten) for layer in chain):
        return _pooled(maps, last), values
    if num_classes >= values.shape[-1]:  # it learned from many classes and forgot little
        return unit_length(values), values
    # Where things are matters: the last map as it is, or coarser.
    coarse = layers.AveragePooling2D(-(-maps[-1].shape[1] // COARSE), padding="same")
    return unit_length(layers.Flatten()(coarse(maps[-1]))), values


def _pooled(maps, last):
    """Mean and deviation over some maps, and covariances within a lower one.

    The last map is left to the embedding, which is made of it, unless it is the only one.
    """
    parts = [_covariances(places) for places in maps if places.shape[-1] <= MOST_CHANNELS][-1:]
    used = maps[-1 - NUM_MAPS :] if last else maps[-1 - NUM_MAPS : -1]
    for places in used or maps:
        mean, centred, weights = _centred(places)
        variance = ops.sum(ops.square(centred) * weights, axis=1)
        parts += [mean, ops.sqrt(ops.maximum(variance, 1e-8))]
    # Roots, so that a few large values do not outweigh the others.
    rooted = [unit_length(ops.sign(part) * ops.sqrt(ops.abs(part))) for part in parts]
    return ops.concatenate(rooted, axis=-1)


def _covariances(places):
    """Of the channels of a map, over its places: texture, wherever it is; each pair once.

    Reference:
        Lin, RoyChowdhury & Maji, "Bilinear CNN models for fine-grained visual recognition", 2015.
    """
    _, centred, weights = _centred(places)
    products = ops.matmul(ops.transpose(centred * weights, (0, 2, 1)), centred)
    channels = places.shape[-1]
    first, second = np.triu_indices(channels)
    flat = ops.reshape(products, (-1, channels * channels))
    return ops.take(flat, first * channels + second, axis=1)


def _centred(places):
    """`(mean, rest, weights)` of a map: (batch, filters), (batch, places, filters), (places, 1).

    The middle weighs most, as what surrounds the thing should not tell what it is.
    """
    _, height, width, filters = places.shape
    down, across = (np.linspace(-1, 1, 2 * side + 1)[1::2] for side in (height, width))
    weights = np.exp(-(down[:, None] ** 2 + across**2) / (2 * MIDDLE**2)).reshape(-1, 1)
    weights = (weights / weights.sum()).astype("float32")
    values = ops.reshape(places, (-1, height * width, filters))
    mean = ops.sum(values * weights, axis=1)
    return mean, values - mean[:, None], weights


def _is_rectified(layer):
    if layer.name == BACKBONE:
        return True  # a pretrained network gives its last map only
    relu = keras.activations.relu
    rectifies = isinstance(layer, layers.ReLU) or getattr(layer, "activation", None) is relu
    return rectifies and len(layer.output.shape) == 4


def fit_whitening(features, labels):
    """The affine map that gives features' variation within classes one size in all directions.

    Returns:
        `(mean, matrix)`, (d,) and (d, d), float32: whitened is `(features - mean) @ matrix`.

    Reference:
        Hatch, Kajarekar & Stolcke, "Within-class covariance normalization for SVM-based speaker
        recognition", 2006.
    """
    features = features.astype(np.float64)  # (images, d)
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, member, features)
    within = features - (sums / counts[:, None])[member]
    # Every class counts the same, whatever its size; a single image tells nothing.
    within /= np.sqrt(np.maximum(counts - 1, 1))[member][:, None]
    scale, size = max((counts > 1).sum(), 1), features.shape[1]
    if len(within) < size:  # then a covariance matrix would be large and mostly empty
        _, lengths, directions = np.linalg.svd(within, full_matrices=False)
        variances, directions = lengths**2 / scale, directions.T
    else:
        variances, directions = np.linalg.eigh(within.T @ within / scale)
    ridge = RIDGE * variances.sum() / size + 1e-12
    gains, elsewhere = 1 / np.sqrt(np.maximum(variances, 0) + ridge), 1 / np.sqrt(ridge)
    # Turned back, so that the map is unique where variances are equal.
    matrix = elsewhere * np.eye(size) + directions * (gains - elsewhere) @ directions.T
    return features.mean(axis=0).astype(np.float32), matrix.astype(np.float32)


def main_directions(values, count, seed):
    """Orthonormal directions (d, count) in which values (n, d) vary most.

    Where there are fewer values than that, the others are drawn at random: on the whole, these
    keep distances.
    """
    values = values - values.mean(axis=0)
    if len(values) > count:
        return np.linalg.eigh(values.T @ values)[1][:, -count:].astype(np.float32)
    main = np.linalg.svd(values, full_matrices=False)[2].T
    others = np.random.default_rng(seed).normal(size=(len(main), count - main.shape[1]))
    return np.linalg.qr(np.concatenate([main, others], axis=1))[0].astype(np.float32)
