"""Heads whose width or number is bound to embed_dim: checks, and the nearest sizes that can be."""

import math

from growth.architecture import Architecture
from growth.errors import InputError
from growth.rules.growth_plan import GrowthError


def implied_head_dim(model_type: str, embed_dim: int, num_heads: int) -> int:
    """The width of a head where the config does not say it."""
    if embed_dim % num_heads:
        raise InputError(
            f"a config of {model_type} says hidden size {embed_dim} and {num_heads} heads, but "
            f"heads must divide the hidden size"
        )
    return embed_dim // num_heads


def check_tied_heads(model_type: str, target: Architecture) -> None:
    """Refuses a target whose heads are not embed_dim / num_heads wide, and names near ones."""
    shape = target.layers[0]
    if (shape.qk_dim, shape.v_dim) == (target.embed_dim / shape.num_heads,) * 2:
        return
    near = "; or ".join(
        f"--embed_dim={embed} --num_heads={heads} --head_dim={width}"
        for embed, heads, width in _nearest(target.embed_dim, shape.num_heads, shape.qk_dim)
    )
    raise GrowthError(
        f"embed_dim would be {target.embed_dim}, num_heads {shape.num_heads} and a head "
        f"{shape.qk_dim} wide, but a config of {model_type} can only say heads of the width "
        f"embed_dim / num_heads. Near is {near}"
    )


def check_heads_divide(model_type: str, target: Architecture) -> None:
    """Refuses heads that do not divide embed_dim, as transformers does, though they need not."""
    embed, heads = target.embed_dim, target.layers[0].num_heads
    if embed % heads == 0:
        return
    wider = -(-embed // heads) * heads
    small = [number for number in range(1, math.isqrt(embed) + 1) if embed % number == 0]
    more = [n for n in (*small, *(embed // n for n in small)) if n > heads]
    raise GrowthError(
        f"embed_dim would be {embed} and num_heads {heads}, but transformers loads a {model_type} "
        f"only where embed_dim is a multiple of num_heads. Near is --embed_dim={wider}"
        + (f"; or --num_heads={min(more)}" if more else "")
    )


def _nearest(embed_dim: int, num_heads: int, width: int) -> list[tuple[int, int, int]]:
    """Sizes (embed_dim, num_heads, head_dim), none below those given, whose product fits."""
    width += width % 2
    heads = max(num_heads, -(-embed_dim // width))
    wide = max(width, -(-embed_dim // num_heads))
    wide += wide % 2
    found = [(heads * width, heads, width), (num_heads * wide, num_heads, wide)]
    return list(dict.fromkeys(found))
