"""A trained run as a tool: embeddings, distances, probabilities, classes, neighbours.

from similarity import SimilarityModel

model = SimilarityModel.load("runs/NAME")
model.probability("a.jpg", "b.jpg")
"""

import concurrent.futures
import functools
import hashlib
import io
import os
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

import scores
from gallery import open_gallery
from image_cache import BadImage, decode
from image_index import MAX_FILE_BYTES
from keras_start import start_keras
from open_set import OpenSet
from run_directory import RunDirectory, RunError

BATCH = 256  # images in memory at once
CANDIDATES = 5  # classes that identify names


class SimilarityModel:
    """A run's encoder and distance with its threshold and calibration.

    An image is given as a path, or as a uint8 array (height, width) or (height, width, channels)
    of any size; it is brought to the run's size as in training. Where a method takes
    `unreadable`, that is a dict for position -> reason, and such images are left out; without
    it, an unreadable image raises `BadImage` with path and reason.

    Args:
        run: A finished `RunDirectory`; what it was trained on need not be there.

    Attributes:
        run: The `RunDirectory`.
        config: Its `Config`.
        encoder: Model from raw pixels to embeddings.
        metric: The distance of two embeddings, as in `scores`: None for Euclidean.
        threshold: Two images are called the same below this distance.
    """

    def __init__(self, run):
        decision = run.read_json("threshold.json")
        self.run, self.config = run, run.config
        start_keras()
        self.encoder, self.metric = run.load_encoder(), run.load_distance()
        self.threshold, self._calibration = decision["threshold"], decision["calibration"]
        # Embeddings of another encoder are of no use.
        self._identity = _digest((run / "encoder.keras").read_bytes())

    @classmethod
    def load(cls, run):
        """Loads a run directory, given as a path.

        Raises:
            RunError: If it is no finished run.
        """
        return cls(RunDirectory(run))

    def pixels(self, image):
        """What the encoder sees of an image, uint8 array (size, size, channels).

        Raises:
            BadImage, OSError: If it cannot be read.
        """
        if isinstance(image, np.ndarray):
            data = _as_png(image)
        elif os.path.getsize(image) > MAX_FILE_BYTES:
            raise BadImage(f"larger than {MAX_FILE_BYTES // 10**6} MB")
        else:
            data = Path(image).read_bytes()
        return decode(data, self.config.image_size, self.config.channels)[0]

    def embed(self, images, unreadable=None):
        """Embeds a list of images, in batches.

        Returns:
            float32 array (images, embedding_dim); NaN where an image cannot be read.
        """
        from siamese_network_funcs import embed

        reasons = {} if unreadable is None else unreadable
        embeddings = np.full((len(images), self.encoder.output_shape[-1]), np.nan, np.float32)
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            with concurrent.futures.ThreadPoolExecutor() as pool:
                read = dict(enumerate(pool.map(self._pixels_or_reason, batch), start))
            reasons.update({at: reason for at, (_, reason) in read.items() if reason})
            if reasons and unreadable is None:
                at, reason = next(iter(reasons.items()))
                raise BadImage(f"{_title(images[at])}: {reason}")
            if fine := [at for at in read if at not in reasons]:
                pixels = np.stack([read[at][0] for at in fine])
                embeddings[fine] = embed(self.encoder, pixels, np.arange(len(fine)))
        return embeddings

    def _pixels_or_reason(self, image):
        try:
            return self.pixels(image), None
        except (BadImage, OSError) as error:
            return None, getattr(error, "strerror", None) or str(error)

    def _embedded(self, images, unreadable):
        """Names and embeddings of the readable ones."""
        embeddings = self.embed(images, unreadable)
        fine = np.flatnonzero(~np.isnan(embeddings).any(axis=1))
        return [_title(images[at]) for at in fine], embeddings[fine]

    def distance(self, a, b):
        """Distance between two images; small means same."""
        return self.compare([a, b])[0]["distance"]

    def probability(self, a, b):
        """Probability that two images are of one class, where both answers were as likely."""
        return self.compare([a, b])[0]["probability"]

    def compare(self, images, unreadable=None):
        """Every pair of the images.

        Returns:
            List of dicts: `a`, `b`, `distance`, `probability` of being of one class, and `same`,
            the verdict at the run's threshold.
        """
        names, embeddings = self._embedded(images, unreadable)
        answers = []
        for a, distances in enumerate(scores.all_distances(embeddings, embeddings, self.metric)):
            for b in range(a + 1, len(names)):
                sides, same = {"a": names[a], "b": names[b]}, bool(distances[b] < self.threshold)
                answers.append(sides | self._judged(distances[b]) | {"same": same})
        return answers

    def _judged(self, distance):
        likely = scores.probability(distance, self._calibration)
        return {"distance": float(distance), "probability": float(likely)}

    def open(self, folder):
        """The embedded images of a folder, a `gallery.Gallery`.

        They are kept in the run; what came, went or changed since is noticed.

        Raises:
            DataError: If there is no image in it.
        """

        def embed(paths):
            unreadable = {}
            embeddings = self.embed(paths, unreadable)
            return embeddings, [unreadable.get(at, "") for at in range(len(paths))]

        name = f"{self._identity}-{_digest(os.fsencode(Path(folder).resolve()))}.sqlite"
        return open_gallery(folder, self.run / "embeddings" / name, embed)

    def _opened(self, folder):
        return folder if hasattr(folder, "embeddings") else self.open(folder)

    @functools.cached_property
    def _open_set(self):
        if not (self.run / "open_set.npz").exists():
            raise RunError(f"'{self.run.path}' holds no open_set.npz. Is the run finished?")
        return OpenSet.load(self.run / "open_set.npz", self.metric)

    def identify(self, images, references, false_accept_rate=0.01, unreadable=None):
        """Which of some classes is on each image, or none of them; no training needed.

        The class of the nearest reference wins, and is believed if strangers do not come as near
        (see `open_set`).

        Args:
            images: List of images.
            references: Folder with a sub-folder of images per class, or an image per class; or
                what `open` gives of one.
            false_accept_rate: Share of strangers that may be taken for any of the classes. A
                smaller one turns more images of the classes away.
            unreadable: See above.

        Returns:
            List of dicts: `query`, `class` (None for none of these), `distance`, `probability`,
            and `candidates`, the nearest classes with theirs.
        """
        if not 0 < false_accept_rate < 1:
            raise ValueError(
                f"false_accept_rate must lie between 0 and 1. Received: {false_accept_rate}."
            )
        opened = self._opened(references)
        classes, labels = np.unique(_classes(opened.names), return_inverse=True)
        reach = self._open_set.reach(opened.embeddings, labels, false_accept_rate)
        answers = []
        for name, embedding in zip(*self._embedded(images, unreadable), strict=True):
            nearest = np.full(len(classes), np.inf)
            distances = scores.all_distances(embedding[None], opened.embeddings, self.metric)[0]
            np.minimum.at(nearest, labels, distances)
            candidates = [
                {"class": str(classes[row])} | self._judged(nearest[row])
                for row in np.argsort(nearest, kind="stable")[:CANDIDATES]
            ]
            answer = {"query": name, **candidates[0], "candidates": candidates}
            score = nearest.min() - self._open_set.background(embedding[None])[0]
            answers.append(answer if score < reach else answer | {"class": None})
        return answers

    def search(self, images, gallery, top=10, unreadable=None):
        """The most similar images of a folder.

        Args:
            images: List of images.
            gallery: Folder of images, or what `open` gives of one.
            top: How many.
            unreadable: See above.

        Returns:
            List of dicts: `query`, and `results`, a list of dicts of `path` and `distance`,
            nearest first.
        """
        if top < 1:
            raise ValueError(f"top must be 1 or more. Received: {top}.")
        opened = self._opened(gallery)
        answers = []
        for name, embedding in zip(*self._embedded(images, unreadable), strict=True):
            found = zip(*opened.search(embedding, top, self.metric), strict=True)
            results = [{"path": opened.path(row), "distance": float(d)} for row, d in found]
            answers.append({"query": name, "results": results})
        return answers


def _digest(data):
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _classes(names):
    """Class of each reference: the folder it lies in, or its own name beside the folders."""
    paths = map(PurePosixPath, names)
    return [str(path.parent) if len(path.parts) > 1 else path.stem for path in paths]


def _as_png(array):
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise BadImage(
            "an image must be a uint8 array (height, width) or (height, width, channels). "
            f"Received: {array.dtype} of shape {array.shape}."
        )
    file = io.BytesIO()
    single = array.ndim == 3 and array.shape[2] == 1
    Image.fromarray(array[..., 0] if single else array).save(file, "PNG")
    return file.getvalue()


def _title(image):
    return f"array {image.shape}" if isinstance(image, np.ndarray) else str(image)
