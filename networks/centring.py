"""Brings what is drawn to the middle of the picture and to one size, within a network."""

import numpy as np
from keras import ops

SPREAD = 0.23  # of centred ink: root mean square distance from the middle, as a share of the side
MOST_ZOOM = 1.6  # in or out


def centre(pixels, size):
    """Raw pixels (batch, height, width, channels) to (batch, size, size, channels).

    The ink, all that differs from the corners, comes to the middle and to one spread, its aspect
    half way to a square. Sampling is two products with matrices of triangles, as the attention of
    Gregor et al., "DRAW", 2015.
    """
    height, width = pixels.shape[1:3]
    corners = pixels[:, :: height - 1, :: width - 1]
    ground = ops.mean(corners, axis=(1, 2), keepdims=True)
    drawn = ops.subtract(pixels, ground)
    ink = ops.sum(ops.abs(drawn), axis=-1)  # (batch, height, width)
    row, down = _mean_and_variance(ops.sum(ink, axis=2))
    column, across = _mean_and_variance(ops.sum(ink, axis=1))
    step = ops.sqrt(down + across) / (SPREAD * size)  # input pixels an output pixel
    aspect = ops.power(down / across, 0.125)  # half of the deviations' ratio, to either side
    to_rows = _sampling(row, step * aspect, height, size)
    to_columns = _sampling(column, step / aspect, width, size)
    planes = ops.matmul(to_rows[:, None], ops.transpose(drawn, (0, 3, 1, 2)))
    planes = ops.matmul(planes, ops.transpose(to_columns, (0, 2, 1))[:, None])
    return ops.transpose(planes, (0, 2, 3, 1)) + ground


def _mean_and_variance(ink):
    """Of the places along one side, in pixels, weighted by ink (batch, side): each (batch, 1)."""
    places = np.arange(ink.shape[1], dtype="float32")
    share = ink / ops.maximum(ops.sum(ink, axis=1, keepdims=True), 1.0)
    mean = ops.sum(share * places, axis=1, keepdims=True)
    variance = ops.sum(share * ops.square(mean - places), axis=1, keepdims=True)
    return mean, variance + 1.0  # a dot, or nothing, has a spread too


def _sampling(middle, step, side, size):
    """Matrices (batch, size, side) that sample one side around a middle, both (batch, 1)."""
    step = ops.clip(step, side / size / MOST_ZOOM, side / size * MOST_ZOOM)
    offsets = np.arange(size, dtype="float32") - (size - 1) / 2
    places = (middle + step * offsets)[:, :, None]
    width = ops.maximum(step, 1.0)[:, :, None]  # where pixels are merged, all count
    distances = ops.abs(places - np.arange(side, dtype="float32")) / width
    return ops.maximum(1.0 - distances, 0.0) / width
