"""Single numbers of pictures that give their class away, and those that do not."""

import numpy as np
import pytest
from PIL import Image

from configs import Config
from evaluation import shortcuts, verification
from evaluation.held_out import HeldOut
from pipeline.image_cache import open_cache
from pipeline.image_index import read_index
from prepare_data import Dataset


@pytest.fixture
def held(tmp_path, monkeypatch):
    """Writers whose genuine images are on grey paper, forgeries with a darker pen."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for writer in range(8):
        for number in range(6):
            for folder, pen in ((f"{writer}", 90), (f"{writer}_forg", 20)):
                paper = 180 + 8 * writer + rng.integers(3)
                pixels = np.full((40, 60), paper, np.uint8)
                pixels[10 + number : 14 + number, 20:30] = pen + rng.integers(4)
                path = tmp_path / "data" / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    index = read_index("data")
    dataset = Dataset(index, open_cache(index, Config(image_size=32)), splits=None)
    rows = np.arange(len(dataset.index))
    pairs = verification.verification_pairs(dataset, rows, rng)
    labels = dataset.index.labels
    return HeldOut("unseen", dataset, rows, labels, np.zeros((len(rows), 1)), None, *pairs, None)


def test_paper_and_pen_are_found(held):
    found = {row["name"]: row for row in shortcuts.shortcut_scores(held)}
    pen, paper = found["darkest tenth of a percent"], found["paper"]
    assert pen["skilled_auc"] > 0.99  # another pen
    assert abs(paper["skilled_auc"] - 0.5) < 0.1 < 0.45 < paper["auc"]  # the same paper
    assert found["width and height"]["auc"] == found["mode of the file"]["auc"] == 0.5
    after = {row["name"]: row for row in shortcuts.shortcut_scores(held, ink=True)}
    assert set(after) - set(found) == {
        "paper, after ink", "darkest tenth of a percent, after ink", "mean colour, after ink",
    }  # fmt: skip


def test_a_warning_where_a_number_comes_near_the_network():
    rows = [{"name": "paper", "auc": 0.93, "skilled_auc": 0.52}]
    scores = {"auc": 0.95, "skilled": {"auc": 0.9}, "baselines": rows}
    [said] = shortcuts.shortcut_warnings(scores)
    assert "Paper alone: ROC AUC 0.930 against all impostors, the network 0.950" in said
    assert not shortcuts.shortcut_warnings(scores | {"auc": 1.2})
