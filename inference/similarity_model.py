"""A trained run as a tool: embeddings, distances, probabilities, classes, neighbours."""

import concurrent.futures
import hashlib
import io
import itertools
import os
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from evaluation.references import RULES, enrolled_threshold, unknown_threshold
from evaluation.thresholds import probability
from evaluation.verification import all_distances, most_compared
from inference.gallery import Gallery
from networks.embedding import embed, start_keras
from pipeline.files import DataError, read_bytes
from pipeline.reading import BadImage, decode, say_why
from run_directory import RunDirectory

CANDIDATES = 5  # classes that identify names
MOST_AMONG = 1000  # references that are compared with each other
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency


class SimilarityModel:
    """A run's encoder and distance with its threshold and calibration.

    An image is a path, or a uint8 array (height, width), (height, width, 1) or RGB (height, width,
    3) of any size. `images` are a list of them, an array with one more axis in front, or one
    image. Where a method takes `unreadable`, that is a dict for path -> reason, and such images
    are left out; without it, an unreadable image raises `BadImage` with path and reason.
    `references` and `gallery` are a folder, or what `open` gives of one.

    Args:
        run: A finished run: its path, its `RunDirectory`, or what `train.train` returned. What it
            was trained on need not be there. A `RunError` if it is no finished one.

    Attributes:
        encoder: Model from raw pixels to embeddings.
        metric: The distance of two embeddings: None for Euclidean, or a learned one.
        threshold: Two images are called the same below this distance.
    """

    def __init__(self, run):
        run = RunDirectory(getattr(run, "path", run))
        self.run, self.config = run, run.config
        self._decision = run.read_json("threshold.json")
        self.threshold = self._decision["threshold"]
        start_keras()
        self.encoder, self.metric = run.load_encoder(), run.load_distance()

    @classmethod
    def load(cls, path):
        """The same as `SimilarityModel(path)`."""
        return cls(path)

    def pixels(self, image):
        """What the encoder sees of an image, uint8 of `config.image_shape`; ValueError, OSError."""
        array = isinstance(image, np.ndarray)
        data = _as_png(image) if array else read_bytes(Path(image).parent, Path(image).name)
        return decode(data, self.config, self.run.ranges)[0]

    def embed(self, images, unreadable=None):
        """Float32 array (images, embedding_dim), NaN where an image cannot be read."""
        images, bad = as_list(images), set()
        if not images:
            return np.empty((0, self.encoder.output_shape[-1]), np.float32)

        def read(row):
            try:
                return self.pixels(images[row])
            except (ValueError, OSError) as error:  # BadImage and DataError are ValueErrors
                title, reason = _title(images[row]), say_why(error)
                if unreadable is None:
                    raise BadImage(f"{title}: {reason}") from error
                unreadable[title] = reason
                bad.add(row)
                return np.zeros(self.config.image_shape, np.uint8)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            rows = np.arange(len(images))
            embeddings = embed(self.encoder, lambda some: np.stack([*pool.map(read, some)]), rows)
        embeddings[[*bad]] = np.nan
        return embeddings

    def _embedded(self, images, unreadable):
        """Names and embeddings of the readable ones."""
        images = as_list(images)
        embeddings = self.embed(images, unreadable)
        fine = np.flatnonzero(~np.isnan(embeddings).any(axis=1))
        return [_title(images[row]) for row in fine], embeddings[fine]

    def _distances(self, images, known, unreadable):
        """Yields each readable one's name and its distances (references,) to a `Gallery`."""
        for name, embedding in zip(*self._embedded(images, unreadable), strict=True):
            yield name, all_distances(embedding[None], known.embeddings, self.metric)[0]

    def distance(self, a, b):
        """Distance between two images; small means same."""
        return self.compare([a, b])[0]["distance"]

    def probability(self, a, b):
        """Probability that two images are of one class, as `compare` says it."""
        return self.compare([a, b])[0]["probability"]

    def compare(self, images, unreadable=None):
        """Every pair of some images.

        Returns:
            List of dicts: `a`, `b`, `distance`, the `threshold` below which they are the `same`,
            and the `probability` that they are of one class, where both answers were as likely.
        """
        names, embeddings = self._embedded(images, unreadable)
        distances = all_distances(embeddings, embeddings, self.metric)
        likely = probability(distances, self._decision["calibration"])
        return [
            {
                "a": names[a],
                "b": names[b],
                "distance": float(distances[a, b]),
                "threshold": self.threshold,
                "probability": float(likely[a, b]),
                "same": bool(distances[a, b] < self.threshold),
            }
            for a, b in itertools.combinations(range(len(names)), 2)
        ]

    def open(self, folder):
        """The embedded images of a folder, a `Gallery` kept in the run; or one that is open."""
        if isinstance(folder, Gallery):
            return folder
        # Embeddings of another encoder are of no use.
        used = (self.run / "encoder.keras").read_bytes() + os.fsencode(Path(folder).resolve())
        name = hashlib.blake2b(used, digest_size=16).hexdigest()
        path, embedding_dim = self.run / "embeddings" / name, self.encoder.output_shape[-1]
        return Gallery(folder, path, self.embed, embedding_dim)

    def identify(self, images, references, false_accept_rate=0.01, unreadable=None):
        """Which of some classes is on each image, or none of them (see `unknown_threshold`).

        Args:
            references: With a sub-folder of images per class, or an image per class.
            false_accept_rate: Share of images of unknown classes that may be taken for these.

        Returns:
            List of dicts: `query`, `class` (None for none of these), `distance` to the nearest
            image of it, the `threshold` below which that is believed, and `candidates`, the
            nearest classes with their distances.
        """
        _check_rate(false_accept_rate)
        known = self.open(references)
        paths = map(PurePosixPath, known.names)  # class/image, or an image by the class's name
        names = [str(path.parent) if len(path.parts) > 1 else path.stem for path in paths]
        classes, labels = np.unique(names, return_inverse=True)
        threshold = unknown_threshold(self._decision["unknown"], len(labels), false_accept_rate)
        answers = []
        for name, distances in self._distances(images, known, unreadable):
            nearest = np.full(len(classes), np.inf)
            np.minimum.at(nearest, labels, distances)
            candidates = [
                {"class": str(classes[row]), "distance": float(nearest[row])}
                for row in np.argsort(nearest, kind="stable")[:CANDIDATES]
            ]
            answer = {"query": name, **candidates[0], "threshold": threshold}
            if answer["distance"] >= threshold:
                answer["class"] = None
            answers.append(answer | {"candidates": candidates})
        return answers

    def verify(self, images, references, false_accept_rate=None, unreadable=None):
        """Whether questioned images are of the one class that all references are of.

        The score is one of `evaluation.references.RULES`: what told validation images best,
        forgeries where there were any.

        Args:
            references: The genuine images of one person or thing, without folders among them.
            false_accept_rate: Share of impostors that may be accepted with so many references;
                None: as many as genuine images are rejected. Impostors are forgeries if the run
                validated on any, else images of other classes.

        Returns:
            List of dicts: `query`, `accepted`, `distance` by the `rule` "nearest", "mean" or
            "energy", the `threshold` below which it is accepted, `false_accept_rate`, of which
            `impostors`, and the number of `references`.
        """
        if false_accept_rate is not None:
            _check_rate(false_accept_rate)
        known = self.open(references)
        if inside := [name for name in known.names if "/" in name]:
            raise DataError(
                "verify takes the genuine images of one class, directly in the folder of "
                f"references. Received: '{inside[0]}'. Name that folder, or use identify."
            )
        table, count = self._decision["enrolled"], len(known.names)
        threshold, rate = enrolled_threshold(table, count, false_accept_rate)
        stated = {"rule": table["rule"], "threshold": threshold, "false_accept_rate": rate}
        stated |= {"impostors": table["impostors"], "references": count}
        few = known.embeddings[:: -(-count // most_compared(MOST_AMONG, self.metric))]
        among, answers = all_distances(few, few, self.metric), []
        for name, distances in self._distances(images, known, unreadable):
            score = float(RULES[table["rule"]](distances[None], among)[0])
            verdict = {"query": name, "accepted": score < threshold, "distance": score}
            answers.append(verdict | stated)
        return answers

    def search(self, images, gallery, top=10, unreadable=None):
        """The most similar images of a folder; every one is compared.

        Returns:
            List of dicts: `query`, and `results`, the `top` of them as dicts of `path` and
            `distance`, nearest first.
        """
        if top < 1:
            raise ValueError(f"top must be 1 or more. Received: {top}.")
        known, answers = self.open(gallery), []
        for name, distances in self._distances(images, known, unreadable):
            nearest = np.argsort(distances, kind="stable")[:top]
            hits = [{"path": known.path(row), "distance": float(distances[row])} for row in nearest]
            answers.append({"query": name, "results": hits})
        return answers


def _check_rate(rate):
    if not 0 < rate < 1:
        raise ValueError(f"false_accept_rate must lie between 0 and 1. Received: {rate}.")


def as_list(images):
    """Images as a list, one image as a list of one; a `BadImage` for an array that is neither."""
    if isinstance(images, str | os.PathLike):
        return [images]
    if isinstance(images, np.ndarray):
        if _is_image(images.shape):
            return [images]
        if _channels_first(images.shape) or not _is_image(images.shape[1:]):
            raise _wrong_array(images)
    return list(images)


def _is_image(shape):
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in CHANNELS)


def _channels_first(shape):
    return len(shape) in (3, 4) and shape[-3] in CHANNELS and shape[-1] not in CHANNELS


def _wrong_array(array):
    first = "Channels come first here: use numpy.moveaxis(array, -3, -1). "
    return BadImage(
        f"{first * _channels_first(array.shape)}An image is a uint8 array (height, width) or "
        "(height, width, channels); several are a list, or an array with one axis more in front. "
        f"Received: {array.dtype} with {array.ndim} axes, {array.shape}."
    )


def _as_png(array):
    if array.dtype != np.uint8 or not _is_image(array.shape):
        raise _wrong_array(array)
    file = io.BytesIO()
    grey = array.shape[2:] == (1,)
    Image.fromarray(array[..., 0] if grey else array).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _title(image):
    return f"array {image.shape}" if isinstance(image, np.ndarray) else str(image)
