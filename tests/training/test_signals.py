"""A run that must end hears of it while nothing can be interrupted, and says what to do next."""

import pytest

from growth.training.run.stopping import STOPPED
from tests.helpers import runs

# The main thread sleeps in C, as in a compilation, and does not wake for signals: the kernel hands
# them to another thread.
DEAF = """
import ctypes
import os
import signal
import threading

from growth.training import loop
from tests.helpers import runs

compiled_step, stages = loop._compiled_step, []


def deaf(run, stage, state):
    stages.append(stage)
    if stage.index == {stage}:
        signal.pthread_sigmask(signal.SIG_BLOCK, [{signal}])
        threading.Timer(0.5, os.kill, (os.getpid(), {signal})).start()
        ctypes.CDLL(None).sleep(600)
    return compiled_step(run, stage, state)


loop._compiled_step = deaf


def get_config():
    config = runs.small_config({files!r})
    config.growth = (dict(step=4, mlp_dim=24),)
    config.num_steps, config.samples.prompts, config.eval_every = 8, (), 4
    return config
"""


@pytest.mark.parametrize(
    ("signal", "stage", "said"),
    [
        ("signal.SIGTERM", 1, "stopped after step 4; the same command goes on"),
        pytest.param(
            *("signal.SIGHUP", 0, "stopped before its first save; the same command goes on"),
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_signal_is_heard_while_a_program_is_compiled(signal, stage, said, tmp_path):
    files = runs.write_corpus(tmp_path / "text")
    config = tmp_path / "config.py"
    config.write_text(DEAF.format(signal=signal, stage=stage, files=files))
    process = runs.start("train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == STOPPED, output
    assert said in output
    assert "Traceback" not in output
    assert runs.steps(tmp_path / "run") == ((4,) if stage else ())
