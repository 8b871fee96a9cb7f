"""Single numbers of a picture that could give its class away: what pairs score by them alone."""

import concurrent.futures
import types

import numpy as np
from sklearn.metrics import roc_auc_score

from evaluation.baselines import background_pixels
from pipeline.files import read_bytes
from pipeline.reading import decode

LARGEST_SIDE = 512  # pixels; a larger file is read at that
NEAR = 0.8  # share of the network's lead over chance at which a sentence warns


def shortcut_scores(held, ink=False):
    """ROC AUC of the pairs of a `HeldOut` by the difference of single numbers of their pictures.

    Paper (the median of the border), darkest tenth of a percent and mean colour are the file's;
    with `ink` also those of what the network sees.

    Returns:
        List of dicts: `name`, `auc`, and `skilled_auc` where there are forgeries.
    """
    kinds = held.kinds_of_pairs()
    numbers = _of_files(held.dataset, held.rows)
    numbers["eight border pixels"] = background_pixels(held.dataset.pixels[held.rows])
    if ink:
        seen = _stacked([_of_pixels(held.image(at)) for at in range(len(held.rows))])
        numbers |= {f"{name}, after ink": values for name, values in seen.items()}
    found = []
    for name, values in numbers.items():
        difference = values[held.left].astype(float) - values[held.right]
        apart = -np.linalg.norm(difference, axis=1)
        row = {"name": name, "auc": float(roc_auc_score(held.same, apart))}
        if "skilled" in kinds:
            some = held.same | kinds["skilled"]
            row["skilled_auc"] = float(roc_auc_score(held.same[some], apart[some]))
        found.append(row)
    return sorted(found, key=lambda row: -row["auc"])


def shortcut_warnings(scores):
    """Sentences where a number comes near the network, from a set's scores with `baselines`."""
    said = []
    of_network = {"auc": scores["auc"], "skilled_auc": scores.get("skilled", {}).get("auc")}
    for key, kind in (("auc", "all impostors"), ("skilled_auc", "skilled forgeries")):
        for row in scores["baselines"]:
            if key in row and row[key] - 0.5 > max(0.1, NEAR * (of_network[key] - 0.5)):
                said.append(
                    f"{row['name'].capitalize()} alone: ROC AUC {row[key]:.3f} against {kind}, "
                    f"the network {of_network[key]:.3f}. This data can be solved by a shortcut."
                )
    return said


def _of_files(dataset, rows):
    kinds = [kind.decode().split() for kind in dataset.cache.rows["kind"][rows]]
    sizes = [[int(side) for side in size.split("x")] for size, _ in kinds]

    def read(row, size):
        shape = *(min(side, LARGEST_SIDE) for side in size[::-1]), 3
        plain = types.SimpleNamespace(image_shape=shape, fit="stretch", ink=False)
        data = read_bytes(dataset.index.source, dataset.index.names[row])
        return _of_pixels(decode(data, plain, dataset.cache.ranges)[0])

    with concurrent.futures.ThreadPoolExecutor() as pool:
        numbers = _stacked(list(pool.map(read, rows, sizes)))
    modes = np.array([mode for _, mode in kinds])
    numbers["mode of the file"] = (modes[:, None] == np.unique(modes)).astype(int)
    return numbers | {"width and height": np.array(sizes)}


def _of_pixels(image):
    grey = image.mean(axis=2)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return {
        "paper": [np.median(border)],
        "darkest tenth of a percent": [np.quantile(grey, 0.001)],
        "mean colour": image.mean(axis=(0, 1)),
    }


def _stacked(numbers):
    return {name: np.array([each[name] for each in numbers]) for name in numbers[0]}
