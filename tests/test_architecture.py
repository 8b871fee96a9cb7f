"""Imports run one way, as the README's table of files says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {path.stem for path in ROOT.glob("*.py")}
COMMANDS = {"train", "evaluate", "predict", "export"}  # never import each other
LEAVES = {"configs", "plots", "scores", "keras_start"}  # import nothing of ours
ALLOWED = {  # what the rooms in between may import
    "image_index": set(),
    "download_data": {"keras_start"},
    "suggest": {"configs", "image_cache", "image_index"},
    "shards": set(),
    "image_cache": {"image_index", "shards"},
    "splits": {"image_index"},
    "augment": set(),
    "baselines": {"scores"},
    "batches": {"augment", "image_index", "shards"},
    "prepare_data": {"configs", "download_data", "image_cache", "image_index", "splits"},
    "encoders": set(),
    "siamese_network_funcs": {"encoders"},
    "whitening": {"encoders", "siamese_network_funcs"},
    "run_directory": {"configs", "siamese_network_funcs"},
    "open_set": {"scores"},
    "gallery": {"image_index", "run_directory", "scores"},
    "similarity": {
        *("gallery", "image_cache", "image_index", "keras_start", "open_set", "run_directory"),
        *("scores", "siamese_network_funcs"),
    },
    "serve": {"image_cache", "plots", "report", "run_directory", "similarity"},
}


def imports_of(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", sorted(OURS))
def test_imports_run_one_way(name):
    ours = imports_of(name) & OURS
    assert not (ours & COMMANDS), "nothing imports a command"
    if name in LEAVES:
        assert not ours
    if name in ALLOWED:
        assert ours <= ALLOWED[name]


@pytest.mark.parametrize(
    "name",
    ["configs", "image_index", "shards", "image_cache", "splits", "prepare_data", "gallery"],
)
def test_data_knows_no_keras(name):
    assert not imports_of(name) & {"keras", "tensorflow", "callbacks", "fit"}
