"""Protocols by which published models are compared, and what these scored."""

import itertools
from pathlib import PurePosixPath

import numpy as np

from configs import Config
from evaluation import baselines, few_shot
from evaluation.verification import all_distances
from pipeline.class_batches import training_labels
from pipeline.files import DataError, list_files, read_bytes
from pipeline.reading import decode

PROTOCOLS = ("omniglot-lake", "omniglot-within", "5-way")
EPISODES = {  # ways, shots, episodes, queries of a class, within families
    "omniglot-within": (20, (1,), 800, 1, True),
    "5-way": (5, (1, 5), 600, 15, False),
}
EPISODES_PUBLISHED = {  # error
    "omniglot-within": {},
    "5-way": {"prototypical network on CropDisease, 5-shot, Guo et al. 2020": 0.203},
}
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


def episode_scores(name, held_out, seed):
    """Mean error over episodes of the protocol `name`, on each `HeldOut`.

    "5-way" is that of Guo et al., "A broader study of cross-domain few-shot learning", 2020: 600
    episodes, 15 queries of each class. "omniglot-within" takes the 20 classes of an episode from
    one family, as Lake's runs do, but at random.

    Returns:
        Dict as `lake_scores` gives it.

    Raises:
        DataError: If no set has enough classes with enough images.
    """
    ways, numbers, count, queries, within = EPISODES[name]
    rows = []
    for held, shots in itertools.product(held_out, numbers):
        rng = np.random.default_rng([seed, 4, shots])
        pools = _pools(held, shots + queries, ways, within)
        if pools:
            errors = [
                _episode_error(held, pools[rng.integers(len(pools))], ways, shots, queries, rng)
                for _ in range(count)
            ]
            rows.append(
                {"name": f"network, {held.name} classes, {shots}-shot"} | mean_error(errors)
            )
    if not rows:
        raise DataError(
            f"{name} needs {ways} classes{' of one family' * within} with {numbers[0] + queries} "
            "images each among those held out. Give more images by --data."
        )
    title = f"{ways}-way, {count} episodes{', within families' * within}"
    return {"name": name, "title": title, "rows": rows, "published": EPISODES_PUBLISHED[name]}


def _pools(held, images, ways, within):
    """Lists of positions by class, from which an episode's classes come: one, or one a family."""
    labels = training_labels(held.dataset.index)[held.rows]
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    families, pools = held.dataset.index.families[held.rows], {}
    for members in by_class:
        if len(members) >= images:
            pools.setdefault(families[members[0]] if within else 0, []).append(members)
    return [pool for pool in pools.values() if len(pool) >= ways]


def _episode_error(held, pool, ways, shots, queries, rng):
    chosen = [rng.permutation(pool[at]) for at in rng.choice(len(pool), ways, replace=False)]
    drawn = np.array([members[: shots + queries] for members in chosen])  # (ways, images)
    prototypes = held.embeddings[drawn[:, :shots]].mean(axis=1)
    asked = held.embeddings[drawn[:, shots:].ravel()]
    distances = all_distances(asked, prototypes, held.distance)
    return 1 - few_shot.trial_credit(distances, np.arange(ways).repeat(queries)).mean()


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
