"""Fine-tunes the upper half of a pretrained network on maps of its lower half, computed once."""

import functools
import hashlib
import time

import keras
import numpy as np
from tqdm import tqdm

from networks.embedding import embed, unit_length
from networks.encoders import HEAD, build_encoder, load_weights, upper_half
from networks.losses import relational_distillation
from networks.whitening import whiten
from pipeline.augmentation import augment
from pipeline.class_batches import ClassBatches, training_labels

VIEWS = 3  # of each image: as it is, mirrored where that is allowed, and augmented
MOST_BYTES = 8_000_000_000  # of maps on disk; past them fewer views are kept
BATCH = 64  # images whose maps are computed at once
TIMED = 32  # images on which the whole network is timed


class LowerMaps:
    """Maps of the lower half, float16 (images, height, width, channels), in several views.

    `maps[rows]` are those of the images as they are. Computed once for some rows, and kept in the
    cache for the next run on the same images. `lower` is the model that makes them.
    """

    def __init__(self, lower, dataset, config):
        self.rows = np.union1d(dataset.splits.train, dataset.splits.val)
        shape = lower.output_shape[1:]
        views = MOST_BYTES // (2 * int(np.prod(shape)) * len(self.rows))
        self.shape = (len(self.rows), int(np.clip(views, 1, VIEWS)), *shape)
        folder = dataset.cache.folder.parent / "maps"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._key(lower, dataset, config)}.npy"
        if not path.exists():
            self._compute(lower, dataset.pixels, config, path)
        self.maps = np.load(path, mmap_mode="r")

    def _key(self, lower, dataset, config):
        """Of everything that the maps depend on: another augmentation shows in the first views."""
        digest = hashlib.blake2b(dataset.index.stamps[self.rows].tobytes(), digest_size=12)
        digest.update(f"{dataset.cache.folder.name} {self.shape}".encode())  # how they are decoded
        for array in (*self._views(dataset.pixels, config, 0), *lower.get_weights()):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _views(self, pixels, config, start):
        """A batch of images in each of their views, uint8 (batch, height, width, channels) each."""
        images = pixels[self.rows[start : start + BATCH]]
        rng = np.random.default_rng([config.seed, 4, start])
        views = [images, *[images[:, :, ::-1]] * config.horizontal_flip]
        views += [augment(images, config, rng) for _ in range(self.shape[1] - len(views))]
        return views[: self.shape[1]]

    def _compute(self, lower, pixels, config, path):
        partial = path.with_suffix(".partial.npy")
        maps = np.lib.format.open_memmap(partial, "w+", np.float16, self.shape)
        with tqdm(total=len(self.rows), desc="lower half", unit="image", delay=0.5) as progress:
            for start in range(0, len(self.rows), BATCH):
                for number, images in enumerate(self._views(pixels, config, start)):
                    maps[start : start + BATCH, number] = lower.predict_on_batch(images)
                progress.update(len(images))
        maps.flush()
        partial.replace(path)

    def __getitem__(self, rows):
        return self.views(rows, 0)

    def views(self, rows, numbers):
        """Maps of some rows, each in the view of its number."""
        return self.maps[np.searchsorted(self.rows, rows), numbers]


class MapBatches(ClassBatches):
    """Batches of classes for the upper half.

    `batches[step]` is `((maps, teacher), labels)`: float16 (batch, height, width, channels), what
    the pretrained network says of each image (batch, embedding_dim), and classes (batch,).
    `teacher` are its embeddings of `rows`; the rest is as for `ClassBatches`.
    """

    def __init__(self, index, maps, rows, config, teacher):
        super().__init__(index, maps, rows, config)
        self.train_rows, self.teacher = rows, teacher

    def __getitem__(self, step):
        rows, rng = self.rows(step), np.random.default_rng([self.config.seed, 1, step])
        maps = self.pixels.views(rows, rng.integers(self.pixels.shape[1], size=len(rows)))
        teacher = self.teacher[np.searchsorted(self.train_rows, rows)]
        return (maps, teacher), self.labels[rows].astype(np.int32)


class Distillation(keras.layers.Layer):
    """Gives embeddings on; adds to the loss how far they have moved from a teacher's."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def call(self, embeddings, teacher):
        """Both (batch, embedding_dim), of unit length."""
        self.add_loss(self.weight * relational_distillation(teacher, embeddings))
        return embeddings


class UpperHalf:
    """What `fit.fit_run` trains in place of a `fit.WholeEncoder`, with the same methods.

    `encoder` is from maps, `pixels`, to embeddings, and its head is fitted already; `model` is the
    encoder with the pretrained network as its teacher: the mean of an image and its mirror image.
    """

    def __init__(self, dataset, config):
        self.dataset, self.whole = dataset, build_encoder(config)
        filled = load_weights(self.whole, config)
        self.pixels = LowerMaps(self.whole.get_layer("lower"), dataset, config)
        maps = keras.Input(self.pixels.shape[2:], name="lower_maps")
        grid = config.encoder == "efficientnet_lite0_grid"
        embeddings = unit_length(upper_half(maps, config.embedding_dim, grid))
        self.encoder = keras.Model(maps, embeddings, name="encoder")
        self._copy(self.whole, self.encoder)
        rows, mirrored = dataset.splits.train, config.horizontal_flip and self.pixels.shape[1] > 1
        views = [functools.partial(self.pixels.views, numbers=at) for at in range(1 + mirrored)]
        if not filled:
            whiten(self.encoder, views[0], rows, training_labels(dataset.index), *views[1:])
        known = sum(embed(self.encoder, view, rows) for view in views)
        known /= np.linalg.norm(known, axis=1, keepdims=True)
        self.batches = MapBatches(dataset.index, self.pixels, rows, config, known)
        teacher = keras.Input((config.embedding_dim,), name="teacher")
        distilled = Distillation(config.distillation)(embeddings, teacher)
        self.model = keras.Model([maps, teacher], distilled)

    def finished(self):
        """The whole encoder, from raw pixels, with what was trained in it."""
        self._copy(self.encoder, self.whole)
        return self.whole

    def seconds_at_end(self, num_images):
        """How long the whole network will take to embed so many images after the training."""
        rows = self.dataset.splits.val[:TIMED]
        embed(self.whole, self.dataset.pixels, rows)  # compiles
        start = time.monotonic()
        embed(self.whole, self.dataset.pixels, rows)
        return num_images * (time.monotonic() - start) / len(rows)

    @staticmethod
    def _copy(source, target):
        for name in ("upper", HEAD):
            target.get_layer(name).set_weights(source.get_layer(name).get_weights())
