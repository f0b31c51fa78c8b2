"""The checkpoint of a run grows between runs, with its optimizer, and is trained on."""

import dataclasses
import runpy
import shutil

import jax
import numpy as np
import pytest

import growth
from growth.cli.main import main
from growth.errors import InputError
from growth.optimizer.post_growth import Rewarming
from growth.training.checkpoints import CheckpointError, Checkpoints
from growth.training.config import parse
from growth.training.loop import train
from growth.training.offline import expand_run, is_run, plan_run
from growth.training.optimization import learning_rate
from growth.training.run.restore import load_model
from growth.training.schedule import ScheduleError, training_flops
from tests.helpers import runs

SIZES = dict(num_heads=4, qk_dim=8, v_dim=6, embed_dim=24, mlp_dim=30, num_layers=3, position=(0,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run that has grown once, and goes by the age of what it added."""
    files = runs.write_corpus(tmp_path_factory.mktemp("text") / "files")
    config = runs.small_config(files)
    config.growth = (dict(step=8, embed_dim=16, mlp_dim=24, num_layers=2, moments="age"),)
    config.num_steps, config.samples.prompts, config.optimizer.warmup_steps = 15, (), 3
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train(parse(config), workdir)
    return workdir


def test_a_grown_run_goes_on(run, tmp_path):
    assert is_run(run)
    output = tmp_path / "larger"
    expansion = plan_run(run, SIZES, step=10)
    difference = expand_run(expansion, output)
    assert difference <= 1e-5
    assert runs.steps(output) == (10,)
    model, params, config = load_model(output)
    assert model.architecture.num_parameters == sum(x.size for x in jax.tree.leaves(params))
    assert config.stages[-1].architecture == model.architecture
    small, _, before = load_model(run, 10)
    assert model.architecture == growth.grow_to(**SIZES)(small.architecture).target
    assert config.stages[:-1] == (
        before.stages[0],
        dataclasses.replace(before.stages[1], stop=10, rewarming=Rewarming(1)),
    )
    assert config.stages[-1].rewarming == Rewarming(1)  # a quarter of five steps

    loaded = runpy.run_path(output / "config.py")["get_config"]()
    assert parse(loaded) == expansion.config
    report = train(parse(loaded), output)
    assert runs.steps(output)[-1] == 15
    losses = {
        name: next(r["loss"] for r in runs.records(where, "eval") if r["step"] == 15)
        for name, where in (("larger", output), ("small", run))
    }
    assert abs(losses["larger"] - losses["small"]) < 0.2  # nats, after five more steps

    # It is one run: what was measured before the growth, the growth, and what came after it.
    trained = [r["step"] for r in runs.records(output, "train")]
    assert trained == list(range(1, 16))
    assert [(r["step"], r["stage"]) for r in runs.records(output, "growth")] == [(8, 1), (10, 2)]
    assert runs.records(output, "growth")[1]["logit_error"] == pytest.approx(difference)
    assert "Finished: 15 steps in 3 stages." in report.read_text()


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


def test_growing_between_runs_is_growing_on_schedule(run, tmp_path):
    """To the last bit, at a learning rate that is stable in both."""
    config = load_model(run, 10)[2]
    growth_step = dict(mlp_dim=30, moments="mean")
    scheduled = dataclasses.replace(config, growth=(*config.growth, dict(step=10, **growth_step)))
    shutil.copytree(run / "checkpoints" / "10", tmp_path / "on" / "checkpoints" / "10")
    train(scheduled, tmp_path / "on")

    expansion = plan_run(run, growth_step, step=10)
    assert expansion.config == scheduled
    expand_run(expansion, tmp_path / "between", seed=config.seed)
    train(expansion.config, tmp_path / "between")
    runs.assert_same_arrays(*(runs.arrays(tmp_path / name, 15) for name in ("on", "between")))


def test_a_run_without_growth_grows(run, tmp_path):
    config = dataclasses.replace(load_model(run)[2], growth=(), num_steps=4)
    train(config, tmp_path / "run")
    expand_run(plan_run(tmp_path / "run", dict(embed_dim=12)), tmp_path / "larger")
    larger = load_model(tmp_path / "larger")[2]
    assert larger.num_steps == 8
    train(larger, tmp_path / "larger")
    assert runs.steps(tmp_path / "larger")[-1] == 8


def test_moments_and_free_values_are_chosen(run, tmp_path):
    plan = plan_run(run, dict(mlp_dim=30, init="copy", moments="mean"), step=10)
    expand_run(plan, tmp_path / "mean", seed=5)
    expand_run(plan, tmp_path / "other", seed=6)
    mean, other = (runs.arrays(tmp_path / name, 10) for name in ("mean", "other"))
    kernel = next(n for n in mean if n.startswith("params") and n.endswith("up/kernel"))
    assert not np.array_equal(mean[kernel], other[kernel])
    nu = next(n for n in mean if "/nu/" in n and n.endswith("up/kernel"))
    assert (mean[nu][..., 24:] > 0).all()


def test_what_was_trained_stays_behind_its_warm_up(run, tmp_path):
    """Though a much larger model makes its FLOPs a small share of all."""
    config = load_model(run)[2]
    grown = plan_run(run, dict(embed_dim=320, mlp_dim=2400)).config
    old, new = learning_rate(config), learning_rate(grown)
    warm = [step for step in range(8) if old(step) < config.optimizer.learning_rate]
    assert len(warm) >= 2
    np.testing.assert_allclose([new(s) for s in warm], [old(s) for s in warm], rtol=1e-4)
    assert new(14) == config.optimizer.learning_rate


def test_a_run_that_is_over_gets_as_many_steps_again(run, tmp_path):
    expand_run(plan_run(run, dict(mlp_dim=30)), tmp_path / "larger")
    assert runs.steps(tmp_path / "larger") == (15,)
    assert load_model(tmp_path / "larger")[2].num_steps == 30


@pytest.mark.parametrize(("step", "stop"), [(10, 15), (15, 30)])
def test_a_plan_says_how_long_the_run_would_train_on(run, step, stop, capsys):
    assert main(["plan", f"--source={run}", "--mlp_dim=30", f"--step={step}"]) == 0
    config = plan_run(run, dict(mlp_dim=30), step=step).config
    costs = training_flops(config.stages, config.tokens_per_step)
    said = f"trains on from step {step} to {stop}: {stop - step} more steps, "
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(said)]
    assert f"{costs[-1] / sum(costs):.0%} of the run's" in line
    assert "--config.num_steps" in line


def test_what_cannot_be_is_refused(run, tmp_path):
    with pytest.raises(ScheduleError, match="mlp_dim is 24 in layer 0 and cannot shrink"):
        plan_run(run, dict(mlp_dim=8))
    with pytest.raises(ScheduleError, match=r"\{'mlp_dim': 24\} changes nothing"):
        plan_run(run, dict(mlp_dim=24))
    with pytest.raises(CheckpointError, match="there is no checkpoint at step 11"):
        plan_run(run, dict(mlp_dim=30), step=11)
    with pytest.raises(InputError, match="init says gradmax, but that needs a batch"):
        plan_run(run, dict(mlp_dim=30, init="gradmax"))
    with pytest.raises(InputError, match="moments is 'probe', which needs a batch"):
        plan_run(run, dict(mlp_dim=30, moments="probe"))
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        expand_run(plan_run(run, dict(mlp_dim=30)), tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        plan_run(tmp_path / "empty", dict(mlp_dim=30))


def test_what_has_just_grown_is_trained_first(run, tmp_path):
    expand_run(plan_run(run, dict(mlp_dim=30)), tmp_path / "larger")
    with pytest.raises(InputError, match="at step 15 has just grown: train it on"):
        plan_run(tmp_path / "larger", dict(mlp_dim=36))


def test_the_command_grows_a_run(run, tmp_path):
    output = tmp_path / "larger"
    sizes = ["--head_dim=8", "--num_layers=3", "--layer_positions=1"]
    process = runs.start("expand", f"--source={run}", f"--output={output}", *sizes)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "largest difference / largest logit" in text
    assert f"written: {output}; its config.py trains it on from step 15" in text
    assert load_model(output)[0].architecture.qk_dim == 8
