"""Checkpoints: what is saved comes back, whole, or is refused with a reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from growth import files
from growth.architecture import Architecture
from growth.errors import InputError
from growth.training.checkpoints import CheckpointError, Checkpoints, DamagedError
from growth.training.data.batches import train_iterator
from growth.training.data.text import Windows

ARCHITECTURE = Architecture(
    vocab_size=16, max_length=8, embed_dim=8, num_layers=2, num_heads=(2, 1), qk_dim=4, mlp_dim=8
)
METADATA = {"architecture": ARCHITECTURE.to_dict(), "stage": 1}


def new_iterator():
    return train_iterator(Windows(np.arange(401), 8), batch_size=4, seed=0)


def new_state(value: float = 1.0, shape: tuple[int, int] = (16, 3)) -> dict:
    """A state of several dtypes and containers, sharded over every device there is."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))

    def place(x, *axes):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

    size = int(np.prod(shape))
    params = {
        "kernel": place(value * jnp.arange(size, dtype=jnp.float32).reshape(shape), "data"),
        "layers": [place(jnp.full((5,), value, jnp.bfloat16)), place(jnp.full((2,), -value))],
    }
    moments = jax.tree.map(jnp.zeros_like, optax.adam(1e-3).init(params))
    return {
        "params": params,
        "opt_state": moments,
        "step": place(jnp.int32(value)),
        "key": jax.random.key(7),
    }


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.sharding.is_equivalent_to(b.sharding, b.ndim)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.array_equal(a, b)


def run_python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_state_data_and_metadata_come_back(tmp_path):
    state, iterator = new_state(), new_iterator()
    next(iterator)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(10, state, iterator, METADATA)
    expected = next(iterator)

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 10
        metadata = checkpoints.metadata(10)
        assert metadata == METADATA
        assert Architecture.from_dict(metadata["architecture"]) == ARCHITECTURE
        resumed = new_iterator()
        assert_same(checkpoints.restore(10, abstract(state), resumed), state)
        assert np.array_equal(next(resumed), expected)


def test_metadata_needs_no_arrays(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, new_state(), new_iterator(), METADATA)
    arrays = [path for path in (tmp_path / "10" / "state").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in arrays) > 100
    for path in arrays:
        path.unlink()
    assert Checkpoints(tmp_path).metadata(10) == METADATA


def test_data_may_be_left_alone(tmp_path):
    state, iterator = new_state(), new_iterator()
    next(iterator)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state, iterator, METADATA)
        next(iterator)
        before = iterator.get_state()
        assert_same(checkpoints.restore(10, abstract(state)), state)
        assert iterator.get_state() == before


@pytest.mark.parametrize("end", ["donate", "delete"])
def test_arrays_may_go_as_soon_as_save_returns(tmp_path, end):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    values = np.random.default_rng(0).normal(size=(8, 1 << 16)).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(3):
            state = {"w": jnp.asarray(values + step)}
            like = abstract(state)
            checkpoints.save(step, state, new_iterator(), {})
            if end == "donate":
                jax.block_until_ready(overwrite(state["w"]))
            else:
                state["w"].delete()
                jax.block_until_ready([jnp.full(values.shape, -1.0) for _ in range(8)])
        for step in range(3):
            assert np.array_equal(checkpoints.restore(step, like)["w"], values + step)


def test_iterator_may_go_on_as_soon_as_save_returns(tmp_path):
    state, iterator = new_state(), new_iterator()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state, iterator, METADATA)
        first = next(iterator)
        checkpoints.restore(10, abstract(state), iterator)
        assert np.array_equal(next(iterator), first)


def test_a_step_that_exists_is_not_saved_again(tmp_path):
    first, second = new_state(1.0), new_state(2.0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, first, new_iterator(), {"saved": "first"})
        checkpoints.save(10, second, new_iterator(), {"saved": "second"})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, second, new_iterator(), {"saved": "third"})
        assert checkpoints.metadata(10) == {"saved": "first"}
        assert_same(checkpoints.restore(10, abstract(first)), first)


def test_the_newest_and_the_chosen_are_kept(tmp_path):
    state, iterator = {"w": jnp.ones(2)}, new_iterator()
    with Checkpoints(tmp_path, keep_last=2, keep_steps=(1, 3)) as checkpoints:
        for step in range(5):
            checkpoints.save(step, state, iterator, {})
        checkpoints.prune()
        assert checkpoints.steps() == (1, 3, 4)
    with Checkpoints(tmp_path, keep_last=2, keep_steps=(1, 3)) as checkpoints:
        for step in range(5, 8):
            checkpoints.save(step, state, iterator, {})
        assert checkpoints.steps() == (1, 3, 4, 5, 6, 7)
        checkpoints.prune()
        assert checkpoints.steps() == (1, 3, 6, 7)
        assert checkpoints.latest_step() == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "6", "7"]


def test_reading_creates_nothing(tmp_path):
    with Checkpoints(tmp_path / "nowhere") as checkpoints:
        assert checkpoints.steps() == ()
        assert checkpoints.latest_step() is None
        with pytest.raises(CheckpointError, match=r"no checkpoint at step 3 .* there are: none"):
            checkpoints.metadata(3)
    assert not (tmp_path / "nowhere").exists()


def test_a_step_that_is_not_there(tmp_path):
    state = {"w": jnp.ones(2)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, new_iterator(), {})
        checkpoints.save(6, state, new_iterator(), {})
        with pytest.raises(CheckpointError, match=r"no checkpoint at step 7 .* there are: 5, 6"):
            checkpoints.restore(7, abstract(state))


def test_a_state_that_does_not_fit(tmp_path):
    state = new_state()
    like = abstract(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state, new_iterator(), METADATA)

        def refusal(expected) -> list[str]:
            with pytest.raises(
                CheckpointError, match=r"checkpoint at step 10 .* does not fit"
            ) as e:
                checkpoints.restore(10, expected)
            return [line.strip() for line in str(e.value).splitlines()[1:]]

        wider = new_state(shape=(16, 4))
        assert refusal(abstract(wider)) == [
            f"{path}: float32[16,3] in the checkpoint, but float32[16,4] is expected"
            for path in (
                "opt_state/0/mu/kernel",
                "opt_state/0/nu/kernel",
                "params/kernel",
            )
        ]
        assert refusal(like | {"step": jax.ShapeDtypeStruct((), jnp.float32)}) == [
            "step: int32[] in the checkpoint, but float32[] is expected"
        ]
        assert refusal(like | {"ema": like["step"]}) == [
            "ema: nothing in the checkpoint, but int32[] is expected"
        ]
        del like["params"]["layers"][1]
        assert refusal(like) == [
            "params/layers/1: float32[2] in the checkpoint, but nothing is expected"
        ]
        assert refusal({"step": like["step"]})[-1] == "and 3 more"


def test_settings_that_cannot_be():
    with pytest.raises(CheckpointError, match="keep_last is 0, but it must be at least 1"):
        Checkpoints("anywhere", keep_last=0)


def test_metadata_that_is_not_json(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=r"metadata must be JSON: .*Architecture"),
    ):
        checkpoints.save(1, new_state(), new_iterator(), {"architecture": ARCHITECTURE})
    assert Checkpoints(tmp_path).steps() == ()


def test_what_kept_a_checkpoint_from_being_written_is_raised(tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="taken"), Checkpoints(tmp_path / "taken") as checkpoints:
        checkpoints.save(1, new_state(), new_iterator(), METADATA)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
@pytest.mark.parametrize("seen", [True, False])
def test_a_full_disk_is_said_in_a_line_and_what_was_saved_stays(seen, tmp_path, monkeypatch):
    """Whether it is seen before anything is written, or fills up meanwhile."""
    disk, state = tmp_path / "disk", {"w": jnp.arange(100.0)}
    large = {"w": jnp.asarray(np.random.default_rng(0).normal(size=100_000), jnp.float32)}
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        checkpoints = Checkpoints(disk / "checkpoints")
        checkpoints.save(1, state, new_iterator(), {})
        checkpoints.wait()
        if not seen:
            monkeypatch.setattr(files, "require_space", lambda *arguments: None)
        message = r"is full: 400 kB are needed, and \d+ kB are free"
        with pytest.raises(InputError, match=message), checkpoints:
            checkpoints.save(2, large, new_iterator(), {})
        assert [path.name for path in (disk / "checkpoints").iterdir()] == ["1"]
        assert_same(checkpoints.restore(1, abstract(state)), state)
    finally:
        subprocess.run(["umount", disk], check=True)


KILLED = """
import os, signal, sys
import jax.numpy as jnp, numpy as np
from growth.training.checkpoints import Checkpoints
from growth.training.data.batches import train_iterator
from growth.training.data.text import Windows

iterator = train_iterator(Windows(np.arange(401), 8), batch_size=4, seed=0)
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"w": jnp.ones(2)}, iterator, {})
checkpoints.wait()
large = jnp.asarray(np.random.default_rng(0).normal(size=(64, 1 << 18)))
checkpoints.save(2, {"w": large}, iterator, {})
while len(os.listdir(sys.argv[1])) < 2:
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_is_killed_while_it_saves(tmp_path):
    killed = run_python(KILLED, tmp_path)
    assert killed.returncode == -9, killed.stderr
    left = {path.name for path in tmp_path.iterdir()} - {"1"}
    assert left
    assert "2" not in left

    state = {"w": jnp.full((3,), 2.0)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == (1,)
        assert left < {path.name for path in tmp_path.iterdir()}  # a reader removes nothing
        checkpoints.save(3, state, new_iterator(), {})
        assert checkpoints.steps() == (1, 3)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]
        checkpoints.save(2, state, new_iterator(), {})
        assert checkpoints.steps() == (1, 2, 3)
        assert_same(checkpoints.restore(2, abstract(state)), state)


def test_only_whole_checkpoints_are_removed(tmp_path):
    """Not what is damaged, what only has such a name, or what a link leads to."""
    with Checkpoints(tmp_path / "run", keep_last=1) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, new_state(), new_iterator(), METADATA)
    (tmp_path / "run" / "1" / "_CHECKPOINT_METADATA").unlink()
    (tmp_path / "run" / "2").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "0").mkdir()
    (tmp_path / "run" / "0" / "notes").write_text("precious")
    with Checkpoints(tmp_path / "run", keep_last=1) as checkpoints:
        assert checkpoints.steps() == (2, 3, 4)
        assert checkpoints.folders() == (0, 1, 2, 3, 4)
        with pytest.raises(DamagedError, match=r"at step 1 .* _CHECKPOINT_METADATA cannot be read"):
            checkpoints.metadata(1)
        checkpoints.prune()
        assert checkpoints.folders() == (0, 1, 2, 4)
        checkpoints.save(1, new_state(), new_iterator(), METADATA)
        assert checkpoints.steps() == (1, 2, 4)
    assert (tmp_path / "run" / "1.damaged" / "state").is_dir()
    assert (tmp_path / "elsewhere" / "state").is_dir()


EIGHT_DEVICES = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from growth.training.checkpoints import Checkpoints
from growth.training.data.batches import train_iterator
from growth.training.data.text import Windows

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
sharding = NamedSharding(mesh, PartitionSpec("data", "model"))
like = {"w": jax.ShapeDtypeStruct((16, 6), jnp.float32, sharding=sharding)}
iterator = train_iterator(Windows(np.arange(401), 8), batch_size=4, seed=0)
with Checkpoints(sys.argv[1]) as checkpoints:
    state = checkpoints.restore(1, like, iterator)
    assert state["w"].sharding == sharding
    assert {shard.data.shape for shard in state["w"].addressable_shards} == {(4, 3)}
    state = jax.tree.map(lambda x: x + 1, state)
    next(iterator)
    checkpoints.save(2, state, iterator, {})
print(json.dumps(np.asarray(state["w"]).tolist()))
"""


def test_another_number_of_devices(tmp_path):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = {"w": jax.device_put(jnp.arange(96.0).reshape(16, 6), one)}
    iterator = new_iterator()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, iterator, {})
    flags = "--xla_force_host_platform_device_count=8"
    sharded = run_python(EIGHT_DEVICES, tmp_path, XLA_FLAGS=flags)
    assert sharded.returncode == 0, sharded.stderr
    assert json.loads(sharded.stdout) == (np.arange(96.0).reshape(16, 6) + 1).tolist()

    resumed = new_iterator()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(2, abstract(state), resumed)
    assert_same(restored, {"w": state["w"] + 1})
    next(iterator)
    assert np.array_equal(next(resumed), next(iterator))


def test_nothing_is_written_to_the_terminal_when_all_is_well(tmp_path):
    code = KILLED.split("large =")[0]
    quiet = run_python(code, tmp_path)
    assert quiet.returncode == 0
    assert quiet.stdout + quiet.stderr == ""
    assert [path.name for path in Path(tmp_path).iterdir()] == ["1"]
