"""`growth sample`."""

from growth.cli.flags import Sample
from growth.training.data.tokenizers import load_tokenizer
from growth.training.generation import generate
from growth.training.run.restore import load_model


def run(flags: Sample) -> int:
    """Runs the command."""
    model, params, config = load_model(flags.workdir, flags.step)
    text = generate(
        model,
        params,
        load_tokenizer(config.data.tokenizer),
        flags.prompt,
        num_tokens=flags.num_tokens,
        temperature=flags.temperature,
        top_k=flags.top_k,
        seed=flags.seed,
    )
    print(flags.prompt + text)
    return 0
