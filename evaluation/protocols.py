"""Lake's one-shot runs of Omniglot: the protocol by which published models are compared."""

from pathlib import PurePosixPath

import numpy as np

from configs import Config
from evaluation import baselines, few_shot
from pipeline.files import DataError, list_files, read_bytes
from pipeline.reading import decode

PROTOCOLS = ("omniglot-lake",)
LAKE_PUBLISHED = {  # error
    "attentive recurrent comparator, Shyam et al. 2017": 0.015,
    "Bayesian program learning, Lake et al. 2015": 0.033,
    "people, Lake et al. 2015": 0.045,
    "siamese network, Koch et al. 2015": 0.08,
    "modified Hausdorff distance, Lake et al. 2015": 0.388,
}
NATIVE = Config(image_size=105, channels=1)  # Omniglot's drawings, on which baselines are defined


def lake_scores(source, encoder, config, distance=None):
    """Lake's one-shot runs: each test drawing against one drawing of each of 20 characters.

    Lake, Salakhutdinov & Tenenbaum, "Human-level concept learning through probabilistic program
    induction", 2015.

    Args:
        source: As for `read_lake_runs`.
        encoder: The encoder to score; `config` is its `Config`.
        distance: Of two embeddings, as in `verification`.

    Returns:
        Dict: `name`, `title`, `rows` (model and baselines: `name`, mean `error` over the runs, its
        95% `interval`) and what others `published`.
    """
    from networks.embedding import embed

    errors = {}
    for tests, trainings, answers in read_lake_runs(source):
        files = [read_bytes(source, name) for name in [*tests, *trainings]]
        seen = np.stack([decode(file, config)[0] for file in files])
        native = np.stack([decode(file, NATIVE)[0] for file in files])
        queries, known = np.split(np.arange(len(files)), [len(tests)])
        references = np.tile(known[:, None], (len(tests), 1, 1))
        trials = few_shot.Trials(queries, references, answers)
        embeddings = embed(encoder, seen, np.arange(len(files)))
        for name, method in baselines.methods(embeddings, native, distance).items():
            error = 1 - few_shot.trial_credit(method(trials), answers).mean()
            errors.setdefault(name, []).append(error)
    rows = [{"name": name, **mean_error(values)} for name, values in errors.items()]
    title = f"Lake's {len(errors['model'])} one-shot runs of Omniglot, error"
    return {"name": "omniglot-lake", "title": title, "rows": rows, "published": LAKE_PUBLISHED}


def mean_error(values):
    """Mean over runs, with its 95% interval (normal approximation)."""
    mean, half = np.mean(values), 1.96 * np.std(values) / np.sqrt(max(1, len(values) - 1))
    return {"error": float(mean), "interval": np.clip([mean - half, mean + half], 0, 1).tolist()}


def read_lake_runs(source):
    """Yields `(test files, training files, answers)` of each run in a zip or folder.

    Raises:
        DataError: If it holds no `runNN/class_labels.txt` whose every line names a test file and
            the training file of the same character.
    """
    files = list_files(source)
    labels = sorted(name for name in files if PurePosixPath(name).name == "class_labels.txt")
    if not labels:
        raise DataError(
            f"'{source}' holds no runNN/class_labels.txt. Expected Lake's all_runs.zip."
        )
    for name in labels:
        root = PurePosixPath(name).parent.parent
        lines = map(str.split, read_bytes(source, name).decode().splitlines())
        pairs = [[str(root / part) for part in line] for line in lines if line]
        missing = [part for pair in pairs for part in pair if part not in files]
        if missing or any(len(pair) != 2 for pair in pairs) or not pairs:
            raise DataError(
                f"{source}: each line of {name} must name a test file and a training file that "
                f"are there. Missing: {missing[:3]}."
            )
        tests, answers = zip(*pairs, strict=True)
        trainings, answers = np.unique(answers, return_inverse=True)
        yield tests, trainings.tolist(), answers
