"""Imports run one way: only from lower levels, and the data knows no Keras."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = {  # a room imports from lower levels, or from itself
    **dict.fromkeys(["configs"], 0),
    **dict.fromkeys(["pipeline", "networks"], 1),
    **dict.fromkeys(["siamese_network_funcs", "prepare_data"], 2),
    "run_directory": 3,
    "evaluation": 4,
    **dict.fromkeys(["training", "inference"], 5),
    **dict.fromkeys(["train", "evaluate", "predict", "export"], 6),
}
SOURCES = [path for path in ROOT.glob("*.py")]
SOURCES += [path for room in LEVELS for path in (ROOT / room).glob("*.py")]
NO_KERAS = ["configs", "pipeline", "prepare_data"]


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path):
    """Rooms and packages that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_come_from_lower_levels(path):
    room = room_of(path)
    assert room in LEVELS, f"{room} has no level: say which"
    for other in imports_of(path) & LEVELS.keys() - {room}:
        assert LEVELS[other] < LEVELS[room], f"{room} imports {other}"
    if room in NO_KERAS:
        assert not imports_of(path) & {"keras", "tensorflow", "torch", "jax"}


def test_the_plan_is_small():
    arrows = {(room_of(path), other) for path in SOURCES for other in imports_of(path)}
    arrows = {(room, other) for room, other in arrows if other in LEVELS and other != room}
    assert len(LEVELS) <= 16 and len(arrows) <= 55


@pytest.mark.parametrize("room", [room for room in LEVELS if (ROOT / room).is_dir()])
def test_a_room_says_what_it_is(room):
    tree = ast.parse((ROOT / room / "__init__.py").read_text())
    assert len(tree.body) == 1 and len(ast.get_docstring(tree).splitlines()) >= 3
