"""After the training: a wider embedding that knows more of classes never seen. Needs Keras.

A trained embedding keeps what parts the training classes and forgets the rest. The feature maps
below it still hold the rest, but unevenly: some directions vary much within a class. Dividing by
that variation (within-class covariance normalisation) makes them comparable, and both together
are the finished embedding. An image that clearly shows one of a few trained classes gets that
class's number beside them. Where no side is up, all is averaged over the image and its half turn.
"""

import keras
import numpy as np
from keras import layers, ops

from networks.embedding import embed, unit_length
from networks.encoders import BACKBONE

NUM_MAPS = 2  # feature maps before the last one whose mean and deviation are used
MOST_CHANNELS = 64  # of the map whose covariance is used, the last such one
MIDDLE = 0.5  # width of the middle of a map, which weighs most, as a share of half its side
MOST_NUMBERS = 1024  # that are kept of the whitened features
TRAINED = 0.7  # length of the trained embedding beside the whitened features' 1
SHARES = 0.7  # length of the shares of the trained classes, at most
SHARPNESS = 33.0  # of the shares: cosines with the classes' means are multiplied by it
DOUBTFUL = 0.15  # share of validation images that are too far from their class to be sure of it
SOFTNESS = 0.03  # width in cosine of the passage from doubtful to sure
COARSE = 4  # places along each side of a map that is whitened place by place
RIDGE = 1.0  # share of the mean variance that is added to each direction's
MOST_IMAGES = 10_000  # more change nothing
LIKENESS = "likeness"  # how the layers are named that compare an image with the trained classes


def widen_encoder(encoder, dataset, seed, half_turn=False, last=False):
    """Joins a trained encoder's embedding with whitened features of the last feature maps.

    They are fitted to the training images of the dataset, a sample where there are very many;
    what is doubtful of a trained class, to its validation images. With `half_turn` the result is
    averaged over the image as it is and upside down; with `last` the last map counts, too.

    Returns:
        A `keras.Model` from raw pixels to unit-length embeddings.
    """
    pixels = keras.Input(encoder.input_shape[1:], name="pixels")
    rng, labels, splits = np.random.default_rng(seed), dataset.index.labels, dataset.splits
    classes = np.unique(labels[splits.train])
    features, embeddings = _features_and_embeddings(encoder, pixels, len(classes), last)
    num_features = features.shape[-1]
    network = keras.Model(pixels, ops.concatenate([features, unit_length(embeddings)], axis=-1))

    def describe(rows):
        if len(rows) > MOST_IMAGES:
            rows = np.sort(rng.choice(rows, MOST_IMAGES, replace=False))
        values = embed(network, dataset.pixels, rows)
        return values[:, :num_features], values[:, num_features:], labels[rows]

    features, embeddings, labels_of = describe(splits.train)
    mean, matrix = fit_whitening(features, labels_of)
    if len(mean) > MOST_NUMBERS:
        matrix = matrix @ main_directions((features - mean) @ matrix, MOST_NUMBERS, seed)
    whiten = layers.Dense(matrix.shape[1], name="whiten")
    _fill(whiten, matrix, -mean @ matrix)
    shares = None
    known = splits.val[np.isin(labels[splits.val], classes)]
    if len(known) and len(classes) < embeddings.shape[1]:
        shares = _Shares(unit_length(whiten(features)), embeddings, labels_of)
        features, embeddings, labels_of = describe(known)
        shares.calibrate(unit_length(whiten(features)), embeddings, labels_of)

    views = ops.concatenate([pixels, ops.flip(pixels, (1, 2))], axis=0) if half_turn else pixels
    features, embeddings = _features_and_embeddings(encoder, views, len(classes), last)
    whitened, embeddings = unit_length(whiten(features)), unit_length(embeddings)
    parts = [whitened, TRAINED * embeddings]
    if shares:
        parts.append(shares(whitened, embeddings))
    joined = unit_length(ops.concatenate(parts, axis=-1))
    if half_turn:
        joined = unit_length(ops.mean(ops.reshape(joined, (2, -1, joined.shape[-1])), axis=0))
    return keras.Model(pixels, joined, name="encoder")


def as_strangers(embeddings, encoder):
    """A finished encoder's embeddings (n, d), as if the images showed none of the trained classes.

    Their shares are 0, as those of a stranger mostly are, and their length is 1 again.
    """
    sizes = [layer.units for layer in encoder.layers if layer.name.startswith(LIKENESS)]
    if not sizes:
        return embeddings
    others = embeddings * (np.arange(embeddings.shape[1]) < embeddings.shape[1] - sizes[0])
    return others / np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-12)


def _fill(dense, *weights):
    dense.build((None, len(weights[0])))
    dense.set_weights(weights)


class _Shares:
    """Which trained class an image shows: the square roots of the classes' probabilities.

    So that two images' product is the Bhattacharyya coefficient of what they may show. It fades
    where an image is less like its class than most are, in the whitened features or the trained
    embedding: it may show another class.

    Args:
        whitened: Of training images, unit length (images, numbers).
        embeddings: Their trained embeddings, unit length (images, embedding_dim).
        labels: Their classes (images,).
    """

    def __init__(self, whitened, embeddings, labels):
        self.classes, self.likeness = np.unique(labels), []  # layers: cosines with their means
        for values in (whitened, embeddings):
            means = _class_means(ops.convert_to_numpy(values), labels)[0]
            dense = layers.Dense(len(means), use_bias=False, name=f"{LIKENESS}{len(self.likeness)}")
            means = unit_length(ops.convert_to_tensor(means.astype(np.float32)))
            _fill(dense, ops.convert_to_numpy(means).T)
            self.likeness.append(dense)

    def _recognise(self, whitened, embeddings):
        """Probabilities (batch, classes), and likeness to the class by each measure (batch, 2)."""
        by_whitened, by_trained = self.likeness
        cosines = by_trained(embeddings)
        chances = ops.softmax(SHARPNESS * cosines)
        near = ops.sum(by_whitened(whitened) * chances, axis=-1, keepdims=True)
        highest = ops.max(cosines, axis=-1, keepdims=True)
        return chances, ops.concatenate([near, highest], axis=-1)

    def calibrate(self, whitened, embeddings, labels):
        """Learns from validation images of the same classes what is doubtful."""
        chances, likeness = map(ops.convert_to_numpy, self._recognise(whitened, embeddings))
        right = self.classes[chances.argmax(axis=1)] == labels
        self.length = SHARES * float(right.mean())  # a poor guess would blur what is unseen
        self.limits = np.quantile(likeness, DOUBTFUL, axis=0).astype("float32")

    def __call__(self, whitened, embeddings):
        """Tensor (batch, classes) of length 0 to `SHARES`."""
        chances, likeness = self._recognise(whitened, embeddings)
        sure = ops.prod(ops.sigmoid((likeness - self.limits) / SOFTNESS), axis=-1, keepdims=True)
        return self.length * ops.sqrt(chances * sure)


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
    means, member, counts = _class_means(features, labels)
    within = features - means[member]
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


def _class_means(values, labels):
    """Mean of the values (n, d) of each class, which of them each row's is, and how many it has."""
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, member, values)
    return sums / counts[:, None], member, counts


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
