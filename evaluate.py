"""Scores a finished run on images it never trained on.

python evaluate.py RUN                  its own held-out images: known and unseen classes
python evaluate.py RUN --data PATH      another folder, without what the run was trained on
python evaluate.py RUN --pairs LIST     a list of pairs: paths and a label, or LFW's pairs.txt
python evaluate.py RUN --protocol omniglot-lake --data ZIP    a published protocol
python evaluate.py --compare RUN RUN    what differs, and whether it is more than chance
"""

import argparse
import csv
import io
import sys
import time
from pathlib import Path

from evaluation import comparison, report_tables
from evaluation.figures import draw_figures
from evaluation.held_out import HeldOut, held_out_rows
from evaluation.protocols import LAKE, PROTOCOLS, episode_scores, lake_scores
from evaluation.report import write_report
from evaluation.scores import Options, score_set
from evaluation.verification import verification_pairs
from networks.embedding import embed, start_keras
from pipeline.files import DataError
from run_directory import RunDirectory, RunError, silence, write_text


def evaluate(run, data=None, *, verbose=1, **options):
    """Scores a finished run on images that it was not trained on.

    Args:
        run: A `RunDirectory`, its path, or what `train.train` returns.
        data: Folder, .zip, .csv or list of pairs to score on; None: what the run kept for test.
        verbose: 0 prints nothing.
        options: Other fields of `scores.Options`, such as `ways`, `shots` and `seed`.

    Returns:
        `(metrics, figures)`: `metrics["unseen"]["auc"]` and so on, what `metrics.json` holds;
        `figures["roc"]` and so on, Matplotlib's.

    Raises:
        ValueError: If run, data or options cannot be used, or nothing is there to score on.
    """
    with silence(verbose):
        scored = _score(run, Options(data, **options))
        print(*report_tables.report_lines(scored.metrics), sep="\n")
        return scored.metrics, draw_figures(scored.held_out)


def _score(given, options):
    """The `ScoredRun` of a run in any form."""
    run = RunDirectory(getattr(given, "path", given))
    data, protocol = options.data, options.protocol
    if not run.is_finished:
        raise RunError(f"'{run.path}' is not finished. Run: python train.py {run.path}")
    if protocol != LAKE:  # before Keras, which takes seconds: a wrong path is told at once
        dataset, sides, left_out = held_out_rows(run, data, options.strict, options.pair_label)
    start_keras()
    from networks.pretrained import trained_on
    from siamese_network_funcs import distance_function

    if hasattr(given, "encoder"):  # from `train`: own parts need not be loadable
        encoder, distance = given.encoder, distance_function(given.model)
    else:
        encoder, distance = run.load_encoder(), run.load_distance()
    metrics = {"run": run.path.name, "data": data and Path(data).name, "seed": options.seed}
    metrics["pretrained"] = trained_on(run.config)
    if protocol == LAKE:
        metrics["protocol"] = lake_scores(data, encoder, run.config, distance)
        return comparison.ScoredRun(run, metrics, [], encoder)
    metrics["left_out"] = left_out
    held_out = _embed(dataset, sides, encoder, distance, options)
    if protocol:
        metrics["protocol"] = episode_scores(protocol, held_out, options)
        return comparison.ScoredRun(run, metrics, [], encoder)
    threshold = run.read_json("threshold.json")["threshold"]
    for held in held_out:
        held.scores = metrics[held.name] = score_set(held, threshold, options, run.config.ink)
    return comparison.ScoredRun(run, metrics, held_out, encoder)


def _embed(dataset, sides, encoder, distance, options):
    """A `HeldOut` of each side that has pairs; a DataError where none has."""
    held_out = []
    for name, rows in sides.items():
        try:
            pairs = verification_pairs(dataset, rows, options.rng("pairs"))
        except ValueError as error:
            print(f"No score on {name} classes. {error}")
            continue
        embeddings = embed(encoder, dataset.pixels, rows)
        held_out.append(HeldOut(name, dataset, rows, embeddings, distance, pairs))
    if not held_out:
        raise DataError("There is nothing to score on. Give a folder of images with --data.")
    return held_out


def parse(args):
    """`(run, runs to compare, folder for the results, Options)` of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # an option that is not given has its own default
    )
    first, more = parser.add_argument_group("used first"), parser.add_argument_group("more")
    add = first.add_argument
    add("run", nargs="?", default=None, help="a finished run directory")
    add("--data", help="score on this folder, .zip or .csv instead")
    add("--pairs", dest="data", metavar="LIST", help="score on this list of pairs instead")
    add("--compare", nargs="+", default=None, metavar="RUN", help="runs, into comparison.csv")
    add("--out", default=None, help="folder for the results; default: the run, with --compare here")
    add = more.add_argument
    add("--protocol", choices=PROTOCOLS, help="as published, on --data where it is given")
    add("--strict", action="store_true", help="images of --data trained on are an error")
    add("--pair_label", choices=("same", "different"), help="what label 1 of --pairs means")
    add("--ways", type=int, nargs="+", help=f"N classes; {Options.ways} by default")
    add("--shots", type=int, nargs="+", help=f"K references; {Options.shots} by default")
    add("--trials", type=int, help=f"{Options.trials} by default")
    add("--seed", type=int, help=f"of pairs and trials; {Options.seed} by default")
    given = vars(parser.parse_args(args))
    run, runs, out = (given.pop(name) for name in ("run", "compare", "out"))
    options = Options(**given)
    if bool(run) == bool(runs) or (runs and options.protocol):
        raise ValueError("Give one run; or --compare and several, without --protocol.")
    return run, runs, out, options


def main(args=None):
    """Runs the command line; returns the exit status."""
    begin = time.monotonic()
    try:
        run, runs, out, options = parse(args)
        written = _compare(runs, options, out) if runs else _report(run, options, out)
    except (ValueError, OSError) as error:  # DataError and RunError are ValueErrors
        print(error, file=sys.stderr)
        return 2
    print(f"\n{written}; {time.monotonic() - begin:.0f} s.")
    return 0


def _report(run, options, out):
    """Scores a run, prints its tables and writes its report: what was written."""
    scored = _score(run, options)
    print(*report_tables.report_lines(scored.metrics), sep="\n")
    # The run's own report is of its own held-out images.
    name = options.protocol or (options.data and Path(options.data).stem)
    out = Path(out or scored.run / (f"evaluation-{name}" if name else ""))
    write_report(out, scored)
    return f"{out / 'report.html'}, metrics.json and figures"


def _compare(runs, options, out):
    """Scores the runs to compare, prints their table and writes it: its path."""
    rows = comparison.compare([_score(run, options) for run in runs])
    print("", report_tables.markdown(rows), sep="\n")
    path, table = Path(out or ".", "comparison.csv"), io.StringIO()
    csv.writer(table).writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table.getvalue())
    return path


if __name__ == "__main__":
    sys.exit(main())
