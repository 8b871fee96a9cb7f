"""The Siamese network: embedding, distance, losses, accuracy. Knows no files.

An encoder takes raw pixels (0 to 255) and gives an embedding; small distances mean same. Labels
are 1 for genuine pairs (one class) and 0 for impostors (two classes).
"""

import functools

import keras
from keras import layers, ops

from networks.embedding import SMALLEST_SQUARED_DISTANCE, unit_length
from networks.encoders import ENCODERS, build_application, build_base_network  # noqa: F401  known from here

FAR = 1e9  # farther than any distance


def build_encoder(config):
    """The encoder that a config describes.

    Returns:
        A `keras.Model` from raw pixels (batch, size, size, channels), 0 to 255, to float32
        embeddings (batch, embedding_dim).
    """
    shape = config.image_shape
    pixels = keras.Input(shape, name="pixels")
    application = functools.partial(build_application, config.encoder)
    body = ENCODERS.get(config.encoder, application)(shape, config.embedding_dim)
    embeddings = ops.cast(body(pixels), "float32")
    if config.unit_length:
        embeddings = unit_length(embeddings)
    return keras.Model(pixels, embeddings, name="encoder")


@keras.saving.register_keras_serializable(package="siamese")
def euclidean_distance(embeddings):
    """Euclidean distance (batch, 1) between two tensors (batch, embedding_dim)."""
    left, right = embeddings
    squared = ops.sum(ops.square(left - right), axis=-1, keepdims=True)
    return ops.sqrt(ops.maximum(squared, SMALLEST_SQUARED_DISTANCE))


@keras.saving.register_keras_serializable(package="siamese")
def cosine_distance(embeddings):
    """One minus the cosine, (batch, 1), between two tensors (batch, embedding_dim)."""
    left, right = (unit_length(embedding) for embedding in embeddings)
    return 1.0 - ops.sum(left * right, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(package="siamese")
def absolute_difference(embeddings):
    """Element by element, two tensors (batch, embedding_dim) to one."""
    return ops.abs(embeddings[0] - embeddings[1])


def build_distance(kind, embedding_dim):
    """The layer from two embeddings (batch, embedding_dim) to their distance (batch, 1).

    Args:
        kind: "euclidean", "cosine", "l1" (Koch: one sigmoid unit on the absolute difference, the
            probability of two classes) or "l1_512" (512 hidden units before it).
        embedding_dim: Numbers in an embedding.
    """
    if kind in ("euclidean", "cosine"):
        function = euclidean_distance if kind == "euclidean" else cosine_distance
        return layers.Lambda(function, name="distance")
    sides = [keras.Input((embedding_dim,), name=side) for side in ("left", "right")]
    values = layers.Lambda(absolute_difference)(sides)
    if kind == "l1_512":
        values = layers.Dense(512, activation="relu")(values)
    return keras.Model(sides, layers.Dense(1, activation="sigmoid")(values), name="distance")


def build_siamese_network(encoder, distance="euclidean"):
    """Two images through one encoder to their distance, of a kind as for `build_distance`.

    Returns:
        A `keras.Model` from `[left, right]`, raw pixels each, to distances (batch, 1).
    """
    sides = [keras.Input(encoder.input_shape[1:], name=side) for side in ("left", "right")]
    layer = build_distance(distance, encoder.output_shape[-1])
    return keras.Model(sides, layer([encoder(side) for side in sides]), name="siamese")


def distance_function(model):
    """The distance of a two-input model, for embeddings that are there already.

    None if it is Euclidean; else a function of two float32 arrays (n, embedding_dim) that gives
    distances (n,).
    """
    layer = model.get_layer("distance")
    if isinstance(layer, layers.Lambda) and layer.function is euclidean_distance:
        return None

    def distance(left, right):
        sides = [ops.convert_to_tensor(side) for side in (left, right)]
        return ops.convert_to_numpy(layer(sides))[:, 0]

    return distance


def squared_distances(embeddings):
    """Squared Euclidean distances (batch, batch) between all rows, never negative."""
    squared = ops.sum(ops.square(embeddings), axis=-1)  # (batch,)
    products = ops.matmul(embeddings, ops.transpose(embeddings))
    return ops.maximum(squared[:, None] + squared[None] - 2 * products, 0.0)


# Losses, each a scalar. Of pairs: `same` (pairs, 1), 1 for genuine, and `distance` (pairs, 1). Of
# batches: `labels` (batch,), classes, and `embeddings` (batch, embedding_dim).


def contrastive_loss(same, distance, margin=1.0):
    """Pulls genuine pairs together, pushes impostors apart up to a margin.

    Returns:
        Scalar, `mean(same d^2 + (1 - same) max(margin - d, 0)^2)`.

    Reference:
        Hadsell, Chopra & LeCun, 2006, without their factor 1/2.
    """
    same = ops.cast(same, distance.dtype)
    impostor_cost = ops.square(ops.maximum(margin - distance, 0.0))
    return ops.mean(same * ops.square(distance) + (1 - same) * impostor_cost)


def pair_crossentropy(same, distance):
    """Binary cross-entropy of a learned distance in 0..1, the probability of two classes."""
    different = 1 - ops.cast(same, distance.dtype)
    return ops.mean(keras.losses.binary_crossentropy(different, distance))


def batch_contrastive_loss(labels, embeddings, margin=1.0):
    """The contrastive loss over all pairs of a batch, genuine and impostor weighing the same.

    Impostors are averaged over those inside the margin, as most of a batch's are far apart and
    would water the few hard ones down.
    """
    genuine, impostor = pair_masks(labels, embeddings.dtype)
    squared = squared_distances(embeddings)
    distance = ops.sqrt(ops.maximum(squared, SMALLEST_SQUARED_DISTANCE))
    gap = ops.maximum(margin - distance, 0.0)
    inside = impostor * ops.cast(gap > 0, gap.dtype)
    return _masked_mean(squared, genuine) + _masked_mean(ops.square(gap), inside)


def supervised_contrastive_loss(labels, embeddings, temperature=0.05):
    """Softmax over each image's similarities: its class against all others of the batch.

    Embeddings are brought to unit length here; a small temperature looks at the hardest pairs.

    Returns:
        Scalar, averaged over the images that have a genuine partner in the batch.

    Reference:
        Khosla et al., "Supervised Contrastive Learning", 2020, equation 2.
    """
    genuine, impostor = pair_masks(labels, embeddings.dtype)
    embeddings = unit_length(embeddings)
    similarity = ops.matmul(embeddings, ops.transpose(embeddings)) / temperature
    others = genuine + impostor  # all but the image itself
    similarity = similarity - (1 - others) * FAR
    log_share = similarity - ops.logsumexp(similarity, axis=1, keepdims=True)
    partners = ops.sum(genuine, axis=1)  # (batch,)
    per_image = -ops.sum(genuine * log_share, axis=1) / ops.maximum(partners, 1.0)
    return _masked_mean(per_image, ops.cast(partners > 0, per_image.dtype))


def batch_triplet_loss(labels, embeddings, margin=1.0, triplet="hardest"):
    """For each anchor: negatives should be farther than positives by a margin.

    Args:
        labels: Tensor (batch,), classes.
        embeddings: Tensor (batch, embedding_dim).
        margin: By how much.
        triplet: Which images stand against an anchor. "hardest": the farthest positive and the
            nearest negative; "1+2" takes the two nearest negatives, "2+1" the two farthest
            positives; "semi_hard": every positive, and the nearest negative that is farther
            (else the farthest of all).

    Returns:
        Scalar, the mean of `max(0, d+ + margin - d-)`.

    Reference:
        Hermans, Beyer & Leibe, "In Defense of the Triplet Loss", 2017 (hardest); Schroff,
        Kalenichenko & Philbin, "FaceNet", 2015 (semi-hard).
    """
    genuine, impostor = pair_masks(labels, embeddings.dtype)
    squared = ops.maximum(squared_distances(embeddings), SMALLEST_SQUARED_DISTANCE)
    distance = ops.sqrt(squared)
    to_negatives = distance + (1 - impostor) * FAR
    if triplet == "semi_hard":
        return _semi_hard_loss(distance, genuine, impostor, margin)
    num_positives, num_negatives = {"1+2": (1, 2), "2+1": (2, 1)}.get(triplet, (1, 1))
    farthest = ops.top_k(distance * genuine - (1 - genuine) * FAR, num_positives)[0]
    nearest = -ops.top_k(-to_negatives, num_negatives)[0]
    hinges = ops.maximum(farthest[:, :, None] + margin - nearest[:, None], 0.0)
    # An anchor with fewer positives or negatives than that goes without the missing ones.
    there = ops.cast((farthest[:, :, None] >= 0) & (nearest[:, None] < FAR / 2), distance.dtype)
    return _masked_mean(hinges, there)


def _semi_hard_loss(distance, genuine, impostor, margin):
    """Over all genuine pairs; (anchor, positive, negative) is a cube of batch^3."""
    farther = distance[:, None] > distance[:, :, None]  # negative beyond the positive
    usable = ops.cast(farther, distance.dtype) * impostor[:, None]
    nearest_farther = ops.min(distance[:, None] + (1 - usable) * FAR, axis=2)  # (batch, batch)
    farthest = ops.max(distance * impostor, axis=1, keepdims=True)
    negative = ops.where(nearest_farther < FAR / 2, nearest_farther, farthest)
    able = genuine * ops.max(impostor, axis=1, keepdims=True)
    return _masked_mean(ops.maximum(distance + margin - negative, 0.0), able)


def pair_masks(labels, dtype="float32"):
    """Which pairs of a batch are genuine, and which impostor, from classes (batch,) or (batch, 1).

    Returns:
        `(genuine, impostor)`, tensors (batch, batch) of 0 and 1; the diagonal is 0 in both.
    """
    labels = ops.reshape(labels, (-1,))
    equal = ops.cast(labels[:, None] == labels[None], dtype)
    return equal - ops.eye(ops.shape(labels)[0], dtype=dtype), 1 - equal


def _masked_mean(values, mask):
    return ops.sum(values * mask) / ops.maximum(ops.sum(mask), 1.0)


class PairwiseLoss(keras.losses.Loss):
    """One of the functions above, with its settings, as a Keras loss on (labels, outputs)."""

    def __init__(self, function, **settings):
        super().__init__(name=function.__name__, reduction=None)
        self.function, self.settings = function, settings

    def call(self, y_true, y_pred):
        """The loss of one batch, a scalar."""
        return self.function(y_true, y_pred, **self.settings)


def build_loss(config):
    """The `keras.losses.Loss` that a config names."""
    if config.loss == "binary_crossentropy":
        return PairwiseLoss(pair_crossentropy)
    if config.loss == "contrastive":
        of_pairs = config.sampling == "pairs"
        function = contrastive_loss if of_pairs else batch_contrastive_loss
        return PairwiseLoss(function, margin=config.margin)
    if config.loss == "triplet":
        return PairwiseLoss(batch_triplet_loss, margin=config.margin, triplet=config.triplet)
    if config.loss == "circle":
        return keras.losses.Circle()
    return PairwiseLoss(supervised_contrastive_loss, temperature=config.temperature)


def accuracy(same, distance, threshold=None):
    """Share of pairs on the right side of a threshold, genuine and impostor weighing the same.

    Args:
        same: Tensor (pairs,) or (pairs, 1), 1 for genuine.
        distance: Tensor of the same shape.
        threshold: A pair is called the same below it. None: the one that is right most often.
    """
    distance = ops.reshape(distance, (-1,))
    same = ops.cast(ops.reshape(same, (-1,)), distance.dtype)
    return _weighted_accuracy(same, 1 - same, distance, threshold)


def batch_accuracy(labels, embeddings, threshold=None):
    """`accuracy` over all pairs of a batch: classes (batch,), embeddings (batch, embedding_dim)."""
    genuine, impostor = (ops.reshape(m, (-1,)) for m in pair_masks(labels, embeddings.dtype))
    distance = ops.reshape(ops.sqrt(squared_distances(embeddings)), (-1,))
    return _weighted_accuracy(genuine, impostor, distance, threshold)


def _weighted_accuracy(genuine, impostor, distance, threshold):
    genuine = genuine / ops.maximum(ops.sum(genuine), 1.0)
    impostor = impostor / ops.maximum(ops.sum(impostor), 1.0)
    if threshold is not None:
        accepted = ops.cast(distance < threshold, distance.dtype)
        return (ops.sum(genuine * accepted) + ops.sum(impostor * (1 - accepted))) / 2
    order = ops.argsort(distance)
    gain = ops.cumsum(ops.take(genuine - impostor, order))  # true minus false accepts
    distance = ops.take(distance, order)
    # No threshold parts equal distances: a constant network scores one half.
    separable = ops.cast(distance[1:] > distance[:-1], gain.dtype)
    return (1 + ops.maximum(ops.max(gain[:-1] * separable), 0.0)) / 2
