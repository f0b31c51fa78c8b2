"""The front door of the room: light, and clear about what is missing."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from growth import huggingface

HEAVY = ("jax", "numpy", "safetensors", "torch", "transformers")


def output_of(code, *arguments):
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_to_import_it_imports_nothing_heavy():
    code = f"import sys, growth.huggingface; print([n for n in {HEAVY} if n in sys.modules])"
    assert output_of(code) == "[]"


def test_torch_and_safetensors_are_not_imported_to_plan_and_to_load():
    code = f"""
import sys
from growth import huggingface
for name in huggingface.__all__:
    getattr(huggingface, name)
print([n for n in {HEAVY[2:]} if n in sys.modules])
"""
    assert output_of(code) == "[]"


def test_every_public_name_opens_and_says_what_it_is():
    assert dir(huggingface) == sorted(set(dir(huggingface)) | set(huggingface.__all__))
    for name in huggingface.__all__:
        value = getattr(huggingface, name)
        assert value.__name__ == name
        assert value.__doc__
        module = value.__module__.rpartition(".")[2]
        assert module != name, "a function would hide its module"
        assert getattr(importlib.import_module(value.__module__), name) is value
    with pytest.raises(AttributeError, match=r"growth\.huggingface.*expand_checkpiont"):
        huggingface.expand_checkpiont  # noqa: B018


def test_where_safetensors_is_missing_one_line_says_what_to_install(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(2)}, path)
    code = """
import sys
sys.modules["safetensors"] = None  # to import it raises ImportError
from pathlib import Path
from growth.errors import InputError
from growth.huggingface.tensor_files import stored_tensors
try:
    stored_tensors(Path(sys.argv[1]))
except InputError as error:
    print(error)
"""
    assert output_of(code, path) == (
        "safetensors files are read by the library safetensors, which is not installed: "
        "pip install 'flax-growth[huggingface]'"
    )
