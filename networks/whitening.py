"""Fits the head of an encoder to features and classes, without a step of training.

Features vary within a class, and unevenly: some directions much, others little. Dividing by that
variation makes directions comparable; of those, the ones in which all images vary most are kept.
Which maps count most differs: leaves and faces want all, breeds of dogs what the network calls
them. Classes that the fit has not seen tell.
"""

import keras
import numpy as np
from sklearn.metrics import roc_auc_score

from networks.encoders import CLASSES, HEAD, MAPS

MOST_NUMBERS = 60_000_000  # of features that a head is fitted to; more images change nothing
RIDGE = 3.0  # times the mean variance is added to each direction's
EMPHASES = (0, 2, 4)  # tried: each map weighs 2 to the power of it times the one before
CLEARLY = 0.9  # what is left of 1 - ROC AUC, at most, where weights count as better
FOLDS, MOST_TRIED, MOST_OF_A_CLASS = 3, 600, 50  # of classes; images
FEW_IMAGES = 400  # up to as many are fitted to with their mirror images


def features_of(encoder):
    """The model from an encoder's pixels to what its head is given."""
    return keras.Model(encoder.inputs, encoder.get_layer(HEAD).input)


def whiten(encoder, rows, labels, features, mirrors):
    """Fits the head of an encoder to training images, of very many to a sample, as `fit_head`.

    `labels` are the classes of all rows. `features(model, rows, view)` is what a model that
    `features_of` gives makes of some rows; view 1 is their mirror images, which join few images if
    `mirrors`. False where there is no head.
    """
    if HEAD not in [layer.name for layer in encoder.layers]:
        return False
    model = features_of(encoder)
    most = max(2, MOST_NUMBERS // model.output_shape[-1])
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
    found = features(model, rows, 0)
    if mirrors and len(rows) <= min(FEW_IMAGES, most // 2):
        found = np.concatenate([found, features(model, rows, 1)])
    return fit_head(encoder, found, labels[rows])


def fit_head(encoder, features, labels):
    """Gives the head of an encoder the weights that `fit_whitening` finds.

    `features` are from `features_of`; those of mirror images may follow those of the images that
    `labels` are the classes of. Tells whether the head takes what a pretrained network calls each.
    """
    head, names = encoder.get_layer(HEAD), [layer.name for layer in encoder.layers]
    weights = np.ones(features.shape[1])
    if MAPS in names:
        sizes = [maps.shape[-1] for maps in encoder.get_layer(MAPS).input]
        own = features[: len(labels)]  # no mirror images
        weights = choose_weights(own, labels, sizes, head.units, CLASSES in names)
    labels = np.tile(labels, len(features) // len(labels))
    kernel, taken = np.zeros((len(weights), head.units), np.float32), weights > 0
    matrix, bias = fit_whitening(features[:, taken] * weights[taken], labels, head.units)
    kernel[taken] = weights[taken, None] * matrix
    head.set_weights([kernel, bias])
    return bool(CLASSES in names and taken[-1])


def choose_weights(features, labels, sizes, num_directions, last_is_classes=False):
    """What each feature is multiplied by before whitening, (d,), by cross-validation over classes.

    Powers of two, equal within a map (`sizes` are their numbers of features), or 0 for what is left
    out. Those tried are compared by the ROC AUC of pairs of images of classes that the fit has not
    seen. The best are taken if they are clearly better, in every fold, than equal weights without
    class probabilities; else, and where there are too few classes, those are.
    """
    rng, depth = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
    tried = [2.0 ** (emphasis * depth) for emphasis in EMPHASES]
    if last_is_classes:
        tried.insert(0, 1.0 * (depth < len(sizes) - 1))
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    classes = rng.permutation(np.flatnonzero(counts > 1))
    if len(classes) < 2 * FOLDS:
        return tried[0]
    rows = [rng.permutation(np.flatnonzero(member == each))[:MOST_OF_A_CLASS] for each in classes]
    fold = np.repeat(np.arange(len(classes)) % FOLDS, [len(own) for own in rows])[:MOST_TRIED]
    rows, found = np.concatenate(rows)[:MOST_TRIED], []
    features, labels = features[rows], member[rows]
    for weights in tried:
        weighted, errors = features[:, weights > 0] * weights[weights > 0], []
        for number in range(FOLDS):
            errors.append(1 - _score_new(weighted, labels, fold == number, num_directions))
            if found and errors[number] >= CLEARLY * found[0][number]:
                errors = [np.inf]  # other folds cannot mend it
                break
        found.append(errors)
    return tried[np.argmin([np.mean(errors) for errors in found])]


def _score_new(features, labels, out, num_directions):
    """ROC AUC of the pairs of some images by a whitening fitted to the others."""
    matrix, bias = fit_whitening(features[~out], labels[~out], num_directions)
    embeddings, labels = features[out] @ matrix + bias, labels[out]
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    pairs = np.triu_indices(len(labels), 1)
    same = (labels[:, None] == labels)[pairs]
    return roc_auc_score(same, (embeddings @ embeddings.T)[pairs]) if 0 < same.mean() < 1 else 0.5


def fit_whitening(features, labels, num_directions):
    """The affine map to whitened principal directions: `features @ matrix + bias`.

    `(matrix, bias)` are float32 (d, num_directions) and (num_directions,), zero where there are
    fewer directions.

    Reference:
        Hatch, Kajarekar & Stolcke, "Within-class covariance normalization for SVM-based speaker
        recognition", 2006.
    """
    features = np.asarray(features, np.float64)
    mean, within = features.mean(axis=0), _within_classes(features, labels)
    variances, directions = _principal(within)
    ridge = RIDGE * variances.sum() / features.shape[1] + 1e-12
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
