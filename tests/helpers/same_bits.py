"""Grows random arrays by both back ends and counts the entries that differ in any bit.

    python -m tests.helpers.same_bits NUMBER_OF_CASES

Prints how many arrays were compared, and how many entries differ.
"""

import sys

import jax
import ml_dtypes
import numpy as np

from growth.expansion import jax_backend, numpy_backend
from growth.expansion.accounts import source_account
from growth.expansion.init_values import from_arrays
from tests.helpers.entry_by_entry import random_case

DTYPES = (np.float64, np.float32, ml_dtypes.bfloat16)


def differing(case, dtype):
    """For each array of a case how many entries differ."""
    plan = case.plan
    arrays, fresh = case.arrays(plan.source, 1, dtype), case.arrays(plan.target, 2, dtype)
    account = source_account(arrays, plan, case.blueprint)
    grow = jax.jit(lambda arrays, fresh: jax_backend.assemble(account, arrays, from_arrays(fresh)))
    grown = grow(arrays, fresh)
    for array in account:
        views = array.layout.split(fresh[array.target.path])

        def write_free(number, block, into, views=views):
            into[...] = views[number][tuple(slice(r.start, r.stop) for r in block.target)]

        found = numpy_backend.fold(array, arrays, write_free)
        other = np.asarray(grown[array.target.path])
        assert found.dtype == other.dtype == dtype
        yield int((found.view(np.uint8) != other.view(np.uint8)).sum())


def main():
    with jax.enable_x64(True):
        counts = [
            count
            for seed in range(int(sys.argv[1]))
            for dtype in DTYPES
            for count in differing(random_case(seed), dtype)
        ]
    print(len(counts), sum(counts))


if __name__ == "__main__":
    main()
