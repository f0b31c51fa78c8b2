"""The training state: its parts, made on the mesh that holds them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from growth import huggingface, models
from growth.architecture import Architecture
from growth.models import Model, initial_parameters
from growth.training import mesh as meshes
from growth.training.config import TrainConfig
from growth.training.config_sections import ConfigError
from growth.types import OptState, Params


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step of training changes; also a tree of what describes its leaves, such as shardings.

    Attributes:
      step: optimizer steps taken, int32 [].
      params: the parameters.
      opt_state: the optimizer's state.
    """

    step: Any
    params: Params
    opt_state: OptState


def make_model(
    config: TrainConfig, architecture: Architecture, residual_sharding: NamedSharding | None = None
) -> Model:
    """The model of a stage; its residual stream split over a mesh where a sharding is given."""
    dtypes = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    return models.make_model(
        architecture,
        dtype=dtypes[0],
        param_dtype=dtypes[1],
        remat=config.remat,
        stream_sharding=residual_sharding,
    )


@functools.cache
def abstract_state(
    architecture: Architecture, tx: optax.GradientTransformation, param_dtype: str
) -> TrainState:
    """The shapes and dtypes of a state; allocates nothing."""
    return jax.eval_shape(lambda: _init(architecture, tx, param_dtype, jax.random.key(0)))


def state_partitions(
    architecture: Architecture,
    tx: optax.GradientTransformation,
    param_dtype: str,
    sizes: dict[str, int],
) -> TrainState:
    """How each leaf of a state is split over a mesh of the given sizes."""
    abstract = abstract_state(architecture, tx, param_dtype)
    params = meshes.parameter_partitions(architecture, abstract.params, sizes)
    opt_state = meshes.optimizer_partitions(abstract.opt_state, abstract.params, params)
    return TrainState(PartitionSpec(), params, opt_state)


def state_shardings(
    architecture: Architecture, tx: optax.GradientTransformation, param_dtype: str, mesh: Mesh
) -> TrainState:
    """How each leaf of a state is split over the mesh."""
    return meshes.shardings(mesh, state_partitions(architecture, tx, param_dtype, dict(mesh.shape)))


def init_state(
    architecture: Architecture,
    tx: optax.GradientTransformation,
    param_dtype: str,
    mesh: Mesh,
    key: jax.Array,
) -> TrainState:
    """A fresh state, each part of it made on the device that holds it."""
    init = functools.partial(_init, architecture, tx, param_dtype)
    shardings = state_shardings(architecture, tx, param_dtype, mesh)
    return jax.jit(init, out_shardings=shardings)(key)


def with_pretrained_parameters(state: TrainState, config: TrainConfig) -> TrainState:
    """A fresh state with the parameters of a checkpoint of Hugging Face.

    Args:
      state: the fresh state of the first stage, on the mesh.
      config: the run, which names the checkpoint.

    Raises:
      ConfigError: the checkpoint has another architecture; the message says where they differ.
    """
    wanted = config.architecture
    found, params = huggingface.load(config.initialize_from, dtype=config.param_dtype)
    if wanted.position != "learned":
        found = found.replace(max_length=wanted.max_length)  # on which no parameter depends
    if found != wanted:
        raise ConfigError(
            f"initialize_from is {config.initialize_from}, another architecture: it has "
            f"{differing(found, wanted)}"
        )
    place = functools.partial(jax.tree.map, lambda new, old: jax.device_put(new, old.sharding))
    return dataclasses.replace(state, params=place(params, state.params))


def differing(there: Architecture, here: Architecture) -> str:
    """The fields in which two architectures differ, in words."""
    fields = dataclasses.fields(Architecture)
    pairs = {f.name: (getattr(there, f.name), getattr(here, f.name)) for f in fields}
    return ", ".join(f"{n} {a} there and {b} here" for n, (a, b) in pairs.items() if a != b)


def restorable_state(
    architecture: Architecture, tx: optax.GradientTransformation, param_dtype: str, mesh: Mesh
) -> TrainState:
    """The shapes, dtypes and shardings that a checkpoint is loaded into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state(architecture, tx, param_dtype),
        state_shardings(architecture, tx, param_dtype, mesh),
    )


def _init(
    architecture: Architecture, tx: optax.GradientTransformation, param_dtype: str, key: jax.Array
) -> TrainState:
    params = initial_parameters(architecture, key, param_dtype=jnp.dtype(param_dtype))
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
