"""The model card of a grown checkpoint: what was done, from what, and the proof."""

from pathlib import Path

from growth.huggingface.companion_files import summary
from growth.huggingface.expansion.planning import CheckpointExpansion
from growth.huggingface.expansion.verification import Verification

_FIELDS = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "qk_dim", "v_dim", "mlp_dim")


def comparison(expansion: CheckpointExpansion) -> list[tuple[str, str, str]]:
    """What grows, as rows of a name, before and after: sizes, parameters, bytes, operations."""
    plan = expansion.plan
    rows = [
        (name, str(getattr(plan.source, name)), str(getattr(plan.target, name)))
        for name in (*_FIELDS, "norm_eps", "rope_theta")
        if name in plan.changes
    ]
    old, new = expansion.costs
    return [
        *rows,
        ("parameters", f"{old.parameters:,}", f"{new.parameters:,}"),
        ("size", _show_bytes(old.bytes), _show_bytes(new.bytes)),
        ("FLOPs per token", f"{old.flops:.3g}", f"{new.flops:.3g}"),
    ]


def write_model_card(
    expansion: CheckpointExpansion, directory: Path, *, proof: Verification | str
) -> None:
    """Writes the card, `README.md`.

    Args:
      expansion: what was done.
      directory: where the larger model is.
      proof: what was verified; or, if nothing was, why not and what to run.
    """
    plan, source = expansion.plan, expansion.source
    new_layers = [str(i) for i, origin in enumerate(plan.layer_sources) if origin is None]
    lines = [
        f"# {source.directory.resolve().name}, grown",
        "",
        f"This {source.family.model_type} model was made from `{source.directory.resolve().name}` "
        "by function-preserving expansion (Gesmundo and Maile, arXiv 2308.06103). It computes the "
        "same function: train it on.",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {name} | {old} | {new} |" for name, old, new in comparison(expansion)),
        "",
        f"New layers: {', '.join(new_layers) or 'none'} (counted from 0). New entries that may be "
        f"anything: {expansion.init}, seed {expansion.seed}.",
        "",
        *(f"{note}.\n" for note in source.notes),
        "## Files",
        "",
        "| | |",
        "|---|---|",
        *(f"| {fate} | {names} |" for fate, names in summary(source.files).items()),
        "",
        "## Is it the same function?",
        "",
    ]
    if isinstance(proof, str):
        lines += [proof]
    else:
        lines += [
            "Both models were run and compared:",
            "",
            "```",
            str(proof),
            "```",
        ]
    (directory / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _show_bytes(num_bytes: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.3g} {name}"
    return f"{num_bytes} B"
