"""From a folder of images to what a training needs: index, decoded pixels, splits.

python prepare_data.py PATH          prints an inventory, writes a contact sheet
python prepare_data.py omniglot      downloads into data/omniglot
python prepare_data.py plantvillage  downloads into data/plantvillage
"""

import argparse
import csv
import dataclasses
import hashlib
import io
import runpy
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from configs import DRAWN_LEAVES, Config
from pipeline import download
from pipeline.image_cache import ImageCache, one_at_a_time, open_cache
from pipeline.image_index import ImageIndex, read_index
from pipeline.near_duplicates import near_duplicates
from pipeline.splits import Splits, equal_files, make_splits

SHEET_COLUMNS, SHEET_CLASSES, SHEET_IMAGE = 8, 40, 96  # images a class, classes, pixels
MOST_NAMED = 10  # entries of a list that an inventory prints in full


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
        """The given pairs among some sorted rows.

        Returns:
            `(left, right, same)`, positions in `rows` and booleans; None where classes are given.
        """
        if self.index.pairs is None:
            return None
        inside = np.isin(self.index.pairs[:, :2], rows).all(axis=1)
        left, right, same = self.index.pairs[inside].T
        return np.searchsorted(rows, left), np.searchsorted(rows, right), same == 1


def load_data(config, report=print):
    """Reads, decodes (once) and splits the images of a config: a `Dataset`.

    Args:
        config: A `Config`.
        report: Called with each line for the user.

    Raises:
        DataError: If the data cannot be used; the message says why and how to mend it.
    """
    if config.data_dir == DRAWN_LEAVES and not Path(DRAWN_LEAVES).exists():
        with one_at_a_time(DRAWN_LEAVES):
            if not Path(DRAWN_LEAVES).exists():  # no other process drew them meanwhile
                report(f"No data at hand: drawing leaves into {DRAWN_LEAVES}, once.")
                script = Path(__file__).parent / "data" / "draw_leaves.py"
                runpy.run_path(str(script))["draw_leaves"](DRAWN_LEAVES, report=report)
    index = read_index(config.data_dir, config.pair_label)
    if index.pairs is None and (config.max_classes or config.max_images_per_class):
        limits = config.max_classes, config.max_images_per_class
        index = index.limited(*limits, np.random.default_rng([config.seed, 5]))
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
    others = [np.flatnonzero(labels == labels[row]) for row in left]
    genuine = [rng.choice(own[own != row]) for row, own in zip(left, others, strict=True)]
    impostor = [rng.choice(np.flatnonzero(labels != labels[row])) for row in left]
    same = np.repeat(np.float32([1, 0]), len(left))[:, None]
    return (images[np.tile(left, 2)], images[np.concatenate([genuine, impostor])]), same


def keep_data(images, labels, folder):
    """Writes images and labels where `load_data` reads them, under a name of their content.

    Args:
        images: uint8 array (images, height, width[, 1 or 3]), kept as a zip of PNGs; or a list of
            paths, kept as a table of them.
        labels: Class of each image.
        folder: Where it is written.

    Returns:
        The path: the `data_dir` of a config.

    Raises:
        ValueError: If the images are no such array, or labels are missing.
    """
    labels = [str(label) for label in labels]
    if len(images) != len(labels):
        raise ValueError(f"Received: {len(images)} images, {len(labels)} labels. Expected as many.")
    if not isinstance(images, np.ndarray):
        text = io.StringIO()
        paths = [str(Path(path).resolve()) for path in images]
        csv.writer(text).writerows([("path", "label"), *zip(paths, labels, strict=True)])
        return _keep(text.getvalue().encode(), folder, ".csv")
    grey = images.ndim == 3 or images.shape[-1:] == (1,)
    if images.dtype != np.uint8 or not (grey or images.shape[3:] == (3,)):
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
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(png, "PNG")
            name = zipfile.ZipInfo(f"{label}/{number:06d}.png")  # dated 1980: same bytes each time
            archive.writestr(name, png.getvalue())
    return _keep(packed.getvalue(), folder, ".zip")


def _keep(data, folder, suffix):
    path = Path(folder) / f"given-{hashlib.blake2b(data, digest_size=6).hexdigest()}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.replace(path)
    return path


def inventory(dataset):
    """What a `Dataset` holds, lines for a person to read."""
    index, cache, splits = dataset.index, dataset.cache, dataset.splits
    per_class = np.bincount(index.labels)
    families = [name for name in index.family_names if name]
    kinds = [f"{kind} x {count}" for kind, count in cache.kinds.items()]
    single = [index.class_names[label] for label in np.flatnonzero(per_class == 1)]
    others = {row: why for row, why in splits.left_out.items() if row not in cache.unreadable}
    lines = [
        f"{index.source}: {len(index)} images in {len(index.class_names)} classes",
        f"  images per class: {per_class.min()} to {per_class.max()}, "
        f"median {np.median(per_class):g}",
        f"  families:         {len(families) or 'none'}{_some(families)}",
        f"  groups:           {(np.bincount(index.groups) > 1).sum()} of 2 images or more",
        f"  sizes and modes{_some(kinds)}",
    ]
    if index.forged is not None:
        lines.append(f"  {_forgeries(index)}")
    if index.pairs is not None:
        genuine = int(index.pairs[:, 2].sum())
        impostor = len(index.pairs) - genuine
        lines.append(f"  given pairs:      {genuine} genuine, {impostor} impostor")
    for name, rows in splits.items():
        classes = len(np.unique(index.labels[rows]))
        lines.append(f"  {name + ':':<17} {len(rows)} images of {classes} classes")
    if single and index.classes_known:
        lines.append(f"Note: {len(single)} classes of one image are impostors only{_some(single)}")
    lines += [f"Note: {remark}" for remark in splits.remarks]
    lines += _duplicate_lines(index, equal_files(cache.digests, cache.unreadable))
    for title, reasons in (("Unreadable, skipped", cache.unreadable), ("Left out", others)):
        lines += _reason_lines(title, {index.names[row]: why for row, why in reasons.items()})
    return [*lines, *_reason_lines("Not indexed", index.skipped)]


def _forgeries(index):
    """What was taken for genuine and what for forged, with an example of each."""
    forged, genuine = np.flatnonzero(index.forged), np.flatnonzero(~index.forged)
    writers, imitated = (len(np.unique(index.labels[rows])) for rows in (genuine, forged))
    first = genuine[index.labels[genuine] == index.labels[forged[0]]][0]
    return (
        f"forgeries:        {len(forged)} of {imitated} classes, beside {len(genuine)} genuine "
        f"images of {writers}; '{index.names[forged[0]]}' imitates '{index.names[first]}'"
    )


def _some(names):
    """The first few of a list."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f": {', '.join(names[:MOST_NAMED])}{more}" if names else ""


def _duplicate_lines(index, equal):
    """Files of equal content, with a warning where they lie in two classes."""
    if equal:
        yield f"Exact duplicates: {sum(map(len, equal))} files of {len(equal)} contents"
    for rows in equal[:MOST_NAMED]:
        yield "  " + " = ".join(index.names[row] for row in rows)
    classes = (sorted({index.class_names[index.labels[row]] for row in rows}) for rows in equal)
    crossing = Counter(" and ".join(names) for names in classes if len(names) > 1)
    for names, count in crossing.items() if index.classes_known else ():
        yield f"WARNING: {count} files lie in two classes, {names}: none of them is used."


def _reason_lines(title, reasons):
    if reasons:
        kinds = Counter(reasons.values()).most_common(3)
        yield f"{title}: {len(reasons)}  ({', '.join(f'{n} x {why}' for why, n in kinds)})"
    for name, reason in reasons.items():
        yield f"  {name}: {reason}"


def contact_sheet(dataset):
    """A picture of the first images of each class of a `Dataset`, a class a line."""
    index, step = dataset.index, SHEET_IMAGE + 4
    usable = np.setdiff1d(np.arange(len(index)), list(dataset.splits.left_out))
    labels = np.unique(index.labels[usable])[:SHEET_CLASSES]
    sheet = Image.new("RGB", (SHEET_COLUMNS * step + 4, len(labels) * (step + 16) + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for line, label in enumerate(labels):
        rows, top = usable[index.labels[usable] == label], line * (step + 16) + 4
        draw.text((4, top), f"{index.class_names[label]}  ({len(rows)})", "black")
        for column, row in enumerate(rows[:SHEET_COLUMNS]):
            image = Image.fromarray(dataset.pixels[row].squeeze())
            sheet.paste(image.resize((SHEET_IMAGE,) * 2), (column * step + 4, top + 14))
    return sheet


def main(args=None):
    """Downloads a data set, or prints the inventory of one and draws its contact sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    datasets = download.DATASETS
    parser.add_argument("path", help=f"folder, .zip or .csv; or: {', '.join(datasets)}")
    what = "what label 1 of a list of pairs means"
    parser.add_argument("--pair_label", choices=("same", "different"), help=what)
    parser.add_argument("--image_size", type=int, default=Config.image_size)
    parser.add_argument("--out", default="contact_sheet.png", help="where the picture goes")
    options = parser.parse_args(args)
    try:
        path = options.path
        if path in datasets and not Path(path).exists():
            path = download.fetch(path, Path("data"))
        given = {"image_size": options.image_size, "pair_label": options.pair_label}
        dataset = load_data(Config(data_dir=str(path), **given))
        print(*inventory(dataset), sep="\n")
        contact_sheet(dataset).save(options.out)
        print(f"Contact sheet: {options.out}")
    except (ValueError, OSError, download.DownloadError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
