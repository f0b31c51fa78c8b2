"""Writes a checkpoint of a run as one of Hugging Face, which transformers loads.

    python -m growth.cli.export --workdir=runs/continued --output=DIR --like=SOURCE
    python -m growth.cli.export --workdir=runs/quickstart --output=DIR --family=llama

With `--like`, the config of that checkpoint is kept but for what grew, and its tokenizer is carried
over.
"""

from absl import app, flags, logging

from growth.cli import errors
from growth.huggingface import save
from growth.training.run.restore import load_model

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "What to write; it must not exist.", required=True)
_LIKE = flags.DEFINE_string("like", None, "A checkpoint of Hugging Face that the run began with.")
_FAMILY = flags.DEFINE_string("family", None, "Else the model_type to write, such as llama.")
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest if not given.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16", "float64"], "Of the tensors."
)
_SHARD = flags.DEFINE_string("max_shard_size", "5GB", "How large a file may be.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options begin with --")
    logging.set_verbosity(logging.WARNING)
    with errors.reported():
        model, params, _ = load_model(_WORKDIR.value, _STEP.value)
        save(
            model.architecture,
            params,
            _OUTPUT.value,
            like=_LIKE.value,
            family=_FAMILY.value,
            dtype=_DTYPE.value,
            max_shard_size=_SHARD.value,
        )
        print(f"written: {_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
