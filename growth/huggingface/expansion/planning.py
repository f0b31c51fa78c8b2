"""What growing a checkpoint comes to, planned and checked; no numbers are read, nothing is written.

The first step of three: `writing` does what is planned here, `verification` judges it.
"""

import dataclasses
import functools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from growth.blueprints.parameters import Parameter, siblings
from growth.errors import InputError
from growth.expansion.initialization import GradMax, InitPolicy, InitPolicyLike, init_policy
from growth.expansion.numpy_backend import grow_array, source_of
from growth.expansion.role_views import array_layout, fixed_sizes
from growth.huggingface.checkpoint import Checkpoint, open_checkpoint
from growth.huggingface.checkpoint_files import parse_bytes, shard
from growth.huggingface.companion_files import check_carried
from growth.huggingface.config_map import grown_config, with_defaults, with_dtype
from growth.huggingface.model_cost import ModelCost, model_cost_of
from growth.huggingface.tensor_files import DTYPES, TensorSpec, dtype_code
from growth.rules.composition import grow_to
from growth.rules.growth_plan import GrowthError, GrowthPlan
from growth.rules.roles import GAINS


@dataclasses.dataclass(frozen=True, eq=False)
class CheckpointExpansion:
    """A growth step of a checkpoint, planned and checked; nothing is written yet.

    Attributes:
      source: the checkpoint that grows.
      plan: the growth step.
      config: `config.json` of the larger model.
      init: what new entries are where anything keeps the function.
      seed: decides them.
      shards: the tensors of each file of the result, by their names in the family's table.
      targets: what each tensor of the result is, by that name.

    Examples:
      >>> from growth import huggingface
      >>> expansion = huggingface.plan_expansion("checkpoint", mlp_dim=24)
      >>> expansion.config["intermediate_size"]
      24
      >>> expansion.grow("model.layers.0.mlp.up_proj.weight").shape
      (24, 8)

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, table 1.
      The documentation of transformers on `config.json`, and that of safetensors on its format.
    """

    source: Checkpoint
    plan: GrowthPlan
    config: dict[str, Any]
    init: InitPolicy
    seed: int
    shards: dict[str, dict[str, TensorSpec]]
    targets: dict[str, Parameter]

    @functools.cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of every tensor of the result."""
        return {name: spec for held in self.shards.values() for name, spec in held.items()}

    @property
    def bytes(self) -> int:
        """Bytes of all tensors of the result."""
        return sum(spec.bytes for spec in self.specs.values())

    @property
    def costs(self) -> tuple[ModelCost, ModelCost]:
        """What the two models cost."""
        source = self.source
        extra = source.family.extra_parts(with_defaults(source.config, source.family))
        old = [source.spec(name) for name in source.parameters]
        return (
            model_cost_of(self.plan.source, old, extra),
            model_cost_of(self.plan.target, self.specs.values(), extra),
        )

    def with_dtype(self, dtype: str) -> Self:
        """The same with all tensors of one dtype, such as "float32"."""
        code = dtype_code(dtype)
        shards = {
            file: {name: TensorSpec(spec.shape, code) for name, spec in held.items()}
            for file, held in self.shards.items()
        }
        return dataclasses.replace(self, shards=shards, config=with_dtype(self.config, dtype))

    def grow(self, name: str) -> np.ndarray:
        """A tensor of the result, by its name in the family's table."""
        old = self.source.read(self.source_name(name))
        dtype = DTYPES[self.specs[name].dtype]
        return grow_array(
            self.targets[name],
            old,
            self.plan,
            policy=self.init,
            initializer=self._initializer,
            seed=self.seed,
            dtype=dtype,
        )

    def source_name(self, name: str) -> str:
        """The tensor that a tensor of the result is made of."""
        return source_of(self.targets[name], self.plan).name

    def _initializer(self, name: str, role: str) -> tuple[float, float]:
        """As transformers initializes: gains one, biases zero, all else normal."""
        if role == "qk_norm" or role in GAINS:
            return float(not self.plan.source.unit_offset), 0.0
        if name.endswith(".bias"):
            return 0.0, 0.0
        config = with_defaults(self.source.config, self.source.family)
        return 0.0, config.get(self.source.family.init_std_name, 0.02)


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
    init: InitPolicyLike = "fresh",
    seed: int = 0,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    ignore_config_keys: Collection[str] = (),
) -> CheckpointExpansion:
    """Plans a growth step of a checkpoint and checks it; reads no numbers and writes nothing.

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
      ignore_config_keys: keys of `config.json` that growth does not read, and that change nothing
        that the model computes; any other key that it does not read is refused.

    Returns:
      The plan; `growth.huggingface.execute_expansion` does it.

    Raises:
      InputError: one of these is wrong, the checkpoint is broken or of an unknown family, or there
        is no exact way; the message says which and what would be.

    Examples:
      >>> from growth import huggingface
      >>> expansion = huggingface.plan_expansion("checkpoint", mlp_dim=24, num_layers=2)
      >>> print(expansion.plan)
      mlp_dim 16 → 24; num_layers 1 → 2; new layers at 1

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
    """
    policy = _policy(init)
    if seed < 0:
        raise InputError(f"seed is {seed}, but it must be at least 0")
    checkpoint = open_checkpoint(Path(source), ignore_config_keys)
    check_carried(checkpoint.directory, checkpoint.files)
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
    for field, reason in checkpoint.limits.growth.items():
        if field in plan.changes:
            raise GrowthError(f"{field} cannot grow exactly: {reason}")
    config = grown_config(checkpoint.config, checkpoint.family, plan.target)
    targets = _targets(checkpoint, plan)
    specs = {name: _spec(target, checkpoint, plan) for name, target in targets.items()}
    shards = shard(specs, parse_bytes(max_shard_size))
    expansion = CheckpointExpansion(checkpoint, plan, config, policy, seed, shards, targets)
    return expansion if dtype is None else expansion.with_dtype(dtype)


def _policy(init: InitPolicyLike) -> InitPolicy:
    policy = init_policy(init)
    if policy.needs(GradMax):
        raise InputError(
            "init says gradmax, but that needs the gradient of a loss: for a checkpoint it is "
            "'fresh', 'copy', 'copy:SIGNAL_TO_NOISE', or a mapping to these"
        )
    return policy


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


def _spec(target: Parameter, checkpoint: Checkpoint, plan: GrowthPlan) -> TensorSpec:
    source = source_of(target, plan)
    old = checkpoint.spec(source.name)
    fixed = fixed_sizes(source, plan.source, old.shape)
    shape = array_layout(target, plan.target, fixed).shape
    return TensorSpec(shape, old.dtype)
