"""Models as transformers has them: loaded, run, and made to generate. All that imports torch."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def load_model(directory: Path, dtype: str) -> Any:
    """The model of a checkpoint, ready to be called.

    Args:
      directory: the checkpoint.
      dtype: that of its parameters, such as "float32".

    Raises:
      Exception: whatever transformers raises if it cannot load it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {}
    with _quiet():
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        if hasattr(config, "num_local_experts"):
            options["experts_implementation"] = "eager"  # the fast one knows no float64
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), local_files_only=True, **options
        )
    return model.eval()


def compute_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """The logits [batch, length, vocab] of int tokens [batch, length]."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def generate_greedily(model: Any, prompts: np.ndarray, number: int) -> np.ndarray:
    """The `number` likeliest next tokens [batch, number] after int prompts [batch, length]."""
    import torch

    given = torch.from_numpy(prompts)
    with torch.no_grad(), _quiet():
        generated = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            num_beams=1,
            max_new_tokens=number,
            min_new_tokens=number,
            pad_token_id=0,
        )
    return generated[:, prompts.shape[1] :].numpy()


@contextlib.contextmanager
def float64_everywhere() -> Iterator[None]:
    """What transformers' code calls float32 is float64 here, in this process, also for threads."""
    import torch
    from transformers import modeling_utils  # noqa: F401, makes tables by dtype when it is imported

    names: Any = torch
    before = names.float32, names.float, names.Tensor.float
    names.float32 = names.float = names.float64
    names.Tensor.float = names.Tensor.double
    try:
        yield
    finally:
        names.float32, names.float, names.Tensor.float = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from printing."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
