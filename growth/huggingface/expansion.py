"""`Expansion`: a growth step of a Hugging Face checkpoint, planned and checked."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from growth.blueprints.parameters import Parameter, siblings
from growth.errors import InputError
from growth.expansion.initialization import GradMax, InitPolicy, init_policy
from growth.expansion.numpy_backend import grow_array, source_of
from growth.expansion.role_views import array_shape, fixed_sizes
from growth.huggingface import tensors
from growth.huggingface.checkpoint import Checkpoint, open_checkpoint
from growth.huggingface.cost import Cost, cost
from growth.huggingface.tensors import DTYPES, Spec
from growth.rules.growth_plan import GrowthError, GrowthPlan
from growth.rules.roles import GAINS
from growth.rules.transformations import grow_to


@dataclasses.dataclass(frozen=True, eq=False)
class Expansion:
    """A growth step of a checkpoint, planned and checked; nothing is written yet.

    Attributes:
      source: the checkpoint that grows.
      plan: the growth step.
      config: `config.json` of the larger model.
      init: what new entries are where anything keeps the function.
      seed: decides them.
      files: the tensors of each file of the result, by their names in the family's table.
      targets: what each tensor of the result is, by that name.
    """

    source: Checkpoint
    plan: GrowthPlan
    config: dict[str, Any]
    init: InitPolicy
    seed: int
    files: dict[str, dict[str, Spec]]
    targets: dict[str, Parameter]

    @functools.cached_property
    def specs(self) -> dict[str, Spec]:
        """Shape and dtype of every tensor of the result."""
        return {name: spec for held in self.files.values() for name, spec in held.items()}

    @property
    def bytes(self) -> int:
        """Bytes of all tensors of the result."""
        return sum(spec.bytes for spec in self.specs.values())

    @property
    def costs(self) -> tuple[Cost, Cost]:
        """What the two models cost."""
        source = self.source
        specs = {name: source.spec(name) for name in source.parameters}
        return (
            cost(specs, source.parameters, self.plan.source, source.config),
            cost(self.specs, self.targets, self.plan.target, source.config),
        )

    def with_dtype(self, dtype: str) -> Self:
        """The same with all tensors of one dtype."""
        held = {
            file: {name: Spec(spec.shape, tensors.code(dtype)) for name, spec in specs.items()}
            for file, specs in self.files.items()
        }
        name = "torch_dtype" if "torch_dtype" in self.config else "dtype"
        return dataclasses.replace(self, files=held, config={**self.config, name: dtype})

    def grow(self, name: str) -> np.ndarray:
        """A tensor of the result, by its name in the family's table."""
        old = self.source.read(self.source_name(name))
        dtype = DTYPES[self.specs[name].dtype]
        return grow_array(
            self.targets[name], old, self.plan, self.init, self._initial, self.seed, dtype
        )

    def source_name(self, name: str) -> str:
        """The tensor that a tensor of the result is made of."""
        return source_of(self.targets[name], self.plan).name

    def _initial(self, name: str, role: str) -> tuple[float, float]:
        """As transformers initializes: gains one, biases zero, all else normal."""
        if role == "qk_norm" or role in GAINS:
            return float(not self.plan.source.unit_offset), 0.0
        if name.endswith(".bias"):
            return 0.0, 0.0
        config = {**self.source.family.defaults, **self.source.config}
        return 0.0, config.get(self.source.family.deviation, 0.02)


def plan_expansion(
    source: str | os.PathLike,
    *,
    embed_dim: int | None = None,
    num_layers: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    qk_dim: int | None = None,
    v_dim: int | None = None,
    mlp_dim: int | None = None,
    layer_positions: Sequence[int] | None = None,
    init: Any = "fresh",
    seed: int = 0,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
) -> Expansion:
    """Plans a growth step and checks it; reads no numbers and writes nothing.

    Args:
      source: the directory of a Hugging Face checkpoint.
      embed_dim, num_layers, num_heads, num_kv_heads, mlp_dim: the new sizes, as for
        `growth.grow_to`; None leaves a size as it is.
      head_dim: the new width of queries, keys and values of a head.
      qk_dim, v_dim: of queries and keys alone, and of values alone. No family can say them yet.
      layer_positions: where new layers go, an index for each, counted in the old layers; None
        spreads them evenly.
      init: what new entries are where any value keeps the function: "fresh", "copy", or a mapping,
        as for `growth.expand`.
      seed: decides them.
      dtype: "float32", "bfloat16", "float16" or "float64" of all tensors; None keeps that of each.
      max_shard_size: how large a file may be, in bytes, or as "500MB", "5GB".

    Raises:
      InputError: one of these is wrong, the checkpoint is broken or of an unknown family, or there
        is no exact way; the message says which and what would be.
    """
    chosen = _policy(init)
    if seed < 0:
        raise InputError(f"seed is {seed}, but it must be at least 0")
    checkpoint = open_checkpoint(Path(source))
    step = grow_to(
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        qk_dim=head_dim if qk_dim is None else qk_dim,
        v_dim=head_dim if v_dim is None else v_dim,
        mlp_dim=mlp_dim,
        position=None if layer_positions is None else tuple(layer_positions),
    )
    plan = step(checkpoint.architecture)
    if not plan.changes:
        raise GrowthError(
            f"nothing would grow: the checkpoint has {checkpoint.architecture} already"
        )
    for field, reason in checkpoint.limits.items():
        if field in plan.changes:
            raise GrowthError(f"{field} cannot grow exactly: {reason}")
    config = checkpoint.family.grown_config(checkpoint.config, plan.target)
    targets = _targets(checkpoint, plan)
    specs = {name: _spec(target, checkpoint, plan) for name, target in targets.items()}
    files = tensors.shards(specs, tensors.number_of_bytes(max_shard_size))
    expansion = Expansion(checkpoint, plan, config, chosen, seed, files, targets)
    return expansion if dtype is None else expansion.with_dtype(dtype)


def _policy(init: Any) -> InitPolicy:
    chosen = init_policy(init)
    if chosen.needs(GradMax):
        raise InputError(
            "init says gradmax, but that needs the gradient of a loss: for a checkpoint it is "
            "'fresh', 'copy', 'copy:SIGNAL_TO_NOISE', or a mapping to these"
        )
    return chosen


def _targets(checkpoint: Checkpoint, plan: GrowthPlan) -> dict[str, Parameter]:
    """The tensors of the result by name, in the order of the family's table, layer by layer."""
    kinds = {parameter.kind: parameter for parameter in checkpoint.parameters.values()}
    targets = [target for kind in kinds.values() for target in siblings(kind, plan.target)]
    paths = [tensor.path for tensor in checkpoint.family.tensors]
    last = max(at for at, path in enumerate(paths) if "{layers}" in path)

    def place(target: Parameter) -> tuple[int, int, int]:
        at = paths.index(target.rule.path)
        return (int(at > last), target.layers.start if target.layers else -1, at)

    return {target.name: target for target in sorted(targets, key=place)}


def _spec(target: Parameter, checkpoint: Checkpoint, plan: GrowthPlan) -> Spec:
    source = source_of(target, plan)
    old = checkpoint.spec(source.name)
    shape = array_shape(target, plan.target, fixed_sizes(source, old.shape, plan.source))
    return Spec(shape, old.dtype)
