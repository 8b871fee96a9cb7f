"""What a network makes of images, computed once for each of them and kept in the cache."""

import functools
import hashlib
import json
import re

import numpy as np

from networks.embedding import embed
from pipeline.augmentation import augment
from pipeline.row_store import ROW, StoredRows, open_store

PART = 256  # images that are computed before they are written


class FeatureCache:
    """`features(rows)`, (n, *output of a network), is what it makes of images of a data set.

    It is computed for those of the `rows` that the cache lacks. View 0 is the images as they are,
    1 mirrored where the config allows it, any other augmented.
    """

    def __init__(self, network, dataset, config, rows, view=0, kind=np.float32):
        self.dataset, self.config, self.view, self.kind = dataset, config, view, kind
        self.shape, stamps = network.output_shape[1:], dataset.index.stamps
        path = dataset.cache.folder.parent / "features" / self._key(network)
        fill = functools.partial(self._fill, network, rows)
        store = open_store(path, self.shape, stamps[rows], fill, kind)
        self.stored = StoredRows(store, store.find(stamps))

    def __call__(self, rows):
        return self.stored[rows]

    def _key(self, network):
        """Of all that they depend on but the images; of augmentation, what it makes of noise."""
        names = re.sub(r"_\d+\b", "", network.to_json())  # some count what was built before
        cache, kind = self.dataset.cache, np.dtype(self.kind).name
        text = json.dumps([names, cache.folder.name, cache.ranges, kind])
        noise = np.random.default_rng(0).integers(256, size=(8, *self.dataset.pixels.shape[1:]))
        digest = hashlib.blake2b(text.encode(), digest_size=12)
        for array in (self._seen(noise.astype(np.uint8), 0), *network.get_weights()):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _seen(self, images, start):
        """A batch of images in the view, where the first of them is the `start`-th of all."""
        if self.view <= self.config.horizontal_flip:
            return images[:, :, ::-1] if self.view else images
        rng = np.random.default_rng([self.config.seed, 4, start, self.view])
        return augment(images, self.config, rng)

    def _fill(self, network, rows, store):
        stamps, pixels = self.dataset.index.stamps[rows], self.dataset.pixels

        def read(places):
            return self._seen(pixels[rows[places]], places[0])

        title = f"pretrained network, view {self.view + 1}"
        for part, progress in store.lacking(stamps, PART, title):
            store.append(embed(network, read, part), stamps[part].astype(ROW))
            progress.update(len(part))
