"""Random views of images: one warp and one brightness per image, drawn with a given rng."""

import cv2
import numpy as np

cv2.setNumThreads(1)  # the threads are the training step's


def augment(images, config, rng):
    """Rotates, zooms, shears, shifts, mirrors and relights each image on its own, as one warp.

    Takes and gives a uint8 array (batch, height, width, channels), each its own.
    """
    matrices = _draw_warps(len(images), images.shape[1:3], config, rng)  # (batch, 2, 3)
    light = 1 + rng.uniform(-config.brightness, config.brightness, (len(images), 1))
    tables = (np.arange(256) * light).clip(0, 255).astype(np.uint8)  # (batch, 256)
    views = np.empty_like(images)
    size = images.shape[2], images.shape[1]
    # An image on plain ground, as a drawing, goes on in that colour; any other is reflected.
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # (batch, 4, channels)
    plain = (corners == corners[:, :1]).all(axis=(1, 2))
    of_each = zip(views, images, matrices, tables, plain, strict=True)
    for view, image, matrix, table, flat in of_each:
        border = cv2.BORDER_CONSTANT if flat else cv2.BORDER_REFLECT_101
        ground = image[0, 0].tolist() if flat else 0
        warped = cv2.warpAffine(image, matrix, size, borderMode=border, borderValue=ground)
        view[...] = cv2.LUT(warped, table).reshape(view.shape)
    return views


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


def turn(images, turns):
    """Turns each image (batch, size, size, channels) by 0 to 3 right angles; by 4 to 7 mirrored."""
    pairs = zip(images, turns, strict=True)
    return np.stack([np.rot90(image[:, ::-1] if by > 3 else image, by) for image, by in pairs])
