"""A run from end to end: it grows, loses nothing, may stop anywhere, and says when it fails."""

import json
import shutil

import numpy as np
import pytest

from growth.cli import errors
from growth.training.checkpoints import Checkpoints
from growth.training.config import parse
from growth.training.data.batches import train_iterator
from growth.training.data.dataset import load_dataset
from growth.training.loop import train, train_stage
from growth.training.mesh import make_mesh
from growth.training.optimization import make_optimizer
from growth.training.report.metrics import read_metrics
from growth.training.run.divergence import Judge
from growth.training.run.restore import load_model, open_run
from growth.training.run.stopping import STOPPED
from growth.training.state import restorable_state
from tests.helpers import networks, runs

DIMENSIONS = {"embed_dim", "mlp_dim", "num_layers", "num_heads", "qk_dim", "v_dim"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return runs.write_corpus(tmp_path_factory.mktemp("text") / "files")


@pytest.fixture
def config(files):
    return runs.small_config(files)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, files):
    """The directory of a run that nobody interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(parse(runs.small_config(files)), workdir) == workdir / "report.html"
    return workdir


def killed_after(step, uninterrupted, workdir):
    """A copy of a run as it would be if it had been killed while it went on from a checkpoint."""
    shutil.copytree(uninterrupted, workdir)
    for later in runs.steps(workdir):
        if later > step:
            shutil.rmtree(workdir / "checkpoints" / str(later))


def reproducible(workdir):
    """The records of a run, without times."""
    times = {"seconds", "tokens_per_second", "clock"}
    return [
        {name: value for name, value in record.items() if name not in times}
        for record in read_metrics(workdir / "metrics.jsonl")
        if record["kind"] != "start"
    ]


def test_a_run_writes_down_what_it_did(uninterrupted):
    train_records, evals = runs.records(uninterrupted, "train"), runs.records(uninterrupted, "eval")
    assert [r["step"] for r in train_records] == list(range(1, 61))
    assert [r["stage"] for r in train_records] == [0] * 20 + [1] * 20 + [2] * 20
    assert [r["step"] for r in evals] == [10, 20, 30, 40, 50, 60]
    assert evals[-1]["loss"] < evals[0]["loss"] - 0.5
    assert np.diff([r["flops"] for r in train_records]).min() > 0
    assert {(r["step"], r["prompt"]) for r in runs.records(uninterrupted, "sample")} == {
        (step, prompt) for step in (20, 40, 60) for prompt in ("def ", "import ")
    }
    assert all(r["text"] for r in runs.records(uninterrupted, "sample"))

    assert {path.name for path in uninterrupted.iterdir()} == {
        *("checkpoints", "config.json", "metrics.jsonl", "report.html", "tensorboard")
    }
    report = (uninterrupted / "report.html").read_text()
    assert "Finished: 60 steps in 3 stages" in report
    again = parse(json.loads((uninterrupted / "config.json").read_text()))
    assert [stage.stop for stage in again.stages] == [20, 40, 60]


def test_growth_loses_nothing(uninterrupted):
    growths, evals = runs.records(uninterrupted, "growth"), runs.records(uninterrupted, "eval")
    assert [(r["step"], r["stage"]) for r in growths] == [(20, 1), (40, 2)]
    for record in growths:
        (before,) = (r["loss"] for r in evals if r["step"] == record["step"])
        assert record["loss_before"] == before
        assert abs(record["loss_after"] - record["loss_before"]) <= 1e-5
        assert record["logit_error"] <= 1e-5
        assert record["parameters_after"] > record["parameters_before"]
    assert set().union(*(r["changes"] for r in growths)) >= DIMENSIONS

    # Counts go on, and the moments that were there before are there after one more step.
    counts = [v for n, v in runs.arrays(uninterrupted, 60).items() if n.endswith("count")]
    assert counts
    assert {int(count) for count in counts} == {60}
    model, params, _ = load_model(uninterrupted)
    assert model.architecture.num_layers == 2
    assert params["layers_0"]["attention"]["query"]["kernel"].shape == (2, 16, 4, 1, 8)


def test_growth_leaves_the_order_of_the_data_alone(uninterrupted, config):
    run = parse(config)
    examples = load_dataset(run.data, run.architecture).train
    fresh = train_iterator(examples, batch_size=8, seed=run.seed)
    expected = [next(fresh) for _ in range(61)][60]

    resumed = train_iterator(examples, batch_size=8, seed=run.seed)
    architecture, mesh = run.stages[-1].architecture, make_mesh(run.mesh, run.batch_size)
    target = restorable_state(architecture, make_optimizer(run), run.param_dtype, mesh)
    Checkpoints(uninterrupted / "checkpoints").restore(60, target, resumed)
    networks.assert_same_trees(next(resumed), expected)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(dict(data=8), id="data", marks=pytest.mark.full),
        pytest.param(dict(data=2, fsdp=2, tensor=2), id="data, fsdp and tensor"),
    ],
)
def test_eight_devices_give_the_same_losses(mesh, uninterrupted, config, tmp_path, capfd):
    config.mesh.update(mesh)
    config.samples.prompts = ()
    train(parse(config), tmp_path / "run")
    for kind, name in (("train", "loss"), ("eval", "loss"), ("growth", "loss_after")):
        one, eight = (
            [r[name] for r in runs.records(w, kind)] for w in (uninterrupted, tmp_path / "run")
        )
        np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert max(r["logit_error"] for r in runs.records(tmp_path / "run", "growth")) <= 1e-5
    assert "rematerialization" not in capfd.readouterr().err  # no array is whole on every device


@pytest.mark.parametrize("step", [15, 20, 25, 40, 60])
def test_a_run_that_was_killed_ends_with_the_same_bits(step, uninterrupted, config, tmp_path):
    """Before a growth, right at one, after it, and at the very end."""
    killed_after(step, uninterrupted, tmp_path / "run")
    train(parse(config), tmp_path / "run")
    runs.assert_same_arrays(runs.arrays(tmp_path / "run", 60), runs.arrays(uninterrupted, 60))
    assert runs.steps(tmp_path / "run") == runs.steps(uninterrupted)
    assert reproducible(tmp_path / "run") == reproducible(uninterrupted)


INTERRUPTED = """
import os
import signal

from growth.training.run.run import Run
from tests.helpers import runs

next_batch, number = Run.next_batch, 0


def interrupted(run):
    global number
    number += 1
    if number == {number}:
        for _ in range({times}):
            os.kill(os.getpid(), signal.SIGINT)
    return next_batch(run)


Run.next_batch = interrupted


def get_config():
    return runs.small_config({files!r})
"""


def test_ctrl_c_stops_a_run_in_good_order(uninterrupted, files, tmp_path):
    """Twice, the second time after a growth; then it goes on to the end, and to the same bits.

    The signal comes while the batch of a known step is fetched, however fast the machine is.
    """
    config_file, workdir = tmp_path / "config.py", tmp_path / "run"
    before = 0
    for step in (7, 23):
        config_file.write_text(INTERRUPTED.format(number=step - before, times=1, files=files))
        process = runs.start("train", f"--config={config_file}", f"--workdir={workdir}")
        output, _ = process.communicate(timeout=240)
        assert process.returncode == STOPPED == 4, output
        assert f"stopped after step {step}; the same command goes on" in output
        assert runs.steps(workdir)[-1] == step
        assert [r["step"] for r in runs.records(workdir, "train")] == list(range(1, step + 1))
        assert f"step {step} of 60" in (workdir / "report.html").read_text()
        before = step

    train(parse(runs.small_config(files)), workdir)
    runs.assert_same_arrays(runs.arrays(workdir, 60), runs.arrays(uninterrupted, 60))
    assert set(runs.steps(workdir)) >= set(runs.steps(uninterrupted))
    assert [r["step"] for r in runs.records(workdir, "train")] == list(range(1, 61))
    assert len(runs.records(workdir, "growth")) == 2


def test_ctrl_c_twice_stops_at_once_and_what_was_saved_stays(uninterrupted, files, tmp_path):
    config_file, workdir = tmp_path / "config.py", tmp_path / "run"
    config_file.write_text(INTERRUPTED.format(number=23, times=3, files=files))
    process = runs.start("train", f"--config={config_file}", f"--workdir={workdir}")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130, output
    assert output.endswith("interrupted: what was saved stays, and the same command goes on\n")
    assert "Traceback" not in output
    (*_, newest) = runs.steps(workdir)
    assert 0 < newest < 22
    assert newest in runs.steps(uninterrupted)
    runs.assert_same_arrays(runs.arrays(workdir, newest), runs.arrays(uninterrupted, newest))
    with open_run(parse(runs.small_config(files)), workdir) as (_, _, state):
        assert int(state.step) == newest


def test_a_run_stops_at_no_step_that_it_has_not_saved(uninterrupted, config, tmp_path):
    killed_after(20, uninterrupted, tmp_path / "run")
    with open_run(parse(config), tmp_path / "run") as (run, stage, state):
        assert (stage.index, int(state.step)) == (0, 20)
        run.stop.requested = True
        assert train_stage(run, stage, state) is state  # the stage is over
    killed_after(15, uninterrupted, tmp_path / "other")
    with open_run(parse(config), tmp_path / "other") as (run, stage, state):
        run.stop.requested = True
        state = train_stage(run, stage, state)
        assert int(state.step) == 16
    assert runs.steps(tmp_path / "other")[-1] == 16


@pytest.mark.parametrize(("rate", "judged"), [(1e4, True), (1e30, False)])
def test_what_diverges_does_not_take_the_place_of_the_good(
    rate, judged, uninterrupted, config, tmp_path, capsys, monkeypatch
):
    """An update is looked at before it is saved; what was saved all the same makes way."""
    killed_after(25, uninterrupted, tmp_path / "run")
    if not judged:
        monkeypatch.setattr(Judge, "require_good", lambda *arguments: None)
    config.optimizer.learning_rate, good_rate = rate, config.optimizer.learning_rate
    config.checkpoint_every = config.checkpoints_kept = 1
    for _ in range(2):  # the second time it goes on from the same checkpoint
        with pytest.raises(SystemExit) as exit, errors.reported():
            train(parse(config), tmp_path / "run")
        assert exit.value.code == 3
        message = capsys.readouterr().err
        assert ("after step 26" if judged else "of step 27 is") in message
        assert "last good checkpoint: step 25" in message
        assert runs.steps(tmp_path / "run")[-1] == 25
    aside = {path.name for path in (tmp_path / "run" / "checkpoints").glob("26*")}
    assert aside == (set() if judged else {"26.diverged", "26.diverged.2"})
    assert "step 26 of 60" in (tmp_path / "run" / "report.html").read_text()
    if judged:
        return
    config.optimizer.learning_rate = good_rate
    config.checkpoint_every, config.checkpoints_kept = 5, 100
    train(parse(config), tmp_path / "run")
    runs.assert_same_arrays(runs.arrays(tmp_path / "run", 60), runs.arrays(uninterrupted, 60))


def test_every_growth_is_certified_where_the_config_says_so(config, tmp_path):
    """Each certificate is of its own growth, with the optimizer that the run goes on with."""
    config.certify = True
    config.samples.prompts = ()
    train(parse(config), tmp_path / "run")
    directory = tmp_path / "run" / "certificates"
    assert {path.name for path in directory.iterdir()} == {"step_20.json", "step_40.json"}
    first_updates = {}
    for stage in parse(config).stages[1:]:
        certificate = json.loads((directory / f"step_{stage.start}.json").read_text())
        assert certificate["passed"] is True
        assert certificate["preservation"]["float64"]["max_error"] <= 1e-12
        # It is of this growth, of all that is new, and at the state that the run goes on with.
        source, target = stage.plan.source, stage.plan.target
        for name, architecture in (("source", source), ("target", target)):
            assert certificate[name] == json.loads(json.dumps(architecture.to_dict()))
        number = sum(certificate["gradients"]["new"].values())
        assert number == target.num_parameters - source.num_parameters
        first_updates[stage.start] = certificate["first_update"]
    # New entries of the first growth go by their age, at 0.5 + 0.5 / 5 of the rate; the rate of the
    # second begins at a fifth. A new optimizer would take steps of the full rate.
    assert first_updates[20][0] == pytest.approx(0.6, rel=0.02)
    assert 0.5 < first_updates[20][1] < 0.8
    assert 0.05 < min(first_updates[40]) < max(first_updates[40]) < 0.3
