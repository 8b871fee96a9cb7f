"""From a folder of images to what a training needs: index, decoded pixels, splits.

python prepare_data.py PATH                  prints an inventory, draws a contact sheet
python prepare_data.py NAME --data_dir PATH  with the splits that `train.py` with the same makes
python prepare_data.py omniglot              downloads into data/omniglot; or plantvillage
Options: every --field of configs.Config, and --out FOLDER for the contact sheet.
"""

import argparse
import csv
import dataclasses
import hashlib
import io
import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from configs import CONFIGS, DRAWN_LEAVES, parse_command_line
from pipeline import download
from pipeline.files import CONTACT_SHEET
from pipeline.image_cache import ImageCache, cache_dir, open_cache
from pipeline.image_index import ImageIndex, draw_of_each, read_index
from pipeline.inventory import advice, inventory
from pipeline.near_duplicates import near_duplicates
from pipeline.row_store import one_at_a_time
from pipeline.sheets import contact_sheet
from pipeline.splits import Splits, make_splits

SEVERAL = 8  # images of a class that a sample has, where the class has them


@dataclasses.dataclass
class Dataset:
    """Everything about the images of a run; rows mean the same in all three parts."""

    index: ImageIndex  # names, classes, families, groups
    cache: ImageCache  # pixels and what was learned while decoding
    splits: Splits  # rows for training, validation and test

    @property
    def pixels(self):
        """uint8 array (images, size, size, channels), memory-mapped."""
        return self.cache.pixels

    def given_pairs(self, rows):
        """The given pairs among some sorted rows: `(left, right, same)`, positions and booleans.

        None where classes are given.
        """
        if self.index.pairs is None:
            return None
        left, right, same = self.index.pairs[self.index.pairs_within(rows)].T
        return np.searchsorted(rows, left), np.searchsorted(rows, right), same == 1

    def sample(self, rows, most, rng):
        """Some sorted rows, at most about `most`: whole given pairs, else several of each class."""
        if len(rows) <= most:
            return rows
        if (given := self.given_pairs(rows)) is not None:
            left, right, same = given
            drawn = draw_of_each((True, False), same, most // 4, rng)
            return rows[np.union1d(left[drawn], right[drawn])]
        labels = self.index.labels[rows]
        classes = rng.permutation(np.unique(labels))[: max(2, most // SEVERAL)]
        return rows[draw_of_each(classes, labels, most // len(classes), rng)]


def load_data(config):
    """Reads, decodes (once) and splits the images of a `Config`: a `Dataset`.

    A DataError if the data cannot be used says why and how to mend it.
    """
    cache_dir(config)  # is told before anything is drawn
    if config.data_dir == DRAWN_LEAVES and not Path(DRAWN_LEAVES).exists():
        with one_at_a_time(DRAWN_LEAVES):
            if not Path(DRAWN_LEAVES).exists():  # no other process drew them meanwhile
                print(f"No data at hand: drawing leaves into {DRAWN_LEAVES}, once.")
                script = Path(__file__).parent / "data" / "draw_leaves.py"
                runpy.run_path(str(script))["draw_leaves"](DRAWN_LEAVES)
    index = read_index(config.data_dir, config.pair_label)
    if index.pairs is None and (config.max_classes or config.max_images_per_class):
        rng = np.random.default_rng([config.seed, 5])
        index = index.limited(config.max_classes, config.max_images_per_class, rng)
    cache = open_cache(index, config)
    splits = make_splits(index, cache.digests, cache.unreadable, config, near_duplicates(cache))
    return Dataset(index, cache, splits)


def create_pairs(images, labels, rng=None):
    """Pairs of small arrays, as the `fit` of a two-input model takes them.

    Every image whose class has another one is the left of a genuine and of an impostor pair.

    Args:
        images: Array (images, height, width, channels).
        labels: Class of each image, (images,).
        rng: A NumPy generator; one of seed 0 by default.

    Returns:
        `((left, right), same)`: images (pairs, height, width, channels) twice, and float32
        (pairs, 1), 1 for genuine; the genuine pairs come first.

    Raises:
        ValueError: If there are not two classes, or no class of two images.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    rng = np.random.default_rng(0) if rng is None else rng
    if labels.shape != (len(images),):
        raise ValueError(
            f"Each image needs one label. Received: {len(images)} images, labels of shape "
            f"{labels.shape}."
        )
    _, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    left = np.flatnonzero(counts[labels] >= 2)
    if len(counts) < 2 or not len(left):
        raise ValueError(
            "Pairs need two classes or more, and two images of one class. Received: "
            f"{len(labels)} images in {len(counts)} classes."
        )
    by_class, starts, own = np.argsort(labels), np.cumsum(counts) - counts, labels[left]
    place = np.argsort(by_class)[left] - starts[own]  # of each image in its class
    other = rng.integers(counts[own] - 1)
    genuine = by_class[starts[own] + other + (other >= place)]
    other = rng.integers(len(labels) - counts[own])
    impostor = by_class[other + counts[own] * (other >= starts[own])]
    same = np.repeat(np.float32([1, 0]), len(left))[:, None]
    return (images[np.tile(left, 2)], images[np.concatenate([genuine, impostor])]), same


def keep_data(images, labels, folder):
    """Writes images and labels into a folder, under a name of their content: a config's `data_dir`.

    Args:
        images: uint8 array (images, height, width[, 1 or 3]), kept as a zip of PNGs; or a list of
            paths, kept as a table of them.
        labels: Class of each image.
        folder: Where it is written.

    Raises:
        ValueError: If the images are no such array, or labels are missing.
    """
    labels = [str(label) for label in labels]
    if len(images) != len(labels):
        raise ValueError(f"Received: {len(images)} images, {len(labels)} labels. Expected as many.")
    array = isinstance(images, np.ndarray)
    data = _zip_of(images, labels) if array else _table_of(images, labels)
    name = hashlib.blake2b(data, digest_size=6).hexdigest()
    path = Path(folder, f"given-{name}{'.zip' if array else '.csv'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():  # a file written anew would be decoded anew
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.replace(path)
    return path


def _table_of(paths, labels):
    text, paths = io.StringIO(), [str(Path(path).resolve()) for path in paths]
    csv.writer(text).writerows([("path", "label"), *zip(paths, labels, strict=True)])
    return text.getvalue().encode()


def _zip_of(images, labels):
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[3:] not in ((), (1,), (3,)):
        raise ValueError(
            "Expected uint8 images (images, height, width, 1 or 3), 0 to 255. "
            f"Received: {images.dtype} {images.shape}."
        )
    if wrong := [label for label in labels if "/" in label or label.startswith(".")]:
        raise ValueError(f"A label names a folder: no / in it. Received: {wrong[0]!r}.")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            png = io.BytesIO()
            Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(png, "PNG")
            name = zipfile.ZipInfo(f"{label}/{number:06d}.png")  # dated 1980: same bytes each time
            archive.writestr(name, png.getvalue())
    return packed.getvalue()


def main(args=None):
    """Downloads a data set, or prints the inventory of one and draws its contact sheet."""
    try:
        config, name, out = _resolve(sys.argv[1:] if args is None else args)
        dataset = load_data(config)
        print(*inventory(dataset), *advice(dataset, name), sep="\n")
        path = Path(out or dataset.cache.folder, CONTACT_SHEET)
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(dataset).save(path)
        print(f"Contact sheet: {path}")
    except (ValueError, OSError) as error:  # DataError is a ValueError
        print(error, file=sys.stderr)
        return 2
    return 0


def _resolve(args):
    """`(config, its name, folder for the contact sheet or None)` from the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out")
    options, args = parser.parse_known_args(args)
    if {"-h", "--help"} & {*args}:
        print(__doc__)
    elif args and not (args[0].startswith("-") or args[0].endswith(".json") or args[0] in CONFIGS):
        path = args[0]
        if path in download.DATASETS and not Path(path).exists():
            path = download.fetch(path, Path("data"))
        args = ["--data_dir", str(path), *args[1:]]
    return *parse_command_line(args, "prepare_data.py"), options.out


if __name__ == "__main__":
    sys.exit(main())
