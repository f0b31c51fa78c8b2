"""What a model says of a text: computed in float64, and as a person loads and runs its files.

Weights are read module by module, so that the largest tensor bounds the memory.
"""

import functools
import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from growth.huggingface.expansion.model_files import ModelFiles
from growth.huggingface.expansion.reference_layers import reference_logits
from growth.huggingface.expansion.streamed_models import streamed_model
from growth.huggingface.expansion.transformers_models import (
    compute_outputs,
    float64_everywhere,
    generate_greedily,
    load_model,
)
from growth.huggingface.task_heads import task_heads


class Text(NamedTuple):
    """What models are asked.

    Attributes:
      tokens: random ones [batch, length].
      prompts: the beginnings of them, to go on with.
      number: how many tokens to go on for; may be 0.
    """

    tokens: np.ndarray
    prompts: np.ndarray
    number: int


class Answer(NamedTuple):
    """What a model said.

    Attributes:
      outputs: logits [batch, length, vocab]; see `transformers_models.compute_outputs`.
      continued: the likeliest next tokens [batch, number]; None where it was not asked for them.
    """

    outputs: np.ndarray
    continued: np.ndarray | None


@functools.cache
def has_transformers() -> bool:
    """Whether torch and transformers can be imported."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def judge() -> str:
    """Who computes, in words."""
    if not has_transformers():
        return "the reference model"
    return f"transformers {importlib.metadata.version('transformers')}"


def outputs_in_float64(files: ModelFiles, tokens: np.ndarray) -> np.ndarray:
    """What a model says of tokens [batch, length], with all that it computes in float64.

    Raises:
      UnloadableError: transformers would not take its tensors.
    """
    if not has_transformers():
        return reference_logits(files, tokens)
    with float64_everywhere():
        model = streamed_model(
            files.config,
            list(files.parameters),
            files.read,
            "float64",
            optional=task_heads(files.family),
            exact=True,
        )
        return compute_outputs(model, tokens)


def answer_as_loaded(files: ModelFiles, text: Text, *, whole: bool) -> Answer:
    """What a person is told who loads a model with transformers and runs it.

    Args:
      files: the model.
      text: what it is asked.
      whole: whether it fits into memory. If not, it is run in the same way, module by module, but
        not made to go on with a text, for which all of it would be read for each token.

    Raises:
      Exception: whatever transformers raises if it cannot load or run it.
    """
    if not whole:
        model = streamed_model(
            files.config,
            list(files.names),
            files.read_named,
            files.dtype,
            optional=task_heads(files.family),
        )
        return Answer(compute_outputs(model, text.tokens), None)
    model = load_model(files.directory, files.dtype)
    outputs = compute_outputs(model, text.tokens)
    if not text.number or not model.can_generate():
        return Answer(outputs, None)
    return Answer(outputs, generate_greedily(model, text.prompts, text.number))


def free_memory() -> int:
    """Bytes that a process may take: what Linux says is available, or all that there is."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
