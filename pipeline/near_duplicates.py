"""Which images show the same picture: resized, re-encoded, mirrored, brightened or cropped copies.

An image, its mirror image and their middles are compared with every other image: small pictures
must correlate, and their 64-bit difference hashes agree (Krawetz 2013: whether each of 8 x 8 places
is brighter than its left neighbour). Neither suffices: drawings share hashes, portraits correlate.
"""

import contextlib
import hashlib
import itertools
from collections import defaultdict

import numpy as np
from PIL import Image

MOST_BITS = 10  # in which the hashes of copies differ
LEAST_CORRELATION = 0.975  # of 16 x 16 grey pixels
MARGINS = (0.0, 0.025, 0.05)  # share cut off each side, to find cropped copies
THUMBNAIL, PLAIN = 32, 4.0  # pixels; deviation of grey below which there is no picture to compare
DIRECTIONS = 12  # in which candidates are looked for
MOST_COPIES = 16  # of one image in one view: of more, the nearest are named
MOST_IMAGES = 100_000  # beyond, the search takes minutes and gigabytes


def near_duplicates(cache):
    """Rows of an `ImageCache` that show the same picture, int array (n, 2), left below right.

    What was found is kept in the cache. None above `MOST_IMAGES`: nothing is searched.
    """
    if len(cache.rows) > MOST_IMAGES:
        return None
    key = hashlib.blake2b(cache.rows["stamp"].tobytes(), digest_size=8).hexdigest()
    path = cache.folder / f"copies-{key}.npy"
    if path.exists():
        return np.load(path)
    links, partial = find_near_duplicates(thumbnails(cache.pixels)), path.with_suffix(".part.npy")
    with contextlib.suppress(OSError):  # they are found again the next time
        np.save(partial, links)
        partial.replace(path)
    return links


def thumbnails(pixels):
    """Grey uint8 array (n, 32, 32) of uint8 images (n, height, width, channels)."""
    size, box = (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX
    images = (Image.fromarray(pixels[row].squeeze()).convert("L") for row in range(len(pixels)))
    small = [np.asarray(image.resize(size, box)) for image in images]
    return np.array(small, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)


def find_near_duplicates(small):
    """`near_duplicates` of thumbnails (n, 32, 32)."""
    from scipy.spatial import KDTree  # late: it takes half a second

    rows, found = np.flatnonzero(small.std(axis=(1, 2)) > PLAIN), []
    if not len(rows):
        return np.zeros((0, 2), int)
    small = small[rows]
    hashes, units = _hash(small, 0.0), _unit(small, 0.0)
    # No projection makes distances longer, so none of the pairs that correlate is missed.
    directions = np.linalg.eigh(units.T @ units)[1][:, -DIRECTIONS:]
    tree, radius = KDTree(units @ directions), np.sqrt(2 - 2 * LEAST_CORRELATION)
    for turned, margin in itertools.product((small, small[:, :, ::-1]), MARGINS):
        hashed, unit = _hash(turned, margin), _unit(turned, margin)
        near = {"k": MOST_COPIES + 1, "distance_upper_bound": radius, "workers": -1}
        _, nearest = tree.query(unit @ directions, **near)
        view, column = np.nonzero(nearest < len(rows))  # the tree gives n where there is none
        image = nearest[view, column]
        agree = np.bitwise_count(hashed[view] ^ hashes[image]) <= MOST_BITS
        view, image = view[agree & (view != image)], image[agree & (view != image)]
        alike = np.einsum("nd,nd->n", unit[view], units[image]) >= LEAST_CORRELATION
        found.append(np.sort(rows[np.stack([view, image], axis=1)[alike]], axis=1))
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


def join_groups(groups, links):
    """Group of each row after joining those of linked rows, (n, 2)."""
    if not len(links):
        return groups
    from scipy.sparse import coo_array  # late: few data sets need what takes half a second
    from scipy.sparse.csgraph import connected_components

    first, other = groups[links].T
    joined = coo_array((np.ones(len(links)), (first, other)), shape=[groups.max() + 1] * 2)
    return connected_components(joined, directed=False)[1][groups]


def equal_files(digests, skip=()):
    """Lists of rows whose files have equal content, two rows or more in each."""
    (values, counts), rows_of = np.unique(digests, return_counts=True), defaultdict(list)
    for row in np.flatnonzero(np.isin(digests, values[counts > 1])).tolist():
        if row not in skip:
            rows_of[int(digests[row])].append(row)
    return [rows for rows in rows_of.values() if len(rows) > 1]
