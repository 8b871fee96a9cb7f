"""Protocols by which published models are compared, and what these scored."""

import itertools
from pathlib import PurePosixPath

import numpy as np

from configs import Config
from evaluation import baselines, few_shot
from networks.embedding import embed
from pipeline.files import DataError, list_files, read_bytes
from pipeline.reading import decode

EPISODES = {  # ways, shots, episodes, queries of a class, within families
    "omniglot-within": (20, (1,), 800, 1, True),
    "5-way": (5, (1, 5), 600, 15, False),
}
LAKE = "omniglot-lake"
PUBLISHED = {  # error
    LAKE: {
        "attentive recurrent comparator, Shyam et al. 2017": 0.015,
        "Bayesian program learning, Lake et al. 2015": 0.033,
        "people, Lake et al. 2015": 0.045,
        "siamese network, Koch et al. 2015": 0.08,
        "modified Hausdorff distance, Lake et al. 2015": 0.388,
    },
    "omniglot-within": {},
    "5-way": {"prototypical network on CropDisease, 5-shot, Guo et al. 2020": 0.203},
}
PROTOCOLS = tuple(PUBLISHED)
NATIVE = Config(image_size=105, channels=1)  # Omniglot's drawings, on which baselines are defined


def lake_scores(source, encoder, config, distance=None):
    """Lake's one-shot runs: each test drawing against one drawing of each of 20 characters.

    Lake, Salakhutdinov & Tenenbaum, "Human-level concept learning through probabilistic program
    induction", 2015. `source` is as for `read_lake_runs`; the result is as of `_found`.
    """
    if not source:
        raise DataError(f"--protocol {LAKE} needs --data: a folder or zip of its runs.")
    errors = {}
    for tests, trainings, answers in read_lake_runs(source):
        files = [read_bytes(source, name) for name in [*tests, *trainings]]
        seen = np.stack([decode(file, config)[0] for file in files])
        native = np.stack([decode(file, NATIVE)[0] for file in files])
        queries, known = np.split(np.arange(len(files)), [len(tests)])
        trials = few_shot.Trials(queries, np.tile(known[:, None], (len(tests), 1, 1)), answers)
        embeddings = embed(encoder, seen, np.arange(len(files)))
        for name, method in baselines.methods(embeddings, native, distance).items():
            accuracy = few_shot.few_shot_accuracy(method(trials), answers)
            errors.setdefault(name, []).append(1 - accuracy)
    return _found(LAKE, f"Lake's {len(errors['model'])} one-shot runs of Omniglot, error", errors)


def episode_scores(name, held_out, options):
    """Mean error over episodes of the protocol `name`, on each `HeldOut`; as of `_found`.

    "5-way" is that of Guo et al., "A broader study of cross-domain few-shot learning", 2020.
    "omniglot-within" takes the 20 classes of an episode from one family, as Lake's runs do, but at
    random. A DataError if no set has enough classes with enough images.
    """
    ways, numbers, count, queries, within = EPISODES[name]
    errors = {}
    for held, shots in itertools.product(held_out, numbers):
        rng, families = options.rng("episodes", shots), held.families if within else None
        drawn = held.trial_labels, ways, shots + queries, count, rng, families
        try:
            images = few_shot.draw_episodes(*drawn)
        except ValueError:
            continue
        if images.shape[1] == ways:
            trials = few_shot.trials_of(images, shots)
            distances = few_shot.trial_distances(held.embeddings, trials, held.distance)
            credit = few_shot.trial_credit(distances, trials.answers).reshape(count, -1)
            errors[f"network, {held.name} classes, {shots}-shot"] = 1 - credit.mean(axis=1)
    if not errors:
        raise DataError(
            f"{name} needs {ways} classes{' of one family' * within} with {numbers[0] + queries} "
            "images each among those held out. Give more images by --data."
        )
    return _found(name, f"{ways}-way, {count} episodes{', within families' * within}", errors)


def _found(name, title, errors):
    """Dict: `name`, `title`, `rows` and what others `published`.

    Each of the rows has a `name`, the mean `error` over runs or episodes and its 95% `interval`.
    """
    rows = []
    for method, values in errors.items():
        mean, half = np.mean(values), 1.96 * np.std(values) / np.sqrt(max(1, len(values) - 1))
        ends = np.clip([mean - half, mean + half], 0, 1).tolist()
        rows.append({"name": method, "error": float(mean), "interval": ends})
    return {"name": name, "title": title, "rows": rows, "published": PUBLISHED[name]}


def read_lake_runs(source):
    """Yields `(test files, training files, answers)` of each run in a zip or folder.

    A DataError if it holds no `runNN/class_labels.txt` whose every line names a test file and the
    training file of the same character.
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
