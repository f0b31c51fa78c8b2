"""The commands: what is wrong is refused with one clear line, and nothing is written."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from growth.cli import config_files, errors
from growth.training.config import parse
from growth.training.loop import train
from growth.training.mesh import MESH_AXES
from growth.training.optimization import rates
from growth.training.report.preview import dry_run
from growth.training.run.restore import load_model
from tests.helpers import runs


def output(command, *arguments):
    """The exit code of a command, and all that it printed."""
    process = runs.start(command, *arguments)
    text, _ = process.communicate(timeout=120)
    return process.returncode, text


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return runs.write_corpus(tmp_path_factory.mktemp("text") / "files")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, files):
    """The directory of a run of three steps, without growth."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train(parse(short(files)), workdir)
    return workdir


def short(files):
    config = runs.small_config(files)
    config.growth = ()
    config.num_steps = 3
    config.samples.prompts = ()
    return config


def contents(directory):
    """All files below a directory, with what is in them and when it was written."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path(directory).rglob("*")
        if path.is_file()
    }


def refusal(config, workdir, capsys):
    """The error that a run ends with before it begins. Nothing in its directory changes."""
    before = contents(workdir) if workdir.exists() else None
    with pytest.raises(SystemExit) as exit, errors.reported():
        train(parse(config), workdir)
    assert exit.value.code == 2
    assert (contents(workdir) if workdir.exists() else None) == before
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


def growing(**entry):
    return lambda config, tmp_path: config.update(growth=(dict(step=20) | entry,))


def reading(pattern):
    return lambda config, tmp_path: config.data.update(files=str(tmp_path / pattern))


def write(name, text):
    def change(config, tmp_path):
        (tmp_path / name).write_text(text)
        config.data.files = str(tmp_path / name)

    return change


WRONG = {
    "a field that there is not": (
        lambda config, tmp_path: config.optimizer.update(learnin_rate=1.0),
        "unknown field optimizer.learnin_rate; did you mean optimizer.learning_rate?",
    ),
    "growth that is not dicts": (
        lambda config, tmp_path: config.update(growth=("dict(step=20)",)),
        "growth is ('dict(step=20)',), but it must be a tuple of dicts",
    ),
    "a stage that shrinks": (growing(embed_dim=4), "embed_dim is 8 and cannot shrink to 4"),
    "heads that groups do not divide": (
        growing(num_heads=6, num_kv_heads=4),
        "num_kv_heads must divide num_heads",
    ),
    "a layer where none can be": (growing(num_layers=2, position=5), "position is 5"),
    "a step beyond the end": (growing(step=60, embed_dim=12), "step is 60"),
    "steps out of order": (
        lambda config, tmp_path: config.update(growth=config.growth[::-1]),
        "growth[1] (which begins stage 3): step is 20, but it must be a whole number after 40",
    ),
    "a corpus that is missing": (reading("*.txt"), "which matches no file"),
    "a corpus that is empty": (write("empty.txt", ""), "tokens, but one sequence of length 16"),
    "a corpus shorter than a sequence": (
        write("short.txt", "import this\n"),
        "tokens, but one sequence of length 16 needs 17",
    ),
    "a tokenizer that is missing": (
        lambda config, tmp_path: config.data.update(tokenizer="no.json"),
        "tokenizer is 'no.json', but there is no such file",
    ),
    "a vocabulary that is too small": (
        lambda config, tmp_path: config.architecture.update(vocab_size=255),
        "architecture.vocab_size is 255, but the tokenizer has 256 tokens",
    ),
    "a mesh larger than the devices": (
        lambda config, tmp_path: config.mesh.update(data=16),
        "mesh is data 16 × fsdp 1 × tensor 1",
    ),
    "a batch that the mesh does not divide": (
        lambda config, tmp_path: config.mesh.update(data=3),
        "batch_size is 8, but it must be a multiple of 3",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_refused_before_anything_is_written(wrong, files, tmp_path, capsys):
    change, message = WRONG[wrong]
    config = runs.small_config(files)
    change(config, tmp_path)
    assert message in refusal(config, tmp_path / "run", capsys)


def test_a_directory_of_another_architecture_is_left_alone(trained, files, capsys):
    config = short(files)
    config.architecture.mlp_dim = 24
    message = refusal(config, trained, capsys)
    assert f"workdir {trained} holds a run that has taken 3 steps" in message
    assert "architecture.mlp_dim" in message
    assert "16" in message
    assert "24" in message


def test_a_wrong_config_is_one_line(tmp_path):
    arguments = ("--config=quickstart", "--config.optimzer.learning_rate=1e-3")
    code, text = output("train", *arguments, f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert text == "error: unknown field of the config: optimzer; did you mean optimizer?\n"
    assert not (tmp_path / "run").exists()


def test_plan_of_a_config_writes_nothing():
    before = contents(runs.ROOT / "configs")
    code, text = output(
        "plan",
        f"--config={runs.ROOT / 'configs' / 'quickstart.py'}",
        "--config.architecture.num_kv_heads=1",
        "--config.growth=({'step': 400, 'num_heads': 4},)",
    )
    assert code == 0, text
    assert "4 (2 kv)" in text
    assert contents(runs.ROOT / "configs") == before


# How many stages each preset has that needs no checkpoint.
STAGES = {"digits": 4, "gpt2_124m": 4, "llama_1b": 4, "quickstart": 4}


def test_every_preset_is_planned_here():
    assert set(config_files.presets()) == {"continue_from_huggingface", *STAGES}


@pytest.mark.parametrize("preset", STAGES)
def test_plan_of_every_preset(preset):
    """Real sizes, on a machine that could not hold them."""
    config = parse(config_files.load_config(preset))
    file = io.StringIO()
    dry_run(config, Console(file=file, width=120))
    text = file.getvalue()
    assert "…" not in text  # nothing is cut off
    assert len(config.stages) == STAGES[preset]
    shapes, costs = text.split("Costs")
    for stage in config.stages:
        (row,) = [
            line for line in shapes.splitlines() if line.strip().startswith(f"{stage.index + 1} ")
        ]
        assert f" {stage.start:,}–{stage.stop:,} " in row
        assert f" {stage.architecture.embed_dim} " in row
        # The rate as it is at every step: also where it begins to rise again after growth.
        rate = rates(config, stage.start, stage.stop)
        shown = [float(number) for number in row.split()[-1].split("–")]
        extremes = [rate[0], rate.min(), rate.max(), rate[-1]]
        assert [shown[0], min(shown), max(shown), shown[-1]] == pytest.approx(extremes, rel=0.05)
    shares = [float(word[:-1]) for word in costs.split() if word.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    configured = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
    for axis, size in configured.items():
        assert f"{axis} {8 if size == -1 else size}" in text


def test_sample_continues_a_prompt(trained):
    code, text = output(
        "sample",
        f"--workdir={trained}",
        "--prompt=import os",
        "--num_tokens=20",
        "--temperature=0",
    )
    assert code == 0, text
    assert text.startswith("import os")
    assert len(text) > len("import os\n")


def test_certify_grows_a_checkpoint_and_says_what_that_did(trained, files, tmp_path):
    path = tmp_path / "certificate.json"
    code, text = output(
        "certify", f"--workdir={trained}", "--mlp_dim=24", "--num_layers=2",
        "--layer_positions=0", "--batch_size=4", f"--json={path}",
    )  # fmt: skip
    assert code == 0, text
    assert "new layers at 0" in text
    assert "every promise is kept" in text
    assert json.loads(path.read_text())["passed"] is True
    code, text = output("certify", f"--workdir={trained}", "--embed_dim=4")
    assert code == 2
    assert "error: embed_dim is 8 and cannot shrink to 4" in text


def test_sample_where_there_is_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit, errors.reported():
        load_model(tmp_path / "nowhere")
    assert exit.value.code == 2
    assert "there is no checkpoint in" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
