"""Scores a finished run on images it never trained on. The only place that computes a number
to publish.

python evaluate.py RUN                  its own held-out images: known and unseen classes
python evaluate.py RUN --data PATH      another folder, without what the run was trained on
python evaluate.py RUN --pairs LIST     a list of pairs: paths and a label, or LFW's pairs.txt
python evaluate.py RUN --protocol omniglot-lake --data ZIP    a published protocol
python evaluate.py --compare RUN RUN    what differs, and whether it is more than chance
"""

import argparse
import contextlib
import functools
import os
import sys
import time
from pathlib import Path

import numpy as np

from evaluation import comparison
from evaluation.figures import draw_figures
from evaluation.held_out import embed_set, held_out_rows
from evaluation.protocols import PROTOCOLS, episode_scores, lake_scores
from evaluation.report import write_report
from evaluation.scores import SEEDS, Options, score_set
from evaluation.summary import aligned, score_lines
from networks.embedding import start_keras
from pipeline.files import DataError
from pipeline.image_index import read_index
from run_directory import RunDirectory, RunError, write_whole


def evaluate(run, data=None, *, pair_label=None, protocol=None, strict=False, verbose=1, **options):
    """Scores a finished run on images that it was not trained on.

    Args:
        run: A `RunDirectory`, its path, or what `train.train` returns.
        data: Folder, .zip, .csv or list of pairs to score on; None: what the run kept for test.
        pair_label: What label 1 of a list of pairs means, where no column says it.
        protocol: One of `protocols.PROTOCOLS`, on `data`; None: verification and few-shot.
        strict: Whether images of `data` that the run was trained on are an error; else they are
            left out.
        verbose: 0 prints nothing.
        options: Fields of `scores.Options`: `ways`, `shots`, `trials`, `seed`.

    Returns:
        `(metrics, figures)`: `metrics["unseen"]["auc"]` and so on, what `metrics.json` holds;
        `figures["roc"]` and so on, Matplotlib's.

    Raises:
        ValueError: If run, data or options cannot be used, or nothing is there to score on.
    """
    with contextlib.ExitStack() as stack:
        if not verbose:
            nothing = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nothing))
            stack.enter_context(contextlib.redirect_stderr(nothing))
        run, encoder, distance = _load(run)
        metrics, held_out = _score(
            run, encoder, distance, data, pair_label, protocol, strict, Options(**options)
        )
        print(*score_lines(metrics), sep="\n")
        return metrics, draw_figures(metrics, held_out)


def _load(run):
    """`(RunDirectory, encoder, distance)` of a run in any form."""
    directory = RunDirectory(getattr(run, "path", run))
    if not directory.is_finished:
        raise RunError(f"'{directory.path}' is not finished. Run: python train.py {directory.path}")
    if hasattr(run, "encoder"):  # from `train`: own parts need not be loadable
        from siamese_network_funcs import distance_function

        return directory, run.encoder, distance_function(run.model)
    return directory, directory.load_encoder(), directory.load_distance()


def _score(run, encoder, distance, data, pair_label, protocol, strict, options):
    """`(metrics, held_out)`: a dict for `metrics.json`, and the list of `HeldOut` behind it."""
    from networks.pretrained import trained_on

    metrics = {"run": run.path.name, "data": data and Path(data).name, "seed": options.seed}
    metrics["pretrained"] = trained_on(run.config.weights)
    if protocol == "omniglot-lake":
        if not data:
            raise DataError(f"--protocol {protocol} needs --data: a folder or zip of Lake's runs.")
        metrics["protocol"] = lake_scores(data, encoder, run.config, distance)
        return metrics, []
    decision, held_out = run.read_json("threshold.json"), []
    dataset, sides, metrics["left_out"] = held_out_rows(run, data, strict, pair_label)
    for name, rows in sides.items():
        rng = np.random.default_rng([options.seed, SEEDS["pairs"]])
        try:
            held = embed_set(name, dataset, rows, encoder, distance, rng)
        except ValueError as error:
            print(f"No score on {name} classes. {error}")
            continue
        held_out.append(held)
        if protocol:
            continue
        metrics[name] = score_set(held, decision, options, run.config.ink)
    if not held_out:
        raise DataError("There is nothing to score on. Give a folder of images with --data.")
    if protocol:
        metrics["protocol"] = episode_scores(protocol, held_out, options.seed)
        return metrics, []
    return metrics, held_out


def parse(args):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", nargs="?", help="a finished run directory")
    add("--compare", nargs="+", metavar="RUN", help="finished runs, into comparison.csv")
    add("--data", help="score on this folder, .zip or .csv instead")
    add("--pairs", dest="data", help="score on this list of pairs instead")
    add("--pair_label", choices=("same", "different"), help="what its label 1 means")
    add("--protocol", choices=PROTOCOLS, help="as published, on --data where it is given")
    add("--ways", type=int, nargs="+", default=Options.ways, help="N classes")
    add("--shots", type=int, nargs="+", default=Options.shots, help="K references")
    add("--trials", type=int, default=Options.trials)
    add("--seed", type=int, default=Options.seed, help="of pairs and trials")
    add("--strict", action="store_true", help="images of --data trained on are an error")
    add("--out", help="folder for the results; in the run by default")
    return parser.parse_args(args)


def main(args=None):
    """Runs the command line; returns the exit status."""
    given, begin = parse(args), time.monotonic()
    try:
        options = Options(given.ways, given.shots, given.trials, given.seed)
        if given.data and given.protocol != "omniglot-lake":
            # A wrong path is told before Keras is imported.
            read_index(given.data, given.pair_label)
        if bool(given.run) == bool(given.compare) or (given.compare and given.protocol):
            raise ValueError("Give one run; or --compare and several, without --protocol.")
        start_keras()
        if given.compare:
            return _compare(given, options)
        run, encoder, distance = _load(given.run)
        asked = given.data, given.pair_label, given.protocol, given.strict, options
        metrics, held_out = _score(run, encoder, distance, *asked)
        print(*score_lines(metrics), sep="\n")
        out = _out(run, given)
        write_report(out, run, metrics, held_out, draw_figures(metrics, held_out), encoder)
    except (ValueError, OSError) as error:  # DataError and RunError are ValueErrors
        print(error, file=sys.stderr)
        return 2
    print(f"\n{out / 'report.html'}, metrics.json and figures; {time.monotonic() - begin:.0f} s.")
    return 0


def _compare(given, options):
    """Scores the runs to compare, prints their table and writes it."""
    scored = []
    for path in given.compare:
        run, encoder, distance = _load(path)
        asked = given.data, given.pair_label, given.protocol, given.strict, options
        found = _score(run, encoder, distance, *asked)
        scored.append(comparison.ScoredRun(run.path.name, run.config, *found))
    rows = comparison.compare(scored)
    print("", *aligned(comparison.table(rows)), sep="\n")
    path = Path(given.out or ".", "comparison.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, functools.partial(comparison.write_csv, rows))
    print(f"\n{path}")
    return 0


def _out(run, given):
    """The folder for the results: the run's own report is of its own held-out images."""
    name = given.protocol or (given.data and Path(given.data).stem)
    return Path(given.out) if given.out else run / f"evaluation-{name}" if name else run.path


if __name__ == "__main__":
    sys.exit(main())
