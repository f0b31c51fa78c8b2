"""The mesh, and which axis of a parameter or a batch is split over which axis of the mesh.

`RULES` is the one place that says so. Parameters carry the names of their axes, and so a rule for
a name is a rule for every parameter that has it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from growth.architecture import Architecture
from growth.errors import InputError
from growth.models import logical_axes
from growth.training.config_sections import MeshConfig
from growth.types import OptState, Params

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Names that are not here are not split.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)

# A tree of `PartitionSpec`s, one for each array of another tree.
Partitions = Any

BATCH = PartitionSpec(dict(RULES)["batch"])


class MeshError(InputError):
    """A mesh does not fit the devices, or a batch does not fit the mesh."""


def mesh_shape(config: MeshConfig, num_devices: int, batch_size: int) -> dict[str, int]:
    """The size of each axis of the mesh.

    Args:
      config: the sizes as configured; an axis of −1 takes the devices that are left.
      num_devices: how many devices there are.
      batch_size: sequences in a batch, over all devices.

    Raises:
      MeshError: the mesh is larger than the devices, or does not divide the batch.
    """
    sizes = {name: getattr(config, name) for name in MESH_AXES}
    wanted = " × ".join(f"{name} {size}" for name, size in sizes.items())
    given = math.prod(size for size in sizes.values() if size != -1)
    if given > num_devices:
        raise MeshError(f"mesh is {wanted}, but the number of devices here is {num_devices}")
    sizes = {name: num_devices // given if size == -1 else size for name, size in sizes.items()}
    shares = sizes["data"] * sizes["fsdp"]
    if batch_size % shares:
        raise MeshError(
            f"batch_size is {batch_size}, but it must be a multiple of {shares}, since the mesh "
            f"({wanted}) splits a batch in data × fsdp parts"
        )
    return sizes


def make_mesh(config: MeshConfig, batch_size: int) -> Mesh:
    """The mesh of a run, over the first devices that there are.

    Raises:
      MeshError: it does not fit the devices or the batch.
    """
    sizes = mesh_shape(config, jax.device_count(), batch_size)
    devices = jax.devices()[: math.prod(sizes.values())]
    kinds = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=kinds, devices=devices)


def partition(axes: Sequence[str], shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """How an array is split.

    Args:
      axes: the logical name of each of its axes.
      shape: its shape. An axis that a mesh axis does not divide is not split.
      sizes: the size of each axis of the mesh.
    """
    rules = dict(RULES)
    return PartitionSpec(
        *(
            rule if isinstance(rule := rules.get(name), str) and not size % sizes[rule] else None
            for name, size in zip(axes, shape, strict=True)
        )
    )


def parameter_partitions(
    architecture: Architecture, abstract: Params, sizes: Mapping[str, int]
) -> Partitions:
    """How each parameter is split.

    Args:
      architecture: what the parameters are.
      abstract: the parameters, or their shapes.
      sizes: the size of each axis of the mesh.
    """
    return jax.tree.map(
        lambda leaf, axes: partition(axes, leaf.shape, sizes), abstract, logical_axes(architecture)
    )


def optimizer_partitions(
    abstract_state: OptState, abstract: Params, partitions: Partitions
) -> Partitions:
    """How each leaf of an optimizer state is split: like its parameter, or not at all.

    A leaf belongs to the parameter whose path its own ends with, if it has the parameter's shape.

    Args:
      abstract_state: the state, or its shapes.
      abstract: the parameters, or their shapes.
      partitions: how these are split.
    """
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    specs = jax.tree.leaves(partitions, is_leaf=_is_spec)
    known = {path: (leaf.shape, spec) for (path, leaf), spec in zip(leaves, specs, strict=True)}

    def split(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> PartitionSpec:
        for start in range(len(path) + 1):
            shape, spec = known.get(path[start:], (None, None))
            if shape == leaf.shape:
                return spec
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(split, abstract_state)


def shardings(mesh: Mesh, partitions: Partitions) -> Any:
    """The partitions on a mesh: a tree of `NamedSharding`s."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), partitions, is_leaf=_is_spec)


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)


def bytes_per_device(abstract: Any, partitions: Partitions, sizes: Mapping[str, int]) -> int:
    """Bytes that each device holds of a tree. Needs no devices, and allocates nothing."""

    def held(leaf: jax.ShapeDtypeStruct, spec: PartitionSpec) -> int:
        parts = math.prod(sizes[axis] for axis in spec if axis is not None)
        return leaf.size * leaf.dtype.itemsize // parts

    flat = jax.tree.leaves(partitions, is_leaf=_is_spec)
    return sum(held(leaf, spec) for leaf, spec in zip(jax.tree.leaves(abstract), flat, strict=True))
