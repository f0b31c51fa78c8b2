"""Tensors of a checkpoint, one at a time: those of a whole tree, and fresh where they are free."""

import numpy as np
import pytest

import growth
from growth.expansion import numpy_backend
from growth.expansion.accounts import array_account
from growth.expansion.blocks import Kind
from growth.huggingface import plan_expansion
from tests.helpers.networks import first
from tests.helpers.small_models import CONFIGS, make, steps

pytestmark = pytest.mark.usefixtures("float64")


def planned(name, tmp_path, **options):
    """A growth step of a model, along all dimensions that can grow."""
    directory = make(name, tmp_path / "source")
    return plan_expansion(directory, **steps(name)["all"] | options)


NAMES = first(CONFIGS, "llama", "gemma2", "gpt2", "gpt_neox", "olmo", "opt", "phi3", "mixtral")


def random_like(specs, seed):
    """Arrays of given shapes, in which no two numbers are equal and none is zero."""
    draw = np.random.default_rng(seed)
    return {name: 1 + draw.random(spec.shape) for name, spec in specs.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_that_of_a_whole_tree_to_the_last_bit(name, tmp_path):
    """Both are given the same free values, which neither can have made itself."""
    expansion = planned(name, tmp_path)
    plan, source = expansion.plan, expansion.source
    old = {name: source.read(name).astype(np.float64) for name in source.parameters}
    fresh = random_like(expansion.specs, 1)
    expected = growth.expand(old, plan, blueprint=source.family.blueprint, fresh=fresh)
    assert expected.keys() == expansion.targets.keys()
    for name, target in expansion.targets.items():
        shapes = {key: value.shape for key, value in old.items()}
        account = array_account(target, plan, shapes)
        found = numpy_backend.fold(account, old, copy_of(account, fresh[name]))
        np.testing.assert_array_equal(found, expected[name], err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_free_entries_are_those_of_an_initializer_and_all_others_what_growth_makes(name, tmp_path):
    expansion = planned(name, tmp_path)
    plan, source = expansion.plan, expansion.source
    old = {name: source.read(name) for name in source.parameters}
    looked_at = 0
    for name, target in expansion.targets.items():
        account = array_account(target, plan, {key: value.shape for key, value in old.items()})
        found = expansion.grow(name)
        np.testing.assert_array_equal(
            found, numpy_backend.fold(account, old, copy_of(account, found), dtype=found.dtype)
        )
        for view, blocks, part in zip(
            account.layout.views, account.blocks, account.layout.split(found), strict=True
        ):
            for block in (block for block in blocks if block.kind is Kind.FREE):
                values = part[tuple(slice(r.start, r.stop) for r in block.target)]
                center, deviation = expansion._initializer(name, view.role)
                if not deviation:
                    assert (values == center).all(), name
                    continue
                looked_at += values.size
                assert np.abs(values - center).max() < 4.5 * deviation, name
                assert len(np.unique(values)) > 0.9 * values.size, name
                error = values.std() / deviation - 1
                assert abs(error) < 5 / np.sqrt(2 * values.size), name
    assert looked_at > 1000


def copy_of(account, found):
    """Writes the free entries that an array has already."""
    views = account.layout.split(found)

    def write_free(number, block, into):
        into[...] = views[number][tuple(slice(r.start, r.stop) for r in block.target)]

    return write_free


def test_free_values_depend_on_the_seed_and_the_name_alone(tmp_path):
    one, same = (planned("llama", tmp_path / str(n), seed=3) for n in range(2))
    other = planned("llama", tmp_path / "other", seed=4)
    names = [n for n in one.targets if n.endswith("up_proj.weight")]
    for name in reversed(names):
        np.testing.assert_array_equal(one.grow(name), same.grow(name))
        assert not np.array_equal(one.grow(name), other.grow(name))
    new_rows = [one.grow(name)[20:, :24] for name in names]
    assert not np.array_equal(new_rows[0], new_rows[1])


def test_fresh_values_are_those_of_the_models_initializer(tmp_path):
    make("llama", tmp_path / "source")
    expansion = plan_expansion(tmp_path / "source", mlp_dim=2000, num_layers=3)
    up = expansion.grow("model.layers.0.mlp.up_proj.weight")[20:]
    assert abs(up.std() / 0.02 - 1) < 0.02
    assert abs(up.mean()) < 0.001
    assert 0.07 < np.abs(up).max() < 0.09  # of 48 thousand normal numbers, the farthest is 4.1 σ
    new = next(i for i, origin in enumerate(expansion.plan.layer_sources) if origin is None)
    assert (expansion.grow(f"model.layers.{new}.input_layernorm.weight") == 1).all()


def test_copies_are_near_what_they_copy_and_not_equal(tmp_path):
    make("llama", tmp_path / "source")
    expansion = plan_expansion(tmp_path / "source", mlp_dim=50, init="copy:10")
    name = "model.layers.1.mlp.gate_proj.weight"
    old, new = expansion.source.read(name), expansion.grow(name)
    np.testing.assert_array_equal(new[:20], old)
    for start, rows in ((20, 20), (40, 10)):
        error = (new[start : start + rows] - old[:rows]).std()
        assert abs(error / (old.std() / 10) - 1) < 0.15
    assert not np.array_equal(new[20:30], new[40:50])


def test_a_mapping_says_it_for_each_transformation(tmp_path):
    make("llama", tmp_path / "source")
    sizes = dict(mlp_dim=40, num_layers=3, layer_positions=[2])
    expansion = plan_expansion(tmp_path / "source", **sizes, init={"layer_addition": "copy:100"})
    query = "model.layers.{}.self_attn.q_proj.weight"
    old = expansion.source.read(query.format(1))
    new = expansion.grow(query.format(2))
    assert np.abs(new - old).max() < 0.06 * np.abs(old).max()
    up = "model.layers.{}.mlp.up_proj.weight"
    assert expansion.grow(up.format(0))[20:].std() < 0.03  # fresh


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_multiplied_is_rounded_once(dtype, tmp_path):
    make("llama", tmp_path / "source")
    expansion = plan_expansion(tmp_path / "source", embed_dim=36, head_dim=12, dtype=dtype)
    name = "model.layers.0.self_attn.k_proj.weight"
    old, new = expansion.source.read(name), expansion.grow(name)
    halves = new.reshape(2, 2, 6, 36)[:, :, :4, :24]
    expected = (old * np.sqrt(12 / 8)).reshape(2, 2, 4, 24).astype(new.dtype)
    np.testing.assert_array_equal(halves.astype(np.float32), expected.astype(np.float32))
    assert (new.reshape(2, 2, 6, 36)[:, :, 4:, :24] == 0).all()
