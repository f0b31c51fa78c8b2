"""`growth report`."""

from pathlib import Path

from growth.cli.flags import Report
from growth.training.report.comparison import write_comparison
from growth.training.report.page import write_report
from growth.training.report.records import ReportError, read_run


def run(flags: Report) -> int:
    """Runs the command."""
    if not flags.runs:
        raise ReportError("growth report needs the directory of a run, or of several")
    if len(flags.runs) == 1 and flags.output is None:
        (workdir,) = flags.runs
        one = read_run(workdir)
        path = write_report(workdir, title=one.name, config=one.config, records=one.records)
    else:
        path = write_comparison(flags.output or Path("comparison.html"), flags.runs)
    print(f"report: {path}")
    return 0
