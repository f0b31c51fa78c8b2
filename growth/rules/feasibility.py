"""What cannot grow exactly, and why. Each function gives the reason, or None where growth is exact.

A plan asks them before any parameter is touched.
"""

import numpy as np

from growth.architecture import Architecture, LayerShape
from growth.architecture.positions import alibi_slopes


def embed(architecture: Architecture) -> str | None:
    """Why the residual stream of an architecture cannot become wider."""
    arch = architecture
    tied_without_norm = arch.tied_embeddings and not arch.final_norm
    if arch.position == "sinusoidal":
        return (
            "sinusoidal positions of another width differ in all dimensions, also in the old ones; "
            "as learned positions, which may start as the same numbers, they can grow"
        )
    if arch.norm == "layernorm" and arch.norms_write_stream:
        return (
            "a layernorm writes to the stream, and what it writes to new dimensions is not the "
            "mean of what it writes to the old ones, which the layernorms that read them need"
        )
    if arch.norm == "layernorm" and tied_without_norm:
        return (
            "with layernorm, tied_embeddings and no final_norm, new dimensions of the stream hold "
            "the mean of the old ones, and the output layer, being the embedding, would add the "
            "product of two means to every logit"
        )
    if arch.fixed_norm_eps and arch.norm_placement == "post":
        return (
            "fixed_norm_eps is True and norm_placement 'post': the stream would have to grow by "
            "√(ĥ/h), and what a norm has made of it is read without another norm"
        )
    if arch.norm == "layernorm" and arch.branch_gain:
        return (
            "with layernorm, new dimensions of the stream must hold the mean of the old ones, and "
            "what branch_gain multiplies in each dimension apart has no such mean"
        )
    return _output(arch) if arch.tied_embeddings else None


def _output(arch: Architecture) -> str | None:
    """Why logits would be multiplied, where the output layer is the embedding."""
    if arch.final_norm and arch.norm_gain:
        return None  # that gain makes up for it
    shares = {
        "the output of the final norm grows by √(ĥ/h)": arch.final_norm * 0.5,
        "the stream grows by √(ĥ/h) (fixed_norm_eps)": 0.5
        * (arch.fixed_norm_eps and not arch.final_norm),
        "the embedding shrinks by √(h/ĥ) (scaled_embedding)": -0.5 * arch.scaled_embedding,
        "the embedding grows by √(ĥ/h) (fixed_norm_eps)": 0.5 * arch.fixed_norm_eps,
        "logits are divided by √ĥ, not by √h (scaled_logits)": -0.5 * arch.scaled_logits,
    }
    if not sum(shares.values()):
        return None
    said = ", ".join(words for words, share in shares.items() if share)
    kind = "no norm_gain" if arch.final_norm else "no final_norm"
    return (
        f"with tied_embeddings and {kind}, {said}, with neither a gain nor an output layer of its "
        f"own to make up for it"
    )


def qk(architecture: Architecture) -> str | None:
    """Why queries and keys of an architecture cannot become wider."""
    if architecture.qk_norm == "none":
        return None
    return (
        f"qk_norm is {architecture.qk_norm!r}, and a norm over queries and keys sees their new "
        f"columns: they would have to be zero in both, and would then never learn"
    )


def heads(architecture: Architecture, old: LayerShape, new: LayerShape) -> str | None:
    """Why a layer of an architecture cannot have the heads of another one."""
    if architecture.qk_norm == "all":
        return (
            "qk_norm is 'all', and a norm over all heads sees the new ones: their queries and keys "
            "would have to be zero, and would then never learn"
        )
    if architecture.position == "alibi":
        head = np.arange(old.num_heads)
        group, place = head // old.queries_per_group, head % old.queries_per_group
        moved = alibi_slopes(new.num_heads)[group * new.queries_per_group + place]
        if not np.array_equal(moved, alibi_slopes(old.num_heads)):
            return (
                f"position is 'alibi', and among {new.num_heads} heads the old {old.num_heads} "
                f"would have other slopes; they keep theirs below the next power of two, if whole "
                f"groups are added"
            )
    return None


def layers(architecture: Architecture) -> str | None:
    """Why an architecture cannot have more layers."""
    if architecture.norm_placement != "post":
        return None
    return (
        "norm_placement is 'post', and a norm after a new layer would change the stream, whatever "
        "the layer adds to it"
    )
