"""Uses a trained run on your images; no training, and not the data it was trained on.

python predict.py compare RUN A B [C ...]               the same, or not? every pair
python predict.py identify RUN QUERY... --references DIR which of these classes, or none?
python predict.py search RUN QUERY... --gallery DIR      the most similar images of a folder
python predict.py serve RUN [--references DIR] [--gallery DIR]  all of it as a local page

Images are given as files, folders or globs. The exit status is 0, 1 if a file could not be read
(the rest is done), or 2 if nothing could be done.
"""

import argparse
import contextlib
import glob
import itertools
import json
import sys
from pathlib import Path

import numpy as np

import plots
from gallery import image_files
from image_cache import decode
from image_index import DataError
from run_directory import RunDirectory, write_whole
from similarity import SimilarityModel

MOST_COMPARED = 1000  # images; every pair of them is half a million
ROWS_DRAWN, FIGURE_PIXELS = 20, 160


def compare(model, images, options, unreadable):
    """Every pair of the images.

    Args:
        model: A `SimilarityModel`.
        images: List of paths.
        options: What `parse` gives.
        unreadable: Dict that takes position -> reason.

    Returns:
        `(answers, lines, rows of the figure, path -> reason of further unreadable files)`.
    """
    if len(images) > MOST_COMPARED:
        raise DataError(
            f"compare takes up to {MOST_COMPARED} images. Received: {len(images)}. Use search."
        )
    embeddings = model.embed(images, unreadable)
    answers = []
    for a, b in itertools.combinations(
        [at for at in range(len(images)) if at not in unreadable], 2
    ):
        distance = float(np.linalg.norm(embeddings[a] - embeddings[b]))
        answers.append({
            "a": images[a],
            "b": images[b],
            "distance": distance,
            "probability": model.probability_at(distance),
            "same": distance < model.threshold,
        })  # fmt: skip
    lines = [f"{pair_line(answer)}  {answer['a']}  {answer['b']}" for answer in answers]
    rows = [[(answer["a"], pair_line(answer)), (answer["b"], "")] for answer in answers]
    return answers, lines, rows, {}


def pair_line(answer):
    """Verdict, distance and probability of a pair, as text."""
    verdict = "same" if answer["same"] else "different"
    numbers = f"distance {answer['distance']:.3f}  probability {answer['probability']:.1%}"
    return f"{verdict:<9}  {numbers}"


def identify(model, images, options, unreadable):
    """The class of each image. Takes and gives what `compare` does, but no figure."""
    references = model.open(options.references)
    answers = model.identify(images, references, options.false_accept_rate, unreadable)
    lines = []
    for answer in answers:
        lines.append(f"{answer['query']}: {answer['class'] or 'none of these'}")
        for one in answer["candidates"]:
            lines.append(f"  {one['class']:<30} probability {one['probability']:.1%}  "
                         f"distance {one['distance']:.3f}")  # fmt: skip
    return answers, lines, None, references.unreadable


def search(model, images, options, unreadable):
    """The nearest images of the gallery. Takes and gives what `compare` does."""
    gallery = model.open(options.gallery)
    answers = model.search(images, gallery, options.top, unreadable)
    lines, rows = [], []
    for answer in answers:
        found = [(one["path"], f"{one['distance']:.3f}") for one in answer["results"]]
        lines += [answer["query"], *(f"  {distance}  {path}" for path, distance in found)]
        rows.append([(answer["query"], "query"), *found])
    return answers, lines, rows, gallery.unreadable


VERBS = {"compare": compare, "identify": identify, "search": search}


def expand(arguments):
    """Files, folders and globs as files.

    Args:
        arguments: List of paths and patterns.

    Returns:
        `(paths, argument -> reason why it gives none)`.
    """
    paths, problems = [], {}
    for argument in arguments:
        found = (
            [argument] if Path(argument).exists() else sorted(glob.glob(argument, recursive=True))
        )
        if not found:
            problems[argument] = "no such file or folder, and no glob that matches one"
        for path in found:
            try:
                inside = image_files(path) if Path(path).is_dir() else [""]
                paths += [str(Path(path, name)) for name in inside]
            except DataError as error:
                problems[path] = str(error)
    return paths, problems


def warn(problems):
    """Says which files are left out, and why."""
    for path, reason in problems.items():
        print(f"{path}: {reason}", file=sys.stderr)
    return len(problems)


def check_paths(options):
    """Tells a wrong run or folder before Keras is imported, which takes seconds."""
    RunDirectory(options.run).read_json("threshold.json")
    for folder in (getattr(options, "references", None), getattr(options, "gallery", None)):
        if folder:
            image_files(folder)


def answer(options):
    """Runs compare, identify or search; returns the exit status."""
    images, problems = expand(options.images)
    num_problems = warn(problems)
    if len(images) < (needed := 2 if options.verb == "compare" else 1):
        raise DataError(f"{options.verb} needs at least {needed} images. Received: {len(images)}.")
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the answers
        model, unreadable = SimilarityModel.load(options.run), {}
        answers, lines, rows, left_out = VERBS[options.verb](model, images, options, unreadable)
    num_problems += warn({images[at]: reason for at, reason in unreadable.items()} | left_out)
    print(json.dumps(answers, indent=2) if options.json else "\n".join(lines))
    if answers and getattr(options, "figure", None):
        draw(rows, options.figure)
    return 2 if not answers else 1 if num_problems else 0


def draw(rows, path):
    """Draws the first rows of `(image, caption)`."""
    pictures = [
        [(decode(Path(image).read_bytes(), FIGURE_PIXELS, 3)[0], text) for image, text in row]
        for row in rows[:ROWS_DRAWN]
    ]
    write_whole(path, lambda partial: plots.plot_rows(pictures, partial))
    if len(rows) > ROWS_DRAWN:
        print(f"{path}: the first {ROWS_DRAWN} of {len(rows)}.", file=sys.stderr)


def parse(args):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in (*VERBS, "serve"):
        verb = verbs.add_parser(name)
        verb.add_argument("run", help="a finished run directory")
        if name != "serve":
            verb.add_argument("images", nargs="+", help="files, folders or globs")
            verb.add_argument("--json", action="store_true", help="one JSON list for programs")
        if name in ("identify", "serve"):
            text = "a folder of images per class, or an image per class"
            verb.add_argument("--references", required=name == "identify", help=text)
            text = "share of strangers that may be taken for one of the classes"
            verb.add_argument("--false_accept_rate", type=rate, default=0.01, help=text)
        if name in ("search", "serve"):
            verb.add_argument("--gallery", required=name == "search", help="a folder of images")
        if name == "search":
            verb.add_argument("--top", type=count, default=10, help="how many neighbours")
        if name in ("compare", "search"):
            verb.add_argument("--figure", help="PNG to draw")
        if name == "serve":
            verb.add_argument("--port", type=count, default=7860)
    return parser.parse_args(args)


def rate(text):
    """A share between 0 and 1, for argparse."""
    if not 0 < float(text) < 1:
        raise ValueError
    return float(text)


def count(text):
    """A whole number from 1 up, for argparse."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def main(args=None):
    """Runs the command line; returns the exit status."""
    options = parse(args)
    try:
        check_paths(options)
        if options.verb == "serve":
            from serve import serve

            return serve(options)
        return answer(options)
    except (ValueError, OSError) as error:  # DataError, RunError and BadImage are ValueErrors
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
