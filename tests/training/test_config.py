"""A config is parsed into frozen values once, or refused with the field that is wrong."""

import dataclasses
import json
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from growth.architecture import Architecture, ArchitectureError
from growth.errors import InputError
from growth.training.config import TrainConfig, changeable, defaults, parse
from growth.training.config_sections import (
    ConfigError,
    MeshConfig,
    OptimizerConfig,
    SamplesConfig,
)
from growth.training.data.config import DataConfig, DataError
from growth.training.schedule import ScheduleError

SIZES = dict(vocab_size=256, max_length=16, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16)


def config(**changes):
    made = defaults(**SIZES)
    for name, value in changes.items():
        *path, last = name.split("__")
        place = made
        for part in path:
            place = place[part]
        place[last] = value
    return made


def test_defaults_are_the_dataclasses_own():
    parsed = parse(defaults(**SIZES))
    assert parsed == TrainConfig(Architecture(**SIZES))
    assert parsed.data == DataConfig()
    assert parsed.optimizer == OptimizerConfig()
    assert parsed.mesh == MeshConfig()
    assert parsed.samples == SamplesConfig()


def test_every_field_can_be_set():
    """What is in the locked config can be set from the command line; the rest could not."""
    made = config().lock()
    for kind, part in (
        (TrainConfig, made),
        (Architecture, made.architecture),
        (DataConfig, made.data),
        (OptimizerConfig, made.optimizer),
        (MeshConfig, made.mesh),
        (SamplesConfig, made.samples),
    ):
        assert set(part) == {field.name for field in dataclasses.fields(kind)}
    made.architecture.num_kv_heads = 1
    made.architecture.v_dim = (2, 3)
    made.architecture.norm = "layernorm"
    architecture = parse(made).architecture
    assert (architecture.num_kv_heads, architecture.v_dim) == (1, (2, 3))
    assert architecture.norm == "layernorm"


def test_what_is_none_can_be_set_on_the_command_line(monkeypatch):
    """In a config of defaults, and in one that a run has written down."""
    assert parse(config()).growth_tolerance is None
    for made in (config(), changeable(parse(config()).to_dict())):
        settings = "growth_tolerance=1e-3", "architecture.v_dim=6", "architecture.query_scale=0.5"
        arguments = ["program", *(f"--config.{setting}" for setting in settings)]
        monkeypatch.setattr(sys, "argv", arguments)  # which the flag of a config reads
        values = flags.FlagValues()
        flag = config_flags.DEFINE_config_dict("config", made, flag_values=values)
        values(arguments)
        run = parse(flag.value)
        assert run.growth_tolerance == 1e-3
        assert (run.architecture.v_dim, run.architecture.query_scale) == (6, 0.5)


def test_a_run_goes_to_json_and_back():
    made = config(
        growth=(dict(step=300, embed_dim=12, mlp_dim=(16, 24)), dict(step=500, num_layers=3)),
        samples__prompts=("def ", "import"),
        architecture__qk_dim=(4, 6),
        mesh__fsdp=2,
    )
    run = parse(made)
    again = parse(json.loads(json.dumps(run.to_dict())))
    assert again.stages == run.stages
    assert again.samples == run.samples
    assert dataclasses.replace(again, growth=()) == dataclasses.replace(run, growth=())
    assert [dict(entry, mlp_dim=None) for entry in again.growth] == [
        dict(entry, mlp_dim=None) for entry in run.growth
    ]


def test_stages_and_tokens():
    run = parse(config(growth=(dict(step=300, embed_dim=12),), batch_size=4))
    assert [stage.start for stage in run.stages] == [0, 300]
    assert run.stages[1].architecture.embed_dim == 12
    assert run.tokens_per_step == 4 * 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Unknown fields, where they are.
        (dict(nmu_steps=3), r"unknown field nmu_steps; did you mean num_steps\?"),
        (
            dict(optimizer__learnin_rate=1.0),
            r"unknown field optimizer\.learnin_rate; did you mean optimizer\.learning_rate\?",
        ),
        (dict(mesh__pipeline=2), r"unknown field mesh\.pipeline; known are data, fsdp, tensor"),
        (dict(architecture__depth=2), r"unknown field depth; an architecture has vocab_size, "),
        # Values.
        (dict(num_steps=0), "num_steps is 0, but it must be a whole number of at least 1"),
        (dict(batch_size=-1), "batch_size is -1, but it must be a whole number of at least 1"),
        (dict(log_every=0), "log_every is 0, but"),
        (dict(eval_every=0), "eval_every is 0, but"),
        (dict(eval_batches=0), "eval_batches is 0, but"),
        (dict(checkpoint_every=0), "checkpoint_every is 0, but"),
        (dict(checkpoints_kept=0), "checkpoints_kept is 0, but"),
        (dict(dtype="float16"), "dtype is 'float16', but it must be float32 or bfloat16"),
        (dict(param_dtype="int8"), "param_dtype is 'int8', but"),
        (dict(growth_tolerance=0.0), "growth_tolerance is 0.0, .* positive number, or None"),
        (dict(growth_tolerance=float("nan")), "growth_tolerance is nan"),
        (dict(growth_tolerance=float("inf")), "growth_tolerance is inf"),
        (dict(optimizer__learning_rate=0.0), r"optimizer\.learning_rate is 0\.0, .* positive"),
        (dict(optimizer__learning_rate=float("nan")), r"optimizer\.learning_rate is nan"),
        (dict(optimizer__clip_norm=-1.0), r"optimizer\.clip_norm is -1\.0, .* positive"),
        (dict(optimizer__b2=1.0), r"optimizer\.b2 is 1\.0, .* less than 1"),
        (dict(optimizer__weight_decay=-0.1), r"optimizer\.weight_decay is -0\.1"),
        (dict(optimizer__warmup_steps=801), r"optimizer\.warmup_steps is 801, .* 80\.0% of"),
        (dict(optimizer__warmup_steps=-1), r"optimizer\.warmup_steps is -1, but it must be"),
        (dict(mesh__data=0), r"mesh\.data is 0, .* or -1"),
        (dict(mesh__tensor=-1), r"mesh\.data is -1, .* -1 only where"),
        (dict(samples__temperature=-1.0), r"samples\.temperature is -1\.0"),
        (dict(samples__num_tokens=0), r"samples\.num_tokens is 0"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        parse(config(**changes))


def test_errors_of_the_parts_come_through():
    with pytest.raises(ArchitectureError, match="num_kv_heads must divide num_heads"):
        parse(config(architecture__num_heads=3, architecture__num_kv_heads=2))
    with pytest.raises(DataError, match="validation_fraction is 0"):
        parse(config(data__validation_fraction=0.0))
    with pytest.raises(ScheduleError, match="cannot shrink"):
        parse(config(growth=(dict(step=300, embed_dim=4),)))
    with pytest.raises(ConfigError, match="architecture is missing"):
        parse({"num_steps": 3})


def test_growth_comes_before_the_learning_rate_decays():
    """By FLOPs, not by steps: the steps after growth cost more."""
    with pytest.raises(ConfigError, match=r"growth\[1\] .*step 900 is at 8\d\.\d% .* 80\.0%"):
        parse(config(growth=(dict(step=300, mlp_dim=24), dict(step=900, mlp_dim=32))))
    parse(config(growth=(dict(step=900, mlp_dim=1024),)))


def test_a_warm_up_takes_steps_of_its_stage_however_much_later_stages_cost():
    """And growth is possible while it lasts."""
    large = dict(step=400, embed_dim=64, mlp_dim=2048, num_layers=8)
    assert parse(config(growth=(large,))).warmup_steps == 100
    assert parse(config(growth=({**large, "step": 60},))).warmup_steps == 15
    assert [parse(config(num_steps=steps)).warmup_steps for steps in (1, 2, 8)] == [1, 1, 2]
    assert parse(config(growth=(large,), optimizer__warmup_steps=600)).warmup_steps == 600
    assert parse(config(optimizer__warmup_steps=0)).warmup_steps == 0
