"""Which images there are and what they show: folder, zip or CSV -> ImageIndex. No pixels here."""

import dataclasses
import json
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.files import (
    TABLES,
    DataError,
    by_reason,
    find_images,
    folder_of,
    read_bytes,
    tables_in,
    tables_of,
)
from pipeline.forgeries import class_folders
from pipeline.layout import class_remarks, place_images
from pipeline.pair_lists import folder_pairs, is_pair_list, pair_rows, read_pairs
from pipeline.tables import Row, read_cells, table_rows


@dataclasses.dataclass
class ImageIndex:
    """The images of one data set, row by row; about 100 bytes each."""

    source: Path  # the folder, zip or table
    names: np.ndarray  # of the files, relative to the source (zip: members), numpy's StringDType
    stamps: np.ndarray  # uint64 that changes with the name, size or time of a file
    labels: np.ndarray  # class of each row, int
    class_names: list
    class_families: np.ndarray  # family of each class, int; all 0 where there are no families
    family_names: list
    groups: np.ndarray  # rows with equal numbers must stay on one side of a split, int
    forged: np.ndarray  # True for images of nobody that imitate their label's class, bool
    splits: np.ndarray | None = None  # "train", "val" or "test" where the source says so
    pairs: np.ndarray | None = None  # given ones, int (n, 3): left row, right row, 1 for genuine
    pair_folds: np.ndarray | None = None  # fold of each given pair, int, where folds are named
    classes_known: bool = True  # False where labels are no more than what genuine pairs join
    skipped: dict = dataclasses.field(default_factory=dict)  # other file or folder -> reason
    remarks: list = dataclasses.field(default_factory=list)  # sentences for the user

    def __len__(self):
        return len(self.names)

    def limited(self, max_classes, max_images_per_class, rng):
        """The first classes by name, and a random choice of images of each; None: all of them."""
        classes = np.unique(self.labels)[:max_classes]
        kept = draw_of_each(classes, self.labels, max_images_per_class, rng)
        by_row = ("names", "stamps", "labels", "groups", "forged")
        return dataclasses.replace(
            self,
            class_names=self.class_names[:max_classes],
            class_families=self.class_families[:max_classes],
            splits=None if self.splits is None else self.splits[kept],
            **{name: getattr(self, name)[kept] for name in by_row},
        )

    @property
    def families(self):
        """Family of each row, int array."""
        return self.class_families[self.labels]

    def pairs_within(self, rows):
        """Which given pairs have both images among some rows, bool (pairs,)."""
        return np.isin(self.pairs[:, :2], rows).all(axis=1)


def draw_of_each(classes, labels, count, rng):
    """Where among `labels` up to `count` random ones of each class are, sorted; None: all."""
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:count] for label in classes]
    return np.sort(np.concatenate(drawn))


def read_index(source, pair_label=None):
    """Finds the images of a data set and reads their classes from the layout: an `ImageIndex`.

    Args:
        source: Path of a folder, zip, table or list of pairs, as docs/data.md shows them.
        pair_label: What label 1 means in a list of pairs, "same" or "different", where the list
            does not say it.

    Raises:
        DataError: If the source does not exist or holds no images in a known layout.
    """
    source, skipped, remarks = Path(source), {}, []
    if not source.exists():
        raise DataError(
            f"data_dir does not exist. Received: '{source}'. "
            "Expected a folder with one sub-folder of images per class, a .zip of one, or a .csv."
        )
    if source.suffix.lower() in TABLES:
        lines = read_cells(source, remarks)
        if is_pair_list(lines):
            given = read_pairs(source, lines, pair_label, skipped, remarks)
            return _pair_index(source, *given, skipped, remarks)
        rows = _with_forgeries([*table_rows(source, lines, skipped, remarks)], remarks)
        return _assemble(source, rows, skipped, remarks)
    images = find_images(source, skipped)
    if (given := folder_pairs(images, skipped)) is not None:
        return _pair_index(source, given, images, skipped, remarks)
    places, remarks = place_images(images, skipped)
    remarks += tables_of(source, places, skipped)
    leaves = _leaves(source, places, skipped)
    rows = [
        Row(name, images[name], place.label, leaves.get(name), place.split, place.forged)
        for name, place in places.items()
    ]
    return _assemble(source, rows, skipped, remarks)


def _leaves(source, places, skipped):
    """Name -> leaf on the photograph, as PlantVillage's `leaf-map.json` (stem -> leaves) has it."""
    maps = [name for name in skipped if name.rpartition("/")[2] == "leaf-map.json"]
    if not maps:
        return {}
    path = min(maps, key=len)
    del skipped[path]
    try:
        leaves = {
            stem.lower(): [found] if isinstance(found, str) else [*map(str, found or [])]
            for stem, found in json.loads(read_bytes(source, path)).items()
        }
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"{source}/{path} must be a JSON object of file stem -> [leaf]. Received: {error}."
        ) from error
    leaf_of = {}
    for name, place in places.items():
        stem = PurePosixPath(name).stem.lower()
        short = stem.split("___")[-1].split("copy")[0].strip()  # maps know either
        found = leaves.get(stem) or leaves.get(short) or [None]
        of_class = [leaf for leaf in found if leaf and leaf.startswith(place.label)]
        leaf_of[name] = (of_class or found)[0]
    return leaf_of


def _with_forgeries(rows, remarks):
    """Rows of a table; where it names no forgeries, with those that folders or labels tell."""
    if any(row.forged for row in rows):
        return rows
    by_path = class_folders([row.name for row in rows])
    kinds = {(row.label, by_path[row.name][1]) for row in rows}
    labels, forged = {label for label, _ in kinds}, {forged for _, forged in kinds}
    if len(kinds) == len(labels) == len(forged) == 2:  # one label of forgeries, one of all others
        places = place_images(by_path, {})[0]
        remarks.append("Labels tell which images are forged; classes are as their names say.")
        rows = [row._replace(label=places.get(row.name, row).label) for row in rows]
    by_label = class_folders({f"{row.label}/1.png" for row in rows})
    found = []
    for row in rows:
        label, forged = by_label[f"{row.label}/1.png"]
        found.append(row._replace(label=label, forged=forged or by_path[row.name][1]))
    genuine = {row.label for row in found if not row.forged}
    return found if all(row.label in genuine for row in found) else rows


def _pair_index(source, given, stamps, skipped, remarks):
    """The index of given pairs, (left, right) -> (same, fold); stamps by name."""
    rows, known = pair_rows(given, stamps, skipped)
    index = _assemble(source, rows, skipped, remarks, known)
    row_of = {name: row for row, name in enumerate(index.names.tolist())}
    found = [(pair, *said) for pair, said in given.items() if row_of.keys() >= {*pair}]
    index.pairs = np.array([(*map(row_of.get, pair), same) for pair, same, _ in found], int)
    folds = [fold for *_, fold in found]
    index.pair_folds = _number(folds)[1] if None not in folds else None
    return index


def _assemble(source, rows, skipped, remarks, known=True):
    """The index of some `Row`s; the names of classes that are not `known` say nothing."""
    genuine = {row.label for row in rows if not row.forged}
    skipped |= {
        row.name: f"a forgery of '{row.label}', of which there is no genuine image"
        for row in rows
        if row.label not in genuine
    }
    columns = list(zip(*(row for row in rows if row.label in genuine), strict=True))
    if not columns:
        found = "".join(f"; {reason}" for reason in by_reason(skipped, 1)[:5])
        raise DataError(
            f"No images in class folders. Received: '{source}' with {len(skipped)} files{found}. "
            "Expected one sub-folder per class with the images of that class in it, or a CSV with "
            f"paths from its own folder on.{tables_in(skipped)}"
        )
    names, stamps, labels, groups, splits, forged = columns
    if any(splits) and not all(splits):
        raise DataError(f"{source}: give every line a split, or none.")
    class_names, labels = _number(labels)
    # `Latin/character01` is of `Latin`, `Apple___scab` of `Apple`
    families = [folder_of(n) or n.partition("___")[0] * ("___" in n) for n in class_names]
    family_names, class_families = _number(families if known else [""] * len(class_names))
    return ImageIndex(
        source=source,
        names=np.array(names, dtype=np.dtypes.StringDType()),
        stamps=np.array(stamps, dtype=np.uint64),
        labels=labels,
        class_names=class_names,
        class_families=class_families,
        family_names=family_names,
        groups=_number([group or name for group, name in zip(groups, names, strict=True)])[1],
        forged=np.array(forged, bool),
        splits=np.array(splits) if any(splits) else None,
        classes_known=known,
        skipped=skipped,
        remarks=[*remarks, *class_remarks(class_names if known else [])],
    )


def _number(values):
    """The distinct values, sorted, and where each value stands among them."""
    distinct = sorted(set(values))
    number_of = {value: number for number, value in enumerate(distinct)}
    return distinct, np.array([number_of[value] for value in values], dtype=np.int32)
