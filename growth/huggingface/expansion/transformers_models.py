"""Models as transformers has them: loaded, run, and made to generate. All that imports torch."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from growth.errors import InputError
from growth.huggingface.family import Config


class UnloadableError(InputError):
    """transformers would not load the tensors of a checkpoint; the message says which."""


def some_of(names: Sequence[str]) -> str:
    """The first few of some names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def model_config(config: Config) -> Any:
    """A config as the library reads it."""
    from transformers import CONFIG_MAPPING

    given: dict[str, Any] = copy.deepcopy(dict(config))  # what it reads, it also changes
    return CONFIG_MAPPING[str(given["model_type"])].from_dict(given)


def model_kind(config: Any) -> Any:
    """The class of the models of a config: the one that it names, else that of language models."""
    import transformers

    named = next(iter(config.architectures or ()), None)
    if named is not None and hasattr(transformers, named):
        return getattr(transformers, named)
    return transformers.AutoModelForCausalLM._model_mapping[type(config)]


def load_model(directory: Path, dtype: str) -> Any:
    """The model of a checkpoint as a person loads it, ready to be called.

    Args:
      directory: the checkpoint.
      dtype: that of its parameters, such as "float32".

    Raises:
      UnloadableError: the files lack tensors that the model has.
      Exception: whatever transformers raises if it cannot load it.
    """
    import torch
    from transformers import AutoConfig

    with quiet():
        kind = model_kind(AutoConfig.from_pretrained(directory, local_files_only=True))
        model, report = kind.from_pretrained(
            directory, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UnloadableError(f"transformers finds no numbers for {some_of(missing)}")
    return model.eval()


def compute_outputs(model: Any, tokens: np.ndarray) -> np.ndarray:
    """What a model says of int tokens [batch, length], as float32 or float64.

    Logits [batch, length, vocab]; or [batch, labels], where it has the head of another task; or
    what its last norm gives [batch, length, embed], where it has no head.
    """
    import torch

    # Heads for sequences read the last token that is no padding, of one if they know no padding.
    one_by_one = getattr(model.config, "pad_token_id", None) is None
    rows = torch.from_numpy(tokens).split(1 if one_by_one else len(tokens))
    with torch.no_grad():
        given = [model(row, use_cache=False) for row in rows]
    name = "logits" if "logits" in given[0] else "last_hidden_state"
    outputs = torch.cat([part[name] for part in given])
    if outputs.dtype != torch.float64:
        outputs = outputs.to(torch.float32)
    return outputs.numpy()


def generate_greedily(model: Any, prompts: np.ndarray, number: int) -> np.ndarray:
    """The `number` likeliest next tokens [batch, number] after int prompts [batch, length]."""
    import torch

    given = torch.from_numpy(prompts)
    with torch.no_grad(), quiet():
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
def quiet() -> Iterator[None]:
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
