"""A process that is killed leaves a whole output or none, and the next one succeeds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from growth.huggingface import plan_expansion
from growth.huggingface.checkpoint import open_checkpoint
from tests.helpers.small_models import make
from tests.huggingface.killed_processes import SIZES, digest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [10, pytest.param(1000, marks=pytest.mark.full)])
def test_killed_at_points_of_its_work(number, tmp_path):
    source = make("llama", tmp_path / "source", torch.float32, max_shard_size="10KB")
    before = digest(source)
    module = [sys.executable, "-m", "tests.huggingface.killed_processes"]
    done = subprocess.run(
        [*module, source, tmp_path, str(number)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    several, single = digest(tmp_path / "several"), digest(tmp_path / "single")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "several").iterdir()}
    killed = found["killed"].values()
    assert len(killed) == min(number, len(found["events"])) >= 10
    assert len(several) > 5
    for result in killed:
        assert result["code"] == -signal.SIGKILL
        assert result["there"] in (None, several)
        assert result["again"] in (None, 0)
        assert result["then"] == (several if result["there"] else single)
        assert not result["partial_then"]
    # They were killed before, in the midst of, and after what is to be in one piece.
    left = [result["left"] for result in killed if result["left"] is not None]
    assert any(result["left"] is None and not result["there"] for result in killed)
    assert any(size < sizes.get(name, 0) for files in left for name, size in files.items())
    assert any(sizes.items() <= files.items() for files in left)
    assert any(result["there"] for result in killed)
    assert digest(source) == before
    assert open_checkpoint(tmp_path / "single").architecture.num_layers == SIZES["num_layers"]
    assert plan_expansion(tmp_path / "single", num_layers=9)
