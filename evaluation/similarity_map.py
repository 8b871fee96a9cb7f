"""Where in an image its similarity to another one comes from; for any encoder."""

import itertools

import numpy as np
from PIL import Image

from evaluation.verification import all_distances
from networks.embedding import embed

PATCHES = 6  # squares along a side that are covered in turn


def similarity_map(encoder, pixels, other_embedding, distance=None):
    """How much the distance to another image grows when a part of this one is covered.

    From `pixels`, uint8 (height, width, channels), and the other image's embedding
    (embedding_dim,) an array (PATCHES, PATCHES); 0 where the part does not matter (Zeiler and
    Fergus, "Visualizing and understanding convolutional networks", 2014).
    """
    shown = np.repeat(pixels[None], PATCHES**2 + 1, axis=0)  # the last stays as it is
    squares = itertools.product(*map(_strips, pixels.shape[:2]))
    for image, square in zip(shown, squares, strict=False):
        image[square] = np.median(pixels, axis=(0, 1))
    embeddings = embed(encoder, shown, np.arange(len(shown)))
    distances = all_distances(other_embedding[None], embeddings, distance)[0]
    return np.maximum(distances[:-1] - distances[-1], 0).reshape(PATCHES, PATCHES)


def _strips(side):
    """Slices of a side, one for each patch and half a patch beyond."""
    edges, margin = np.linspace(0, side, PATCHES + 1).astype(int), side // PATCHES // 2
    return [slice(max(0, a - margin), b + margin) for a, b in itertools.pairwise(edges)]


def overlay(pixels, heat):
    """An image (height, width, channels) in grey under a map (rows, columns) in red, uint8."""
    grey = pixels.mean(axis=2, keepdims=True)
    scaled = Image.fromarray((178 * heat / (heat.max() or 1)).astype(np.uint8))  # at most 70% red
    red = np.asarray(scaled.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC))[..., None] / 255
    return (grey * (1 - red) + red * np.array([255, 40, 20])).astype(np.uint8)
