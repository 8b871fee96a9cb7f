"""Fine-tunes the upper half of a pretrained network on maps of its lower half, computed once."""

import time

import keras
import numpy as np

from networks.batch_losses import relational_distillation
from networks.embedding import embed, unit_length
from networks.encoders import HEAD, build_encoder, load_weights, upper_half
from networks.whitening import whiten
from pipeline.class_batches import ClassBatches, training_labels
from training.feature_cache import FeatureCache

VIEWS = 3  # of each image: as it is, mirrored where that is allowed, and augmented
MOST_BYTES = 8_000_000_000  # of maps on disk; past them fewer views are kept
MAPS_SHARE = 0.25  # of a time limit, for computing them; past it fewer views are kept


def lower_maps(lower, dataset, config):
    """A `FeatureCache` a view: float16 maps of the lower half (images, height, width, channels)."""
    rows = np.union1d(dataset.splits.train, dataset.splits.val)
    a_view = 2 * int(np.prod(lower.output_shape[1:])) * len(rows)
    seconds = MAPS_SHARE * 60 * (config.max_minutes or np.inf)
    views, begin = [], time.monotonic()
    for view in range(int(np.clip(MOST_BYTES // a_view, 1, VIEWS))):
        if view and (time.monotonic() - begin) * (view + 1) / view > seconds:
            break
        views.append(FeatureCache(lower, dataset, config, rows, view, np.float16))
    return views


class MapBatches(ClassBatches):
    """Batches of classes for the upper half, from `lower_maps` of its images.

    `batches[step]` is `((maps, teacher, labels), labels)`: float16 (batch, height, width,
    channels), what the pretrained network says of each image (batch, embedding_dim), and classes
    (batch,).
    """

    def __init__(self, index, views, rows, config, teacher):
        super().__init__(index, None, rows, config)
        self.views, self.train_rows, self.teacher = views, rows, teacher

    def __getitem__(self, step):
        rows, rng = self.rows(step), np.random.default_rng([self.config.seed, 1, step])
        drawn = rng.integers(len(self.views), size=len(rows))  # a view of each image
        maps = np.empty((len(rows), *self.views[0].shape), np.float16)
        for number, view in enumerate(self.views):
            maps[drawn == number] = view(rows[drawn == number])
        teacher = self.teacher[np.searchsorted(self.train_rows, rows)]
        labels = self.labels[rows].astype(np.int32)
        return (maps, teacher, labels), labels


class Distillation(keras.layers.Layer):
    """Gives embeddings on; adds to the loss how far they have moved from a teacher's."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def call(self, embeddings, teacher, labels):
        """The first two (batch, embedding_dim), of unit length; classes (batch,)."""
        self.add_loss(self.weight * relational_distillation(labels, embeddings, teacher))
        return embeddings


class UpperHalf:
    """What `fit.fit_run` trains in place of a `fit.WholeEncoder`, with the same methods.

    `encoder` is from maps, `pixels`, to embeddings, and its head is fitted already; `whole` is from
    raw pixels. `model` is the encoder with the pretrained network as its teacher: the mean of an
    image and its mirror image. `learns` is False where the head takes what the network calls each
    image, unless without distillation: 200 steps on 15 breeds of dogs made it forget others, and
    know the 15 no better.
    """

    def __init__(self, dataset, config):
        self.whole = build_encoder(config)
        filled = load_weights(self.whole, config)
        views = lower_maps(self.whole.get_layer("lower"), dataset, config)
        self.pixels, rows = views[0], dataset.splits.train
        maps = keras.Input(self.pixels.shape, name="lower_maps")
        grid = config.encoder == "efficientnet_lite0_grid"
        embeddings = unit_length(upper_half(maps, config.embedding_dim, grid))
        self.encoder = keras.Model(maps, embeddings, name="encoder")
        self._copy(self.whole, self.encoder)
        plain = views[: 1 + config.horizontal_flip]  # and mirrored, not augmented

        def features(model, rows, view):
            return embed(model, plain[view], rows)

        labels, mirrors = training_labels(dataset.index), len(plain) > 1
        named = not filled and whiten(self.encoder, rows, labels, features, mirrors)
        self.learns = not (named and config.distillation)
        known = sum(embed(self.encoder, view, rows) for view in plain)
        known /= np.linalg.norm(known, axis=1, keepdims=True)
        self.batches = MapBatches(dataset.index, views, rows, config, known)
        teacher = keras.Input((config.embedding_dim,), name="teacher")
        classes = keras.Input((), name="labels", dtype="int32")
        distilled = Distillation(config.distillation)(embeddings, teacher, classes)
        self.model = keras.Model([maps, teacher, classes], distilled)

    def finished(self):
        """The whole encoder, from raw pixels, with what was trained in it."""
        self._copy(self.encoder, self.whole)
        return self.whole

    @staticmethod
    def _copy(source, target):
        for name in ("upper", HEAD):
            target.get_layer(name).set_weights(source.get_layer(name).get_weights())
