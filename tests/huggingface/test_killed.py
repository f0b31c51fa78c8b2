"""A process that is killed leaves a whole output or none, and the next one succeeds."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from growth.huggingface import plan_expansion
from growth.huggingface.checkpoint import open_checkpoint
from tests.helpers.small_models import make

SIZES = ["--embed_dim=36", "--num_layers=40", "--mlp_dim=400"]


def digest(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def command(source, output):
    module = [sys.executable, "-m", "growth.cli.expand", f"--source={source}"]
    return [*module, f"--output={output}", "--noverify", "--max_shard_size=200KB", *SIZES]


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.full)])
def test_killed_at_any_moment(times, tmp_path):
    source = make("llama", tmp_path / "source", torch.float32, max_shard_size="10KB")
    before = digest(source)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    began = time.monotonic()
    subprocess.run(
        command(source, tmp_path / "once"), check=True, env=environment, capture_output=True
    )
    whole = time.monotonic() - began
    expected = digest(tmp_path / "once")
    draw = random.Random(0)
    killed = 0
    for number in range(times):
        output = tmp_path / f"output_{number}"
        process = subprocess.Popen(
            command(source, output), env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # Mostly while it writes, which is the last part: the first is for imports.
        deadline = time.monotonic() + 10 * whole
        while process.poll() is None and not output.with_name(output.name + ".partial").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.3 * whole))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        if output.exists():
            assert digest(output) == expected
            continue
        subprocess.run(command(source, output), check=True, env=environment, capture_output=True)
        assert digest(output) == expected
        assert not output.with_name(output.name + ".partial").exists()
    assert killed
    assert digest(source) == before
    assert open_checkpoint(tmp_path / "once").architecture.num_layers == 40
    assert plan_expansion(tmp_path / "once", num_layers=41)
