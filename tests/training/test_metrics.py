"""What a run writes down survives kills and resumes, and is valid JSON and valid TensorBoard."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from growth.training.report.metrics import (
    KINDS,
    MetricsError,
    MetricsWriter,
    damaged_lines,
    keep_old_metrics,
    read_metrics,
)
from growth.training.report.trackers import TrackerError


def write_run(workdir: Path, last_step: int, resume_step: int | None = None) -> None:
    """A run that grows at step 4, evaluates at every even step and has every kind of record."""
    with MetricsWriter(workdir, resume_step) as writer:
        for step in range(resume_step or 0, last_step + 1):
            stage = int(step > 4)
            if step > (resume_step or 0):
                writer.write("train", step, stage=stage, loss=1 / step, seconds=float(step))
            if step % 2 == 0:
                writer.write("eval", step, stage=stage, loss=2.0, flops=1e6 * step)
                writer.write("sample", step, stage=stage, prompt="a", text="b")
            if step == 4:
                writer.write("growth", step, stage=1, changes={"embed_dim": (8, 16)})


def events(workdir: Path) -> list[Event]:
    """TensorBoard's events: each is its length, a checksum, the event, and another checksum."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_records_read_back_as_they_were_written(tmp_path):
    changes = {"embed_dim": [8, 16], "num_heads": [2, [2, 4]]}
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", 1, stage=0, loss=2.5, flops=1e15)
        writer.write("growth", 1, stage=1, changes=changes)
        writer.write("sample", 2, stage=1, prompt='"Ünïcode"\n', text="</pre>\u2028")
    assert read_metrics(tmp_path / "metrics.jsonl") == (
        {"kind": "train", "step": 1, "stage": 0, "loss": 2.5, "flops": 1e15},
        {"kind": "growth", "step": 1, "stage": 1, "changes": changes},
        {"kind": "sample", "step": 2, "stage": 1, "prompt": '"Ünïcode"\n', "text": "</pre>\u2028"},
    )
    assert len((tmp_path / "metrics.jsonl").read_text().split("\n")) == 4


def test_a_file_that_does_not_exist_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == ()


def test_arrays_of_one_number_are_numbers(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(
            "train",
            np.int64(3),
            stage=np.int32(0),
            loss=jnp.float32(0.5),
            learning_rate=jnp.bfloat16(0.25),
            grad_norm=np.array(2.0),
        )
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record == {
        "kind": "train",
        "step": 3,
        "stage": 0,
        "loss": 0.5,
        "learning_rate": 0.25,
        "grad_norm": 2.0,
    }


def test_numbers_that_are_not_finite_become_null(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", 1, stage=0, loss=math.nan, grad_norm=jnp.float32(jnp.inf))
        writer.write("growth", 1, stage=1, changes={"norm_eps": (1e-6, -math.inf)})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=refuse) for line in lines)
    assert first["loss"] is None
    assert first["grad_norm"] is None
    assert second["changes"] == {"norm_eps": [1e-6, None]}
    assert read_metrics(tmp_path / "metrics.jsonl") == (first, second)


def test_an_unknown_kind_and_an_unwritable_value_are_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        with pytest.raises(
            MetricsError, match="kind is 'test', but it must be one of start, train, eval"
        ):
            writer.write("test", 1, stage=0)
        with pytest.raises(MetricsError, match=r"changes\.embed_dim\[1\] is a set"):
            writer.write("growth", 1, stage=1, changes={"embed_dim": [8, {16}]})
    assert read_metrics(tmp_path / "metrics.jsonl") == ()


def test_a_killed_process_leaves_every_line_behind(tmp_path):
    program = (
        "import os, sys\n"
        "from growth.training.report.metrics import MetricsWriter\n"
        "writer = MetricsWriter(sys.argv[1])\n"
        "for step in range(5): writer.write('train', step, stage=0, loss=1.0)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", program, tmp_path], env=environment)
    assert killed.returncode == -9
    steps = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kept_bytes", [1, 12, -2])
def test_a_torn_last_line_is_dropped(tmp_path, kept_bytes):
    write_run(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    before = read_metrics(path)
    *_, last = path.read_bytes().splitlines()
    with path.open("ab") as file:
        file.write(last[:kept_bytes])
    assert read_metrics(path) == before

    write_run(tmp_path, 3, resume_step=3)
    assert read_metrics(path) == before
    write_run(tmp_path, 5, resume_step=3)
    assert [record["step"] for record in read_metrics(path) if record["kind"] == "train"] == [
        *range(1, 6)
    ]


DAMAGE = (
    *(b'{"kind": "tr\n', b"7\n", b"{}\n", b'{"kind": "train", "step": 1}\n', b"\xff\xfe\n"),
    *(b'{"kind": "train", "step": "1", "stage": 0}\n', b'{"kind": [], "step": 1, "stage": 0}\n'),
    b'{"kind": "train", "step": 1, "stage": 0, "loss": "low"}\n',
    b'{"kind": "train", "step": 1, "stage": 0, "clock": {"training": "long"}}\n',
    b'{"kind": "start", "step": 0, "stage": 0, "command": 7}\n',
    b'{"kind": "start", "step": 0, "stage": 0, "versions": 7}\n',
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_in_the_middle_is_left_out_and_named(tmp_path, damage):
    write_run(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    records = read_metrics(path)
    path.write_bytes(b"".join([lines[0], damage, *lines[1:]]))
    assert read_metrics(path) == records
    assert damaged_lines(path) == (2,)
    MetricsWriter(tmp_path, 3).close()
    assert path.read_bytes() == b"".join(lines)


def test_records_that_are_left_out_for_good_are_kept_and_that_is_said(tmp_path):
    assert keep_old_metrics(tmp_path, None, goes_back=False) == []
    (note,) = keep_old_metrics(tmp_path, 2, goes_back=False)
    assert note == "metrics.jsonl is gone: the report begins at step 2"
    write_run(tmp_path, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for step, goes_back, name in ((None, False, "earlier"), (2, True, "undone")):
        (note,) = keep_old_metrics(tmp_path, step, goes_back=goes_back)
        assert note.endswith(f"they are left out, and kept in metrics.jsonl.{name}")
        assert (tmp_path / f"metrics.jsonl.{name}").read_bytes() == before

    damaged = before + b"7\n"
    (tmp_path / "metrics.jsonl").write_bytes(damaged)
    (note,) = keep_old_metrics(tmp_path, 3, goes_back=False)
    lines = len(damaged.splitlines())
    assert f"has lines that are not records ({lines}): they are left out" in note
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damaged
    MetricsWriter(tmp_path, 3).close()
    assert keep_old_metrics(tmp_path, 3, goes_back=False) == []


@pytest.mark.parametrize("resume_step", [0, 1, 4, 5, 6, 8])
def test_a_resumed_run_ends_with_the_records_of_an_uninterrupted_one(tmp_path, resume_step):
    write_run(tmp_path / "uninterrupted", 8)
    write_run(tmp_path / "resumed", 8)
    write_run(tmp_path / "resumed", 8, resume_step)
    uninterrupted, resumed = (
        (tmp_path / name / "metrics.jsonl").read_bytes() for name in ("uninterrupted", "resumed")
    )
    assert resumed == uninterrupted


def test_resuming_drops_later_records_and_growths_of_the_same_step(tmp_path):
    write_run(tmp_path, 8)
    MetricsWriter(tmp_path, 4).close()
    kept = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in kept if r["step"] >= 4] == [
        ("train", 4),
        ("eval", 4),
        ("sample", 4),
    ]
    assert not any(record["kind"] == "growth" for record in kept)
    MetricsWriter(tmp_path, 5).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == kept


def test_a_run_from_nothing_drops_old_records(tmp_path):
    write_run(tmp_path, 3)
    MetricsWriter(tmp_path).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == ()


def test_the_evaluations_of_two_stages_at_one_step_are_both_kept(tmp_path):
    for resume_step in (None, 4):
        with MetricsWriter(tmp_path, resume_step) as writer:
            writer.write("eval", 4, stage=0, loss=2.0)
            writer.write("eval", 4, stage=1, loss=2.0)
    assert [record["stage"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]


def test_seconds_go_on_where_the_kept_records_end(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        assert writer.seconds < 1000
        writer.write("train", 1, stage=0, seconds=1000.0)
        writer.write("growth", 1, stage=1, seconds=5000.0)
        writer.write("train", 2, stage=1, seconds=9000.0)
    with MetricsWriter(tmp_path, 1) as writer:
        assert 1000 <= writer.seconds < 5000


def test_tensorboard_gets_every_number_and_text(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", 7, stage=0, loss=2.5, grad_norm=math.nan)
        writer.write("growth", 8, stage=1, logit_error=1e-7, changes={"embed_dim": [8, 16]})
        writer.write("sample", 9, stage=1, prompt="Once", text=" upon\n*a* time")
    values = {(e.step, v.tag): v for e in events(tmp_path) for v in e.summary.value}
    assert values[7, "train/loss"].simple_value == 2.5
    assert values[8, "growth/logit_error"].simple_value == pytest.approx(1e-7)
    text = next(
        value for (step, _), value in values.items() if step == 9 and value.HasField("tensor")
    )
    assert text.tensor.string_val == [b"    Once upon\n    *a* time\n"]
    # Numbers of stages are no curves.
    assert set(values) == {(7, "train/loss"), (8, "growth/logit_error"), (9, text.tag)}


def test_tensorboard_gets_the_config_as_text_and_as_hyperparameters(tmp_path):
    config = {"seed": 3, "optimizer": {"learning_rate": 1e-3}, "growth": [{"step": 4}], "x": None}
    with MetricsWriter(tmp_path) as writer:
        writer.tell_config(config, 0)
        writer.write("start", 0, stage=0, seed=3, command="growth train --config=a")
    values = {v.tag: v for e in events(tmp_path) for v in e.summary.value}
    (text,) = values["config/text_summary"].tensor.string_val
    assert '    "seed": 3,' in text.decode()
    (start,) = values["start/text_summary"].tensor.string_val
    assert "growth train --config=a" in start.decode()
    content = values["_hparams_/session_start_info"].metadata.plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["optimizer.learning_rate"].number_value == 1e-3
    assert hparams["seed"].number_value == 3
    assert hparams["growth"].string_value == "[{'step': 4}]"


def test_the_learning_rate_is_told_at_every_step(tmp_path):
    """So that a rise after growth shows, although records are written now and then."""
    with MetricsWriter(tmp_path) as writer:
        writer.tell("train/learning_rate", 9, [0.5, 0.1, 0.2])
        writer.write("train", 10, stage=0, learning_rate=0.3)
    told = {
        e.step: v.simple_value
        for e in events(tmp_path)
        for v in e.summary.value
        if v.tag == "train/learning_rate"
    }
    assert told == pytest.approx({7: 0.5, 8: 0.1, 9: 0.2, 10: 0.3})


def test_every_start_is_kept_though_two_are_at_one_step(tmp_path):
    for _ in range(2):
        with MetricsWriter(tmp_path, 0) as writer:
            writer.write("start", 0, stage=0, command="growth train")
    assert [record["kind"] for record in read_metrics(tmp_path / "metrics.jsonl")] == ["start"] * 2


def test_clocks_go_on_where_the_kept_records_end(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.clocks.add("saving", 7.0)
        writer.write("train", 1, stage=0, clock=writer.clocks.seconds)
        writer.clocks.add("saving", 9.0)
        writer.write("train", 2, stage=0, clock=writer.clocks.seconds)
    with MetricsWriter(tmp_path, 1) as writer:
        assert writer.clocks.seconds["saving"] == 7.0


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path):
    write_run(tmp_path, 6)
    write_run(tmp_path, 6, resume_step=3)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    purges = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert purges == [0, 4]


def test_a_missing_wandb_is_named_before_anything_is_touched(tmp_path, monkeypatch):
    write_run(tmp_path, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setitem(sys.modules, "wandb", None)  # how Python marks what cannot be imported
    with pytest.raises(TrackerError, match=r"wandb_project is 'growth'.*flax-growth\[wandb\]"):
        MetricsWriter(tmp_path, wandb_project="growth")
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    with pytest.raises(TrackerError, match="wandb is not installed"):
        MetricsWriter(tmp_path / "new", wandb_project="growth")
    assert not (tmp_path / "new").exists()


def test_all_kinds_can_be_written(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for kind in KINDS:
            writer.write(kind, 1, stage=0)
    assert tuple(record["kind"] for record in read_metrics(tmp_path / "metrics.jsonl")) == KINDS
