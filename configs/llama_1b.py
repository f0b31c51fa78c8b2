"""A Llama of 1.2B parameters, grown from 0.25B in three steps; for a mesh of 64 accelerators.

    growth train --config=llama_1b --workdir=runs/llama \\
        --config.data.files='/data/text/**/*.txt' --config.data.tokenizer=llama/tokenizer.json

To see what it costs, on any machine and without the data:

    growth plan --config=llama_1b

The target has the shape of Llama 3.2 1B: 16 layers, 32 heads in 8 groups, a gated MLP, tied
embeddings. Heads are added by whole groups, so every group keeps its four queries. Parameters are
split 8 ways (fsdp), and heads, MLP units and vocabulary 2 ways (tensor).
"""

from ml_collections import ConfigDict

from growth.training.config import defaults


def get_config() -> ConfigDict:
    """The config."""
    config = defaults(
        vocab_size=128_256,
        max_length=2048,
        embed_dim=1024,
        num_layers=8,
        num_heads=16,
        num_kv_heads=4,
        qk_dim=64,
        v_dim=64,
        mlp_dim=4096,
        norm="rmsnorm",
        norm_eps=1e-5,
        position="rope",
        rope_theta=500_000.0,
        activation="silu",
        gated_mlp=True,
        tied_embeddings=True,
    )
    config.growth = (
        dict(step=4000, num_layers=12, mlp_dim=6144),
        dict(step=8000, embed_dim=1536, num_heads=24),
        dict(step=14_000, embed_dim=2048, num_heads=32, num_layers=16, mlp_dim=8192),
    )
    config.num_steps = 40_000
    config.batch_size = 512
    config.dtype = "bfloat16"
    config.remat = True
    config.optimizer.learning_rate = 4e-4
    config.optimizer.warmup_steps = 1000
    config.optimizer.final_learning_rate = 0.1
    config.mesh.data = 4
    config.mesh.fsdp = 8
    config.mesh.tensor = 2
    config.eval_every = 1000
    config.eval_batches = 20
    config.checkpoint_every = 1000
    config.log_every = 20
    config.samples.prompts = ("The meaning of life is", "Once upon a time")
    return config
