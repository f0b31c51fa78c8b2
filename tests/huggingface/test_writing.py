"""Nothing is written that is not finite, or not what growth makes, verified or not."""

import numpy as np
import pytest
import safetensors.torch
import torch

from growth.expansion.accounts import array_account
from growth.expansion.array_checks import ArrayCheckError, check_array, is_finite
from growth.expansion.blocks import Kind
from growth.huggingface import expand_checkpoint, plan_expansion
from growth.huggingface.tensor_files import DTYPES
from tests.helpers.networks import first
from tests.helpers.small_models import CONFIGS, make, steps

WIDER = dict(embed_dim=36, head_dim=12, mlp_dim=30, num_layers=3)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A model in each dtype, made once."""
    made = {}

    def get(dtype):
        if dtype not in made:
            directory = tmp_path_factory.mktemp(dtype) / "source"
            make("llama", directory, getattr(torch, dtype))
            tensors = safetensors.torch.load_file(directory / "model.safetensors")
            made[dtype] = (directory / "config.json").read_text(), tensors
        return made[dtype]

    return get


def with_entry(source, directory, name, value):
    """A checkpoint with one entry replaced."""
    config, tensors = source
    directory.mkdir()
    (directory / "config.json").write_text(config)
    changed = {**tensors, name: tensors[name].clone()}
    changed[name].view(-1)[-1] = value
    safetensors.torch.save_file(changed, directory / "model.safetensors", {"format": "pt"})
    return directory


def kinds(tensors):
    return [name for name in tensors if ".1." not in name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(dtype, value, sources, tmp_path):
    """In any kind of tensor, in any dtype, also where nothing is verified; nothing is left."""
    source = sources(dtype)
    for number, name in enumerate(kinds(source[1])):
        given = with_entry(source, tmp_path / str(number), name, value)
        with pytest.raises(ArrayCheckError) as caught:
            expand_checkpoint(given, tmp_path / "grown", verify=False, **WIDER)
        assert f"the source holds NaN or infinity in {name}: entry (" in str(caught.value)
        assert not (tmp_path / "grown").exists()
    assert number == 11


@pytest.mark.parametrize(
    ("dtype", "options", "name", "value"),
    [
        ("float16", {}, "model.layers.0.self_attn.k_proj.weight", 60000.0),
        ("float32", {}, "model.layers.0.self_attn.k_proj.weight", 3e38),
        ("bfloat16", {}, "model.layers.0.self_attn.k_proj.weight", 3e38),
        ("float32", dict(dtype="float16"), "lm_head.weight", 1e6),
        ("bfloat16", dict(dtype="float16"), "model.embed_tokens.weight", -1e6),
        ("float64", dict(dtype="bfloat16"), "model.norm.weight", 1e300),
    ],
)
def test_what_a_dtype_cannot_hold_is_refused(dtype, options, name, value, sources, tmp_path):
    """Where old entries are multiplied, and where the dtype changes."""
    given = with_entry(sources(dtype), tmp_path / "source", name, value)
    with pytest.raises(ArrayCheckError, match=rf"{name} would hold NaN or infinity.*ends at"):
        expand_checkpoint(given, tmp_path / "grown", verify=False, **WIDER, **options)
    assert not (tmp_path / "grown").exists()
    expand_checkpoint(given, tmp_path / "wide", verify=False, **WIDER, dtype="float64")


@pytest.mark.parametrize("code", DTYPES)
def test_every_number_of_a_dtype_is_told_finite_or_not(code):
    """All of two bytes; of wider dtypes those next to the ends, and both signs."""
    dtype = DTYPES[code]
    bits = np.dtype(f"u{dtype.itemsize}")
    if bits.itemsize == 2:
        numbers = np.arange(1 << 16, dtype=bits).view(dtype)
    else:
        ends = [0.0, 1.0, np.inf, np.nan, np.finfo(dtype).max, np.finfo(dtype).tiny]
        numbers = np.array([*ends, *np.negative(ends)], dtype)
    with np.errstate(invalid="ignore"):
        expected = np.isfinite(numbers.astype(np.float64))
    assert [is_finite(number) for number in numbers.reshape(-1, 1)] == expected.tolist()


@pytest.mark.parametrize("options", [{}, dict(dtype="bfloat16"), dict(dtype="float64")])
@pytest.mark.parametrize("name", first(CONFIGS, "llama", "gemma2", "gpt2", "phi3"))
def test_an_entry_that_is_not_what_growth_makes_is_found(name, options, tmp_path):
    """In every block of every tensor; those of free blocks may be anything."""
    make(name, tmp_path / "source", torch.float32)
    expansion = plan_expansion(tmp_path / "source", **steps(name)["all"], **options)
    plan, changed = expansion.plan, dict.fromkeys(Kind, 0)
    for target_name, target in expansion.targets.items():
        old = expansion.source.read(expansion.source_name(target_name))
        new = expansion.grow(target_name)
        check_array(target, old, new, plan)
        account = array_account(target, plan, {expansion.source_name(target_name): old.shape})
        for number, blocks in enumerate(account.blocks):
            for block in (block for block in blocks if all(block.shape)):
                wrong = new.copy()
                place = tuple(entries[len(entries) // 2] for entries in block.target)
                view = account.layout.split(wrong)[number]
                right = float(view[place])
                view[place] = 1.02 * right + np.copysign(1e-3, right)
                changed[block.kind] += 1
                if block.kind is Kind.FREE:
                    check_array(target, old, wrong, plan)
                    continue
                with pytest.raises(ArrayCheckError, match=rf"{target_name}: \w+ entries"):
                    check_array(target, old, wrong, plan)
    assert changed[Kind.OLD] > 10
    assert changed[Kind.FREE] > 5
    assert changed[Kind.ZERO] or changed[Kind.MEAN]
