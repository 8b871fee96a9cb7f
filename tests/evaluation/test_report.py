"""The report says what was measured, of the images it was measured on, on any screen."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import evaluate
from evaluation import figures, report_tables
from evaluation.similarity_map import PATCHES, overlay, similarity_map


@pytest.fixture(scope="module")
def scored(place):
    """`(its folder, metrics)` of a run that was scored on its own held-out images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert evaluate.main("runs/run --trials 50 --ways 2 --shots 1 3".split()) == 0
    return place / "runs/run", json.loads((place / "runs/run/metrics.json").read_text())


def test_page_and_model_card_say_what_was_measured(scored):
    folder, metrics = scored
    page, card = ((folder / name).read_text() for name in ("report.html", "model_card.md"))
    assert len(page) < 3e6 and page.count("<img") == page.count('src="data:image/')
    for text in (page, card):
        assert "/tmp" not in text and str(folder.parents[1]) not in text  # no path of the machine
        for name in ("known", "unseen"):
            assert f"{metrics[name]['auc']:.4f}" in text
        assert f"calls {metrics['unseen']['accuracy']:.0%} rightly" in text
        assert "trained from nothing" in text
    for part in ("Worst pairs", "at odds", "confused", "similarity comes from", "Model card"):
        assert part in page
    drawn = {path.stem for path in folder.glob("*.png")}
    assert drawn >= {"roc", "distances", "n_way", "k_shot", "confusion_known", "t_sne_unseen"}


@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_the_screen(scored, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark")
    page.goto(f"file://{scored[0]}/report.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth)")
    style = "getComputedStyle(document.body)"
    assert page.evaluate(f"{style}.color != {style}.backgroundColor")


def scores(auc=0.9, classes=12, warnings=()):
    row = {"ways": 5, "shots": 1, "classes": "across", "random": {"accuracy": 0.2}}
    row |= {"model": {"accuracy": 0.8, "interval": [0.7, 0.85]}, "raw pixels": {"accuracy": 0.3}}
    found = dict.fromkeys(report_tables.SCORES, 0.5) | {"auc": auc, "accuracy": 0.85}
    found |= {"few_shot": [row], "images": 100, "classes": classes}
    found |= {"baselines": [], "references": [], "warnings": list(warnings)}
    return found | {"intervals": {"auc": [auc - 0.1, auc + 0.05]}}


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ({"known": scores()}, "did not train on, which were not measured"),
        ({"known": scores(), "unseen": scores(0.6)}, "little better than chance"),
        ({"unseen": scores(classes=4)}, "4 classes are few"),
        ({"unseen": scores()}, "names the right one in 80% (chance 20%)"),
    ],
)
def test_sentences_warn_of_what_is_not_known(sets, expected):
    assert expected in " ".join(report_tables.sentences(sets).values())


def test_leakage_is_found_where_a_baseline_warns():
    metrics = {"unseen": scores(), "pretrained": "Pretrained on things.", "left_out": None}
    found, said = report_tables.leakage(metrics)
    assert not found and said[0].startswith("No sign") and said[-1] == "Pretrained on things."
    assert "5-way 1-shot accuracy: the network 0.800, the best baseline (raw" in said[1]
    warned = metrics | {"known": scores(warnings=["The border tells."])}
    found, said = report_tables.leakage(warned)
    assert found and said[0] == "Known classes: The border tells."
    assert f"WARNING: {said[0]}" in report_tables.report_lines(warned)
    worse = scores() | {"baselines": [{"name": "paper", "auc": 0.95}]}
    found, said = report_tables.leakage(metrics | {"unseen": worse})
    assert found and "the best baseline (paper) 0.950" in said[0]


def test_similarity_map_is_red_where_the_network_looks():
    """At the upper left quarter alone, of an image that is not square."""
    pixels = keras.Input((32, 48, 1))
    encoder = keras.Model(pixels, ops.mean(pixels[:, :16, :24], axis=(1, 2)))
    image = np.zeros((32, 48, 1), np.uint8)
    image[4:12, 4:20] = 255
    heat = similarity_map(encoder, image, np.array([image[:16, :24].mean()]))
    half = PATCHES // 2
    assert heat[:half, :half].max() > 0
    assert not heat[half + 1 :].any() and not heat[:, half + 1 :].any()
    shown = overlay(np.full((40, 40, 1), 100, np.uint8), np.eye(4))
    assert shown[5, 5, 0] > 160 and shown[5, 5, 2] < 60 and shown[35, 5].tolist() == [100] * 3


def test_curves_are_those_of_the_metrics(scored):
    _, metrics = scored
    curve, one_and_three = metrics["known"]["curve"], metrics["unseen"]["few_shot"]
    for along, rows, places in (("ways", curve, [2, 3, 4, 5, 6]), ("shots", one_and_three, [1, 3])):
        line = figures.plot_few_shot(along, {"known": rows}).axes[0].lines[0]
        assert line.get_xdata().tolist() == places
        model = [100 * row["model"]["accuracy"] for row in rows]
        assert line.get_ydata() == pytest.approx(model)
    (legend,) = figures.plot_few_shot("ways", {"known": curve, "unseen": curve}).legends
    lines = {"random, 1-shot", "model, 1-shot known", "raw pixels, 1-shot known"}
    lines |= {"model, 1-shot unseen", "raw pixels, 1-shot unseen"}
    assert {text.get_text() for text in legend.get_texts()} == lines
    assert figures.plot_few_shot("shots", {"known": one_and_three[:1], "unseen": []}) is None
