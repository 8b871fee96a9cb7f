"""A trained run as a tool: embeddings, distances, probabilities, classes, neighbours.

from similarity import SimilarityModel

model = SimilarityModel.load("runs/NAME")
model.probability("a.jpg", "b.jpg")
"""

import concurrent.futures
import hashlib
import io
import os
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist

import scores
from gallery import open_gallery
from image_cache import BadImage, decode
from image_index import MAX_FILE_BYTES
from keras_start import start_keras
from run_directory import RunDirectory

BATCH = 256  # images in memory at once
CANDIDATES = 5  # classes that identify names
MOST_COMPARED = 1000  # references whose distances to one another are looked at
FEWEST = 2  # pairs of references that a quantile must stand on


class SimilarityModel:
    """A run's encoder with its threshold and calibration.

    An image is given as a path, or as a uint8 array (height, width) or (height, width, channels)
    of any size; it is brought to the run's size as in training.

    Attributes:
        run: The `RunDirectory`.
        config: The run's `Config`.
        encoder: Model from raw pixels to embeddings.
        threshold: Two images are called the same below this distance.
    """

    def __init__(self, run, config, encoder, decision):
        self.run, self.config, self.encoder = run, config, encoder
        self.threshold, self._decision = decision["threshold"], decision
        digest = hashlib.blake2b((run / "encoder.keras").read_bytes(), digest_size=8)
        self._identity = digest.hexdigest()  # embeddings of another encoder are of no use

    @classmethod
    def load(cls, run):
        """Loads a run directory; what it was trained on need not be there.

        Args:
            run: Path of a finished run.

        Raises:
            RunError: If it is no finished run.
        """
        run = RunDirectory(run)
        decision, config = run.read_json("threshold.json"), run.config
        start_keras()
        return cls(run, config, run.load_encoder(), decision)

    def embed(self, images, unreadable=None):
        """Embeds images, in batches.

        Args:
            images: List of images.
            unreadable: Dict that takes position -> reason; the row of such an image is NaN.
                Without it, an unreadable image raises.

        Returns:
            float32 array (images, embedding_dim).

        Raises:
            BadImage: With path and reason.
        """
        from siamese_network_funcs import embed

        failed = {} if unreadable is None else unreadable
        embeddings = np.full((len(images), self.encoder.output_shape[-1]), np.nan, np.float32)
        for start in range(0, len(images), BATCH):
            pixels, kept = self._read(images[start : start + BATCH], start, failed)
            if failed and unreadable is None:
                position, reason = next(iter(failed.items()))
                raise BadImage(f"{_title(images[position])}: {reason}")
            if kept:
                embeddings[kept] = embed(self.encoder, pixels, np.arange(len(kept)))
        return embeddings

    def _read(self, images, start, failed):
        """Pixels of the readable images of a batch, and their positions."""

        def read(image):
            try:
                return self.pixels(image)
            except (BadImage, OSError) as error:
                return str(getattr(error, "strerror", None) or error)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            results = dict(enumerate(pool.map(read, images), start))
        failed.update({at: result for at, result in results.items() if isinstance(result, str)})
        kept = [at for at in results if at not in failed]
        return np.stack([results[at] for at in kept]) if kept else None, kept

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

    def distance(self, a, b):
        """Distance between two images; small means same."""
        left, right = self.embed([a, b])
        return float(np.linalg.norm(left - right))

    def probability(self, a, b):
        """Probability that two images are of one class, where both answers were as likely."""
        return self.probability_at(self.distance(a, b))

    def probability_at(self, distance):
        """Probability that two images at a distance are of one class."""
        return float(scores.probability(distance, self._decision["calibration"]))

    def open(self, folder):
        """The embedded images of a folder, a `gallery.Gallery`.

        They are kept in the run; what came, went or changed since is noticed.

        Raises:
            DataError: If there is no image in it.
        """
        name = hashlib.blake2b(os.fsencode(Path(folder).resolve()), digest_size=8).hexdigest()
        store = self.run / "embeddings" / f"{self._identity}-{name}"

        def embed(paths):
            unreadable = {}
            embeddings = self.embed(paths, unreadable)
            return embeddings, {paths[at]: reason for at, reason in unreadable.items()}

        return open_gallery(folder, store, embed)

    def identify(self, images, references, false_accept_rate=0.01, unreadable=None):
        """Which of some classes is on each image, or none of them; no training needed.

        The class of the nearest reference wins. It is believed if that reference is nearer than
        strangers come at the false-accept rate.

        Args:
            images: List of images.
            references: Folder with a sub-folder of images per class, or an image per class; or
                what `open` gives of one.
            false_accept_rate: Share of strangers that may be taken for any of the classes. A
                smaller one turns more images of the classes away.
            unreadable: As for `embed`.

        Returns:
            List of dicts, unreadable images left out: `query`, `class` (None for none of these),
            `probability`, `distance`, and `candidates`, the nearest classes with theirs.
        """
        opened = references if hasattr(references, "embeddings") else self.open(references)
        classes, labels = np.unique(_classes(opened.names), return_inverse=True)
        reach = self.reach(len(labels), false_accept_rate)
        reach *= self.crowding(opened.embeddings, labels, false_accept_rate)
        answers = []
        for image, embedding in self._embedded(images, unreadable):
            nearest = np.full(len(classes), np.inf)
            np.minimum.at(nearest, labels, np.linalg.norm(opened.embeddings - embedding, axis=1))
            candidates = [
                {
                    "class": str(classes[row]),
                    "probability": self.probability_at(nearest[row]),
                    "distance": float(nearest[row]),
                }
                for row in np.argsort(nearest, kind="stable")[:CANDIDATES]
            ]
            answer = {"query": _title(image), **candidates[0], "candidates": candidates}
            answers.append(answer if answer["distance"] < reach else answer | {"class": None})
        return answers

    def reach(self, num_references, false_accept_rate):
        """How near a stranger comes to the nearest of some reference images, at a rate.

        With n references a stranger has n chances, so each may accept the share of validation
        impostors that makes the rate for all. A run that did not keep these shares uses its
        threshold.
        """
        if not self._decision.get("impostor_quantiles"):
            return self.threshold
        share = _share_of_each(num_references, false_accept_rate)
        return distance_at(share, self._decision["impostor_quantiles"])

    def crowding(self, embeddings, labels, false_accept_rate):
        """By how much references of different classes lie closer than validation impostors.

        Classes that were not trained on do, and strangers to them as well: `reach` shrinks by
        this factor. The more references there are, the rarer the near ones it is taken from.

        Args:
            embeddings: Of the references, (n, embedding_dim).
            labels: Their classes, (n,).
            false_accept_rate: Between 0 and 1.

        Returns:
            At most 1.
        """
        some = np.unique(np.linspace(0, len(labels) - 1, MOST_COMPARED).astype(int))
        different = np.triu(labels[some, None] != labels[some])
        if not different.any() or not self._decision.get("impostor_quantiles"):
            return 1.0
        distances = cdist(embeddings[some], embeddings[some])[different]
        share = _share_of_each(len(labels), false_accept_rate)
        share = max(share, min(0.5, FEWEST / len(distances)))  # what so few pairs can tell
        expected = distance_at(share, self._decision["impostor_quantiles"])
        return min(1.0, float(np.quantile(distances, share)) / expected)

    def search(self, images, gallery, top=10, unreadable=None):
        """The most similar images of a folder.

        Args:
            images: List of images.
            gallery: Folder of images, or what `open` gives of one.
            top: How many.
            unreadable: As for `embed`.

        Returns:
            List of dicts, unreadable images left out: `query`, and `results`, a list of dicts of
            `path` and `distance`, nearest first.
        """
        gallery = gallery if hasattr(gallery, "embeddings") else self.open(gallery)
        answers = []
        for image, embedding in self._embedded(images, unreadable):
            found = zip(*gallery.search(embedding, top), strict=True)
            results = [{"path": gallery.path(row), "distance": float(d)} for row, d in found]
            answers.append({"query": _title(image), "results": results})
        return answers

    def _embedded(self, images, unreadable):
        """`(image, embedding)` of the readable ones."""
        pairs = zip(images, self.embed(images, unreadable), strict=True)
        return [(image, embedding) for image, embedding in pairs if not np.isnan(embedding).any()]


def _share_of_each(num_references, false_accept_rate):
    return -np.expm1(np.log1p(-false_accept_rate) / num_references)


def distance_at(share, quantiles):
    """The distance below which a share of the impostors lies.

    Between the known shares and below them the share grows as a power of the distance, a straight
    line in logarithms.

    Args:
        share: Between 0 and 0.5.
        quantiles: Array of rows `(share, distance)`, ascending.
    """
    shares, distances = np.log(np.maximum(quantiles, 1e-9)).T
    if np.log(share) >= shares[0] or len(shares) < 2:
        return float(np.exp(np.interp(np.log(share), shares, distances)))
    low = slice(0, max(2, int(np.sum(shares <= np.log(0.1)))))
    slope = np.polyfit(shares[low], distances[low], 1)[0]
    return float(np.exp(distances[0] + slope * (np.log(share) - shares[0])))


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
