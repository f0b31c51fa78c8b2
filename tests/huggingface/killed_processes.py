"""Grows a checkpoint in processes that are killed at chosen points of their work.

    python -m tests.huggingface.killed_processes SOURCE DIRECTORY NUMBER

Python tells an audit hook of every file that is about to be opened, mapped, renamed or removed.
From the making of the directory that is written to on, these are the points: a process is killed
right before the one that is its turn. Processes are forks of this one, which has imported
everything and started no thread. What became of each is printed as JSON.
"""

import hashlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from growth.files import write_atomically
from growth.huggingface import expand_checkpoint
from growth.huggingface.transformers_config import load_problem

SIZES = dict(embed_dim=36, num_layers=8, mlp_dim=100)
SEVERAL_FILES = dict(max_shard_size="60KB")
_POINTS = ("open", "os.", "shutil.", "mmap.")


def digest(directory):
    """What a directory holds: a hash of each file by its name."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def grow(source, output, **options):
    """Writes the larger checkpoint, in this process."""
    expand_checkpoint(source, output, verify=False, **SIZES, **options)


def at_every_point(act):
    """Calls a function with the number and the event of each point, before it happens."""
    number = -1

    def hook(event, arguments):
        nonlocal number
        if not event.startswith(_POINTS):
            return
        if number < 0 and not (event == "os.mkdir" and ".growth-" in str(arguments[0])):
            return
        number += 1
        act(number, event)

    sys.addaudithook(hook)


def in_a_process(function):
    """Calls a function in a fork of this process; gives its exit code, or minus the signal."""
    child = os.fork()
    if not child:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def points(source, output):
    """The events of a process that is not killed, in order."""
    events = []

    def record():
        at_every_point(lambda number, event: events.append(event))
        grow(source, output, **SEVERAL_FILES)
        found = list(events)
        output.with_suffix(".json").write_text(json.dumps(found))

    assert in_a_process(record) == 0
    return json.loads(output.with_suffix(".json").read_text())


def killed_at(point, source, output):
    """What is there after a process was killed at a point, and after the next one."""

    def run():
        at_every_point(
            lambda number, event: number == point and os.kill(os.getpid(), signal.SIGKILL)
        )
        grow(source, output, **SEVERAL_FILES)

    code = in_a_process(run)
    there = digest(output) if output.exists() else None
    partial = list(output.parent.glob(".growth-*"))
    left = {p.name: p.stat().st_size for d in partial for p in d.glob("content/*")} or None
    # The next one writes a single file, so that whatever it leaves of those before it shows.
    again = None if there else in_a_process(lambda: grow(source, output))
    write_atomically(output.with_suffix(".txt"), "whoever writes here next removes what was left")
    return dict(
        code=code,
        there=there,
        left=left,
        again=again,
        then=digest(output),
        partial_then=[str(p) for p in output.parent.glob(".growth-*")],
    )


def main():
    """Kills as many processes as is asked for: right before and after the output appears under its
    name, the others at points spread evenly from the first one on."""
    source, directory, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    load_problem(json.loads((source / "config.json").read_text()))  # imports transformers, once
    events = points(source, directory / "several")
    assert in_a_process(lambda: grow(source, directory / "single")) == 0
    renamed = events.index("os.rename")
    spread = min(number - 2, renamed)
    chosen = [i * renamed // spread for i in range(spread)] + [renamed, len(events) - 1]
    killed = {point: killed_at(point, source, directory / f"output_{point}") for point in chosen}
    print(json.dumps(dict(events=events, killed=killed)))


if __name__ == "__main__":
    main()
