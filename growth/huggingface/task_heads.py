"""Heads of other tasks, beside the output layer or in its place: scores, values, classes of tokens.

Each is a linear map of what the final norm gives, as the output layer is, and grows like it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from growth.huggingface.family import Config, Family, Limits, TensorRule
from growth.huggingface.tensor_files import StoredTensor, TensorSpec
from growth.huggingface.tied_embeddings import output_layer

# The modules of transformers for sequences and tokens, of TRL for values, and of reward models.
_HEAD = re.compile(
    r"(score|classifier|v_head|v_head\.summary|value_head|reward_head|regression_head)"
    r"\.(weight|bias)"
)


def with_task_heads(
    family: Family, tensors: Mapping[str, StoredTensor], config: Config, embed_dim: int
) -> Family:
    """The family of a model that has such heads.

    Args:
      family: that of its body.
      tensors: its tensors, by their names in the family's table.
      config: what its `config.json` says.
      embed_dim: the width of what a head reads.

    Returns:
      The same family where there are none.
    """
    rules = tuple(
        TensorRule(name, "unembed", "labels embed" if name.endswith("weight") else "labels")
        for name in sorted(tensors)
        if _HEAD.fullmatch(name) and _fits(name, tensors[name].spec, embed_dim)
    )
    if not rules:
        return family
    alone = output_layer(family) not in tensors and family.model_class not in (
        config.get("architectures") or ()
    )

    def fields(config: Config) -> dict[str, Any]:
        said = family.fields(config)
        return said | dict(tied_embeddings=False) if alone else said

    def limits(config: Config) -> Limits:
        said, growth = family.fields(config), dict(family.limits(config).growth)
        if fields(config)["tied_embeddings"] and (
            said.get("fixed_norm_eps") or said.get("scaled_embedding")
        ):
            growth["embed_dim"] = (
                f"the embedding is multiplied, which is the output layer, too, and {rules[0].path} "
                f"reads what would make up for it"
            )
        return Limits(growth, f"it has the head of another task, {rules[0].path}")

    return dataclasses.replace(
        family, tensors=(*family.tensors, *rules), fields=fields, limits=limits
    )


def task_heads(family: Family) -> tuple[str, ...]:
    """The names of the tensors of such heads."""
    return tuple(rule.path for rule in family.tensors if _HEAD.fullmatch(rule.path))


def _fits(name: str, spec: TensorSpec, embed_dim: int) -> bool:
    if name.endswith("bias"):
        return len(spec.shape) == 1
    return len(spec.shape) == 2 and spec.shape[1] == embed_dim
