"""What a run tells TensorBoard and Weights & Biases: its config, and its numbers."""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter, summary

from growth.errors import InputError


class TrackerError(InputError):
    """A service that a run shall tell cannot be told."""


class Trackers:
    """TensorBoard's event files in `directory/tensorboard`, and Weights & Biases where it is asked.

    Args:
      directory: the run's directory.
      resume_step: the step that the run resumes from, after which nothing of before is shown; None
        where it begins.
      wandb_project: a project of Weights & Biases; "" for none.
    """

    def __init__(self, directory: Path, resume_step: int | None, wandb_project: str) -> None:
        resumes = resume_step is not None
        self._wandb = _start_wandb(wandb_project, directory, resumes) if wandb_project else None
        self._tensorboard = SummaryWriter(
            str(directory / "tensorboard"),
            purge_step=0 if resume_step is None else resume_step + 1,
            flush_secs=5,
            # Without it, a run restarted within the same second would overwrite its own events.
            filename_suffix=f".{time.time_ns()}",
        )

    def config(self, config: Mapping[str, Any], step: int) -> None:
        """Tells the config of the run: as text, and as hyperparameters that runs can be sorted by.

        Args:
          config: its fields, as JSON can hold them.
          step: optimizer steps taken.
        """
        self.text("config", json.dumps(config, indent=2), step)
        for record in summary.hparams(_flat(config), {"eval/loss": None}):
            self._tensorboard.file_writer.add_summary(record, step)
        if self._wandb is not None:
            self._wandb.config.update(dict(config), allow_val_change=True)

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Tells numbers, by the name of their cards."""
        for tag, number in numbers.items():
            self._tensorboard.add_scalar(tag, number, step)
        if self._wandb is not None and numbers:
            self._wandb.log(dict(numbers), step=step)

    def curve(self, tag: str, step: int, values: Sequence[float]) -> None:
        """Tells a number at every step, the last of which is `step`."""
        for at, value in enumerate(values, start=step - len(values) + 1):
            self.numbers({tag: value}, at)

    def text(self, tag: str, text: str, step: int) -> None:
        """Tells a text."""
        # TensorBoard reads Markdown: indented, a text is shown as it is.
        shown = "".join(f"    {line}\n" for line in text.split("\n"))
        self._tensorboard.add_text(tag, shown, step)

    def close(self) -> None:
        """Writes what is not yet written."""
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def require_wandb(project: str) -> None:
    """Refuses a project of Weights & Biases that nothing can be sent to, before anything is made.

    Raises:
      TrackerError: a project is given, and wandb is not installed.
    """
    try:
        if project:
            import wandb  # noqa: F401
    except ImportError as error:
        raise TrackerError(
            f"wandb_project is {project!r}, but wandb is not installed: "
            f"pip install 'flax-growth[wandb]'"
        ) from error


def _flat(values: Any, name: str = "") -> dict[str, bool | int | float | str]:
    """Fields by their paths; what is no number, and no text, as its text."""
    if isinstance(values, Mapping):
        return {
            path: value
            for key, part in values.items()
            for path, value in _flat(part, f"{name}.{key}" if name else str(key)).items()
        }
    return {name: values if isinstance(values, bool | int | float | str) else str(values)}


def _start_wandb(project: str, directory: Path, resumes: bool) -> Any:
    """A Weights & Biases run; a resumed run continues the one whose id the directory holds."""
    import wandb

    path = directory / "wandb_id"
    if not (resumes and path.exists()):
        path.write_text(uuid.uuid4().hex)
    name = directory.resolve().name
    return wandb.init(
        project=project, name=name, id=path.read_text(), dir=str(directory), resume="allow"
    )
