"""The families, each a table of tensors and a map of its config in a file of its own."""

import importlib
from collections.abc import Mapping
from typing import Any

from growth.huggingface.config_keys import FamilyError, shown
from growth.huggingface.family import Family

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
      FamilyError: it is not known; or the model is quantized, or no language model.
    """
    if "model_type" not in config:
        raise FamilyError("config.json has no 'model_type': it is no config of transformers")
    name = config["model_type"]
    if not isinstance(name, str) or name not in FAMILIES:
        raise FamilyError(
            f"config.json says model_type {shown(name)}, but known are {', '.join(FAMILIES)}. What "
            f"is missing is its table of tensors and what its config says, a file in "
            f"growth/huggingface/families; WORKSPACE.md says how one is added"
        )
    if config.get("quantization_config"):
        raise FamilyError(
            "config.json has a quantization_config, but quantized tensors cannot be grown: give "
            "the checkpoint from which it was made"
        )
    family = FAMILIES[name]
    _check_model_class(config.get("architectures"), family)
    return family if family.variant is None else family.variant(config)


def _check_model_class(architectures: Any, family: Family) -> None:
    """Refuses a model with the head of a task, which growth knows nothing of.

    It knows those for sequences and tokens, see `growth.huggingface.task_heads`.
    """
    if not architectures or not isinstance(architectures, list):
        return
    stem = family.body_class.removesuffix("Model")
    tasks = (f"{stem}For{task}Classification" for task in ("Sequence", "Token"))
    known = family.model_class, family.body_class, *tasks
    if not {name.lower() for name in known} & {str(name).lower() for name in architectures}:
        raise FamilyError(
            f"config.json says architectures {shown(architectures)}, but what grows is a "
            f"{known[0]}; heads of other tasks are not known. Load the folder as a {known[0]} in "
            f"transformers, save that and grow it, and give the {known[1]} in it its head again, "
            f"with zeros in the columns of new dimensions"
        )
