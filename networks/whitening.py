"""Fits the head of an encoder to features and classes, without a step of training.

Features vary within a class, and unevenly: some directions much, others little. Dividing by that
variation makes directions comparable; of those, the ones in which all images vary most are kept.
"""

import keras
import numpy as np

RIDGE = 1.0  # share of the mean variance that is added to each direction's


def features_of(encoder, head="head"):
    """The model from an encoder's pixels to what its dense layer `head` is given."""
    return keras.Model(encoder.inputs, encoder.get_layer(head).input)


def fit_head(encoder, features, labels, head="head"):
    """Gives the dense layer `head` of an encoder the weights that `fit_whitening` finds.

    Args:
        encoder: A `keras.Model` with a dense layer of that name.
        features: Of training images, (images, d), from `features_of`.
        labels: Their classes, (images,).
    """
    layer = encoder.get_layer(head)
    layer.set_weights(fit_whitening(features, labels, layer.units))


def fit_whitening(features, labels, num_directions):
    """The affine map to `num_directions` whitened principal directions.

    Where there are fewer, the numbers left over are zero.

    Returns:
        `(matrix, bias)`, (d, num_directions) and (num_directions,), float32: whitened is
        `features @ matrix + bias`.

    Reference:
        Hatch, Kajarekar & Stolcke, "Within-class covariance normalization for SVM-based speaker
        recognition", 2006.
    """
    features = np.asarray(features, np.float64)
    mean, size = features.mean(axis=0), features.shape[1]
    within = _within_classes(features, labels)
    # Of few images, the directions that these span; in all others nothing varies.
    if len(within) < size:
        _, lengths, directions = np.linalg.svd(within, full_matrices=False)
        variances = np.square(lengths)
    else:
        variances, directions = np.linalg.eigh(within.T @ within)
        directions = directions.T
    ridge = RIDGE * variances.sum() / size + 1e-12
    gains = 1 / np.sqrt(np.maximum(variances, 0) + ridge) - 1 / np.sqrt(ridge)
    centred = features - mean
    whitened = centred / np.sqrt(ridge) + (centred @ directions.T * gains) @ directions
    whitened /= np.maximum(np.linalg.norm(whitened, axis=1, keepdims=True), 1e-12)
    main = np.linalg.eigh(whitened.T @ whitened)[1][:, ::-1][:, :num_directions]  # (d, directions)
    matrix = main / np.sqrt(ridge) + directions.T @ (gains[:, None] * (directions @ main))
    matrix = np.pad(matrix, ((0, 0), (0, num_directions - matrix.shape[1])))
    return matrix.astype(np.float32), (-mean @ matrix).astype(np.float32)


def _within_classes(features, labels):
    """Each image's difference from its class's mean, scaled so that every class counts the same."""
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, member, features)
    within = features - (sums / counts[:, None])[member]
    weights = np.maximum(counts - 1, 1) * max((counts > 1).sum(), 1)  # a single image tells nothing
    return within / np.sqrt(weights)[member][:, None]
