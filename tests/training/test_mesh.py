"""The mesh: sizes that fit the devices, and parameters, moments and batches split as ruled."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from growth.architecture import Architecture
from growth.training import mesh as meshes
from growth.training.config_sections import MeshConfig
from growth.training.mesh import MeshError
from growth.training.optimization import decayed
from growth.training.state import abstract_state, init_state, restorable_state, state_partitions

ARCHITECTURE = Architecture.llama(
    vocab_size=32, max_length=8, embed_dim=8, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=16
)
TX = optax.adamw(1e-3, mask=decayed)


def sizes(data=1, fsdp=1, tensor=1):
    return dict(data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), sizes(data=8)),
        (MeshConfig(data=1), sizes()),
        (MeshConfig(fsdp=2, tensor=2), sizes(2, 2, 2)),
        (MeshConfig(data=1, fsdp=-1), sizes(fsdp=8)),
        (MeshConfig(data=2, tensor=-1), sizes(data=2, tensor=4)),
        (MeshConfig(data=3), sizes(data=3)),
        (MeshConfig(tensor=3), sizes(data=2, tensor=3)),  # two devices are left over
    ],
)
def test_what_is_left_open_takes_the_devices_that_are_left(config, shape):
    assert meshes.mesh_shape(config, num_devices=8, batch_size=24) == shape
    mesh = meshes.make_mesh(config, batch_size=24)
    assert dict(mesh.shape) == shape
    assert len(set(mesh.devices.flat)) == np.prod(list(shape.values()))


def test_a_mesh_larger_than_the_devices_is_refused():
    with pytest.raises(MeshError, match=r"mesh is data 4 × fsdp 2 × tensor 2, but .* is 8"):
        meshes.make_mesh(MeshConfig(data=4, fsdp=2, tensor=2), batch_size=16)
    with pytest.raises(MeshError, match=r"mesh is data -1 × fsdp 16 × tensor 1, but .* is 8"):
        meshes.make_mesh(MeshConfig(fsdp=16), batch_size=16)


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    with pytest.raises(MeshError, match=r"batch_size is 12, .* multiple of 8"):
        meshes.make_mesh(MeshConfig(fsdp=2), batch_size=12)
    meshes.make_mesh(MeshConfig(data=2, tensor=4), batch_size=2)


def test_every_kind_of_parameter_is_split_as_ruled():
    abstract = abstract_state(ARCHITECTURE, TX, "float32").params
    partitions = meshes.parameter_partitions(ARCHITECTURE, abstract, sizes(2, 2, 2))
    layers = partitions["layers_0"]
    assert partitions["embed"]["embedding"] == PartitionSpec("tensor", "fsdp")
    assert partitions["unembed"]["kernel"] == PartitionSpec("fsdp", "tensor")
    assert partitions["final_norm"]["scale"] == PartitionSpec("fsdp")
    assert layers["attention"]["query"]["kernel"] == PartitionSpec(
        None, "fsdp", "tensor", None, None
    )
    assert layers["attention"]["out"]["kernel"] == PartitionSpec(None, "tensor", None, None, "fsdp")
    assert layers["mlp"]["up"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert layers["mlp"]["down"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")


def test_an_axis_that_the_mesh_does_not_divide_stays_whole():
    axes, shape = ("layers", "embed", "kv_heads", "qk"), (2, 12, 2, 4)
    assert meshes.partition(axes, shape, sizes(fsdp=4, tensor=4)) == PartitionSpec(
        None, "fsdp", None, None
    )
    assert meshes.partition(axes, shape, sizes(fsdp=8, tensor=2)) == PartitionSpec(
        None, None, "tensor", None
    )


def test_moments_are_split_like_their_parameters():
    partitions = state_partitions(ARCHITECTURE, TX, "float32", sizes(2, 2, 2))
    assert partitions.step == PartitionSpec()
    adam = partitions.opt_state[0]
    assert adam.mu == adam.nu == partitions.params
    assert adam.count == PartitionSpec()


def test_a_state_is_made_on_the_devices_that_hold_it():
    mesh = meshes.make_mesh(MeshConfig(fsdp=2, tensor=2), batch_size=8)
    state = init_state(ARCHITECTURE, TX, "float32", mesh, jax.random.key(0))
    kernel = state.params["layers_0"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (2, 8, 16)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 4, 8)}

    target = restorable_state(ARCHITECTURE, TX, "float32", mesh)
    assert jax.tree.structure(target) == jax.tree.structure(state)
    for want, leaf in zip(jax.tree.leaves(target), jax.tree.leaves(state), strict=True):
        assert (want.shape, want.dtype) == (leaf.shape, leaf.dtype)
        assert want.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)

    # What is held is what is counted, and what is drawn does not depend on the mesh.
    split = state_partitions(ARCHITECTURE, TX, "float32", dict(mesh.shape))
    counted = meshes.bytes_per_device(target.params, split.params, dict(mesh.shape))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
    assert counted == held
    alone = meshes.make_mesh(MeshConfig(data=1), batch_size=8)
    same = init_state(ARCHITECTURE, TX, "float32", alone, jax.random.key(0))
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-6, atol=1e-7)


def test_a_batch_is_split_over_data_and_fsdp():
    mesh = meshes.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), batch_size=8)
    batch = jax.device_put(np.zeros((8, 5), np.int32), NamedSharding(mesh, meshes.BATCH))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 5)}
