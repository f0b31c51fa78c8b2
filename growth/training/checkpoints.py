"""Checkpoints: a training state, the place in the data, and what they belong to, written as one.

A checkpoint is a folder that Orbax writes under another name and renames when all of it is there,
so that a run that is killed while it saves leaves no half of one. It says in JSON what it holds,
the architecture above all: a reader learns that first, builds the abstract state from it, and then
loads the arrays onto the devices it has, which need not be those that saved them.

The JSON also holds a digest of each array and one of itself. They are compared whenever something
is read: a folder that was damaged afterwards is told from a whole one, down to a single bit.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grain
import jax
from orbax.checkpoint import v1 as ocp

from growth import files
from growth.errors import InputError
from growth.training.array_digests import array_digests, array_shapes
from growth.training.damage import digest_of_json, is_of_the_machine, quiet_tasks

Pytree = Any

# The name of the arrays within a checkpoint, and that of the file in which Orbax keeps JSON.
_STATE = "state"
_METADATA = "_CHECKPOINT_METADATA"

# What a checkpoint is called, and what Orbax calls one that it has not finished.
_STEP = re.compile(r"0|[1-9]\d*", re.ASCII)
_UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp")

# How many leaves an error lists before it only counts them.
_LISTED = 8


class CheckpointError(InputError):
    """There is no such checkpoint, or it does not fit; the message says which leaf and how."""


class DamagedError(CheckpointError):
    """A checkpoint holds something else than what was saved; the message says what."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A place in the training data, without the data."""

    state: Any

    def get_state(self) -> Any:
        """What a data iterator would say."""
        return self.state


class Checkpoints:
    """The checkpoints of a run, one folder each, named by step.

    Reading neither creates nor removes anything, so that a run may be looked at while it trains.
    The first save removes what a killed run left half-written. A context manager: leaving it waits
    until everything is written.

    Args:
      directory: the folder that holds them, on a file system; it is created by the first save.
      keep_last: how many of the newest checkpoints `prune` keeps; at least 1.
      keep_steps: steps whose checkpoints are kept for good, such as the ends of stages.

    Raises:
      CheckpointError: `keep_last` is less than 1.

    Examples:
      >>> from pathlib import Path
      >>> from growth import training
      >>> with training.Checkpoints(Path("runs/small/checkpoints")) as checkpoints:
      ...     print(checkpoints.steps())
      (2, 3, 4)

    References:
      The documentation of Orbax on `save_checkpointables_async`.
    """

    def __init__(
        self, directory: str | os.PathLike, *, keep_last: int = 3, keep_steps: Sequence[int] = ()
    ):
        if keep_last < 1:
            raise CheckpointError(f"keep_last is {keep_last}, but it must be at least 1")
        self._directory = Path(directory).expanduser().absolute()
        self._keep_last = keep_last
        self._keep_steps = frozenset(keep_steps)
        self._writing: _Writing | None = None
        self._has_written = False

    def folders(self) -> tuple[int, ...]:
        """The steps that something is named after, whole or not, ascending."""
        self.wait()
        try:
            names = os.listdir(self._directory)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(sorted(int(name) for name in names if _STEP.fullmatch(name)))

    def steps(self) -> tuple[int, ...]:
        """The steps of all checkpoints whose metadata is whole, ascending; reads no arrays."""
        found = []
        for step in self.folders():
            try:
                self._about(step)
            except DamagedError:
                continue
            found.append(step)
        return tuple(found)

    def latest_step(self) -> int | None:
        """The newest of `steps()`; None if there is none."""
        return max(self.steps(), default=None)

    def newest_step(self) -> int:
        """The newest of `steps()`.

        Raises:
          CheckpointError: there is none.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {self._directory}")
        return step

    def metadata(self, step: int) -> dict[str, Any]:
        """What `save` was given as metadata at `step`. Reads no arrays.

        Raises:
          CheckpointError: there is no checkpoint at `step`, or what it says of itself is damaged.
        """
        return self._read(step)["metadata"]

    def place(self, step: int) -> "Place":
        """The place in the data that was saved at `step`, as what `save` takes."""
        return Place(self._read(step)["iterator"])

    def save(
        self,
        step: int,
        state: Pytree,
        iterator: "grain.DatasetIterator | Place",
        metadata: Mapping[str, Any],
    ) -> None:
        """Copies a state to the host and writes it in the background.

        The state may be deleted or donated and the iterator advanced as soon as this returns. Waits
        for the checkpoint before it, if that is still being written. Does nothing if there is a
        checkpoint at `step` already; what has its name and is damaged is set aside. All processes
        must call it.

        Args:
          step: optimizer steps taken.
          state: a pytree of arrays, which may be sharded.
          iterator: the training data. Its state must be the same on all processes, as that of
            `growth.training.data.train_iterator` is.
          metadata: what a reader must know before it can load the state; whatever JSON holds.

        Raises:
          CheckpointError: `metadata` is not JSON.
          InputError: the disk is full, or was for the checkpoint before this one.
          Exception: the checkpoint before this one could not be written.
        """
        about: dict[str, Any] = {"metadata": dict(metadata), "step": step}
        about["iterator"] = iterator.get_state()
        try:
            json.dumps(about)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"metadata must be JSON: {error}") from error
        if step in self.folders():
            if step in self.steps():
                return
            self.set_aside(step, "damaged")
        if not self._has_written:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            self._has_written = True
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        path = self._directory / str(step)
        files.require_space(path, num_bytes)
        about["shapes"], about["digests"] = array_shapes(state), array_digests(state)
        response = ocp.save_checkpointables_async(
            path, {_STATE: state}, custom_metadata={**about, "digest": digest_of_json(about)}
        )
        self._writing = _Writing(path, num_bytes, response)

    def prune(self) -> None:
        """Removes all checkpoints but the newest and those that are kept for good.

        What is not a whole checkpoint of a run stays, and so does what is a symbolic link.
        """
        steps = self.steps()
        for step in steps[: -self._keep_last]:
            if step not in self._keep_steps and jax.process_index() == 0:
                files.remove(self._directory / str(step))

    def set_aside(self, step: int, why: str) -> Path:
        """Renames a checkpoint, so that it is none any more but can be looked at.

        Args:
          step: which one.
          why: what is wrong with it, in a word, which becomes part of the name.

        Returns:
          Its new path.
        """
        self.wait()
        path = self._directory / str(step)
        return files.set_aside(path, why) if jax.process_index() == 0 else path

    def restore(
        self, step: int, abstract_state: Pytree, iterator: grain.DatasetIterator | None = None
    ) -> Pytree:
        """Loads a state onto the devices that `abstract_state` names.

        Args:
          step: which checkpoint.
          abstract_state: a pytree of `jax.ShapeDtypeStruct` with shardings, of the saved structure.
          iterator: set to the place in the data that was saved; None leaves the data alone.

        Returns:
          The state, with the structure, shapes, dtypes and shardings of `abstract_state`.

        Raises:
          CheckpointError: there is no checkpoint at `step`, or it does not fit `abstract_state`;
            the message lists the leaves that differ.
          DamagedError: what is on the disk is not what was saved.
        """
        about = self._read(step)
        differences = _differences(about["shapes"], array_shapes(abstract_state))
        if differences:
            more = len(differences) - _LISTED
            lines = differences[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
            raise CheckpointError(
                f"the checkpoint at step {step} in {self._directory} does not fit the state that "
                "it should fill:\n  " + "\n  ".join(lines)
            )
        with quiet_tasks():
            try:
                path = self._directory / str(step)
                loaded = ocp.load_checkpointables(path, {_STATE: abstract_state})[_STATE]
            except Exception as error:
                if is_of_the_machine(error):
                    raise
                loaded = None
        if loaded is None:
            raise self._damaged(step, "its arrays cannot be read")
        digests = array_digests(loaded)
        wrong = [path for path, digest in about["digests"].items() if digests[path] != digest]
        if wrong:
            others = f" and {len(wrong) - 1} more arrays are" if len(wrong) > 1 else " is"
            raise self._damaged(step, f"{wrong[0]}{others} not what was saved")
        if iterator is not None:
            iterator.set_state(about["iterator"])
        return loaded

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
          InputError: the disk is full.
          Exception: whatever else kept it from being written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                writing.response.result()
            except Exception as error:
                if files.is_full(error):
                    self._remove_unfinished()
                    raise files.full_disk(writing.path, writing.num_bytes) from error
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wait()

    def _read(self, step: int) -> dict[str, Any]:
        """What the checkpoint at `step` says of itself."""
        if step not in self.folders():
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"there is no checkpoint at step {step} in {self._directory}; there are: {there}"
            )
        return self._about(step)

    def _about(self, step: int) -> dict[str, Any]:
        path = self._directory / str(step) / _METADATA
        try:
            about = json.loads(path.read_bytes())["custom_metadata"]
            digest = about.pop("digest")
        except OSError as error:
            if is_of_the_machine(error):
                raise
            raise self._damaged(step, f"{_METADATA} cannot be read") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(step, f"{_METADATA} is not what was saved") from error
        if digest != digest_of_json(about) or about["step"] != step:
            raise self._damaged(step, f"{_METADATA} is not what was saved")
        return about

    def _damaged(self, step: int, what: str) -> DamagedError:
        where = f"the checkpoint at step {step} in {self._directory}"
        return DamagedError(f"{where} is damaged: {what}")

    def _remove_unfinished(self) -> None:
        """Removes what a run left that was killed, or whose disk was full, while it saved.

        It can only be ours: the name is one that Orbax gives, within the folder of checkpoints.
        """
        for path in self._directory.iterdir():
            if _UNFINISHED.fullmatch(path.name) and jax.process_index() == 0 and path.is_dir():
                files.remove(path)


@dataclasses.dataclass(frozen=True)
class _Writing:
    """A checkpoint that is being written."""

    path: Path
    num_bytes: int
    response: Any


def _differences(there: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """One line for each leaf whose shape or dtype differs, or that only one of two trees has."""
    return [
        f"{path}: {there.get(path, 'nothing')} in the checkpoint, "
        f"but {wanted.get(path, 'nothing')} is expected"
        for path in dict.fromkeys((*wanted, *there))
        if there.get(path) != wanted.get(path)
    ]
