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
from training.validation import seconds_per_image

VIEWS = 3  # of each image: as it is, mirrored where that is allowed, and augmented
MOST_BYTES = 8_000_000_000  # of maps on disk; past them fewer views are kept
MAPS_SHARE = 0.25  # of a time limit, for computing them; past it fewer views are kept
BATCH = 64  # images whose maps are computed at once
TIMED = 32  # images on which the whole network is timed


class LowerMaps:
    """Maps of the lower half, float16 (images, height, width, channels), in several views.

    `maps(rows, number)` are those in one view, 0: of the images as they are. Computed once, and
    kept in the cache, a file a view, for the next run on the same images.
    """

    def __init__(self, lower, dataset, config):
        self.rows = np.union1d(dataset.splits.train, dataset.splits.val)
        self.shape = lower.output_shape[1:]
        folder = dataset.cache.folder.parent / "maps"
        folder.mkdir(parents=True, exist_ok=True)
        key, self.maps, begin = self._key(lower, dataset, config), [], time.monotonic()
        a_view = 2 * int(np.prod(self.shape)) * len(self.rows)
        seconds = MAPS_SHARE * 60 * (config.max_minutes or np.inf)
        for number in range(int(np.clip(MOST_BYTES // a_view, 1, VIEWS))):
            path = folder / f"{key}-{number}.npy"
            if not path.exists():
                if number and (time.monotonic() - begin) * (number + 1) / number > seconds:
                    break
                self._compute(lower, dataset.pixels, config, number, path)
            self.maps.append(np.load(path, mmap_mode="r"))

    def _key(self, lower, dataset, config):
        """Of everything that the maps depend on: another augmentation shows in the first views."""
        digest = hashlib.blake2b(dataset.index.stamps[self.rows].tobytes(), digest_size=12)
        digest.update(dataset.cache.folder.name.encode())  # how they are decoded
        views = [self._view(dataset.pixels, config, 0, number) for number in range(VIEWS)]
        for array in (*views, *lower.get_weights()):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _view(self, pixels, config, start, number):
        """A batch of images in one of their views, uint8 (batch, height, width, channels)."""
        images = pixels[self.rows[start : start + BATCH]]
        if number <= config.horizontal_flip:
            return images[:, :, ::-1] if number else images
        return augment(images, config, np.random.default_rng([config.seed, 4, start, number]))

    def _compute(self, lower, pixels, config, number, path):
        partial = path.with_suffix(".partial.npy")
        maps = np.lib.format.open_memmap(partial, "w+", np.float16, (len(self.rows), *self.shape))
        what = {"desc": f"lower half, view {number + 1}", "unit": "image", "delay": 0.5}
        with tqdm(total=len(self.rows), **what) as progress:
            for start in range(0, len(self.rows), BATCH):
                images = self._view(pixels, config, start, number)
                maps[start : start + BATCH] = lower.predict_on_batch(images)
                progress.update(len(images))
        maps.flush()
        partial.replace(path)

    def __call__(self, rows, number=0):
        return self.maps[number][np.searchsorted(self.rows, rows)]


class MapBatches(ClassBatches):
    """Batches of classes for the upper half.

    `batches[step]` is `((maps, teacher, labels), labels)`: float16 (batch, height, width,
    channels), what the pretrained network says of each image (batch, embedding_dim), and classes
    (batch,).
    """

    def __init__(self, index, maps, rows, config, teacher):
        super().__init__(index, maps, rows, config)
        self.train_rows, self.teacher = rows, teacher

    def __getitem__(self, step):
        rows, rng = self.rows(step), np.random.default_rng([self.config.seed, 1, step])
        numbers = rng.integers(len(self.pixels.maps), size=len(rows))
        maps = np.empty((len(rows), *self.pixels.shape), np.float16)
        for number in np.unique(numbers):
            maps[numbers == number] = self.pixels(rows[numbers == number], number)
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

    `encoder` is from maps, `pixels`, to embeddings, and its head is fitted already; `model` is the
    encoder with the pretrained network as its teacher: the mean of an image and its mirror image.
    `learns` is False where the head takes what the network calls each image, unless without
    distillation: 200 steps on 15 breeds of dogs made it forget others, and know the 15 no better.
    """

    def __init__(self, dataset, config):
        self.dataset, self.whole = dataset, build_encoder(config)
        filled = load_weights(self.whole, config)
        self.pixels = LowerMaps(self.whole.get_layer("lower"), dataset, config)
        maps = keras.Input(self.pixels.shape, name="lower_maps")
        grid = config.encoder == "efficientnet_lite0_grid"
        embeddings = unit_length(upper_half(maps, config.embedding_dim, grid))
        self.encoder = keras.Model(maps, embeddings, name="encoder")
        self._copy(self.whole, self.encoder)
        rows, mirrored = dataset.splits.train, config.horizontal_flip and len(self.pixels.maps) > 1
        views = [functools.partial(self.pixels, number=at) for at in range(1 + mirrored)]
        labels = training_labels(dataset.index)
        named = not filled and whiten(self.encoder, views[0], rows, labels, *views[1:])
        self.learns = not (named and config.distillation)
        known = sum(embed(self.encoder, view, rows) for view in views)
        known /= np.linalg.norm(known, axis=1, keepdims=True)
        self.batches = MapBatches(dataset.index, self.pixels, rows, config, known)
        teacher = keras.Input((config.embedding_dim,), name="teacher")
        classes = keras.Input((), name="labels", dtype="int32")
        distilled = Distillation(config.distillation)(embeddings, teacher, classes)
        self.model = keras.Model([maps, teacher, classes], distilled)

    def finished(self):
        """The whole encoder, from raw pixels, with what was trained in it."""
        self._copy(self.encoder, self.whole)
        return self.whole

    def seconds_at_end(self, num_images):
        """What the whole network takes to embed so many images after the training."""
        rows = self.dataset.splits.val[:TIMED]
        return num_images * seconds_per_image(self.whole, self.dataset.pixels, rows)

    @staticmethod
    def _copy(source, target):
        for name in ("upper", HEAD):
            target.get_layer(name).set_weights(source.get_layer(name).get_weights())
