"""A trained run as a tool: embeddings, distances, probabilities, classes, neighbours.

from similarity import SimilarityModel

model = SimilarityModel.load("runs/NAME")
model.probability("a.jpg", "b.jpg")
"""

import concurrent.futures
import hashlib
import io
import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

import scores
from gallery import open_gallery
from image_cache import BadImage, decode
from image_index import MAX_FILE_BYTES
from keras_start import start_keras
from run_directory import RunDirectory

BATCH = 256  # images in memory at once
CANDIDATES = 5  # classes that identify names


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

        The class with the nearest mean embedding wins, as in `evaluate.py`. It is believed if its
        nearest image is nearer than strangers come at the false-accept rate; the probability is
        that of being the same as this image.

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
        classes = _by_class(opened)
        prototypes = np.stack([members.mean(axis=0) for members in classes.values()])
        reach = self.reach(len(opened.names), false_accept_rate)
        answers = []
        for image, embedding in self._embedded(images, unreadable):
            distances = np.linalg.norm(prototypes - embedding, axis=1)
            candidates, nearest = [], []
            for row in np.argsort(distances, kind="stable")[:CANDIDATES]:
                name = list(classes)[row]
                nearest.append(np.linalg.norm(classes[name] - embedding, axis=1).min())
                likely = self.probability_at(nearest[-1])
                candidates.append(
                    {"class": name, "probability": likely, "distance": float(distances[row])}
                )
            answer = {"query": _title(image), **candidates[0], "candidates": candidates}
            answers.append(answer if nearest[0] < reach else answer | {"class": None})
        return answers

    def reach(self, num_references, false_accept_rate):
        """How near a stranger comes to the nearest of some reference images, at a rate.

        Each image may accept the share of validation impostors that makes the rate for all. A run
        that did not keep these shares uses its threshold.
        """
        if not self._decision.get("impostor_quantiles"):
            return self.threshold
        share = 1 - (1 - false_accept_rate) ** (1 / num_references)
        shares, distances = np.array(self._decision["impostor_quantiles"]).T
        return float(np.interp(np.log(share), np.log(shares), distances))

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


def _by_class(references):
    """Class -> embeddings, of a `Gallery` with a folder or an image per class."""
    rows = defaultdict(list)
    for row, name in enumerate(references.names):
        path = PurePosixPath(name)
        rows[str(path.parent) if len(path.parts) > 1 else path.stem].append(row)
    return {name: references.embeddings[members] for name, members in rows.items()}


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
