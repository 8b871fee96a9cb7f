"""What a network has to beat: pixels as features, and single numbers that give a class away."""

import concurrent.futures
import types
from functools import partial

import cv2
import numpy as np
from scipy.ndimage import center_of_mass, gaussian_filter, shift
from sklearn.metrics import roc_auc_score

from evaluation.few_shot import trial_distances
from evaluation.verification import pair_distances
from pipeline.files import read_bytes
from pipeline.reading import decode

LARGEST_SIDE = 512  # pixels; a larger file is read at that for its single numbers
MOST_PIXELS = 64 * 64 * 3  # numbers of an image that a nearest neighbour compares
NEAR = 0.8  # share of the network's lead over chance at which a sentence warns


def methods(embeddings, images, distance=None):
    """A network and its baselines: name -> function of `Trials` to distances `(T, ways)`.

    `images` are a uint8 array (n, height, width, channels); large ones are compared smaller.
    """
    images = _smaller(images)
    return {
        "model": partial(trial_distances, embeddings, distance=distance),
        "raw pixels": partial(trial_distances, images.reshape(len(images), -1)),
        "centred, blurred": partial(trial_distances, centred_blurred_pixels(images)),
        "background": partial(trial_distances, background_pixels(images)),
    }


def _smaller(images):
    scale = np.sqrt(MOST_PIXELS / images[0].size)
    if scale >= 1:
        return images
    size = [max(1, int(scale * side)) for side in images.shape[2:0:-1]]
    small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(images), *size[::-1], images.shape[3])


def background_pixels(images):
    """Eight border pixels, corners and middles of the edges, `(n, 8 * c)`.

    After Noyan, "Uncovering bias in the PlantVillage dataset", 2022.
    """
    row, column = images.shape[1] // 2, images.shape[2] // 2
    rows, columns = [0, 0, 0, row, row, -1, -1, -1], [0, column, -1, 0, -1, 0, column, -1]
    return images[:, rows, columns].reshape(len(images), -1)


def centred_blurred_pixels(images, blur=0.025):
    """What stands out from the background, moved to the middle and blurred, as float32 `(n, d)`.

    Background is the median of the image's border. `blur` is the Gaussian's sigma as a share of
    the height; rows and columns that it makes redundant are left out. The default gets 53.8% on 60
    within-alphabet 20-way runs of Omniglot's background alphabets, near the published 53.3%.
    """
    sigma = blur * images.shape[1]
    step = max(1, int(sigma))
    features = []
    for image in images:
        border = np.median(_border(image), axis=0).astype(np.float32)
        foreground = image.astype(np.float32) - border
        mass = np.abs(foreground).mean(axis=2) + 1e-6  # an image of one colour stays where it is
        to_middle = np.rint((np.array(mass.shape) - 1) / 2 - center_of_mass(mass))
        centred = shift(foreground, (*to_middle, 0), order=0)
        blurred = gaussian_filter(centred, (sigma, sigma, 0), mode="constant")
        features.append(blurred[step // 2 :: step, step // 2 :: step].ravel())
    return np.stack(features)


def shortcut_scores(held, ink=False):
    """ROC AUC of the pairs of a `HeldOut` by the difference of single numbers of their pictures.

    Paper (the median of the border), darkest tenth of a percent, mean colour and eight border
    pixels are the file's; with `ink` also those of what the network sees. Returns a list of dicts:
    `name`, `auc`, and `skilled_auc` where there are forgeries.
    """
    scored = {"auc": slice(None)}  # key -> which pairs
    if "skilled" in held.impostors:
        scored["skilled_auc"] = held.same | held.impostors["skilled"]
    numbers = _numbers_of_files(held.dataset, held.rows)
    if ink:
        seen = _arrays([_numbers(held.image(position)) for position in range(len(held.rows))])
        numbers |= {f"{name}, after ink": values for name, values in seen.items()}
    found = []
    for name, values in numbers.items():
        distances, row = pair_distances(values, held.left, held.right), {"name": name}
        for key, pairs in scored.items():
            row[key] = float(roc_auc_score(held.same[pairs], -distances[pairs]))
        found.append(row)
    return sorted(found, key=lambda row: -row["auc"])


def shortcut_warnings(scores):
    """Sentences where a number comes near the network, from a set's scores with `baselines`."""
    return [
        f"{row['name'].capitalize()} alone: ROC AUC {row[key]:.3f} against {kind}, "
        f"the network {scores[key]:.3f}. This data can be solved by a shortcut."
        for key, kind in (("auc", "all impostors"), ("skilled_auc", "skilled forgeries"))
        for row in scores["baselines"]
        if key in row and row[key] - 0.5 > max(0.1, NEAR * (scores[key] - 0.5))
    ]


def _numbers_of_files(dataset, rows):
    """Name -> array (rows, d) of the files as they are, whatever size the network sees."""
    kinds = [kind.decode().split() for kind in dataset.cache.rows["kind"][rows]]
    sizes = np.array([size.split("x") for size, _ in kinds]).astype(int)
    modes = np.array([mode for _, mode in kinds])

    def read(row, size):
        shape = *np.minimum(size[::-1], LARGEST_SIDE).tolist(), 3
        plain = types.SimpleNamespace(image_shape=shape, fit="stretch", ink=False)
        data = read_bytes(dataset.index.source, dataset.index.names[row])
        return _numbers(decode(data, plain, dataset.cache.ranges)[0])

    with concurrent.futures.ThreadPoolExecutor() as pool:
        numbers = _arrays([*pool.map(read, rows, sizes)])
    numbers["mode of the file"] = (modes[:, None] == np.unique(modes)).astype(int)
    return numbers | {"width and height": sizes}


def _numbers(image):
    grey = image.mean(axis=2)
    return {
        "paper": [np.median(_border(grey))],
        "darkest tenth of a percent": [np.quantile(grey, 0.001)],
        "mean colour": image.mean(axis=(0, 1)),
        "eight border pixels": background_pixels(image[None])[0],
    }


def _arrays(of_images):
    return {name: np.array([each[name] for each in of_images]) for name in of_images[0]}


def _border(image):
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
