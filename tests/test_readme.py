"""The README's code does what it says, and prints what it says."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest

from growth.training.config import parse
from growth.training.loop import train

ROOT = Path(__file__).parent.parent
# A block of code to run, and the block of its output that follows it.
EXAMPLES = re.findall(
    r"<!-- run -->\n```python\n(.*?)```\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A folder with a run of the quickstart in it, cut short."""
    folder = tmp_path_factory.mktemp("readme")
    config = runpy.run_path(str(ROOT / "configs" / "quickstart.py"))["get_config"]()
    config.growth = tuple(
        entry | {"step": 2 + 2 * index} for index, entry in enumerate(config.growth)
    )
    config.num_steps, config.batch_size, config.eval_batches = 12, 8, 1
    config.mesh.data, config.optimizer.warmup_steps, config.samples.prompts = 1, 0, ()
    train(parse(config), folder / "runs" / "quickstart")
    return folder


@pytest.mark.parametrize(("code", "output"), EXAMPLES, ids=["checkpoint", "own_model"])
def test_example(code, output, workdir, monkeypatch):
    monkeypatch.chdir(workdir)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    # The rounding error is this machine's own; everything else is the same everywhere.
    error = re.compile(r"(?<=change of a logit: )\S+")
    assert error.sub("", printed.getvalue()) == error.sub("", output)
    assert all(float(found) < 1e-5 for found in error.findall(printed.getvalue()))
