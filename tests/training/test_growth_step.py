"""A growth that changes the function is refused, in a run and between runs, and loses nothing."""

import contextlib
import dataclasses
import json
import re
import shutil
import sys

import jax
import pytest

from growth.certification.certificate import CertificateError
from growth.cli import errors
from growth.rules.roles import ROLES
from growth.training.config import parse
from growth.training.growth_step import PreservationError, require_preserved
from growth.training.loop import train
from growth.training.offline import expand_run, plan_run
from growth.training.run.restore import load_model
from tests.helpers import runs


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Eight steps, with growth after four."""
    config = runs.small_config(runs.write_corpus(tmp_path_factory.mktemp("text") / "files"))
    config.growth = (dict(step=4, mlp_dim=24),)
    config.num_steps, config.samples.prompts = 8, ()
    config.eval_every, config.checkpoint_every = 4, 2
    return parse(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory, config):
    """The directory of a run whose growth kept the function."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train(config, workdir)
    return workdir


@contextlib.contextmanager
def wrong_rule():
    """New columns of an MLP's last kernel are taken for free, where zero is needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROLES, "mlp_out", ROLES["mlp_in"])
        forget()
        yield
    forget()


def forget():
    """Forgets everything that was made of the rules of growth."""
    jax.clear_caches()
    for module in [m for name, m in sys.modules.items() if name.startswith("growth.")]:
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def at_growth(run, workdir):
    """A copy of a run that goes on at the end of its first stage."""
    shutil.copytree(run, workdir)
    for later in (6, 8):
        shutil.rmtree(workdir / "checkpoints" / str(later))
    return workdir


def test_a_run_refuses_it_and_goes_on_with_the_right_rules(run, config, tmp_path, capsys):
    workdir = tmp_path / "run"
    with wrong_rule(), pytest.raises(SystemExit) as exit, errors.reported():
        train(config, workdir)
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert "the growth at step 4, which begins stage 2, changes the function" in message
    moved = re.search(r"logits move by (\S+) .* growth promises for float32 is 1\.0e-05", message)
    accepted = re.search(r"accept it with --config\.growth_tolerance=(\S+)", message)
    assert 1e-3 < float(moved[1]) <= float(accepted[1]) < 1.1 * float(moved[1])
    assert runs.steps(workdir) == (2, 4)
    runs.assert_same_arrays(runs.arrays(workdir, 4), runs.arrays(run, 4))
    assert runs.records(workdir, "growth") == []
    assert "Not finished: step 4 of 8, in stage 1 of 2." in (workdir / "report.html").read_text()

    train(config, workdir)
    runs.assert_same_arrays(runs.arrays(workdir, 8), runs.arrays(run, 8))
    assert [record["step"] for record in runs.records(workdir, "growth")] == [4]


def test_a_run_accepts_what_its_tolerance_says(run, config, tmp_path):
    workdir = at_growth(run, tmp_path / "run")
    with wrong_rule():
        strict = dataclasses.replace(config, growth_tolerance=1e-4)
        with pytest.raises(PreservationError, match=r"growth_tolerance is 1\.0e-04") as refused:
            train(strict, workdir)
        assert runs.steps(workdir) == (2, 4)
        accepted = re.search(r"growth_tolerance=(\S+)", str(refused.value))[1]
        train(dataclasses.replace(config, growth_tolerance=float(accepted)), workdir)
    assert runs.steps(workdir)[-1] == 8
    (record,) = runs.records(workdir, "growth")
    assert 1e-4 < record["logit_error"] <= float(accepted)


def test_between_runs_the_same_holds(run, tmp_path):
    output, growth = tmp_path / "larger", dict(mlp_dim=30)
    with wrong_rule():
        with pytest.raises(PreservationError, match=r"accept it with growth_tolerance=\d"):
            expand_run(plan_run(run, growth, step=6), output)
        assert list(tmp_path.iterdir()) == []
        plan = plan_run(run, growth, step=6, growth_tolerance=10.0)
        assert expand_run(plan, tmp_path / "accepted") > 1e-3
        assert load_model(tmp_path / "accepted")[2].growth_tolerance == 10.0
    assert expand_run(plan_run(run, growth, step=6), output) <= 1e-5
    assert load_model(output)[2].growth_tolerance is None


def test_a_certificate_that_fails_ends_a_run(run, config, tmp_path):
    """Whatever the tolerance is."""
    workdir = at_growth(run, tmp_path / "run")
    certified = dataclasses.replace(config, certify=True, growth_tolerance=10.0)
    with wrong_rule(), pytest.raises(CertificateError, match="not certified:\n  logits differ by"):
        train(certified, workdir)
    certificate = json.loads((workdir / "certificates" / "step_4.json").read_text())
    assert certificate["passed"] is False
    assert certificate["problems"]
    assert runs.steps(workdir) == (2, 4)
    assert runs.records(workdir, "growth") == []


@pytest.mark.parametrize("difference", [float("nan"), float("inf")])
def test_no_tolerance_accepts_what_is_not_finite(config, difference):
    config = dataclasses.replace(config, growth_tolerance=1e30)
    with pytest.raises(PreservationError, match=f"move by {difference}") as refused:
        require_preserved(difference, config, config.stages[1], option="growth_tolerance")
    assert "accept it" not in str(refused.value)


def test_bfloat16_may_round(config):
    """What is promised goes by the dtype of the parameters."""
    rounded = dataclasses.replace(config, param_dtype="bfloat16")
    require_preserved(1e-3, rounded, config.stages[1], option="growth_tolerance")
    with pytest.raises(PreservationError):
        require_preserved(1e-3, config, config.stages[1], option="growth_tolerance")
