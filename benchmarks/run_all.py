"""Runs the benchmarks and writes docs/benchmarks.md: their tables, and how long each took.

python benchmarks/run_all.py --data PLANTVILLAGE [--repeats 3]

About 50 minutes a repeat on two cores.
"""

import datetime
import subprocess
import sys
import time

import common

from run_directory import environment

TABLES = {  # title -> script and its arguments
    "From image files to a network that tells new ones apart, from nothing": (
        "time_to_accuracy.py --data DATA --seconds 100 --repeats N"
    ),
    "In four minutes, from the same ImageNet weights": (
        "time_to_accuracy.py --data DATA --weights imagenet --seconds 240 --repeats N"
    ),
    "A training step": "steps.py --repeats N",
    "Embedding": "embedding.py --repeats N",
    "Decoding and start-up": "data_and_start.py --repeats N",
    "Trials, and embedding against training": "evaluation.py --repeats N",
    "How time and memory grow": "growth.py --seconds 10",
}
HEAD = """# Benchmarks

Made by `python benchmarks/run_all.py --data DATA --repeats {repeats}`, DATA being 18 x 100
images of PlantVillage, on {date}:
{machine}, Python {python}, {versions}. The peers' versions are pinned in
[requirements.txt](../benchmarks/peers/requirements.txt). Median [smallest, largest].
[benchmarks/README.md](../benchmarks/README.md) says what each script does.
"""


def main():
    """Runs the command line."""
    options, facts = common.options(__doc__, data=True, repeats=3), environment()
    versions = ", ".join(f"{name} {version}" for name, version in facts.pop("versions").items())
    page = HEAD.format(**facts, **vars(options), versions=versions, date=datetime.date.today())
    for title, command in TABLES.items():
        command = command.replace("N", str(options.repeats))
        words = command.replace("DATA", str(options.data)).split()
        print(f"{title}: {' '.join(words)}", flush=True)
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, *words], cwd=common.HERE, stdout=subprocess.PIPE, text=True
        )
        minutes = f"{(time.monotonic() - begin) / 60:.0f} minutes"
        print(done.stdout, minutes, flush=True)
        found = done.stdout.partition("\n\n")[2].strip() or "It failed."  # after the progress
        page += f"\n## {title}\n\n`{command}`, {minutes}.\n\n{found}\n"
        (common.PROJECT / "docs/benchmarks.md").write_text(page)


if __name__ == "__main__":
    main()
