"""`growth plan`."""

from growth.cli import config_files, config_overrides
from growth.cli.checkpoint_growth import is_run, refuse_flags_of_others
from growth.cli.flags import Plan
from growth.errors import InputError


def run(flags: Plan) -> int:
    """Runs the command. It opens what a config or this kind of checkpoint needs, and no more."""
    if (flags.config is None) == (flags.source is None):
        raise InputError("give either --config or --source: what is to be planned")
    if flags.config is not None:
        _plan_config(flags, flags.config)
        return 0
    if flags.overrides:
        raise InputError(f"{flags.overrides[0]} applies to --config, not to --source")
    refuse_flags_of_others(flags)
    if is_run(str(flags.source)):
        from growth.cli.run_growth import plan
    else:
        from growth.cli.huggingface_growth import plan
    plan(flags)
    return 0


def _plan_config(flags: Plan, name: str) -> None:
    from growth.training.config import parse
    from growth.training.report.preview import dry_run

    others = {**vars(flags), **vars(flags.sizes)}
    nothing = Plan(config=name, overrides=flags.overrides)
    for flag, value in others.items():
        if flag != "sizes" and value is not None and value != vars(nothing).get(flag):
            raise InputError(f"--{flag} applies to --source, not to --config")
    config = config_files.load_config(name)
    config_overrides.override(config, flags.overrides)
    dry_run(parse(config))
