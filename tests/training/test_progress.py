"""What a person sees: numbers, the status line, the estimate, and no control codes in a log."""

import io

import pytest
from rich.console import Console

from growth.training.formatting import format_count, format_duration, format_power
from growth.training.report.clocks import Clocks
from growth.training.report.progress import Progress


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (812, "812"),
        (12_400, "12.4k"),
        (420_000, "0.42M"),
        (1_310_720, "1.31M"),
        (131_072_000, "131M"),
        (7.2e9, "7.20B"),
        (1e12, "1.00T"),
    ],
)
def test_counts_have_about_three_digits(number, text):
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (1.34e14, "1.3e14"), (9.96e14, "1.0e15"), (2e-7, "2.0e-7")]
)
def test_powers_of_ten(number, text):
    assert format_power(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (725, "12:05"), (10859, "3:00:59"), (187200, "2d 4:00:00")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def silent(steps, flops, stages):
    return Progress(steps, flops, stages, console=Console(file=io.StringIO()), clock=Clock())


def test_the_estimate_counts_flops_not_steps():
    progress = silent(100, 1000.0, 2)
    assert progress.seconds_left is None
    progress.update(0, 2.0, 1.0, 0.0, 0, seconds=1.0)
    assert progress.seconds_left is None
    # Half of the steps, but a tenth of the FLOPs: nine tenths of the time are still to come.
    progress.update(50, 2.0, 1.0, 100.0, 0, seconds=4.0)
    assert progress.seconds_left == pytest.approx(36.0)


def test_the_estimate_follows_the_current_speed():
    progress = silent(1000, 1e6, 1)
    flops = 0.0
    for step in range(400):
        speed = 10.0 if step < 200 else 1000.0
        flops += speed
        progress.update(step, 2.0, 1.0, flops, 0, seconds=1.0)
    assert progress.seconds_left == pytest.approx((1e6 - flops) / 1000.0)


def test_the_estimate_is_right_after_a_growth_however_long_that_and_compilation_took():
    """Of a run of two stages, whose steps take 1 and 2 seconds and cost 1 and 4 FLOPs."""
    clock = Clock()
    clocks, progress = Clocks(clock=clock), silent(200, 100 + 400, 2)

    def spend(activity, seconds):
        with clocks.running(activity):
            clock.time += seconds

    spend("compilation", 60.0)
    flops = 0.0
    for step in range(1, 201):
        stage, seconds = (0, 1.0) if step <= 100 else (1, 2.0)
        if step == 101:
            spend("growth", 90.0)
            spend("compilation", 60.0)
        spend("training", seconds)
        flops += 1 + 3 * stage
        left = 200 // 20 - step // 20
        others = left * clocks.mean("evaluation") + (1 - stage) * (
            clocks.mean("growth") + clocks.mean("compilation")
        )
        progress.update(step, 2.0, 1.0, flops, stage, seconds=seconds, others_left=others)
        if step > 102:
            to_come = (200 - step) * 2.0 + left * 5.0
            assert progress.seconds_left == pytest.approx(to_come, rel=1e-6)
        if step % 20 == 0:
            spend("evaluation", 5.0)
    assert clocks.seconds == {
        "training": 300.0, "compilation": 120.0, "evaluation": 50.0, "sampling": 0.0,
        "saving": 0.0, "growth": 90.0,
    }  # fmt: skip


def test_what_is_done_within_another_activity_counts_once():
    clock = Clock()
    clocks = Clocks({"growth": 100.0}, clock=clock)
    with clocks.running("growth"):
        clock.time += 1.0
        with clocks.running("evaluation"):
            clock.time += 2.0
            with clocks.running("compilation"):
                clock.time += 4.0
        clock.time += 8.0
        with clocks.running("evaluation"):
            clock.time += 16.0
    assert clocks.seconds["growth"] == 109.0
    assert clocks.seconds["evaluation"] == 18.0
    assert clocks.seconds["compilation"] == 4.0
    assert sum(clocks.seconds.values()) == 100.0 + clock.time
    assert (clocks.mean("growth"), clocks.mean("evaluation")) == (9.0, 9.0)


def test_a_log_gets_a_line_now_and_then_without_control_codes():
    file, clock = io.StringIO(), Clock()
    with Progress(40, 4e14, 4, console=Console(file=file, width=40), clock=clock) as progress:
        for step in range(31):
            clock.time = float(step)
            progress.update(step, 2.0 - step / 100, 12_400, step * 1e13, step // 10, seconds=1)
            if step == 15:
                progress.note("step 15  grew 0.42M → 1.31M  [bold]eval loss 1.902341 → 1.902341")
        clock.time = 31.0
        progress.update(31, 1.5, 12_400, 3.1e14, 3, seconds=1)
    assert file.getvalue().splitlines() == [
        "stage 1/4  step 0/40  loss 2.0000  12.4k tok/s  0 FLOPs  0%",
        "stage 2/4  step 10/40  loss 1.9000  12.4k tok/s  1.0e14 FLOPs  25%  0:30 left",
        "step 15  grew 0.42M → 1.31M  [bold]eval loss 1.902341 → 1.902341",
        "stage 3/4  step 20/40  loss 1.8000  12.4k tok/s  2.0e14 FLOPs  50%  0:20 left",
        "stage 4/4  step 30/40  loss 1.7000  12.4k tok/s  3.0e14 FLOPs  75%  0:10 left",
        "stage 4/4  step 31/40  loss 1.5000  12.4k tok/s  3.1e14 FLOPs  78%  0:09 left",
    ]


def test_the_last_status_is_not_printed_twice():
    file = io.StringIO()
    with Progress(10, 1e9, 1, console=Console(file=file), clock=Clock()) as progress:
        progress.update(10, 1.0, 100, 1e9, 0, seconds=1)
    assert file.getvalue().count("step 10/10") == 1


def test_nothing_is_printed_for_a_run_that_never_began():
    file = io.StringIO()
    with Progress(10, 1e9, 1, console=Console(file=file)):
        pass
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar_and_notes_above_it():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with Progress(10, 1e9, 1, console=console) as progress:
        progress.update(5, 1.0, 100, 5e8, 0, seconds=1)
        progress.note("grew")
    shown = file.getvalue()
    assert "━" in shown
    assert "50%" in shown
    assert "grew" in shown
    assert shown.rindex("grew") < shown.rindex("step 5/10")
    assert shown.endswith("\x1b[?25h")  # the cursor is back
