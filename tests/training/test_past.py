"""What a resumed run may change, field by field: what is to come, and nothing of what has been."""

import dataclasses
import json

import pytest

from growth.training.config import TrainConfig, parse
from growth.training.config_sections import ConfigError
from growth.training.run.past import DECIDED, require_same_past
from tests.helpers import runs

STEP, STAGE = 30, 1


@pytest.fixture(scope="module")
def config():
    """Sixty steps, with growth after twenty and after forty; thirty of them are done."""
    return runs.small_config("nowhere/*.txt")


def compared(before, after, data=("same", "same")):
    """What differs and is allowed."""
    about = {"config": json.loads(json.dumps(parse(before).to_dict())), "data": data[0]}
    about["stage"] = STAGE
    return require_same_past(parse(after), data[1], about=about, step=STEP, workdir="runs/mine")


def entry(config, index, **changes):
    growth = [dict(step) for step in config.growth]
    growth[index] |= changes
    return tuple(growth)


# Another value for every field of a config; a tuple of several for those that are past in part.
PAST = {
    "architecture": lambda c: c.architecture.update(mlp_dim=20),
    "architecture, its norm": lambda c: c.architecture.update(norm_eps=1e-3),
    "initialize_from": lambda c: setattr(c, "initialize_from", "checkpoint"),
    "batch_size": lambda c: setattr(c, "batch_size", 16),
    "seed": lambda c: setattr(c, "seed", 1),
    "param_dtype": lambda c: setattr(c, "param_dtype", "bfloat16"),
    "num_steps, fewer than are done": lambda c: c.update(num_steps=29, growth=c.growth[:1]),
    "growth, what it was": lambda c: setattr(c, "growth", entry(c, 0, mlp_dim=32)),
    "growth, when": lambda c: setattr(c, "growth", entry(c, 0, step=21)),
    "growth, its moments": lambda c: setattr(c, "growth", entry(c, 0, moments="mean")),
    "growth, what was new": lambda c: setattr(c, "growth", entry(c, 0, init="copy")),
    "growth, its rewarming": lambda c: setattr(c, "growth", entry(c, 0, rewarming=None)),
    "growth, removed": lambda c: setattr(c, "growth", c.growth[1:]),
    "growth, all removed": lambda c: setattr(c, "growth", ()),
    "growth, one more": lambda c: setattr(c, "growth", (dict(step=10, mlp_dim=20), *c.growth)),
    "growth, the next where it is over": lambda c: setattr(c, "growth", entry(c, 1, step=25)),
}
FUTURE = {
    "num_steps": lambda c: setattr(c, "num_steps", 80),
    "num_steps, those that are done": lambda c: c.update(num_steps=30, growth=c.growth[:1]),
    "growth, the next": lambda c: setattr(c, "growth", entry(c, 1, v_dim=8)),
    "growth, the next earlier": lambda c: setattr(c, "growth", entry(c, 1, step=31)),
    "growth, the next at once": lambda c: setattr(c, "growth", entry(c, 1, step=30)),
    "growth, the next removed": lambda c: setattr(c, "growth", c.growth[:1]),
    "dtype": lambda c: setattr(c, "dtype", "bfloat16"),
    "remat": lambda c: setattr(c, "remat", True),
    "certify": lambda c: setattr(c, "certify", True),
    "growth_tolerance": lambda c: setattr(c, "growth_tolerance", 1e-3),
    "optimizer": lambda c: c.optimizer.update(learning_rate=1e-3, b2=0.9),
    "mesh": lambda c: c.mesh.update(data=8),
    "samples": lambda c: c.samples.update(num_tokens=4),
    "eval_every": lambda c: setattr(c, "eval_every", 7),
    "eval_batches": lambda c: setattr(c, "eval_batches", 7),
    "checkpoint_every": lambda c: setattr(c, "checkpoint_every", 7),
    "checkpoints_kept": lambda c: setattr(c, "checkpoints_kept", 7),
    "log_every": lambda c: setattr(c, "log_every", 7),
    "wandb_project": lambda c: setattr(c, "wandb_project", "growth"),
    "data, of the same content": lambda c: setattr(c.data, "files", "elsewhere/*.txt"),
}


def changed(config, change):
    after = config.copy_and_resolve_references()
    change(after)
    return after


@pytest.mark.parametrize("kind", PAST)
def test_the_past_is_not_rewritten(kind, config):
    field = kind.split(",")[0]
    with pytest.raises(ConfigError, match=rf"cannot change: .*\b{field}\S* was .*, is ") as error:
        compared(config, changed(config, PAST[kind]))
    assert "\n" not in str(error.value)
    assert "runs/mine holds a run that has taken 30 steps" in str(error.value)


@pytest.mark.parametrize("kind", FUTURE)
def test_the_future_may_change_and_that_is_said(kind, config):
    field = kind.split(",")[0]
    said = compared(config, changed(config, FUTURE[kind]))
    assert said
    assert all(line.startswith((field, "growth")) and " → " in line for line in said)


def test_every_field_is_one_or_the_other():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    past, future = ({kind.split(",")[0] for kind in kinds} for kinds in (PAST, FUTURE))
    assert past | future == fields
    assert past - future == set(DECIDED)


def test_other_data_is_refused(config):
    with pytest.raises(ConfigError, match=r"data was the text or images that it names, is others"):
        compared(config, config, data=("some", "other"))
    other = changed(config, FUTURE["data, of the same content"])
    with pytest.raises(ConfigError, match=r"data\.files was nowhere/\*\.txt, is elsewhere"):
        compared(config, other, data=("some", "other"))


def test_several_fields_are_listed_together(config):
    other = changed(changed(config, PAST["seed"]), PAST["batch_size"])
    with pytest.raises(ConfigError, match=r"batch_size was 8, is 16; seed was 0, is 1\. Give"):
        compared(config, other)


def test_nothing_is_said_where_nothing_differs(config):
    assert compared(config, config) == ()
