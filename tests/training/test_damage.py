"""Whatever is damaged in a run's folder: it goes on from what is whole, or says why it does not.

Each kind of damage is done to a copy of a run of eight steps. By default the run is resumed, and
what it resumes from is compared with what was saved, to the last bit; a telling sample, and with
--full every kind, is trained to its end, and compared with the run that nothing happened to.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from growth.training.checkpoints import CheckpointError, Checkpoints
from growth.training.config import parse
from growth.training.data.batches import train_iterator
from growth.training.data.dataset import load_dataset
from growth.training.loop import train
from growth.training.mesh import make_mesh
from growth.training.optimization import make_optimizer
from growth.training.run.resuming import resume
from tests.helpers import runs
from tests.helpers.networks import first

NEWEST = 8


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Eight steps, with growth after four and a checkpoint every two."""
    config = runs.small_config(runs.write_corpus(tmp_path_factory.mktemp("text") / "files"))
    config.growth = (dict(step=4, mlp_dim=24),)
    config.num_steps, config.samples.prompts = 8, ()
    config.eval_every, config.checkpoint_every = 4, 2
    return parse(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory, config):
    """The directory of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def saved(run):
    """The arrays of its checkpoints."""
    return {step: runs.arrays(run, step) for step in runs.steps(run)}


@pytest.fixture(scope="module")
def resumed(config):
    """What a run goes on from, by its directory."""
    data = load_dataset(config.data, config.architecture)
    tx, mesh = make_optimizer(config), make_mesh(config.mesh, config.batch_size)

    def resumed(workdir):
        batches = train_iterator(data.train, batch_size=config.batch_size, seed=config.seed)
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            return resume(config, workdir, checkpoints, tx, mesh, batches, data.digest)

    return resumed


# Damage to a file.


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def garble(path):
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def rename(path):
    path.rename(path.with_name(path.name + ".old"))


def lengthen(path):
    path.write_bytes(path.read_bytes() * 2)


def flip(path, bit=None):
    content = bytearray(path.read_bytes())
    bit = len(content) * 4 if bit is None else bit % (len(content) * 8)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


TO_FILES = (delete, empty, cut, zero, garble, rename, lengthen, flip)

FILES = (
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    "state/_METADATA",
    "state/_sharding",
    "state/array_metadatas/process_0",
    "state/manifest.ocdbt",
    "state/d/*",
    "state/ocdbt.process_0/manifest.ocdbt",
    "state/ocdbt.process_0/d/*",
)


def file_damage(name, way):
    def damage(workdir):
        found = list((workdir / "checkpoints" / str(NEWEST)).glob(name))
        assert found
        for path in found:
            way(path)

    return damage


def bits_of_data(number):
    def damage(workdir):
        checkpoint = workdir / "checkpoints" / str(NEWEST)
        (path, *_) = sorted(checkpoint.glob("state/d/*"), key=lambda path: path.stat().st_size)[
            ::-1
        ]
        flip(path, int(np.random.default_rng(number).integers(0, path.stat().st_size * 8)))

    return damage


# Damage to folders.


def no_state(workdir):
    shutil.rmtree(workdir / "checkpoints/8/state")


def empty_state(workdir):
    no_state(workdir)
    (workdir / "checkpoints/8/state").mkdir()


def empty_checkpoint(workdir):
    shutil.rmtree(workdir / "checkpoints/8")
    (workdir / "checkpoints/8").mkdir()


def checkpoint_gone(workdir):
    shutil.rmtree(workdir / "checkpoints/8")


def checkpoint_is_a_file(workdir):
    checkpoint_gone(workdir)
    (workdir / "checkpoints/8").write_text("8")


def checkpoint_leads_nowhere(workdir):
    checkpoint_gone(workdir)
    (workdir / "checkpoints/8").symlink_to(workdir / "nowhere")


def older_one_under_its_name(workdir):
    checkpoint_gone(workdir)
    shutil.copytree(workdir / "checkpoints/6", workdir / "checkpoints/8")


def smaller_one_under_its_name(workdir):
    checkpoint_gone(workdir)
    shutil.copytree(workdir / "checkpoints/2", workdir / "checkpoints/8")


def arrays_of_an_older_one(workdir):
    no_state(workdir)
    shutil.copytree(workdir / "checkpoints/6/state", workdir / "checkpoints/8/state")


def later_step_in_its_name(workdir):
    (workdir / "checkpoints/8").rename(workdir / "checkpoints/80")


def name_with_zeros(workdir):
    (workdir / "checkpoints/8").rename(workdir / "checkpoints/08")


def half_saved(workdir):
    (workdir / "checkpoints/8").rename(workdir / "checkpoints/8.orbax-checkpoint-tmp")


def two_newest(workdir):
    no_state(workdir)
    flip(workdir / "checkpoints/6/_CHECKPOINT_METADATA")


def all_but_the_first(workdir):
    two_newest(workdir)
    shutil.rmtree(workdir / "checkpoints/4/state")


def field_of_the_metadata(workdir):
    path = workdir / "checkpoints/8/_CHECKPOINT_METADATA"
    content = json.loads(path.read_text())
    content["custom_metadata"]["iterator"] = {}
    path.write_text(json.dumps(content))


TO_FOLDERS = (
    *(no_state, empty_state, empty_checkpoint, checkpoint_gone, checkpoint_is_a_file),
    *(checkpoint_leads_nowhere, older_one_under_its_name, smaller_one_under_its_name),
    *(arrays_of_an_older_one, later_step_in_its_name, name_with_zeros, half_saved, two_newest),
    *(all_but_the_first, field_of_the_metadata),
)


# Damage beside the checkpoints.


def beside_damage(name, way):
    return lambda workdir: way(workdir / name)


def no_tensorboard(workdir):
    shutil.rmtree(workdir / "tensorboard")


KINDS = {
    **{f"{way.__name__} {name}": file_damage(name, way) for name in FILES for way in TO_FILES},
    **{f"flip bit {number} of the data": bits_of_data(number) for number in range(20)},
    **{way.__name__.replace("_", " "): way for way in TO_FOLDERS},
    **{
        f"{way.__name__} {name}": beside_damage(name, way)
        for name in ("metrics.jsonl", "config.json", "report.html")
        for way in TO_FILES
    },
    "no tensorboard": no_tensorboard,
}

SAMPLE = (
    "delete _CHECKPOINT_METADATA",
    "flip state/d/*",
    "no state",
    "two newest",
    "garble metrics.jsonl",
    "cut config.json",
)


def copy_of(run, workdir):
    shutil.copytree(run, workdir)
    return workdir


def arrays(found):
    """What a run goes on from, by path."""
    flat = jax.tree_util.tree_leaves_with_path(found.state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in flat
    }


@pytest.mark.parametrize("kind", first(KINDS, *list(KINDS)[::7], *SAMPLE))
def test_a_damaged_run_is_resumed_from_what_is_whole(kind, run, saved, resumed, tmp_path):
    workdir = copy_of(run, tmp_path / "run")
    KINDS[kind](workdir)
    found = resumed(workdir)
    assert found is not None
    assert found.step in {"two newest": (4,), "all but the first": (2,)}.get(kind, (6, 8))
    runs.assert_same_arrays(arrays(found), saved[found.step])
    # Whatever is newer is named, and what is wrong with it.
    assert all(f"the checkpoint at step {step} in" in why for step, why in found.damaged.items())
    if kind == "no state":
        assert list(found.damaged) == [8]
        assert found.damaged[8].endswith("is damaged: its arrays cannot be read")


@pytest.mark.parametrize("kind", first(KINDS, *SAMPLE))
def test_a_damaged_run_ends_with_the_same_bits(kind, run, saved, resumed, config, tmp_path, capsys):
    workdir = copy_of(run, tmp_path / "run")
    KINDS[kind](workdir)
    for _ in range(2):  # and the second time there is nothing left to do or to say
        train(config, workdir)
        # Read as a run reads: damage to a file that it does not need may still be there.
        found = resumed(workdir)
        assert found is not None
        assert found.step == 8
        runs.assert_same_arrays(arrays(found), saved[8])
        said = capsys.readouterr().out
    assert "damaged" not in said
    if kind == "no state":
        assert (workdir / "checkpoints" / "8.damaged").is_dir()


def none_whole(workdir):
    for step in (2, 4, 6, 8):
        flip(workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")


def no_checkpoints(workdir):
    shutil.rmtree(workdir / "checkpoints")


def empty_checkpoints(workdir):
    no_checkpoints(workdir)
    (workdir / "checkpoints").mkdir()


def checkpoints_are_a_file(workdir):
    no_checkpoints(workdir)
    (workdir / "checkpoints").write_text("")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (none_whole, r"no checkpoint of .* is whole: the checkpoint at step 8 .* is damaged: "),
        (no_checkpoints, r"has taken 8 steps, but there is no checkpoint in"),
        (empty_checkpoints, r"has taken 8 steps, but there is no checkpoint in"),
        (checkpoints_are_a_file, r"has taken 8 steps, but there is no checkpoint in"),
    ],
)
def test_where_nothing_is_whole_that_is_said_in_a_line(damage, message, run, config, tmp_path):
    workdir = copy_of(run, tmp_path / "run")
    damage(workdir)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(CheckpointError, match=message) as error:
        train(config, workdir)
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_a_run_that_was_killed_before_its_first_save_begins_anew(run, config, saved, tmp_path):
    """Its records are not emptied in silence."""
    workdir = copy_of(run, tmp_path / "run")
    no_checkpoints(workdir)
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["step"] <= 2))
    before = path.read_bytes()
    train(config, workdir)
    runs.assert_same_arrays(runs.arrays(workdir, 8), saved[8])
    assert (workdir / "metrics.jsonl.earlier").read_bytes() == before
