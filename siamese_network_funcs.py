"""The Siamese network: distance, contrastive loss, accuracy, the two-input model. Knows no files.

An encoder takes raw pixels (0 to 255) and gives an embedding; small distances mean same. Labels
are 1 for genuine pairs (one class) and 0 for impostors (two classes).
"""

import inspect

import keras
from keras import layers, ops

from networks import batch_losses
from networks.batch_losses import masked_mean, pair_masks, pairwise_distances
from networks.embedding import SMALLEST_SQUARED_DISTANCE, unit_length
from networks.encoders import build_encoder  # noqa: F401  known from here


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

    `kind` is "euclidean", "cosine", "l1" (Koch: one sigmoid unit on the absolute difference, the
    probability of two classes) or "l1_512" (512 hidden units before it).
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
    """The `keras.Model` from `[left, right]`, raw pixels, through one encoder to distances.

    They are (batch, 1), of a kind as for `build_distance`.
    """
    sides = [keras.Input(encoder.input_shape[1:], name=side) for side in ("left", "right")]
    layer = build_distance(distance, encoder.output_shape[-1])
    return keras.Model(sides, layer([encoder(side) for side in sides]), name="siamese")


def distance_function(model):
    """The distance of a two-input model, for embeddings that are there already.

    None if it is Euclidean; else a function of two float32 arrays (n, d) that gives distances (n,).
    """
    layer = model.get_layer("distance")
    if isinstance(layer, layers.Lambda) and layer.function is euclidean_distance:
        return None

    def distance(left, right):
        sides = [ops.convert_to_tensor(side) for side in (left, right)]
        return ops.convert_to_numpy(layer(sides))[:, 0]

    return distance


def contrastive_loss(same, distance, margin=1.0):
    """Pulls genuine pairs together, pushes impostors apart up to a margin.

    The scalar `mean(same d^2 + (1 - same) max(margin - d, 0)^2)`.

    Reference:
        Hadsell, Chopra & LeCun, 2006, without their factor 1/2.
    """
    same = ops.cast(same, distance.dtype)
    impostor_cost = ops.square(ops.maximum(margin - distance, 0.0))
    return ops.mean(same * ops.square(distance) + (1 - same) * impostor_cost)


def binary_crossentropy_loss(same, distance):
    """Binary cross-entropy of a learned distance in 0..1, the probability of two classes."""
    different = 1 - ops.cast(same, distance.dtype)
    return ops.mean(keras.losses.binary_crossentropy(different, distance))


class PairwiseLoss(keras.losses.Loss):
    """A function over the pairs of a batch, with its settings, as a Keras loss."""

    def __init__(self, function, **settings):
        super().__init__(name=function.__name__, reduction=None)
        self.function, self.settings = function, settings

    def call(self, y_true, y_pred):
        """The loss of one batch, a scalar."""
        return self.function(y_true, y_pred, **self.settings)


def build_loss(config):
    """The `keras.losses.Loss` that a config names: `NAME_loss` here, or in `networks.batch_losses`.

    Its parameters beside labels and outputs are fields of the config.
    """
    name = f"{config.loss_name}_loss"
    if config.sampling == "pairs":
        function = globals()[name]
    else:
        function = getattr(batch_losses, f"batch_{name}", None) or getattr(batch_losses, name)
    parameters = list(inspect.signature(function).parameters)[2:]
    return PairwiseLoss(function, **{field: getattr(config, field) for field in parameters})


def accuracy(same, distance, threshold=0.5):
    """Share of pairs on the right side of a distance, genuine and impostor weighing the same.

    `same` and `distance` are (pairs,) or (pairs, 1); below `threshold` a pair is called the same.
    """
    distance = ops.reshape(distance, (-1,))
    same = ops.cast(ops.reshape(same, (-1,)), distance.dtype)
    return _balanced_accuracy(distance, same, 1 - same, threshold)


def batch_accuracy(labels, embeddings, threshold=0.5):
    """`accuracy` over all pairs of a batch: classes (batch,), embeddings (batch, embedding_dim)."""
    masks = pair_masks(labels, embeddings.dtype)
    return _balanced_accuracy(pairwise_distances(embeddings), *masks, threshold)


def _balanced_accuracy(distance, genuine, impostor, threshold):
    accepted = ops.cast(distance < threshold, distance.dtype)
    return (masked_mean(accepted, genuine) + masked_mean(1 - accepted, impostor)) / 2
