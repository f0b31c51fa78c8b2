"""Whether transformers runs a model of given sizes: some of its kernels refuse some of them.

One layer is run with zeros, which costs next to nothing, before anything is written.
"""

from collections.abc import Iterator
from typing import Any

from growth.errors import InputError
from growth.huggingface.config_map import grown_config
from growth.huggingface.expansion.model_files import loaded_dtype
from growth.huggingface.expansion.model_runs import has_transformers
from growth.huggingface.expansion.planning import CheckpointExpansion
from growth.huggingface.expansion.streamed_models import run_with_zeros
from growth.huggingface.family import Config, Family
from growth.rules.composition import grow_to
from growth.rules.growth_plan import GrowthPlan

# Kernels want rows of whole multiples of some bytes: these multiples are tried.
_MULTIPLES = (2, 4, 8, 16, 32, 64)
_WIDTHS = ("embed_dim", "qk_dim", "v_dim", "mlp_dim")


class UnrunnableError(InputError):
    """transformers does not run a model of such sizes; the message names the nearest it does."""


def check_runnable(expansion: CheckpointExpansion) -> None:
    """Refuses a larger model that transformers does not run, where it runs the smaller one.

    Where it is not installed nothing is refused.

    Raises:
      UnrunnableError: it does not.
    """
    if not has_transformers():
        return
    source, dtype = expansion.source, loaded_dtype(expansion.config, expansion.specs.values())
    problem = _problem(expansion.config, source.family, dtype)
    specs = [source.spec(name) for name in source.parameters]
    if not problem or _problem(source.config, source.family, loaded_dtype(source.config, specs)):
        return
    near = ""
    for sizes in _next_above(expansion.plan):
        try:
            target = grow_to(**sizes)(source.architecture).target
            config = grown_config(source.config, source.family, target)
        except InputError:
            continue
        if not _problem(config, source.family, dtype):
            changed = {n: s for n, s in sizes.items() if s != getattr(expansion.plan.target, n)}
            if "qk_dim" in changed:
                changed["head_dim"] = changed.pop("qk_dim")
                changed.pop("v_dim", None)
            flags = " ".join(f"--{name}={size}" for name, size in changed.items())
            near = f"; it would run with {flags}"
            break
    raise UnrunnableError(f"transformers does not run the larger model in {dtype}: {problem}{near}")


def _problem(config: Config, family: Family, dtype: str) -> str:
    """Why the library does not run one layer of a model; empty if it does."""
    one: dict[str, Any] = {**config, family.config_names["num_layers"]: 1}
    if isinstance(one.get("layer_types"), list):
        one["layer_types"] = one["layer_types"][:1]
    try:
        run_with_zeros(one, dtype)
    except Exception as error:  # whatever the library and its kernels raise
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def _next_above(plan: GrowthPlan) -> Iterator[dict[str, Any]]:
    """Sizes that are next above those that were wanted, the nearest first."""
    wanted = {name: getattr(plan.target, name) for name in plan.changes if name in _WIDTHS}
    others = {
        name: getattr(plan.target, name)
        for name in ("num_layers", "num_heads", "num_kv_heads")
        if name in plan.changes
    }
    seen = [wanted]
    for multiple in _MULTIPLES:
        sizes = {name: -(-size // multiple) * multiple for name, size in wanted.items()}
        if sizes not in seen:
            seen.append(sizes)
            yield sizes | others
