"""What a run would be: its stages, their sizes and costs, without allocating anything."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from growth.architecture import Architecture
from growth.files import format_bytes
from growth.training import mesh as meshes
from growth.training.config import TrainConfig
from growth.training.formatting import format_count, format_power
from growth.training.optimization import make_optimizer, rates
from growth.training.schedule import training_flops
from growth.training.state import abstract_state, state_partitions


def dry_run(config: TrainConfig, console: Console | None = None) -> None:
    """Prints the stages of a run as a table.

    The mesh may be larger than the devices of this machine; the configured sizes count.

    Raises:
      MeshError: the mesh does not divide the batch.

    Examples:
      >>> import io, rich.console
      >>> from growth import training
      >>> _, _, config = training.load_model("runs/small")
      >>> page = io.StringIO()
      >>> training.dry_run(config, rich.console.Console(file=page, width=100))
      >>> "FLOPs/token" in page.getvalue()
      True

    References:
      FLOPs: Kaplan et al., arXiv 2001.08361, section 2.1, with the attention of every layer added.
    """
    console = console or Console()
    stages = config.stages
    tx = make_optimizer(config)
    configured = [getattr(config.mesh, axis) for axis in meshes.MESH_AXES]
    needed = math.prod(size for size in configured if size != -1)
    sizes = meshes.mesh_shape(config.mesh, max(needed, jax.device_count()), config.batch_size)
    costs = training_flops(stages, config.tokens_per_step)

    shapes = _table(
        "Stages", ("stage", "steps", "layers", "embed", "heads", "qk", "v", "mlp", "learning rate")
    )
    figures = ("parameters", "FLOPs/token", "FLOPs", "share", "weights*", "optimizer*")
    bills = _table("Costs", ("stage", *figures))
    for stage, cost in zip(stages, costs, strict=True):
        arch, number = stage.architecture, str(stage.index + 1)
        shapes.add_row(
            number,
            f"{stage.start:,}–{stage.stop:,}",
            str(arch.num_layers),
            str(arch.embed_dim),
            _heads(arch),
            _show(arch.qk_dim),
            _show(arch.v_dim),
            _show(arch.mlp_dim),
            _course(rates(config, stage.start, stage.stop)),
        )
        abstract = abstract_state(arch, tx, config.param_dtype)
        split = state_partitions(arch, tx, config.param_dtype, sizes)
        bills.add_row(
            number,
            format_count(arch.num_parameters),
            format_power(arch.training_flops_per_token()),
            format_power(cost),
            f"{cost / sum(costs):.1%}",
            format_bytes(meshes.bytes_per_device(abstract.params, split.params, sizes)),
            format_bytes(meshes.bytes_per_device(abstract.opt_state, split.opt_state, sizes)),
        )
    tokens = format_count(config.num_steps * config.tokens_per_step)
    mesh = " × ".join(f"{axis} {size}" for axis, size in sizes.items())
    console.print(shapes, bills)
    for line in (
        "* bytes on each device",
        f"{format_power(sum(costs))} FLOPs, {tokens} tokens, {config.num_steps:,} steps of "
        f"{config.batch_size} × {config.architecture.max_length} tokens",
        f"mesh {mesh}; {config.dtype} computation, {config.param_dtype} parameters",
    ):
        console.print(line, highlight=False)
    if math.prod(sizes.values()) > jax.device_count():
        needs = f"the run needs {math.prod(sizes.values())} devices"
        console.print(f"{needs}, and this machine has {jax.device_count()}", highlight=False)


def _course(rates: np.ndarray) -> str:
    """How the learning rate goes: its first value, each at which it turns, and its last."""
    moves = np.sign(np.diff(rates))
    moving = np.flatnonzero(moves)
    turns = moving[1:][moves[moving[1:]] != moves[moving[:-1]]]
    course = [f"{rates[at]:.1e}" for at in (0, *turns, len(rates) - 1)]
    return "–".join(text for text, _ in itertools.groupby(course))


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _heads(architecture: Architecture) -> str:
    if architecture.num_heads == architecture.num_kv_heads:
        return _show(architecture.num_heads)
    return f"{_show(architecture.num_heads)} ({_show(architecture.num_kv_heads)} kv)"


def _show(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
