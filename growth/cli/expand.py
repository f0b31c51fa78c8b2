"""`growth expand`."""

from growth.cli.checkpoint_growth import is_run, refuse_flags_of_others
from growth.cli.flags import Expand


def run(flags: Expand) -> int:
    """Runs the command. It opens what this kind of checkpoint needs, and no more."""
    refuse_flags_of_others(flags)
    if is_run(flags.source):
        from growth.cli.run_growth import expand
    else:
        from growth.cli.huggingface_growth import expand
    expand(flags)
    return 0
