"""The checkpoint of a run grows between runs, with its optimizer, and is trained on."""

import runpy
import shutil

import jax
import numpy as np
import pytest
import runs

import growth
from growth.errors import InputError
from growth.training.checkpoints import CheckpointError, Checkpoints
from growth.training.config import parse
from growth.training.loop import train
from growth.training.metrics import read_metrics
from growth.training.offline import expand_run, is_run, plan_run
from growth.training.run import load_model

SIZES = dict(num_heads=4, qk_dim=8, v_dim=6, embed_dim=24, mlp_dim=30, num_layers=3, position=(0,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run that has grown once, with nothing that goes by age."""
    files = runs.write_corpus(tmp_path_factory.mktemp("text") / "files")
    config = runs.small_config(files)
    config.growth = (dict(step=8, embed_dim=16, mlp_dim=24, num_layers=2),)
    config.num_steps, config.samples.prompts = 15, ()
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train(parse(config), workdir)
    return workdir


def test_a_grown_run_goes_on(run, tmp_path):
    assert is_run(run)
    output = tmp_path / "larger"
    difference = expand_run(plan_run(run, SIZES, step=10), output)
    assert difference <= 1e-5
    assert runs.steps(output) == (10,)
    model, params, config = load_model(output)
    assert model.architecture.num_parameters == sum(x.size for x in jax.tree.leaves(params))
    assert config.architecture == model.architecture
    small, _, _ = load_model(run, 10)
    assert model.architecture == growth.grow_to(**SIZES)(small.architecture).target

    loaded = runpy.run_path(output / "config.py")["get_config"]()
    assert parse(loaded) == config
    train(parse(loaded), output)
    assert runs.steps(output)[-1] == 15
    losses = {
        name: next(r["loss"] for r in read_metrics(where / "metrics.jsonl") if _is_last(r))
        for name, where in (("larger", output), ("small", run))
    }
    assert abs(losses["larger"] - losses["small"]) < 0.2  # nats, after five more steps


def _is_last(record):
    return record["kind"] == "eval" and record["step"] == 15


def test_the_optimizer_and_the_place_in_the_data_are_carried(run, tmp_path):
    output = tmp_path / "larger"
    expand_run(plan_run(run, dict(mlp_dim=30), step=10), output)
    old, new = runs.arrays(run, 10), runs.arrays(output, 10)
    assert old["step"] == new["step"] == 10
    moments = [name for name in old if "/nu/" in name and name.endswith("up/kernel")]
    assert moments
    for name in moments:
        np.testing.assert_array_equal(new[name][..., :24], old[name])
        assert (new[name][..., 24:] == 0).all()
    places = []
    for where in (run, output):
        with Checkpoints(where / "checkpoints") as checkpoints:
            places.append(checkpoints.place(10))
    assert places[0] == places[1]


def test_moments_and_free_values_are_chosen(run, tmp_path):
    plan = plan_run(run, dict(mlp_dim=30), step=10)
    expand_run(plan, tmp_path / "mean", free="copy", moments="mean", seed=5)
    expand_run(plan, tmp_path / "other", free="copy", moments="mean", seed=6)
    mean, other = (runs.arrays(tmp_path / name, 10) for name in ("mean", "other"))
    kernel = next(n for n in mean if n.startswith("params") and n.endswith("up/kernel"))
    assert not np.array_equal(mean[kernel], other[kernel])
    nu = next(n for n in mean if "/nu/" in n and n.endswith("up/kernel"))
    assert (mean[nu][..., 24:] > 0).all()


def test_a_run_that_is_over_gets_as_many_steps_again(run, tmp_path):
    expand_run(plan_run(run, dict(mlp_dim=30)), tmp_path / "larger")
    assert runs.steps(tmp_path / "larger") == (15,)
    assert load_model(tmp_path / "larger")[2].num_steps == 30


def test_what_cannot_be_is_refused(run, tmp_path):
    with pytest.raises(growth.GrowthError, match="mlp_dim is 24 in layer 0 and cannot shrink"):
        plan_run(run, dict(mlp_dim=8))
    with pytest.raises(InputError, match="nothing would grow"):
        plan_run(run, dict(mlp_dim=24))
    with pytest.raises(CheckpointError, match="there is no checkpoint at step 11"):
        plan_run(run, dict(mlp_dim=30), step=11)
    plan = plan_run(run, dict(mlp_dim=30))
    with pytest.raises(InputError, match="gradmax, but that needs a batch"):
        expand_run(plan, tmp_path / "larger", free="gradmax")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        expand_run(plan, tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        plan_run(tmp_path / "empty", dict(mlp_dim=30))


def test_an_optimizer_that_goes_by_age_is_refused(run, tmp_path):
    config = runs.small_config(load_model(run)[2].data.files)
    config.growth = ({**config.growth[0], "step": 4, "rewarming": None, "moments": "age"},)
    config.num_steps, config.samples.prompts = 8, ()
    train(parse(config), tmp_path / "run")
    with pytest.raises(InputError, match="goes by the age of what was added at step 4"):
        plan_run(tmp_path / "run", dict(mlp_dim=30))
    expand_run(plan_run(tmp_path / "run", dict(mlp_dim=30), step=4), tmp_path / "before")
    shutil.rmtree(tmp_path / "before")


def test_the_command_grows_a_run(run, tmp_path):
    output = tmp_path / "larger"
    sizes = ["--head_dim=8", "--num_layers=3", "--layer_positions=1"]
    process = runs.start("growth.cli.expand", f"--source={run}", f"--output={output}", *sizes)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "largest difference / largest logit" in text
    assert f"written: {output}; its config.py trains it on from step 15" in text
    assert load_model(output)[0].architecture.qk_dim == 8
