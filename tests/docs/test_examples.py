"""Public docstrings have examples, which print what they say they print, and references."""

import contextlib
import doctest
import importlib
import inspect
import io
import re
from pathlib import Path
from typing import Any

import jax
import pytest

import growth
from growth.training.config import defaults, parse
from growth.training.loop import train

ROOMS = [
    "growth",
    *(f"growth.{room}" for room in growth.__all__ if inspect.ismodule(getattr(growth, room))),
]


def public_names() -> dict[str, Any]:
    """Public classes and functions, each by the first name that it has.

    Errors say what is wrong by themselves; they and constants need no example.
    """
    found: dict[int, tuple[str, Any]] = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            is_error = inspect.isclass(value) and issubclass(value, Exception)
            if (inspect.isclass(value) or inspect.isroutine(value)) and not is_error:
                found.setdefault(id(value), (f"{room}.{name}", value))
    return dict(found.values())


NAMES = public_names()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where examples run: there is a run in `runs/small` and a checkpoint in `checkpoint`."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "text").mkdir()
    (folder / "text" / "poem.txt").write_text("Die Rose ist ohne Warum. " * 400)
    sizes = dict(vocab_size=256, max_length=16, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16)
    config = defaults(**sizes)
    config.data.files = str(folder / "text" / "*.txt")
    config.growth = (dict(step=2, mlp_dim=24),)
    config.num_steps, config.batch_size, config.eval_batches = 4, 8, 1
    config.optimizer.warmup_steps, config.optimizer.decay = 0, 0.0
    config.checkpoint_every = 1
    train(parse(config), folder / "runs" / "small")
    architecture = growth.Architecture.llama(**sizes)
    params = growth.models.initial_parameters(architecture, jax.random.key(0))
    growth.huggingface.save(architecture, params, folder / "checkpoint", family="llama")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_examples_print_what_they_say(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    examples = [
        test for test in doctest.DocTestFinder().find(NAMES[name], name, globs={}) if test.examples
    ]
    assert examples, f"{name} has no Examples"
    for test in examples:
        failures = io.StringIO()
        with contextlib.redirect_stderr(io.StringIO()):
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
                test, out=failures.write, clear_globs=False
            )
        assert result.failed == 0, failures.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_have_examples_and_references(name):
    sections = re.findall(r"^(\w+):$", inspect.getdoc(NAMES[name]) or "", re.M)
    assert "Examples" in sections
    assert "References" in sections
