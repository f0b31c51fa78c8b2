"""`growth train`."""

import sys

from growth.cli import config_files, config_overrides
from growth.cli.flags import Train
from growth.training.config import parse
from growth.training.loop import train


def run(flags: Train) -> int:
    """Runs the command."""
    config = config_files.load_config(flags.config)
    config_overrides.override(config, flags.overrides)
    report = train(parse(config), flags.workdir, resume_from=flags.resume_from)
    print(f"report: {report}", file=sys.stderr)
    return 0
