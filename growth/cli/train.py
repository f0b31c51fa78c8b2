"""Trains a model on a growth schedule.

    python -m growth.cli.train --config=configs/quickstart.py --workdir=runs/quickstart

The same command again resumes. Every field of the config can be set from the command line:
`--config.optimizer.learning_rate=3e-4`.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from growth.cli import errors
from growth.training.config import parse
from growth.training.loop import train
from growth.training.report.preview import dry_run

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, or one like them.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run keeps its checkpoints, metrics and report."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the stages, their sizes and costs, and do nothing else."
)


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options begin with --")
    logging.set_verbosity(logging.WARNING)
    with errors.reported():
        config = parse(_CONFIG.value)
        if _DRY_RUN.value:
            dry_run(config)
            return
        if not _WORKDIR.value:
            raise app.UsageError("--workdir is needed, unless with --dry_run")
        report = train(config, _WORKDIR.value)
        print(f"report: {report}", file=sys.stderr)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=errors.parse_flags)
