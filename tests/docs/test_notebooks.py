"""The worked examples of each module system do what they say: the loss stays, the moments too.

Each is run as a person would run it, and `scripts/docs` builds its page.
"""

import contextlib
import io
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"


@pytest.mark.parametrize(
    "name",
    [pytest.param("linen_scan", marks=pytest.mark.full), "nnx_optimizer", "equinox_loop"],
)
def test_the_loss_stays_and_training_goes_on(name):
    with contextlib.redirect_stdout(io.StringIO()):
        example = runpy.run_path(str(NOTEBOOKS / f"{name}.py"))
    before, after, trained = (example[word] for word in ("before", "after", "trained"))
    assert abs(after - before) <= 1e-5 * before
    assert trained < before - 0.1
    # The moments were carried: Adam has counted every step, and old squares are there.
    adam = jax.tree.map(np.asarray, example["opt_state"][0])
    counts = [np.asarray(leaf) for leaf in jax.tree.leaves(adam.count)]
    assert counts[0] in (40, 80)
    assert all(leaf.any() for leaf in jax.tree.leaves(adam.nu))
