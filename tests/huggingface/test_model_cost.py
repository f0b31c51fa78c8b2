"""What models cost, by the one formula, against what torch counts while it runs them."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from growth.architecture.cost import num_parameters
from growth.huggingface import plan_expansion
from tests.helpers.small_models import CONFIGS, make, steps


def built(config):
    """A model of a config, whose attention and experts are plain products of matrices."""
    kind = transformers.AutoConfig.for_model(**config)
    eager = dict(attn_implementation="eager")
    if "num_local_experts" in config:
        eager["experts_implementation"] = "eager"
    return transformers.AutoModelForCausalLM.from_config(kind, **eager).eval()


def counted_flops(model, length):
    """Operations of a forward pass in products of matrices, as torch counts them.

    The angles of rotary positions are a product, too, for torch; but they are no weights.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros((1, length), dtype=torch.long))
    flops = counter.get_flop_counts()
    angles = [sum(ops.values()) for name, ops in flops.items() if name.endswith("rotary_emb")]
    return sum(flops["Global"].values()) - sum(angles)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_what_torch_counts(name, tmp_path):
    expansion = plan_expansion(make(name, tmp_path / "source"), **steps(name)["all"])
    extra = expansion.source.family.extra_parts(expansion.source.config)
    plan = expansion.plan
    models = zip(
        (expansion.source.config, expansion.config),
        (plan.source, plan.target),
        expansion.costs,
        strict=True,
    )
    for config, architecture, cost in models:
        model = built(config)
        length = architecture.max_length
        assert cost.flops * length == counted_flops(model, length)
        assert cost.parameters == sum(p.numel() for p in model.parameters())
        assert cost.bytes == 8 * cost.parameters  # in float64
        # OPT's table of positions begins with two rows that no token has.
        without = (
            2
            * architecture.embed_dim
            * (architecture.position == "learned")
            * (expansion.source.family.model_type == "opt")
        )
        assert num_parameters(architecture, extra) == cost.parameters - without
