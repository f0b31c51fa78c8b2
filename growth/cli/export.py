"""`growth export`."""

from growth.cli.flags import Export
from growth.huggingface import save
from growth.training.run.restore import load_model


def run(flags: Export) -> int:
    """Runs the command."""
    model, params, _ = load_model(flags.workdir, flags.step)
    save(
        model.architecture,
        params,
        flags.output,
        like=flags.like,
        family=flags.family,
        dtype=flags.dtype,
        max_shard_size=flags.max_shard_size,
        ignore_config_keys=(flags.ignore_config_keys or "").split(","),
    )
    print(f"written: {flags.output}")
    return 0
