"""Help: there at once, complete, and true."""

import ast
import dataclasses
import re
import subprocess
import sys

import pytest

from growth.architecture import Architecture
from growth.cli import config_files, config_help
from growth.cli.flags import Sizes
from growth.cli.main import COMMANDS, main
from growth.training import DataConfig, MeshConfig, OptimizerConfig, SamplesConfig, TrainConfig

SECTIONS = {
    "": TrainConfig,
    "architecture": Architecture,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "samples": SamplesConfig,
}

# None of these is needed to say what a command does.
HEAVY = {"flax", "grain", "jax", "matplotlib", "ml_collections", "numpy", "optax", "orbax", "torch"}


def flags_of(kind):
    """The names of a command's flags."""
    names = [field.name for field in dataclasses.fields(kind)]
    grown = [field.name for field in dataclasses.fields(Sizes)] if "sizes" in names else []
    return {*names, *grown} - {"sizes", "overrides", "runs"}  # the last stands without a flag


def fields_of(section):
    """The fields of a section that are no sections themselves."""
    fields = dataclasses.fields(SECTIONS[section])
    return [field for field in fields if section or field.name not in SECTIONS]


def printed(capsys, *arguments):
    """What a command prints, on lines however long."""
    assert main(arguments) == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


def test_help_names_every_command(capsys):
    text = printed(capsys, "--help")
    assert {name for name in COMMANDS if f"│ {name} " in text} == set(COMMANDS)
    assert printed(capsys) == text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_says_what_every_flag_is(command, capsys):
    text = printed(capsys, command, "--help").partition("Presets")[0]
    rows = dict(re.findall(r"^│ [* ]*--(\w+) (.*) │$", text, re.MULTILINE))
    assert set(rows) == flags_of(COMMANDS[command])
    for name, row in rows.items():
        assert re.search(r"(INT|STR|FLOAT|CHOICE|--noverify) +[A-Z0]", row), name


@pytest.mark.parametrize("command", ["train", "plan"])
def test_help_has_every_preset_and_every_field_of_a_config(command, capsys):
    text = printed(capsys, command, "--help")
    for preset in config_files.presets():
        assert re.search(rf"^│ {preset} +[A-Z]", text, re.MULTILINE), preset
    for section in SECTIONS:
        title = f"--config.{section}.FIELD" if section else "--config.FIELD"
        rows = text.partition(f"╭─ {title}=VALUE ")[2].partition("╰")[0]
        for field in fields_of(section):
            assert re.search(rf"^│ {field.name} +\S+ +\S", rows, re.MULTILINE), field.name


@pytest.mark.parametrize("section", SECTIONS)
def test_fields_and_defaults_are_those_of_the_dataclasses(section):
    told = config_help.sections()
    assert set(told) == set(SECTIONS)
    fields = fields_of(section)
    assert [field.name for field in told[section]] == [field.name for field in fields]
    for row, field in zip(told[section], fields, strict=True):
        required = field.default is dataclasses.MISSING
        assert (row.default is None) == required
        assert required or ast.literal_eval(row.default) == field.default
        assert row.about.endswith((".", ")"))


def test_help_opens_nothing_heavy():
    program = (
        "import sys\n"
        "from growth.__main__ import main\n"
        "for command in sys.argv[1:]:\n"
        "    sys.argv[1:] = [command, '--help'] if command else ['--help']\n"
        "    assert main() == 0\n"
        "print('opened', *{name.partition('.')[0] for name in sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "", *COMMANDS], capture_output=True, text=True, check=True
    )
    opened = set(run.stdout.splitlines()[-1].split())
    assert {"opened", "growth", "cyclopts"} <= opened
    assert opened & HEAVY == set()
