"""Lake's one-shot runs of Omniglot: the protocol by which published models are compared."""

from pathlib import PurePosixPath

import numpy as np

import baselines
import scores
from image_cache import decode
from image_index import DataError, list_files, read_bytes

NATIVE_SIZE = 105  # pixels of Omniglot's drawings, at which Lake's baselines are defined


def lake_scores(source, encoder, config):
    """Error on runs of Lake's form: each test drawing against one drawing of 20 characters.

    Args:
        source: Zip or folder with `runNN/class_labels.txt`; each line names a test file and the
            training file of the same character.
        encoder: The encoder to score.
        config: Its `Config`: `image_size`, `channels`.

    Returns:
        Dict: for the model and each baseline `error` (mean over runs) and `interval` (95%).

    Raises:
        DataError: If there are no such runs.

    Reference:
        Lake, Salakhutdinov & Tenenbaum, "Human-level concept learning through probabilistic
        program induction", 2015.
    """
    from siamese_network_funcs import embed

    def embeddings(names):
        pixels = _decode_all(source, names, config.image_size, config.channels)
        return embed(encoder, pixels, np.arange(len(names)))

    errors = {}
    for tests, trainings, answers in read_lake_runs(source):
        asked, known = embeddings(tests), embeddings(trainings)
        native = [_decode_all(source, names, NATIVE_SIZE, 1) for names in (tests, trainings)]
        raw = [baselines.raw_pixels(pixels).astype(np.float32) for pixels in native]
        blurred = [baselines.centred_blurred_pixels(pixels) for pixels in native]
        points = [baselines.ink_points(pixels) for pixels in native]
        distances = {
            "model": _all_distances(asked, known),
            "raw pixels": _all_distances(*raw),
            "centred, blurred": _all_distances(*blurred),
            "modified Hausdorff": baselines.modified_hausdorff_distances(*points),
        }
        for name, matrix in distances.items():
            errors.setdefault(name, []).append(1 - scores.trial_credit(matrix, answers).mean())
    return {name: _mean_with_interval(values) for name, values in errors.items()}


def read_lake_runs(source):
    """Yields `(test files, training files, answers)` of each run.

    Args:
        source: As for `lake_scores`.

    Raises:
        DataError: If there is no `class_labels.txt`, or one that is not of the form.
    """
    files = list_files(source)
    labels = sorted(name for name in files if PurePosixPath(name).name == "class_labels.txt")
    if not labels:
        raise DataError(
            f"'{source}' holds no runNN/class_labels.txt. Expected Lake's all_runs.zip."
        )
    for name in labels:
        root = PurePosixPath(name).parent.parent
        lines = [line.split() for line in read_bytes(source, name).decode().splitlines()]
        pairs = [[str(root / part) for part in line] for line in lines if line]
        missing = [part for pair in pairs for part in pair if part not in files]
        if missing or any(len(pair) != 2 for pair in pairs) or not pairs:
            raise DataError(
                f"{source}: each line of {name} must name a test file and a training file that "
                f"are there. Missing: {missing[:3]}."
            )
        tests = [test for test, _ in pairs]
        trainings = sorted({training for _, training in pairs})
        yield tests, trainings, np.array([trainings.index(training) for _, training in pairs])


def _decode_all(source, names, size, channels):
    return np.stack([decode(read_bytes(source, name), size, channels)[0] for name in names])


def _all_distances(queries, references):
    return scores.euclidean(queries, np.broadcast_to(references, (len(queries), *references.shape)))


def _mean_with_interval(values):
    values = np.array(values)
    reach = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    mean = float(values.mean())
    interval = [max(0.0, mean - reach), min(1.0, mean + reach)]
    return {"error": mean, "interval": interval, "runs": len(values)}
