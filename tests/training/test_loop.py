"""A run from end to end: it grows, loses nothing, may stop anywhere, and says when it fails."""

import json
import re
import shutil
import signal
import time

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
from growth.training.run.restore import load_model, open_run
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
def whole(tmp_path_factory, files):
    """The directory of a run that nobody interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert train(parse(runs.small_config(files)), workdir) == workdir / "report.html"
    return workdir


def killed_after(step, whole, workdir):
    """A copy of a run as it would be if it had been killed while it went on from a checkpoint."""
    shutil.copytree(whole, workdir)
    for later in runs.steps(workdir):
        if later > step:
            shutil.rmtree(workdir / "checkpoints" / str(later))


def reproducible(workdir):
    """The records of a run, without times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {n: v for n, v in json.loads(line).items() if n not in ("seconds", "tokens_per_second")}
        for line in lines
    ]


def test_a_run_writes_down_what_it_did(whole):
    train_records, evals = runs.records(whole, "train"), runs.records(whole, "eval")
    assert [r["step"] for r in train_records] == list(range(1, 61))
    assert [r["stage"] for r in train_records] == [0] * 20 + [1] * 20 + [2] * 20
    assert [r["step"] for r in evals] == [10, 20, 30, 40, 50, 60]
    assert evals[-1]["loss"] < evals[0]["loss"] - 0.5
    assert np.diff([r["flops"] for r in train_records]).min() > 0
    assert {(r["step"], r["prompt"]) for r in runs.records(whole, "sample")} == {
        (step, prompt) for step in (20, 40, 60) for prompt in ("def ", "import ")
    }
    assert all(r["text"] for r in runs.records(whole, "sample"))

    assert {path.name for path in whole.iterdir()} == {
        *("checkpoints", "config.json", "metrics.jsonl", "report.html", "tensorboard")
    }
    report = (whole / "report.html").read_text()
    assert "Finished: 60 steps in 3 stages" in report
    again = parse(json.loads((whole / "config.json").read_text()))
    assert [stage.stop for stage in again.stages] == [20, 40, 60]


def test_growth_loses_nothing(whole):
    growths, evals = runs.records(whole, "growth"), runs.records(whole, "eval")
    assert [(r["step"], r["stage"]) for r in growths] == [(20, 1), (40, 2)]
    for record in growths:
        (before,) = (r["loss"] for r in evals if r["step"] == record["step"])
        assert record["loss_before"] == before
        assert abs(record["loss_after"] - record["loss_before"]) <= 1e-5
        assert record["logit_error"] <= 1e-5
        assert record["parameters_after"] > record["parameters_before"]
    assert set().union(*(r["changes"] for r in growths)) >= DIMENSIONS

    # Counts go on, and the moments that were there before are there after one more step.
    counts = [v for n, v in runs.arrays(whole, 60).items() if n.endswith("count")]
    assert counts
    assert {int(count) for count in counts} == {60}
    model, params, _ = load_model(whole)
    assert model.architecture.num_layers == 2
    assert params["layers_0"]["attention"]["query"]["kernel"].shape == (2, 16, 4, 1, 8)


def test_growth_leaves_the_order_of_the_data_alone(whole, config):
    run = parse(config)
    examples = load_dataset(run.data, run.architecture).train
    fresh = train_iterator(examples, batch_size=8, seed=run.seed)
    expected = [next(fresh) for _ in range(61)][60]

    resumed = train_iterator(examples, batch_size=8, seed=run.seed)
    architecture, mesh = run.stages[-1].architecture, make_mesh(run.mesh, run.batch_size)
    target = restorable_state(architecture, make_optimizer(run), run.param_dtype, mesh)
    Checkpoints(whole / "checkpoints").restore(60, target, resumed)
    networks.assert_same_trees(next(resumed), expected)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(dict(data=8), id="data", marks=pytest.mark.full),
        pytest.param(dict(data=2, fsdp=2, tensor=2), id="data, fsdp and tensor"),
    ],
)
def test_eight_devices_give_the_same_losses(mesh, whole, config, tmp_path, capfd):
    config.mesh.update(mesh)
    config.samples.prompts = ()
    train(parse(config), tmp_path / "run")
    for kind, name in (("train", "loss"), ("eval", "loss"), ("growth", "loss_after")):
        one, eight = ([r[name] for r in runs.records(w, kind)] for w in (whole, tmp_path / "run"))
        np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert max(r["logit_error"] for r in runs.records(tmp_path / "run", "growth")) <= 1e-5
    assert "rematerialization" not in capfd.readouterr().err  # no array is whole on every device


@pytest.mark.parametrize("step", [15, 20, 25, 40, 60])
def test_a_run_that_was_killed_ends_with_the_same_bits(step, whole, config, tmp_path):
    """Before a growth, right at one, after it, and at the very end."""
    killed_after(step, whole, tmp_path / "run")
    train(parse(config), tmp_path / "run")
    runs.assert_same_arrays(runs.arrays(tmp_path / "run", 60), runs.arrays(whole, 60))
    assert runs.steps(tmp_path / "run") == runs.steps(whole)
    assert reproducible(tmp_path / "run") == reproducible(whole)


def test_ctrl_c_stops_a_run_in_good_order(whole, files, tmp_path):
    """Twice, the second time after a growth; then it goes on to the end, and to the same bits."""
    config_file, workdir = tmp_path / "config.py", tmp_path / "run"
    config_file.write_text(
        f"import runs\n\n\ndef get_config():\n    return runs.small_config({files!r})\n"
    )
    stopped = 0
    for kind in ("train", "growth"):
        process = runs.start("growth.cli.train", f"--config={config_file}", f"--workdir={workdir}")
        while process.poll() is None and not [
            record for record in runs.records(workdir, kind) if record["step"] > stopped
        ]:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        step = int(re.search(r"stopped after step (\d+)", output)[1])
        assert stopped < step < 60
        assert runs.steps(workdir)[-1] == step
        assert f"step {step} of 60" in (workdir / "report.html").read_text()
        stopped = step

    train(parse(runs.small_config(files)), workdir)
    runs.assert_same_arrays(runs.arrays(workdir, 60), runs.arrays(whole, 60))
    assert set(runs.steps(workdir)) >= set(runs.steps(whole))
    assert [r["step"] for r in runs.records(workdir, "train")] == list(range(1, 61))
    assert len(runs.records(workdir, "growth")) == 2


def test_a_run_stops_at_no_step_that_it_has_not_saved(whole, config, tmp_path):
    killed_after(20, whole, tmp_path / "run")
    with open_run(parse(config), tmp_path / "run") as (run, stage, state):
        assert (stage.index, int(state.step)) == (0, 20)
        run.stop.requested = True
        assert train_stage(run, stage, state) is state  # the stage is over
    killed_after(15, whole, tmp_path / "other")
    with open_run(parse(config), tmp_path / "other") as (run, stage, state):
        run.stop.requested = True
        state = train_stage(run, stage, state)
        assert int(state.step) == 16
    assert runs.steps(tmp_path / "other")[-1] == 16


def test_a_run_that_diverges_stops(whole, config, tmp_path, capsys):
    """The message does not name the checkpoint that already holds what went wrong."""
    killed_after(25, whole, tmp_path / "run")
    config.optimizer.learning_rate = 1e30
    config.checkpoint_every = 1
    with pytest.raises(SystemExit) as exit, errors.reported():
        train(parse(config), tmp_path / "run")
    assert exit.value.code == 3
    message = capsys.readouterr().err
    assert re.search(r"the \w+ of step 27 is (nan|inf), in stage 2 of 3", message)
    assert "last good checkpoint: step 25" in message
    assert runs.steps(tmp_path / "run")[-1] == 26
    assert [r["step"] for r in runs.records(tmp_path / "run", "train")] == list(range(1, 27))
    assert "step 26 of 60" in (tmp_path / "run" / "report.html").read_text()


def test_every_growth_is_certified_where_the_config_says_so(config, tmp_path):
    config.certify = True
    config.samples.prompts = ()
    train(parse(config), tmp_path / "run")
    for step in (20, 40):
        path = tmp_path / "run" / "certificates" / f"step_{step}.json"
        certificate = json.loads(path.read_text())
        assert certificate["passed"] is True
        assert certificate["preservation"]["float64"]["max_error"] <= 1e-12
        assert max(certificate["first_update"]) > 0
