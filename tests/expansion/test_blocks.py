"""Blocks: they tile every array, both back ends make of them what growth is, and every wrong one
is caught on both."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth.expansion import jax_backend, numpy_backend
from growth.expansion.accounts import ArrayAccount, source_account
from growth.expansion.blocks import Kind, tile
from growth.expansion.init_values import from_arrays
from tests.helpers import entry_by_entry
from tests.helpers.entry_by_entry import random_case

pytestmark = pytest.mark.usefixtures("float64")

ROOT = Path(__file__).parents[2]
SEEDS = st.integers(0, 10**6)


def account_of(case):
    return source_account(case.arrays(case.plan.source, 0), case.plan, case.blueprint)


def with_numpy(array, case, arrays, fresh):
    """An array of the larger model by the numpy back end, with given free values."""
    views = array.layout.split(fresh[array.target.path])

    def write_free(number, block, into):
        into[...] = views[number][tuple(slice(r.start, r.stop) for r in block.target)]

    return numpy_backend.fold(array, arrays, write_free)


def with_jax(array, case, arrays, fresh):
    """The same by the JAX back end."""
    account = dataclasses.replace(account_of(case), arrays=((next(iter(arrays)), (array,)),))
    grown = jax_backend.assemble(account, arrays, from_arrays(fresh))
    return np.asarray(grown[array.target.path])


BACKENDS = {"jax": with_jax, "numpy": with_numpy}


@given(SEEDS)
def test_blocks_tile_every_array(seed):
    case = random_case(seed)
    account = account_of(case)
    assert [a.target.path for a in account] == [p.path for p in case.parameters(case.plan.target)]
    for array in account:
        for view, blocks in zip(array.layout.views, array.blocks, strict=True):
            covered = np.zeros(view.shape, int)
            for block in blocks:
                covered[tuple(slice(r.start, r.stop) for r in block.target)] += 1
            assert (covered == 1).all()
            assert tile(blocks, view.shape)
            old = [block for block in blocks if block.kind is Kind.OLD]
            assert all(
                len(a) == len(b) for o in old for a, b in zip(o.target, o.region, strict=True)
            )


@pytest.mark.parametrize("backend", BACKENDS)
@given(SEEDS)
def test_an_array_is_what_it_must_be_entry_by_entry(backend, seed):
    case = random_case(seed)
    arrays, fresh = case.arrays(case.plan.source, 1), case.arrays(case.plan.target, 2)
    expected = entry_by_entry.grown(case, arrays, fresh)
    for array in account_of(case):
        found = BACKENDS[backend](array, case, arrays, fresh)
        np.testing.assert_allclose(found, expected[array.target.path], rtol=1e-14)


def mutants(array):
    """Every account that differs from the right one in one field of one block.

    One that has the same entries after all is none: without a multiplication there is no offset.
    """
    for number, blocks in enumerate(array.blocks):
        for at, block in enumerate(blocks):
            for name, mutant in _wrong(block):
                changed = (*blocks[:at], mutant, *blocks[at + 1 :])
                views = (*array.blocks[:number], changed, *array.blocks[number + 1 :])
                yield f"{block.kind.value} block, {name}", views


def _wrong(block):
    kinds = [kind for kind in Kind if kind is not block.kind]
    for kind in kinds:
        if kind is Kind.MEAN and (block.axis is None or block.place is None):
            continue  # a mean along no axis is no block
        if kind is Kind.OLD and block.axis is not None and block.place is not None:
            continue  # there are not as many old entries
        yield f"kind {kind.value}", dataclasses.replace(block, kind=kind)
    if block.kind is Kind.OLD:
        yield "factor", dataclasses.replace(block, factor=block.factor * 1.01)
    if block.kind is Kind.ZERO or (block.kind is Kind.OLD and block.factor != 1):
        yield "offset", dataclasses.replace(block, offset=block.offset + 0.5)
    for place, entries in enumerate(block.target):
        shorter, later = entries[:-1], range(entries.start + 1, entries.stop + 1)
        for name, changed in (("shorter", shorter), ("moved", later)):
            target = (*block.target[:place], changed, *block.target[place + 1 :])
            yield f"target {name}", dataclasses.replace(block, target=target)
    if block.kind in (Kind.OLD, Kind.MEAN):
        for place, entries in enumerate(block.region):
            if block.kind is Kind.MEAN and block.place not in (place, None):
                continue  # of a mean along an axis it is this axis alone that is looked at
            later = range(entries.start + 1, entries.stop + 1)
            region = (*block.region[:place], later, *block.region[place + 1 :])
            yield "region moved", dataclasses.replace(block, region=region)


def survives(array, blocks, backend, case, arrays, fresh, expected):
    """Whether nothing tells a wrong account from the right one."""
    try:
        wrong = dataclasses.replace(array, blocks=blocks)
        found = BACKENDS[backend](wrong, case, arrays, fresh)
    except (AssertionError, ValueError, TypeError, IndexError):
        return False
    return np.allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@given(SEEDS)
def test_every_wrong_block_is_caught(backend, seed):
    case = random_case(seed)
    arrays, fresh = case.arrays(case.plan.source, 1), case.arrays(case.plan.target, 2)
    expected = entry_by_entry.grown(case, arrays, fresh)
    first: ArrayAccount = next(iter(account_of(case)))
    for name, blocks in mutants(first):
        right = expected[first.target.path]
        assert not survives(first, blocks, backend, case, arrays, fresh, right), name


def test_both_back_ends_give_the_same_bits():
    """In a process of its own: here programs are compiled without what could round otherwise."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    del environment["XLA_FLAGS"]
    command = [sys.executable, "-m", "tests.helpers.same_bits", "40"]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    number, differing = map(int, done.stdout.split())
    assert number > 100
    assert differing == 0
