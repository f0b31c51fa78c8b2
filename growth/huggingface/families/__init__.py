"""The families, each a table of tensors and a map of its config in a file of its own."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from growth.huggingface.family import Family, FamilyError

_NAMES = (
    "gemma",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "mixtral",
    "olmo",
    "olmo2",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "stablelm",
    "starcoder2",
)

# By model_type, which is the name of the file.
FAMILIES: dict[str, Family] = {
    name: importlib.import_module(f"{__name__}.{name}").FAMILY for name in _NAMES
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a config belongs to.

    Raises:
      FamilyError: it is not known, or the model is quantized.
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        near = difflib.get_close_matches(str(name), FAMILIES, 1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise FamilyError(
            f"config.json says model_type {name!r}, but known are {', '.join(FAMILIES)}{hint}"
        )
    if config.get("quantization_config"):
        raise FamilyError(
            "config.json has a quantization_config, but quantized tensors cannot be grown: give "
            "the checkpoint from which it was made"
        )
    family = FAMILIES[name]
    return family if family.variant is None else family.variant(config)
