"""Does a network look at the leaf, or past it? Scores a run again with every background replaced.

python benchmarks/backgrounds.py RUN [--data PATH]

GrabCut parts leaf and background, starting from an ellipse; each leaf gets the background of
another image. Beside it stands the reverse, every leaf in one grey: what scores above chance there
can be had without the leaf's surface. backgrounds_known.png and backgrounds_unseen.png show some.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from evaluation import few_shot, verification  # noqa: E402
from evaluation.held_out import held_out_rows  # noqa: E402
from evaluation.scores import SEEDS  # noqa: E402
from networks.embedding import start_keras  # noqa: E402
from run_directory import RunDirectory  # noqa: E402

TRIALS = 1000
SHOWN = 12


def leaf_masks(images):
    """Where the leaf is: boolean array (images, height, width)."""
    return np.stack([_leaf_mask(image) for image in images])


def _leaf_mask(image):
    height, width = image.shape[:2]
    mask = np.full((height, width), cv2.GC_BGD, np.uint8)
    middle = width // 2, height // 2
    for share, value in ((0.98, cv2.GC_PR_BGD), (0.8, cv2.GC_PR_FGD), (0.3, cv2.GC_FGD)):
        axes = int(share * width / 2), int(share * height / 2)
        cv2.ellipse(mask, middle, axes, 0, 0, 360, value, -1)
    cv2.grabCut(image, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    return (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)


def swap_backgrounds(images, leaf, rng):
    """Each leaf before the background of another image, one that no leaf is left of."""
    donors = rng.permutation(len(images))
    places = leaf[donors].astype(np.uint8)
    grounds = [
        cv2.inpaint(image, cv2.dilate(place, np.ones((5, 5))), 3, cv2.INPAINT_TELEA)
        for image, place in zip(images[donors], places, strict=True)
    ]
    return np.where(leaf[..., None], images, np.stack(grounds))


def fill_leaves(images, leaf):
    """The background alone: every leaf in one grey."""
    return np.where(leaf[..., None], np.uint8(128), images)


def score(encoder, pixels, labels, seed):
    """`(AUC, N-way one-shot accuracy, N)`; the same pairs and trials whatever the pixels."""
    from networks.embedding import embed

    embeddings = embed(encoder, pixels, np.arange(len(pixels)))
    rng = np.random.default_rng([seed, SEEDS["pairs"]])
    left, right, same = verification.draw_verification_pairs(labels, rng)
    distances = verification.pair_distances(embeddings, left, right)
    auc = verification.verification_scores(same, distances, 1.0)["auc"]
    ways = len(np.unique(labels))
    trials = few_shot.draw_trials(labels, ways, 1, TRIALS, np.random.default_rng([seed, 1]))
    distances = few_shot.trial_distances(embeddings, trials)
    return auc, few_shot.few_shot_accuracy(distances, trials.answers), ways


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--data")
    options = parser.parse_args()
    run = RunDirectory(options.run)
    dataset, sides, _ = held_out_rows(run, options.data)
    start_keras(0)
    encoder, rng = run.load_encoder(), np.random.default_rng(0)
    print("| classes | pixels | AUC | one-shot |", "|---|---|---|---|", sep="\n")
    for side, rows in sides.items():
        pixels, labels = np.asarray(dataset.pixels[rows]), dataset.index.labels[rows]
        leaf = leaf_masks(pixels)
        versions = {
            "as they are": pixels,
            "backgrounds swapped": swap_backgrounds(pixels, leaf, rng),
            "leaves grey": fill_leaves(pixels, leaf),
        }
        for name, version in versions.items():
            auc, accuracy, ways = score(encoder, version, labels, 0)
            print(f"| {side} | {name} | {auc:.3f} | {accuracy:.1%} ({ways}-way) |", flush=True)
        shown = np.linspace(0, len(rows) - 1, SHOWN).astype(int)
        sheet = np.concatenate([np.concatenate(list(v[shown]), 1) for v in versions.values()])
        Image.fromarray(sheet).save(HERE / f"backgrounds_{side}.png")


if __name__ == "__main__":
    main()
