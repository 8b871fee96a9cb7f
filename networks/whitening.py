"""Fits the head of an encoder to features and classes, without a step of training.

Features vary within a class, and unevenly: some directions much, others little. Dividing by that
variation makes directions comparable; of those, the ones in which all images vary most are kept.
"""

import keras
import numpy as np

from networks.embedding import embed

MOST_NUMBERS = 60_000_000  # of features that a head is fitted to; more images change nothing
RIDGE = 1.0  # share of the mean variance that is added to each direction's


def features_of(encoder, head="head"):
    """The model from an encoder's pixels to what its dense layer `head` is given."""
    return keras.Model(encoder.inputs, encoder.get_layer(head).input)


def whiten(encoder, pixels, rows, labels):
    """Fits the head of an encoder, where it has one, to images: a sample of very many.

    Args:
        encoder: A `keras.Model`.
        pixels: What it takes of each row.
        rows: The training images.
        labels: Class of each row of `pixels`.
    """
    if "head" not in [layer.name for layer in encoder.layers]:
        return
    model = features_of(encoder)
    most = max(2, MOST_NUMBERS // model.output_shape[-1])
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
    fit_head(encoder, embed(model, pixels, rows), labels[rows])


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
    variances, directions = _principal(within)
    ridge = RIDGE * variances.sum() / size + 1e-12
    gains = 1 / np.sqrt(np.maximum(variances, 0) + ridge) - 1 / np.sqrt(ridge)
    centred = features - mean
    whitened = centred / np.sqrt(ridge) + (centred @ directions.T * gains) @ directions
    whitened /= np.maximum(np.linalg.norm(whitened, axis=1, keepdims=True), 1e-12)
    main = _principal(whitened)[1][:num_directions].T  # (d, directions)
    matrix = main / np.sqrt(ridge) + directions.T @ (gains[:, None] * (directions @ main))
    matrix = np.pad(matrix, ((0, 0), (0, num_directions - matrix.shape[1])))
    return matrix.astype(np.float32), (-mean @ matrix).astype(np.float32)


def _principal(rows):
    """Variances and principal directions (k, d), largest first; of few rows, those they span."""
    if few := len(rows) < rows.shape[1]:
        variances, vectors = np.linalg.eigh(rows @ rows.T)
    else:
        variances, vectors = np.linalg.eigh(rows.T @ rows)
    there = variances > 1e-12 * variances.max(initial=0)
    variances, vectors = variances[there][::-1], vectors[:, there][:, ::-1]
    return variances, (vectors.T @ rows / np.sqrt(variances)[:, None] if few else vectors.T)


def _within_classes(features, labels):
    """Each image's difference from its class's mean, scaled so that every class counts the same."""
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, member, features)
    within = features - (sums / counts[:, None])[member]
    weights = np.maximum(counts - 1, 1) * max((counts > 1).sum(), 1)  # a single image tells nothing
    return within / np.sqrt(weights)[member][:, None]
