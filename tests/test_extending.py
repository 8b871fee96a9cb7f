"""The diffs of docs/extending.md apply to the tree as it is, and what they add trains."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import noise_about_colors
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_own_parts_as_the_docs_show_them(tmp_path):
    skipped = shutil.ignore_patterns(".*", "runs", "cache", "leaves", "omniglot", "plantvillage")
    tree = shutil.copytree(ROOT, tmp_path / "tree", ignore=skipped)
    diffs = re.findall(r"```diff\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.S)
    assert len(diffs) == 4
    for diff in diffs:
        added = [line for line in diff.splitlines() if re.match(r"\+[^+]", line)]
        assert len(added) <= 10
        applied = subprocess.run(["patch", "-p1"], input=diff, text=True, cwd=tree)
        assert applied.returncode == 0
    (tmp_path / "flat").mkdir()
    for number, (image, label) in enumerate(zip(*noise_about_colors(6, 10), strict=True)):
        Image.fromarray(image).save(tmp_path / "flat" / f"class{label}_{number}.png")
    options = (
        "--data_dir flat --encoder tiny --loss logistic --blur 0.5 --image_size 16 --epochs 1 "
        "--steps_per_epoch 3 --pairs_per_batch 8 --run_name own"
    )
    command = [sys.executable, tree / "train.py", *options.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "60 images in 6 classes" in done.stdout and (tmp_path / "runs/own/model.keras").exists()
