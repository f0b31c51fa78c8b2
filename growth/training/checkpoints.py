"""Checkpoints: a training state, the place in the data, and what they belong to, written as one.

A checkpoint is a folder that Orbax writes under another name and renames when all of it is there,
so that a run that is killed while it saves leaves no half of one. It says in JSON what it holds,
the architecture above all: a reader learns that first, builds the abstract state from it, and then
loads the arrays onto the devices it has, which need not be those that saved them.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grain
import jax
from orbax.checkpoint import v1 as ocp

from growth.errors import InputError

Pytree = Any

# The name of the arrays within a checkpoint.
_STATE = "state"

# How many leaves an error lists before it only counts them.
_LISTED = 8


class CheckpointError(InputError):
    """There is no such checkpoint, or it does not fit; the message says which leaf and how."""


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
      keep_last: how many of the newest checkpoints to keep; at least 1.
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
      The documentation of Orbax on `Checkpointer`.
    """

    def __init__(
        self, directory: str | os.PathLike, *, keep_last: int = 3, keep_steps: Sequence[int] = ()
    ):
        if keep_last < 1:
            raise CheckpointError(f"keep_last is {keep_last}, but it must be at least 1")
        self._directory = Path(directory).expanduser().absolute()
        self._keep_last = keep_last
        self._keep_steps = tuple(keep_steps)

    @functools.cached_property
    def _writer(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        return ocp.training.Checkpointer(
            self._directory,
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(self._keep_last), policies.CustomSteps(self._keep_steps)]
            ),
            cleanup_tmp_directories=True,
        )

    def steps(self) -> tuple[int, ...]:
        """The steps of all complete checkpoints, ascending; waits for one that is being written."""
        self.wait()
        found = ocp.path.step.standard_name_format().find_all(self._directory)
        # One without a time of commit is what is left where a run was killed while it deleted.
        return tuple(sorted(c.step for c in found if c.commit_timestamp_nsecs is not None))

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def newest_step(self) -> int:
        """The step of the newest complete checkpoint.

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
          CheckpointError: there is no complete checkpoint at `step`.
        """
        return self._read(step).custom_metadata["metadata"]

    def place(self, step: int) -> "Place":
        """The place in the data that was saved at `step`, as what `save` takes."""
        return Place(self._read(step).custom_metadata["iterator"])

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
        checkpoint at `step` already. All processes must call it.

        Args:
          step: optimizer steps taken.
          state: a pytree of arrays, which may be sharded.
          iterator: the training data. Its state must be the same on all processes, as that of
            `growth.training.data.train_iterator` is.
          metadata: what a reader must know before it can load the state; whatever JSON holds.

        Raises:
          CheckpointError: `metadata` is not JSON.
          Exception: the checkpoint before this one could not be written.
        """
        about = {"metadata": dict(metadata), "iterator": iterator.get_state()}
        try:
            json.dumps(about)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"metadata must be JSON: {error}") from error
        if step not in self.steps():
            # `force`: whether to save is for the caller to say, not for a policy of Orbax.
            self._writer.save_checkpointables_async(
                step, {_STATE: state}, force=True, custom_metadata=about
            )

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
          CheckpointError: there is no complete checkpoint at `step`, or it does not fit
            `abstract_state`; the message lists the leaves that differ.
        """
        saved = self._read(step)
        differences = _differences(saved.metadata[_STATE], abstract_state)
        if differences:
            more = len(differences) - _LISTED
            lines = differences[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
            raise CheckpointError(
                f"the checkpoint at step {step} in {self._directory} does not fit the state that "
                "it should fill:\n  " + "\n  ".join(lines)
            )
        loaded = ocp.load_checkpointables(saved.path, {_STATE: abstract_state})
        if iterator is not None:
            iterator.set_state(saved.custom_metadata["iterator"])
        return loaded[_STATE]

    def _read(self, step: int) -> ocp.CheckpointMetadata[dict[str, Any]]:
        steps = self.steps()
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"there is no checkpoint at step {step} in {self._directory}; there are: {there}"
            )
        return ocp.checkpointables_metadata(self._directory / str(step))

    def wait(self) -> None:
        """Returns when everything is written. Raises whatever kept it from being written."""
        if "_writer" in self.__dict__:
            self._writer.wait()

    def close(self) -> None:
        """Waits, and releases the threads that write."""
        if "_writer" in self.__dict__:
            self.__dict__.pop("_writer").close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _differences(saved: Pytree, expected: Pytree) -> list[str]:
    """One line for each leaf whose shape or dtype differs, or that only one of two trees has."""
    there, wanted = _leaves(saved), _leaves(expected)
    return [
        f"{path}: {there.get(path, 'nothing')} in the checkpoint, "
        f"but {wanted.get(path, 'nothing')} is expected"
        for path in dict.fromkeys((*wanted, *there))
        if there.get(path) != wanted.get(path)
    ]


def _leaves(tree: Pytree) -> dict[str, str]:
    """The path of each leaf, and its dtype and shape."""

    def describe(leaf: Any) -> str:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)  # what is written
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"

    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): describe(leaf)
        for path, leaf in leaves
    }
