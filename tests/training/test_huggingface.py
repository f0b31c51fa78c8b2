"""Runs that begin with a checkpoint of Hugging Face, and that end as one."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from ml_collections import ConfigDict

from growth import huggingface
from growth.cli.main import main
from growth.training.config import parse
from growth.training.config_sections import ConfigError
from growth.training.loop import train
from growth.training.report.metrics import read_metrics
from growth.training.run.restore import load_model
from tests.helpers import runs

transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model of bytes."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    directory = tmp_path_factory.mktemp("model") / "source"
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    (directory / "special_tokens_map.json").write_text("{}")
    return directory


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return runs.write_corpus(tmp_path_factory.mktemp("text") / "files")


def config_of(source, files):
    """The run of configs/continue_from_huggingface.py, made short."""
    namespace = {}
    path = runs.ROOT / "configs" / "continue_from_huggingface.py"
    exec(compile(path.read_text(), path, "exec"), namespace)
    config = namespace["get_config"](str(source))
    assert isinstance(config, ConfigDict)
    config.data.files = files
    config.mesh.data = 1
    config.num_steps = 12
    config.growth = ({**config.growth[0], "step": 6},)
    config.eval_every, config.eval_batches = 4, 2
    return config


def test_a_checkpoint_is_trained_on_grown_and_exported(source, files, tmp_path):
    config = parse(config_of(source, files))
    assert config.architecture.max_length == 64
    workdir = tmp_path / "run"
    train(config, workdir)

    growth = next(r for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "growth")
    assert growth["logit_error"] <= 1e-5
    losses = [r["loss"] for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "eval"]
    assert losses[-1] < losses[0]

    output = tmp_path / "exported"
    process = runs.start("export", f"--workdir={workdir}", f"--output={output}", f"--like={source}")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    model = transformers.AutoModelForCausalLM.from_pretrained(output).eval()
    assert (model.config.intermediate_size, model.config.num_hidden_layers) == (36, 4)
    assert (output / "special_tokens_map.json").is_file()
    tokens = np.random.default_rng(0).integers(0, 256, (2, 64))
    with torch.no_grad():
        said = model(torch.from_numpy(tokens)).logits.numpy()
    reference, params, _ = load_model(workdir)
    says = np.asarray(reference.apply({"params": params}, tokens))
    assert np.abs(said - says).max() / np.abs(says).max() <= 1e-5


def test_a_run_begins_with_the_parameters_of_the_checkpoint(source, files, tmp_path):
    config = config_of(source, files)
    config.growth, config.num_steps, config.checkpoint_every = (), 1, 1
    config.optimizer.learning_rate = 1e-30
    train(parse(config), tmp_path / "run")
    _, params, _ = load_model(tmp_path / "run")
    _, given = huggingface.load(source)
    jax.tree.map(np.testing.assert_array_equal, params, given)


def test_another_architecture_is_refused(source, files, tmp_path):
    config = config_of(source, files)
    config.architecture.mlp_dim = 25
    with pytest.raises(ConfigError, match="another architecture: it has mlp_dim 24 there and 25"):
        train(parse(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "error: give the checkpoint: --config=continue_from_huggingface:DIR"),
        (":nowhere", "error: source is 'nowhere', but there is no such directory"),
    ],
)
def test_a_config_without_a_checkpoint_is_one_clear_error(argument, message, tmp_path, capsys):
    config = f"--config={runs.ROOT}/configs/continue_from_huggingface.py{argument}"
    with pytest.raises(SystemExit) as exit:
        main(["train", config, f"--workdir={tmp_path}/run"])
    assert (exit.value.code, *capsys.readouterr()) == (2, "", message + "\n")


def test_plan_shows_what_would_be_and_writes_nothing(source, tmp_path):
    process = runs.start("plan", f"--source={source}", "--mlp_dim=48", "--num_layers=3")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    for said in ("mlp_dim", "24", "48", "new layers at 2", "parameters", "nothing is written"):
        assert said in text
    assert sorted(p.name for p in source.parent.iterdir()) == ["source"]


def test_expand_verifies_and_says_what_it_wrote(source, tmp_path):
    output = tmp_path / "grown"
    sizes = ["--embed_dim=24", "--num_heads=6", "--num_layers=3", "--layer_positions=0"]
    process = runs.start("expand", f"--source={source}", f"--output={output}", *sizes)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "same greedy continuation   64 of 64 tokens" in text
    assert f"written: {output}" in text
    assert json.loads((output / "config.json").read_text())["hidden_size"] == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--mlp_dim=48"],
            "error: growth expand needs --output: the directory to write; it must not exist.\n",
        ),
        (["--mlp_dim=2", "--output=x"], "error: mlp_dim is 24 in layer 0 and cannot shrink to 2\n"),
        (["--layer_positions=a", "--output=x"], "error: layer_positions is 'a', but it must be"),
    ],
)
def test_expand_refuses_with_one_line(source, arguments, message):
    process = runs.start("expand", f"--source={source}", *arguments)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert text.startswith(message)
    assert text.count("\n") == 1
