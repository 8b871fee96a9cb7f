"""Random views of images: one warp and one colour table per image, drawn with a given rng."""

import cv2
import numpy as np

cv2.setNumThreads(1)  # the threads are the training step's
REORDERED = 0.4  # of the recoloured classes get their channels in another order
ELLIPSE = 0.35, 0.9  # shortest and longest axis, as a share of the side
GAIN, OFFSET = 0.15, 0.02  # of a recoloured class: log of the largest gain, share of white


def augment(images, config, rng, tables=None, part=slice(None)):
    """Rotates, zooms, shears, shifts, mirrors, relights and tints each image on its own.

    All geometry is one affine warp and all colour one table look-up, whatever is asked for.

    Args:
        images: uint8 array (batch, height, width, channels).
        config: A `Config`: its augmentation fields.
        rng: A `numpy.random.Generator`.
        tables: What each pixel value becomes before, from `recolor`; None: the colours stay.
        part: Of the images, to make; the same views whatever the part.

    Returns:
        A new uint8 array (part of batch, height, width, channels).
    """
    if config.background_swap > 0:
        images = swap_surroundings(images, config.background_swap, rng)
    matrices = _draw_warps(len(images), images.shape[1:3], config, rng)  # (batch, 2, 3)
    relit = _draw_tables(len(images), images.shape[3], config, rng, tables)
    images, matrices, relit = images[part], matrices[part], relit[part]
    views = np.empty_like(images)
    size = images.shape[2], images.shape[1]
    # An image on plain ground, as a drawing, goes on in that colour; any other is reflected.
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # (batch, 4, channels)
    plain = (corners == corners[:, :1]).all(axis=(1, 2))
    for view, image, matrix, table, flat in zip(views, images, matrices, relit, plain, strict=True):
        border = cv2.BORDER_CONSTANT if flat else cv2.BORDER_REFLECT_101
        ground = image[0, 0].tolist() if flat else 0
        warped = cv2.warpAffine(image, matrix, size, borderMode=border, borderValue=ground)
        view[...] = cv2.LUT(warped, table[None]).reshape(view.shape)
    return views


def swap_surroundings(images, share, rng):
    """Gives some images what surrounds another one, outside an ellipse about the middle.

    A network that meets the same thing in many surroundings learns to look at the thing. Gives a
    new uint8 array (batch, height, width, channels).
    """
    count, height, width = images.shape[:3]
    mixed, others = images.copy(), rng.permutation(count)
    for number in np.flatnonzero(rng.random(count) < share):
        box = (width / 2, height / 2), rng.uniform(*ELLIPSE, 2) * (width, height), 0
        inside = cv2.ellipse(np.zeros((height, width), np.uint8), box, 1, -1)
        mixed[number] = images[others[number]]
        cv2.copyTo(images[number], inside, mixed[number])
    return mixed


def _draw_warps(count, size, config, rng):
    """Affine matrices about the image's middle; each part of a warp has its chance."""

    def draw(reach):
        return rng.uniform(-reach, reach, count) * (rng.random(count) < config.affine_probability)

    angle = np.deg2rad(draw(config.rotate))
    scale = np.exp(draw(np.log1p(config.zoom)))
    flip = np.where(rng.random(count) < 0.5 * config.horizontal_flip, -1.0, 1.0)
    cos, sin, shear = np.cos(angle), np.sin(angle), draw(config.shear)
    turn = np.stack([cos, -sin, sin, cos], axis=-1).reshape(count, 2, 2)
    skew = np.stack([flip, shear, np.zeros(count), np.ones(count)], axis=-1).reshape(count, 2, 2)
    linear = scale[:, None, None] * turn @ skew  # (count, 2, 2)
    middle = (np.array(size[::-1]) - 1) / 2
    moved = middle + np.stack([draw(config.shift), draw(config.shift)], axis=-1) * size[::-1]
    offset = moved - linear @ middle
    return np.concatenate([linear, offset[..., None]], axis=-1)


def _draw_tables(count, channels, config, rng, tables):
    """What each pixel value becomes, (batch, 256, channels): brightness, contrast, tint."""
    levels = np.arange(256.0)[:, None] if tables is None else tables  # (256, 1) or a table each
    light = 1 + rng.uniform(-config.brightness, config.brightness, (count, 1, 1))
    contrast = 1 + rng.uniform(-config.contrast, config.contrast, (count, 1, 1))
    tint = 1 + rng.uniform(-config.color_jitter, config.color_jitter, (count, 1, channels))
    relit = (levels * light - 127.5) * contrast + 127.5
    return (relit * tint).clip(0, 255).astype(np.uint8)


def turn(images, turns):
    """Turns each image (batch, size, size, channels) by 0 to 3 right angles, a new array."""
    return np.stack([np.rot90(image, number) for image, number in zip(images, turns, strict=True)])


def recolor(images, classes, share, rng):
    """Gives some classes of a batch colours of their own, so that each stands for a new class.

    All images of a class get the same: the channels in another order, each with a gain and an
    offset. A network that must tell such classes apart too learns colours that generalise.

    Args:
        images: uint8 array (batch, height, width, channels).
        classes: Class of each image, (batch,).
        share: Of the classes that are recoloured.
        rng: A `numpy.random.Generator`.

    Returns:
        `(images, tables, recolored)`: the channels reordered, tables (batch, 256, channels) for
        `augment`, and a boolean array (batch,).
    """
    channels = images.shape[3]
    names, member = np.unique(classes, return_inverse=True)
    chosen = rng.random(len(names)) < share
    order = np.tile(np.arange(channels), (len(names), 1))
    shuffled = chosen & (rng.random(len(names)) < REORDERED)
    order[shuffled] = rng.permuted(order[shuffled], axis=1)
    gain = np.exp(rng.uniform(-GAIN, GAIN, (len(names), 1, channels)))
    offset = 255 * rng.uniform(-OFFSET, OFFSET, (len(names), 1, channels))
    levels = np.arange(256.0)[:, None]
    tables = np.where(chosen[:, None, None], levels * gain + offset, levels)
    images = images.copy()
    for name in np.flatnonzero(shuffled):
        images[member == name] = images[member == name][..., order[name]]
    return images, tables[member], chosen[member]
