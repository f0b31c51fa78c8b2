"""GPT-2 of 124M parameters, grown from 30M in three steps; for eight GPUs or a TPU slice.

    growth train --config=gpt2_124m --workdir=runs/gpt2 \\
        --config.data.files='/data/openwebtext/**/*.txt' --config.data.tokenizer=gpt2/tokenizer.json

To see what it costs, on any machine and without the data:

    growth plan --config=gpt2_124m

Heads stay 64 wide and grow in number with the stream, as they would between models of a family.
The target has GPT-2's own shape, so that it can be compared with every published run of it.
"""

from ml_collections import ConfigDict

from growth.architecture.presets import GPT2
from growth.training.config import defaults


def get_config() -> ConfigDict:
    """The config."""
    config = defaults(
        vocab_size=50304,  # GPT-2's 50257, rounded up to a multiple of 128
        max_length=1024,
        embed_dim=384,
        num_layers=6,
        num_heads=6,
        qk_dim=64,
        v_dim=64,
        mlp_dim=1536,
        **GPT2,
    )
    config.growth = (
        dict(step=3000, embed_dim=576, num_heads=9, mlp_dim=2304),
        dict(step=6000, num_layers=12),
        dict(step=9000, embed_dim=768, num_heads=12, mlp_dim=3072),
    )
    config.num_steps = 20_000
    config.batch_size = 480
    config.dtype = "bfloat16"
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 500
    config.optimizer.final_learning_rate = 0.1
    config.mesh.data = 8
    config.eval_every = 500
    config.eval_batches = 20
    config.checkpoint_every = 1000
    config.log_every = 20
    config.samples.prompts = ("The meaning of life is", "Once upon a time")
    return config
