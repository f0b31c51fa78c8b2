"""Small runs for tests: a corpus of real text, a config that grows along all six dimensions."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from growth.training.checkpoints import Checkpoints
from growth.training.config import defaults
from growth.training.report.metrics import read_metrics

ROOT = Path(__file__).parents[2]


def write_corpus(directory):
    """Some source files of the standard library; gives the glob that matches them."""
    directory.mkdir(parents=True)
    for name in ("abc", "argparse", "bisect", "heapq", "queue", "textwrap"):
        shutil.copy(Path(sysconfig.get_path("stdlib")) / f"{name}.py", directory)
    return str(directory / "*.py")


def small_config(files):
    """Sixty steps on one device, with growth after twenty and after forty."""
    config = defaults(
        vocab_size=256,
        max_length=16,
        embed_dim=8,
        num_layers=1,
        num_heads=2,
        qk_dim=4,
        v_dim=4,
        mlp_dim=16,
        position="learned",
        activation="relu",
        gated_mlp=False,
        tied_embeddings=True,
    )
    config.growth = (
        dict(
            step=20,
            embed_dim=16,
            mlp_dim=24,
            num_layers=2,
            moments="age",
            rewarming=dict(steps=5, start=0.5),
        ),
        dict(
            step=40,
            num_heads=4,
            qk_dim=8,
            v_dim=6,
            init={"head_addition": "copy", "heads_expansion": "gradmax:3"},
            moments="probe",
        ),
    )
    config.num_steps = 60
    config.batch_size = 8
    config.data.files = files
    config.optimizer.learning_rate = 5e-3
    config.mesh.data = 1
    config.eval_every = 10
    config.eval_batches = 4
    config.checkpoint_every = 5
    config.checkpoints_kept = 100
    config.log_every = 1
    config.samples.prompts = ("def ", "import ")
    config.samples.num_tokens = 8
    return config


def start(command, *arguments):
    """The process of a command, such as "train"; all its output is in `stdout`."""
    path = os.pathsep.join(filter(None, (str(ROOT), *sys.path)))
    return subprocess.Popen(
        [sys.executable, "-m", "growth", command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def records(workdir, kind):
    """The records of one kind that a run has written."""
    return [r for r in read_metrics(Path(workdir) / "metrics.jsonl") if r["kind"] == kind]


def steps(workdir):
    """The steps of a run's checkpoints."""
    return Checkpoints(Path(workdir) / "checkpoints").steps()


def arrays(workdir, step):
    """All arrays of a checkpoint, by path."""
    path = Path(workdir) / "checkpoints" / str(step)
    shapes = ocp.checkpointables_metadata(path).metadata["state"]
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes
    )
    state = ocp.load_checkpointables(path, {"state": target})["state"]
    flat = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in flat
    }


def assert_same_arrays(one, other):
    """Equal names, dtypes and values, to the last bit."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name], err_msg=name)
