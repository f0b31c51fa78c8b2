"""Every field of a config, with every wrong value: refused in one line, or of the type it says.

Fields come from the dataclasses, so that one which is added is tried as well.
"""

import dataclasses
import json
import math
import typing

import numpy as np
import pytest
from beartype.door import is_bearable

from growth.architecture import Architecture, Patches
from growth.architecture.rope_scaling import RopeScaling
from growth.errors import InputError
from growth.optimizer import Rewarming
from growth.rules.composition import grow_to
from growth.training.config import TrainConfig, defaults, parse
from growth.training.config_sections import MeshConfig, OptimizerConfig, SamplesConfig
from growth.training.data.config import DataConfig
from growth.training.fields import check_fields

SECTIONS = {
    "": TrainConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "samples": SamplesConfig,
}
SIZES = dict(vocab_size=256, max_length=16, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16)
WRONG = (
    *(None, True, False, math.nan, math.inf, -math.inf, 1j, b"8", object(), print),
    *(0, -1, -2, 2**31, 2**32, 10**30, -(10**30), 0.0, -1.0, 8.0, 2.5, 1.0, 1e-320, 1e300, -1e300),
    *("", "8", "1e-3", "text", "yes", "True", "none", "float32 "),
    *([], [1], ["a", 1], [None], (), (2.5, 2.5), ({},), {}, {"a": 1}, {1: 2}, {"a"}, range(3)),
    *(np.zeros((3, 3)), np.float32(np.nan), np.array(["a"])),
)


def plain(**changes):
    """A config as JSON has it, with some fields changed."""
    return defaults(**SIZES).to_dict() | changes


def attempt(config, found, name, given):
    """The run that a config describes, None where it is refused; notes what else happened."""
    try:
        return parse(config)
    except InputError as error:
        if "\n" in str(error) or len(str(error)) > 600:
            found.append(f"{name} = {given!r}: {len(str(error))} characters: {error}")
    except Exception as error:
        found.append(f"{name} = {given!r}: {type(error).__name__}: {error}")
    return None


def numbers(value):
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return [value] if isinstance(value, float) else []
    return [number for part in value for number in numbers(part)]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_field_of_the_wrong_kind_is_refused_or_is_of_its_type(section):
    kind, found, refused = SECTIONS[section], [], 0
    hints = typing.get_type_hints(kind)  # without what holds them
    fields = dataclasses.fields(kind)
    for field in fields:
        for given in WRONG:
            changed = {field.name: given}
            config = plain(**({section: plain()[section] | changed} if section else changed))
            name = f"{section}.{field.name}"
            run = attempt(config, found, name, given)
            if run is None:
                refused += 1
                continue
            made = getattr(getattr(run, section) if section else run, field.name)
            if not is_bearable(made, hints[field.name]) or type(made) is np.ndarray:
                found.append(f"{name} = {given!r} was taken as {made!r}")
            if isinstance(made, bool) and hints[field.name] is not bool:
                found.append(f"{name} = {given!r} was taken as {made!r}")
            if not all(map(math.isfinite, numbers(made))):
                found.append(f"{name} = {given!r} was taken as {made!r}")
            if parse(json.loads(json.dumps(run.to_dict()))) != run:
                found.append(f"{name} = {given!r} is another run in JSON")
    assert not found, "\n".join(found)
    assert refused > len(fields) * len(WRONG) / 2


def entries(kind, values):
    """Values of a dataclass, each with one field of the wrong kind."""
    for field in dataclasses.fields(kind):
        for given in WRONG:
            yield field.name, given, values | {field.name: given}


@pytest.mark.parametrize(
    ("kind", "values", "config"),
    [
        (Architecture, SIZES, lambda v: plain(architecture=v)),
        (grow_to, dict(num_layers=3), lambda v: plain(growth=({"step": 300, **v},))),
        (
            Rewarming,
            dict(steps=5),
            lambda v: plain(growth=(dict(step=300, num_layers=3, rewarming=v),)),
        ),
        (
            Patches,
            dict(height=8, width=8, channels=1, size=2),
            lambda v: plain(
                architecture=SIZES | dict(max_length=17, causal=False, patches=v),
            ),
        ),
        (
            RopeScaling,
            dict(kind="linear", factor=2.0),
            lambda v: plain(architecture=SIZES | dict(rope_scaling=v)),
        ),
    ],
    ids=["architecture", "growth", "rewarming", "patches", "rope_scaling"],
)
def test_what_is_inside_a_field_is_refused_in_one_line_too(kind, values, config):
    found = []
    assert parse(config(values))
    for name, given, wrong in entries(kind, values):
        run = attempt(config(wrong), found, f"{kind.__name__}.{name}", given)
        if run is not None and not all(map(math.isfinite, numbers(run.to_dict()))):
            found.append(f"{kind.__name__}.{name} = {given!r} was taken")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["step", "init", "moments", "rewarming"])
def test_what_a_growth_step_says_besides_sizes_is_refused_in_one_line_too(name):
    found = []
    for given in WRONG:
        entry = {"step": 300, "num_layers": 3, name: given}
        run = attempt(plain(growth=(entry,)), found, f"growth.{name}", given)
        if run is not None and given not in (None, {}, (), []):
            found.append(f"growth.{name} = {given!r} was taken")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("section", "field", "given"),
    [
        ("", "num_steps", "8"),
        ("", "checkpoint_every", None),
        ("optimizer", "learning_rate", "1e-3"),
        *(("", "seed", given) for given in ("a", 1.5, -1)),
        *(("", "batch_size", given) for given in (8.0, 2.5)),
        *(("", name, 1.5) for name in ("eval_batches", "checkpoints_kept")),
        ("", "checkpoint_every", 2.5),
        *(("optimizer", name, math.inf) for name in ("learning_rate", "eps", "weight_decay")),
        # In float32, which they are computed with, these are infinity, 0 and 1.
        ("optimizer", "learning_rate", 1e300),
        ("optimizer", "eps", 1e-300),
        ("optimizer", "b2", 1 - 1e-12),
        ("", "remat", "yes"),
        *(("samples", "prompts", given) for given in ("text", 3)),
        ("samples", "num_tokens", 1.5),
        *((name, "", 3) for name in ("data", "optimizer", "mesh", "samples", "architecture")),
    ],
)
def test_what_was_taken_once_is_refused_by_name(section, field, given):
    changed = plain()
    if field:
        (changed[section] if section else changed)[field] = given
    else:
        changed[section] = given
    with pytest.raises(InputError) as error:
        parse(changed)
    name = ".".join(filter(None, (section, field)))
    assert str(error.value).startswith(f"{name} is {given!r}, but it must be ")


def test_numbers_that_mean_the_same_are_taken():
    """An int where there must be a float, and what NumPy computed."""
    run = parse(plain(batch_size=np.int64(4), optimizer={"learning_rate": 1, "b2": np.float32(0)}))
    assert (run.batch_size, run.optimizer.learning_rate, run.optimizer.b2) == (4, 1.0, 0.0)
    assert {type(run.optimizer.learning_rate), type(run.optimizer.b2)} == {float}
    assert type(run.batch_size) is int
    samples = parse(plain(samples={"prompts": ["a", "b"]})).samples
    assert samples.prompts == ("a", "b")


def test_every_field_says_what_it_accepts():
    """In words of ours: the message of the library is for a field that forgot to."""
    for kind in SECTIONS.values():
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            section = dataclasses.is_dataclass(hints[field.name])
            assert section or typing.get_origin(hints[field.name]) is typing.Annotated, field.name


def test_a_class_whose_fields_are_checked_holds_them_to_their_annotations():
    @dataclasses.dataclass(frozen=True)
    class OfOwnConfig:
        number: int = 1

        def __post_init__(self):
            check_fields(self, InputError)

    assert OfOwnConfig(3).number == 3
    with pytest.raises(InputError, match=r"^ofown\.number is '3', but it must be a valid integer$"):
        OfOwnConfig("3")
