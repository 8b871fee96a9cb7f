"""Configs: what is refused and how it is said, JSON both ways, the command line."""

import dataclasses
import json
import math
import re
import subprocess
import sys
import typing

import pytest

import configs
from configs import CONFIGS, HINTS, LOSSES, RANGES, Config, parse_command_line, read_config


def bad_values():
    """(field, value) for every field: beyond each end of its range, and of a wrong type."""
    for name, hint in HINTS.items():
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if name == "image_size":
            yield from [(name, "wide"), (name, 2), (name, "112x"), (name, "1x2x3")]
        elif typing.Literal in map(typing.get_origin, (hint, *options)):
            yield from [(name, "no such choice"), (name, 2), (name, True)]
        elif hint is bool:
            yield from [(name, 1), (name, "False")]
        elif str in (hint, *options):
            yield name, 5
            yield from [(name, " ")] if hint is str else []
            if name == "run_name":
                yield from [(name, text) for text in ("", "..", "../out", "a/b", "/out", ".hidden")]
        else:
            low, high = RANGES[name]  # every number has one
            yield from [(name, low - 1), (name, high + 1), (name, "1"), (name, True)]
            yield name, (math.nan if float in (hint, *options) else 2.5)


@pytest.mark.parametrize(("name", "value"), bad_values())
def test_a_bad_value_is_refused_naming_field_and_value(name, value, tmp_path, capsys):
    """In code, in a config.json and on the command line."""
    with pytest.raises(ValueError, match=f"{name} must be .*Received: ") as caught:
        Config(**{name: value})
    assert repr(value) in str(caught.value)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(Config().to_json()) | {name: value}))
    with pytest.raises(ValueError, match=f"{name} must be .*Received: "):
        parse_command_line([str(path)], "train.py")
    if value not in ("1", "False", 5):  # on a command line all is text, and these are right
        with pytest.raises(SystemExit, match="2"):
            parse_command_line([f"--{name}", str(value)], "train.py")
        said = " ".join("".join(capsys.readouterr()).replace("\u2502", " ").split())
        assert (name in said or name.replace("_", "-") in said) and str(value) in said


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"loss": "triplet"}, "loss='triplet' does not go with sampling='pairs'"),
        ({"distance": "l1"}, "does not go with distance='l1'"),
        ({"loss": "binary_crossentropy"}, "does not go with distance='euclidean'"),
        ({"weights": "imagenet"}, "No weights of ImageNet are known for encoder='compact'"),
        ({"distillation": 1.0}, "needs efficientnet_lite0 with weights"),
        ({"encoder": "resnet"}, "encoder must be one of compact, .*Received: 'resnet'"),
        ({"test_share": 0.5, "val_share": 0.4}, "Received: 0.90"),
    ],
)
def test_contradictions_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        Config(**fields)


def test_from_nothing_there_is_nothing_to_distil():
    config, _ = parse_command_line(["photographs", "--weights", "none"], "train.py")
    assert (config.weights, config.distillation) == (None, 0.0)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_json_keeps_every_field(name, tmp_path):
    config = dataclasses.replace(CONFIGS[name], seed=7, run_name="é", max_minutes=1.5)
    (tmp_path / "config.json").write_text(config.to_json())
    assert read_config(tmp_path / "config.json") == config


def test_an_older_file_is_read_and_its_differences_are_said(tmp_path, capsys):
    values = json.loads(Config(epochs=3).to_json())
    del values["seed"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path / "config.json") == Config(epochs=3)
    assert "no 'seed', so 0 is used" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps(values | {"colour": "green"}))
    with pytest.raises(ValueError, match="no field 'colour'"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"epochs": -1}'])
def test_a_broken_file_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json|epochs"):
        read_config(tmp_path / "config.json")


def test_command_line(tmp_path, capsys):
    assert parse_command_line([], "train.py") == (CONFIGS["leaves"], "leaves")
    args = "plantvillage-recipe --data_dir here --horizontal_flip False --max_minutes None".split()
    changes = {"data_dir": "here", "horizontal_flip": False, "max_minutes": None}
    expected = dataclasses.replace(CONFIGS["plantvillage-recipe"], **changes)
    assert parse_command_line(args, "train.py") == (expected, "plantvillage-recipe")

    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_text('{"epochs": 5, "run_name": "old"}')
    args = [str(tmp_path / "old/config.json"), "--seed", "9"]  # the name is the first run's alone
    assert parse_command_line(args, "train.py") == (Config(epochs=5, seed=9), "old")
    assert "no 'data_dir'" in capsys.readouterr().out
    assert parse_command_line([*args, "--run_name", "x"], "train.py")[0].run_name == "x"

    with pytest.raises(ValueError, match="Unknown config 'roses'. Expected one of leaves"):
        parse_command_line(["roses"], "train.py")
    with pytest.raises(SystemExit, match="2"):
        parse_command_line(["--no_such_field", "1"], "train.py")
    assert "--no_such_field" in "".join(capsys.readouterr())


def test_help_names_every_option_the_first_ones_on_top(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        parse_command_line(["koch", "--help"], "train.py")
    said = capsys.readouterr().out
    options = re.findall(r"--(\w+)", said)
    assert caught.value.code == 0 and options == ["help", *HINTS]
    assert "default: binary_crossentropy" in said and "half genuine" in said
    assert all(name in said for name in (*CONFIGS, *configs.ENCODERS, *LOSSES["classes"]))


def test_a_config_needs_no_heavy_imports():
    code = "import configs, sys; print({'numpy', 'tyro', 'keras', 'tensorflow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_reader_that_leaves_ends_it_quietly():
    process = subprocess.Popen([sys.executable, "configs.py"], stdout=-1, stderr=-1, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() != 0
