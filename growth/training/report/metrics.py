"""What a run writes down: flat JSON records, one a line, and the same numbers for TensorBoard.

`workdir/metrics.jsonl` is the run's memory: the report is made from it, and a resumed run continues
it. Every record has `kind`, `step` (optimizer steps taken) and `stage` (0 for the first), and:

- `start`: date, command, seed, devices, data, versions (library -> version), written each time that
  the run starts or resumes;
- `train`: loss and grad_norm (means over the steps since the record before), learning_rate (of
  entries that are not new), tokens_per_second, flops (training FLOPs spent since the run's start),
  seconds (time spent since the run's start, see `MetricsWriter.seconds`), clock (activity ->
  seconds of it spent since the run's start, see `Clocks`);
- `eval`: loss, accuracy (the share of targets that are the likeliest), flops, seconds;
- `growth`: loss_before, loss_after, logit_error (max |Δlogit| / max |logit|), parameters_before,
  parameters_after, flops, seconds (how long the growth took), changes (field -> [old, new]).
  `stage` is the new one;
- `sample`: prompt, text (what the model wrote after it).

JSON has no infinities and no NaN: such a number is written as null, and reads back as None.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from growth import files
from growth.errors import InputError
from growth.training.report.clocks import Clocks
from growth.training.report.trackers import Trackers, require_wandb

KINDS = ("start", "train", "eval", "growth", "sample")

FILE_NAME = "metrics.jsonl"

# Fields of records that are numbers.
_NUMBERS = {
    *("loss", "learning_rate", "grad_norm", "tokens_per_second", "flops", "seconds", "accuracy"),
    *("loss_before", "loss_after", "logit_error", "parameters_before", "parameters_after"),
}

_TEXTS = {"prompt", "text", "date", "command", "devices", "data"}

# How many lines a message names.
_LISTED = 5

Record = Mapping[str, Any]
Records = Sequence[Record]


class MetricsError(InputError):
    """A record cannot be written."""


def read_metrics(path: str | os.PathLike[str]) -> tuple[dict[str, Any], ...]:
    """The records of a metrics file, in the order in which they were written.

    A run that was killed while it wrote leaves half a line at the end, which is left out. So is
    every other line that is not a record; `damaged_lines` names them.

    Args:
      path: the file; one that does not exist has no records.

    Examples:
      >>> from growth import training
      >>> records = training.read_metrics("runs/small/metrics.jsonl")
      >>> [record["step"] for record in records if record["kind"] == "eval"]
      [2, 4]

    References:
      https://jsonlines.org, for the format.
    """
    return tuple(record for _, record in _read_lines(Path(path)))


def damaged_lines(path: Path) -> tuple[int, ...]:
    """The numbers of the lines, from 1, that are not records; half a line at the end is none."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    damaged = [number for number, line in enumerate(lines, start=1) if _record(line) is None]
    cut_off = bool(lines) and not path.read_bytes().endswith(b"\n")
    return tuple(number for number in damaged if not (cut_off and number == len(lines)))


def keep_old_metrics(directory: Path, resume_step: int | None, *, goes_back: bool) -> list[str]:
    """Keeps a copy of records that a run is about to leave out for good.

    Args:
      directory: where `metrics.jsonl` is.
      resume_step: the step that the run resumes from; None where it begins.
      goes_back: whether it resumes from another checkpoint than its newest.

    Returns:
      What is left out and where the copy is, in at most one line.
    """
    path = directory / FILE_NAME
    damaged = damaged_lines(path)
    if not path.exists() or not path.stat().st_size:
        lost = f"{FILE_NAME} is gone: the report begins at step {resume_step}"
        return [lost] if resume_step else []
    if resume_step is None:
        copy, what = files.copy_aside(path, "earlier"), "holds records of a run that saved nothing"
    elif goes_back:
        copy, what = files.copy_aside(path, "undone"), f"holds records after step {resume_step}"
    elif damaged:
        lines = ", ".join(map(str, damaged[:_LISTED])) + (", …" if len(damaged) > _LISTED else "")
        copy, what = files.copy_aside(path, "damaged"), f"has lines that are not records ({lines})"
    else:
        return []
    return [f"{FILE_NAME} {what}: they are left out, and kept in {copy.name}"]


class MetricsWriter:
    """Writes a run's records; a context manager.

    Each line is flushed as it is written, so a run that is killed loses none. Only one process of a
    run may have a writer.

    Args:
      workdir: the run's directory, made if missing. Records go to `metrics.jsonl` in it, and
        TensorBoard's event files to `tensorboard`.
      resume_step: the step that the run resumes from. Records of later steps, and of growths at
        this step that are still to come, are dropped, because they will be made again. Other
        records of this very step stay, and are not written twice. None starts from nothing: all old
        records are dropped.
      resume_stage: the stage that it resumes in.
      wandb_project: where to send the records as well; nowhere if empty. Needs the extra `wandb`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int | None = None,
        resume_stage: int = 0,
        *,
        wandb_project: str = "",
    ) -> None:
        require_wandb(wandb_project)
        directory = Path(workdir)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILE_NAME
        kept = [] if resume_step is None else _kept_lines(path, resume_step, resume_stage)
        files.write_atomically(path, b"".join(line + b"\n" for line, _ in kept))

        self._written = {_identity(record) for _, record in kept if record["step"] == resume_step}
        train = [record for _, record in kept if record["kind"] == "train"]
        seconds = [record["seconds"] for record in train if record.get("seconds")]
        self._start = time.monotonic() - max(seconds, default=0.0)
        self.clocks = Clocks(next((r["clock"] for r in reversed(train) if "clock" in r), None))
        self._trackers = Trackers(directory, resume_step, wandb_project)
        self._file = path.open("a", encoding="utf-8")

    def has(self, kind: str, step: int, prompt: str | None = None) -> bool:
        """Whether the run that is resumed had written such a record at the step it resumes from."""
        return any((k, s, p) == (kind, step, prompt) for k, s, _, p in self._written)

    @property
    def seconds(self) -> float:
        """Seconds that the run has lasted; on resume the time up to its last record counts too."""
        return time.monotonic() - self._start

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Writes one record.

        Args:
          kind: one of `KINDS`.
          step: optimizer steps taken.
          **values: the record's other fields: numbers (also NumPy's and JAX's), text, or lists and
            mappings of them.

        Raises:
          MetricsError: the kind is unknown, or a value is nothing that JSON can hold.
        """
        if kind not in KINDS:
            raise MetricsError(f"kind is {kind!r}, but it must be one of {', '.join(KINDS)}")
        record: dict[str, Any] = {"kind": kind, "step": int(step)}
        record |= {name: _plain(name, value) for name, value in values.items()}
        if kind != "start" and _identity(record) in self._written:
            return
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

        numbers = {
            f"{kind}/{name}": value
            for name, value in record.items()
            if isinstance(value, int | float) and name not in ("step", "stage", "seed")
        }
        numbers |= {f"clock/{name}": value for name, value in record.get("clock", {}).items()}
        self._trackers.numbers(numbers, record["step"])
        if kind == "sample":
            text = f"{record.get('prompt', '')}{record.get('text', '')}"
            self._trackers.text("sample", text, record["step"])
        elif kind == "start":
            self._trackers.text("start", json.dumps(record, indent=2), record["step"])

    def tell(self, tag: str, step: int, values: Sequence[float]) -> None:
        """Tells TensorBoard and the like a number at every step, the last of which is `step`."""
        self._trackers.curve(tag, step, values)

    def tell_config(self, config: Mapping[str, Any], step: int) -> None:
        """Tells TensorBoard and the like the config of the run.

        Args:
          config: its fields, as JSON can hold them.
          step: optimizer steps taken.
        """
        self._trackers.config(config, step)

    def close(self) -> None:
        """Closes all files. Nothing can be written afterwards."""
        self._file.close()
        self._trackers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines that are records, each with its record."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [(line, record) for line in lines if (record := _record(line)) is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    """The record that a line is; None if it is none, or if what it holds is of another type."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not {"kind", "step", "stage"} <= set(record):
        return None
    for name, value in record.items():
        if name in ("step", "stage"):
            fits = type(value) is int and value >= 0
        elif name == "kind":
            fits = value in KINDS
        elif name in _TEXTS:
            fits = isinstance(value, str)
        elif name == "changes":
            fits = isinstance(value, dict) and all(
                isinstance(pair, list) and len(pair) == 2 for pair in value.values()
            )
        elif name in ("clock", "versions"):
            kind = float if name == "clock" else str
            fits = isinstance(value, dict) and all(type(part) is kind for part in value.values())
        elif name in _NUMBERS:
            fits = value is None or (type(value) in (int, float) and math.isfinite(value))
        else:
            fits = True
        if not fits:
            return None
    return record


def _kept_lines(path: Path, step: int, stage: int) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines that stay when a run resumes after `step` optimizer steps, in `stage`."""
    return [
        (line, record)
        for line, record in _read_lines(path)
        if record["step"] < step
        or (record["step"] == step and not (record["kind"] == "growth" and record["stage"] > stage))
    ]


def _identity(record: Record) -> tuple[Any, ...]:
    """What tells a record from all others of a run."""
    return tuple(record.get(name) for name in ("kind", "step", "stage", "prompt"))


def _plain(name: str, value: Any) -> Any:
    """`value` as JSON can hold it."""
    if hasattr(value, "tolist"):  # NumPy's and JAX's arrays and scalars.
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{index}]", entry) for index, entry in enumerate(value)]
    raise MetricsError(
        f"{name} is a {type(value).__name__}, but a record holds numbers, text, and lists and "
        f"mappings of them"
    )
