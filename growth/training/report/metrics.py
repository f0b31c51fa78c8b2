"""What a run writes down: flat JSON records, one a line, and the same numbers for TensorBoard.

`workdir/metrics.jsonl` is the run's memory: the report is made from it, and a resumed run continues
it. Every record has `kind`, `step` (optimizer steps taken) and `stage` (0 for the first), and:

- `train`: loss, learning_rate (of entries that are not new), grad_norm, tokens_per_second, flops
  (training FLOPs spent since the run's start), seconds (time spent since the run's start, see
  `MetricsWriter.seconds`);
- `eval`: loss, accuracy (the share of targets that are the likeliest), flops;
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
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX import SummaryWriter

from growth.errors import InputError
from growth.files import write_atomically

KINDS = ("train", "eval", "growth", "sample")

FILE_NAME = "metrics.jsonl"

Record = Mapping[str, Any]
Records = Sequence[Record]


class MetricsError(InputError):
    """A record cannot be written, or a metrics file cannot be read."""


def read_metrics(path: str | os.PathLike[str]) -> tuple[dict[str, Any], ...]:
    """The records of a metrics file, in the order in which they were written.

    A run that was killed while it wrote leaves half a line at the end, which is dropped.

    Args:
      path: the file; one that does not exist has no records.

    Raises:
      MetricsError: a line before the last one is not a record; the message names it.

    Examples:
      >>> from growth import training
      >>> records = training.read_metrics("runs/small/metrics.jsonl")
      >>> [record["step"] for record in records if record["kind"] == "eval"]
      [2, 4]

    References:
      https://jsonlines.org, for the format.
    """
    return tuple(record for _, record in _read_lines(Path(path)))


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

    Raises:
      MetricsError: the metrics file that the run continues is damaged.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int | None = None,
        resume_stage: int = 0,
        *,
        wandb_project: str = "",
    ) -> None:
        directory = Path(workdir)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILE_NAME
        kept = [] if resume_step is None else _kept_lines(path, resume_step, resume_stage)
        resumes = resume_step is not None
        self._wandb = _start_wandb(wandb_project, directory, resumes) if wandb_project else None
        write_atomically(path, b"".join(line + b"\n" for line, _ in kept))

        self._written = {_identity(record) for _, record in kept if record["step"] == resume_step}
        seconds = [r["seconds"] for _, r in kept if r["kind"] == "train" and r.get("seconds")]
        self._start = time.monotonic() - max(seconds, default=0.0)
        self._tensorboard = SummaryWriter(
            str(directory / "tensorboard"),
            purge_step=0 if resume_step is None else resume_step + 1,
            flush_secs=5,
            # Without it, a run restarted within the same second would overwrite its own events.
            filename_suffix=f".{time.time_ns()}",
        )
        self._file = path.open("a", encoding="utf-8")

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
        record = {"kind": kind, "step": int(step)}
        record |= {name: _plain(name, value) for name, value in values.items()}
        if _identity(record) in self._written:
            return
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

        numbers = {
            f"{kind}/{name}": value
            for name, value in record.items()
            if isinstance(value, int | float) and name != "step"
        }
        for tag, number in numbers.items():
            self._tensorboard.add_scalar(tag, number, record["step"])
        if kind == "sample":
            # TensorBoard reads Markdown: indented, a text is shown as it is.
            text = f"{record.get('prompt', '')}{record.get('text', '')}"
            shown = "".join(f"    {line}\n" for line in text.split("\n"))
            self._tensorboard.add_text("sample", shown, record["step"])
        if self._wandb is not None and numbers:
            self._wandb.log(numbers, step=record["step"])

    def close(self) -> None:
        """Closes all files. Nothing can be written afterwards."""
        self._file.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

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
    """The lines that are whole, each with its record."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise MetricsError(f"{path}, line {number}: not a record ({error})") from error
        if not isinstance(record, dict) or not {"kind", "step"} <= set(record):
            raise MetricsError(f"{path}, line {number}: not a record with a kind and a step")
        records.append((line, record))
    return records


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


def _start_wandb(project: str, directory: Path, resumes: bool) -> Any:
    """A Weights & Biases run; a resumed run continues the one whose id the directory holds."""
    try:
        import wandb
    except ImportError as error:
        raise MetricsError(
            f"wandb_project is {project!r}, but wandb is not installed: "
            f"pip install 'flax-growth[wandb]'"
        ) from error
    path = directory / "wandb_id"
    if not (resumes and path.exists()):
        path.write_text(uuid.uuid4().hex)
    name = directory.resolve().name
    return wandb.init(
        project=project, name=name, id=path.read_text(), dir=str(directory), resume="allow"
    )
