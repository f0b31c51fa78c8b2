"""Continues a text with a trained model.

python -m growth.cli.sample --workdir=runs/quickstart --prompt="def main("
"""

from absl import app, flags, logging

from growth.cli import errors
from growth.training.data.tokenizers import load_tokenizer
from growth.training.generation import generate
from growth.training.run.restore import load_model

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.", required=True)
_PROMPT = flags.DEFINE_string("prompt", None, "The text to continue.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest if not given.")
_NUM_TOKENS = flags.DEFINE_integer("num_tokens", 300, "How many tokens to add.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest token.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Draw among this many likeliest tokens only.")
_SEED = flags.DEFINE_integer("seed", 0, "Decides what is drawn.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options begin with --")
    logging.set_verbosity(logging.WARNING)
    with errors.reported():
        model, params, config = load_model(_WORKDIR.value, _STEP.value)
        text = generate(
            model,
            params,
            load_tokenizer(config.data.tokenizer),
            _PROMPT.value,
            num_tokens=_NUM_TOKENS.value,
            temperature=_TEMPERATURE.value,
            top_k=_TOP_K.value,
            seed=_SEED.value,
        )
        print(_PROMPT.value + text)


if __name__ == "__main__":
    app.run(main)
