"""A vision transformer of handwritten digits that grows three times while it trains.

    growth train --config=digits --workdir=runs/digits

It takes scikit-learn's 1,797 images of 8×8 pixels, in patches of 2×2, from 12 thousand to 0.2
million parameters. To compare with the same model trained at its full size from the start:

    growth train --config=digits:full --workdir=runs/digits_full
"""

from ml_collections import ConfigDict

from growth.architecture.presets import VIT
from growth.errors import InputError
from growth.training.config import defaults

SIZES = dict(embed_dim=64, num_layers=4, num_heads=4, qk_dim=16, v_dim=16, mlp_dim=256)


def get_config(size: str = "grown") -> ConfigDict:
    """The config.

    Args:
      size: "grown" along a schedule, or "full" from the start.
    """
    if size not in ("grown", "full"):
        raise InputError(f"size is {size!r}, but it must be grown or full: --config=digits:full")
    first = dict(embed_dim=24, num_layers=2, num_heads=2, qk_dim=12, v_dim=12, mlp_dim=64)
    config = defaults(
        **VIT,
        **{"grown": first, "full": SIZES}[size],
        vocab_size=10,
        max_length=17,
        patches=dict(height=8, width=8, channels=1, size=2),
    )
    if size == "grown":
        config.growth = (
            dict(step=600, embed_dim=40, mlp_dim=128),
            dict(step=1100, num_layers=3, num_heads=4, qk_dim=16, v_dim=16),
            dict(step=1600, **SIZES),
        )
    config.data.images = "digits"
    config.data.max_shift = 1
    config.data.validation_fraction = 0.25
    config.num_steps = 4000
    config.batch_size = 64
    config.eval_batches = 7  # 448 images, for 449 in the validation side
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    return config
