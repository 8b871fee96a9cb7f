"""Which images show the same picture: resized, re-encoded, mirrored, brightened or cropped copies.

A 64-bit difference hash (Krawetz 2013: whether each of 8 x 8 places is brighter than its left
neighbour) of an image, its mirror image and their middles finds candidates; the correlation of
small pictures decides, as drawings in thin lines share hashes.
"""

import hashlib

import numpy as np
from PIL import Image

MOST_BITS = 10  # in which the hashes of candidates differ
LEAST_CORRELATION = 0.975  # of 16 x 16 grey pixels
MARGINS = (0.0, 0.025, 0.05)  # share cut off each side, to find cropped copies
THUMBNAIL, PLAIN = 32, 4.0  # pixels; deviation of grey below which there is no picture to compare
MOST_IMAGES, BLOCK = 50_000, 500  # every pair is looked at: beyond, that takes too long


def near_duplicates(cache):
    """Rows of an `ImageCache` that show the same picture, int array (n, 2), left below right.

    What was found is kept in the cache. Above 50,000 images nothing is searched: (0, 2).
    """
    if len(cache.rows) > MOST_IMAGES:
        return np.zeros((0, 2), int)
    key = hashlib.blake2b(cache.rows["stamp"].tobytes(), digest_size=8).hexdigest()
    path = cache.folder / f"near-{key}.npy"
    if not path.exists():
        links = find_copies(thumbnails(cache.pixels))
        try:
            np.save(path, links)
        except OSError:  # it is found again the next time
            return links
    return np.load(path)


def thumbnails(pixels):
    """Grey float32 array (n, 32, 32) of uint8 images (n, height, width, channels)."""
    size, box = (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX
    images = (Image.fromarray(pixels[row].squeeze()).convert("L") for row in range(len(pixels)))
    return np.array([np.asarray(image.resize(size, box)) for image in images], np.float32)


def find_copies(small):
    """`near_duplicates` of thumbnails (n, 32, 32)."""
    views = [(one, margin) for one in (small, small[:, :, ::-1]) for margin in MARGINS]
    hashes = [_hash(*view) for view in views]
    units = [_unit(*view) for view in views]
    pictures, found = small.std(axis=(1, 2)) > PLAIN, [np.zeros((0, 2), int)]
    for start in range(0, len(small), BLOCK):
        rows = slice(start, start + BLOCK)
        for hashed, unit in zip(hashes, units, strict=True):
            near = np.bitwise_count(hashed[rows, None] ^ hashes[0]) <= MOST_BITS
            one, other = np.nonzero(near & pictures[rows, None] & pictures)
            one, different = one + start, one + start != other
            one, other = one[different], other[different]
            alike = np.einsum("nd,nd->n", unit[one], units[0][other]) >= LEAST_CORRELATION
            found.append(np.sort(np.stack([one, other], axis=1)[alike], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _hash(small, margin):
    middle = _resize(small, 8, 9, margin)
    bits = (middle[:, :, 1:] > middle[:, :, :-1]).reshape(len(small), 64)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _unit(small, margin):
    """Vectors of mean 0 and length 1, whose products are correlations."""
    flat = _resize(small, 16, 16, margin).reshape(len(small), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _resize(small, height, width, margin):
    return _weights(height, margin) @ small @ _weights(width, margin).T


def _weights(count, margin):
    """Mean over each of `count` equal stretches of what lies within the margins, (count, 32)."""
    edges = np.linspace(margin, 1 - margin, count + 1) * THUMBNAIL
    pixel = np.arange(THUMBNAIL)
    share = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    share = share.clip(0)
    return (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
