"""Uses a trained run on your images; no training, and not the data it was trained on.

python predict.py compare RUN A B [C ...]               the same, or not? every pair
python predict.py verify RUN QUERY... --references DIR   of the one class whose images DIR holds?
python predict.py identify RUN QUERY... --references DIR which of these classes, or none?
python predict.py search RUN QUERY... --gallery DIR      the most similar images of a folder
python predict.py serve RUN [--references DIR] [--gallery DIR]  a local page

Images are given as files, folders or globs. The exit status is 0, 1 if a file could not be read
(the rest is done), or 2 if nothing could be done.
"""

import argparse
import contextlib
import glob
import json
import sys
from pathlib import Path

from configs import Config
from inference.answers import table, text
from inference.gallery import image_files
from inference.similarity_model import SimilarityModel
from pipeline.files import DataError
from pipeline.reading import decode
from pipeline.sheets import draw_rows
from run_directory import RunDirectory, write_atomically

MOST_COMPARED = 1000  # images; every pair of them is half a million
ROWS_DRAWN, FIGURE = 20, Config(image_size=160)


def ask(options, images, unreadable):
    """Answers compare, verify, identify or search, as the methods of `SimilarityModel` do."""
    model = SimilarityModel(options.run)
    if options.verb == "compare":
        return model.compare(images, unreadable)
    searching = options.verb == "search"
    known = model.open(options.gallery if searching else options.references)
    unreadable |= known.unreadable
    setting = options.top if searching else options.false_accept_rate
    return getattr(model, options.verb)(images, known, setting, unreadable)


def draw(answers, path):
    """Draws the first answers of compare or search."""
    rows = []
    for (query, said), *others in map(table, answers[:ROWS_DRAWN]):
        shown = [(query, ""), *others]
        images = [(decode(Path(name).read_bytes(), FIGURE)[0], words) for name, words in shown]
        rows.append((f"{said}: {query}", "black", images))
    write_atomically(path, draw_rows(rows).save)
    if len(answers) > ROWS_DRAWN:
        print(f"{path}: the first {ROWS_DRAWN} of {len(answers)}.", file=sys.stderr)


def expand(arguments, problems):
    """Files, folders and globs as a list of files; `problems` takes argument -> reason."""
    paths = []
    for argument in arguments:
        exists = Path(argument).exists()
        found = [argument] if exists else sorted(glob.glob(argument, recursive=True))
        if not found:
            problems[argument] = "no such file or folder, and no glob that matches one"
        for path in found:
            try:
                inside = image_files(path) if Path(path).is_dir() else [""]
                paths += [str(Path(path, name)) for name in inside]
            except DataError as error:
                problems[path] = str(error)
    return paths


def answer(options):
    """Runs any verb but serve; returns the exit status."""
    problems, comparing = {}, options.verb == "compare"
    images = expand(options.images, problems)
    try:
        if len(images) < 1 + comparing or (comparing and len(images) > MOST_COMPARED):
            wanted = f"2 to {MOST_COMPARED} images" if comparing else "at least 1 image"
            raise DataError(f"{options.verb} needs {wanted}. Received: {len(images)}.")
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the answers
            answers = ask(options, images, problems)
    finally:
        for path, reason in sorted(problems.items()):
            print(f"{path}: {reason}", file=sys.stderr)
    print(json.dumps(answers, indent=2) if options.json else "\n".join(map(text, answers)))
    if answers and getattr(options, "figure", None):
        draw(answers, options.figure)
    return 2 if not answers else 1 if problems else 0


def parse(args):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    names = ("compare", "verify", "identify", "search", "serve")
    compare, verify, identify, search, serve = (verbs.add_parser(name) for name in names)
    for verb in (compare, verify, identify, search, serve):
        verb.add_argument("run", help="a finished run directory")
    for verb in (compare, verify, identify, search):
        verb.add_argument("images", nargs="+", help="files, folders or globs")
        verb.add_argument("--json", action="store_true", help="one JSON list for programs")
    for verb in (compare, search):
        verb.add_argument("--figure", help="PNG to draw the answers in")
    rate = "share of impostors that may be accepted; default: "
    verify.add_argument("--references", required=True, help="a folder of images of one class")
    verify.add_argument("--false_accept_rate", type=float, help=rate + "the equal error rate")
    for verb in (identify, serve):
        of_each = "a folder of images per class, or an image per class"
        verb.add_argument("--references", required=verb is identify, help=of_each)
        verb.add_argument("--false_accept_rate", type=float, default=0.01, help=rate + "0.01")
    for verb in (search, serve):
        verb.add_argument("--gallery", required=verb is search, help="a folder of images")
    search.add_argument("--top", type=int, default=10, help="how many neighbours")
    serve.add_argument("--port", type=int, default=7860, help="of the page; %(default)s by default")
    return parser.parse_args(args)


def main(args=None):
    """Runs the command line; returns the exit status."""
    options = parse(args)
    try:
        # A wrong run or folder is told before Keras is imported, which takes seconds.
        RunDirectory(options.run).read_json("threshold.json")
        for name in ("references", "gallery"):
            if folder := getattr(options, name, None):
                image_files(folder)
        if options.verb == "serve":
            from inference.web_page import serve

            return serve(options)
        return answer(options)
    except (ValueError, OSError) as error:  # DataError, RunError and BadImage are ValueErrors
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
