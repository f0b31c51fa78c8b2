"""A proof for one growth step: is the function the same, and can every new entry learn?

    certificate = growth.certify(apply, params, grown, plan, batch, blueprint=..., loss=...)
    print(certificate)
    certificate.require()

It runs the real network, before and after. What it promises is in `PROMISES`.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growth.architecture import Architecture
from growth.blueprints.blueprint import Blueprint
from growth.blueprints.reference import blueprint_for
from growth.certification import trainability
from growth.errors import InputError
from growth.expansion.parameters import expand
from growth.rules.growth_plan import GrowthPlan

# The largest difference of logits, relative to the largest logit, for each dtype of parameters.
# bfloat16 promises nothing: its difference is the rounding of what is multiplied.
PROMISES = {"float64": 1e-12, "float32": 1e-5}

_DTYPES = ("float64", "float32", "bfloat16")

Apply = Callable[[Architecture, Any, Any], jax.Array]


class CertificateError(InputError):
    """A growth step does not keep what growth promises; the message lists what is broken."""


@dataclasses.dataclass(frozen=True)
class Preservation:
    """How far logits moved, in one dtype of the parameters.

    Attributes:
      max_error, mean_error: of the logits, relative to the largest logit before.
      agreement: the share of positions where the likeliest token is the same.
    """

    max_error: float
    mean_error: float
    agreement: float


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What a growth step did; see the module.

    Attributes:
      plan: the growth step.
      preservation: by dtype.
      drift: for each old layer how far the stream after it moved, relative to its largest entry, in
        float64; empty where the model does not offer it. The first that is not tiny is where the
        fault is.
      deviation: how far the given parameters are from those that `growth.expand` makes, relative to
        the largest entry of each array, in units of the rounding of their dtype.
      life: gradients of new entries; None where they were not looked at.
      first_update: the largest first update of a new entry, and of an old one, over the learning
        rate; None where no optimizer was given.
      problems: the promises that are broken, in words.
    """

    plan: GrowthPlan
    preservation: Mapping[str, Preservation]
    drift: tuple[float, ...]
    deviation: float
    life: trainability.GradientReport | None
    first_update: tuple[float, float] | None
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every promise is kept."""
        return not self.problems

    def require(self) -> None:
        """Raises `CertificateError` where a promise is broken."""
        if self.problems:
            raise CertificateError("growth is not certified:\n  " + "\n  ".join(self.problems))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values that JSON can hold."""
        plan = self.plan
        architectures = {"source": plan.source, "target": plan.target}
        return {
            "passed": self.passed,
            "problems": list(self.problems),
            "layer_sources": list(plan.layer_sources),
            **{name: arch.to_dict() for name, arch in architectures.items()},
            **{f"{n}_parameters": arch.num_parameters for n, arch in architectures.items()},
            **{
                f"{n}_training_flops_per_token": arch.training_flops_per_token()
                for n, arch in architectures.items()
            },
            "preservation": {n: dataclasses.asdict(p) for n, p in self.preservation.items()},
            "drift": list(self.drift),
            "deviation": self.deviation,
            "life": dataclasses.asdict(self.life) if self.life else None,
            "first_update": self.first_update,
        }

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def write(self, path: str | os.PathLike) -> None:
        """Writes it to a file as JSON, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.to_json() + "\n", encoding="utf-8")
        os.replace(partial, path)

    def __str__(self) -> str:
        source, target = self.plan.source, self.plan.target
        flops = source.training_flops_per_token(), target.training_flops_per_token()
        lines = [
            f"{self.plan}",
            f"parameters          {source.num_parameters:,} → {target.num_parameters:,}",
            f"FLOPs per token     {flops[0]:.3g} → {flops[1]:.3g}",
            "",
            "logits in           largest error  mean error  same token",
        ]
        lines += [
            f"  {name:<17} {p.max_error:>13.1e} {p.mean_error:>11.1e} {p.agreement:>11.1%}"
            for name, p in self.preservation.items()
        ]
        if self.drift:
            lines.append("stream after layer  " + "  ".join(f"{d:.0e}" for d in self.drift))
        if self.life:
            counts = self.life.new, self.life.dead, self.life.excused
            new, dead, excused = (sum(count.values()) for count in counts)
            lines += [
                "",
                f"new entries         {new:,}; without gradient after two steps: {dead:,}"
                + (f" ({excused:,} more that this batch cannot reach)" if excused else ""),
                f"units locked        {len(self.life.locked)}",
            ]
        if self.first_update:
            largest = " new, ".join(f"{size:.2f}" for size in self.first_update)
            lines.append(f"first update / rate {largest} old")
        lines += ["", *(f"BROKEN: {problem}" for problem in self.problems)]
        return "\n".join(lines + ["every promise is kept"] * self.passed)


def certify(
    apply: Apply,
    source: Any,
    grown: Any,
    plan: GrowthPlan,
    batch: Any,
    *,
    blueprint: Blueprint | None = None,
    loss: Callable[[jax.Array, Any], jax.Array] | None = None,
    stream: Callable[[Architecture, Any, Any], Sequence[jax.Array]] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    opt_state: Any = None,
    learning_rate: float = 1.0,
    dtypes: Sequence[str] = ("float64", "float32", "bfloat16"),
    check_life: bool = True,
) -> Certificate:
    """Certifies that a growth step kept the function, and that its new entries can learn.

    The step is done anew in float64 with the free values of `grown`, since what float32 rounds
    would hide what is wrong; and `grown` is compared with that.

    Args:
      apply: (architecture, parameters, batch) to logits [..., vocab].
      source: parameters of `plan.source`.
      grown: parameters of `plan.target`, which `growth.expand` made of them.
      plan: the growth step.
      batch: what `apply` takes. Many and various tokens reach more of the network.
      blueprint: what the parameters are; None means the reference model.
      loss: (logits, batch) to a number, whose gradients are looked at. None: the cross entropy of
        the next token, where a batch is int tokens [batch, length].
      stream: (architecture, parameters, batch) to the residual stream [batch, length, embed] after
        each layer, where the model offers it.
      optimizer: the optimizer that goes on; None: Adam, for the gradients only.
      opt_state: its state at the grown parameters; None: a new one.
      learning_rate: what the first updates are divided by.
      dtypes: the dtypes of parameters in which logits are compared.
      check_life: whether gradients are looked at, which is the dear part.

    Raises:
      InputError: a dtype is not one of those three.
      BlueprintError: the blueprint does not fit the parameters.
    """
    if set(dtypes) - set(_DTYPES):
        raise InputError(f"dtypes is {tuple(dtypes)}, but it must be some of {', '.join(_DTYPES)}")
    blueprint = blueprint_for(plan.source, blueprint)
    loss = next_token_loss if loss is None else loss
    batch = jax.tree.map(jnp.asarray, batch)  # the same ints with and without 64 bits
    with jax.enable_x64(True):
        old, fresh = (_with_dtype(tree, "float64") for tree in (source, grown))
        # Compiled, for then zeros among the free values are not refused: they are to be found.
        again = jax.jit(lambda old, fresh: expand(old, plan, blueprint=blueprint, fresh=fresh))
        exact = again(old, fresh)
        preservation = {}
        for dtype in dtypes:
            after = exact if dtype == "float64" else _with_dtype(grown, dtype)
            preservation[dtype] = _compare(
                _logits(apply, plan.source, _with_dtype(source, dtype), batch),
                _logits(apply, plan.target, after, batch),
            )
        drift: tuple[float, ...] = ()
        if stream is not None:
            streams = stream(plan.source, old, batch), stream(plan.target, exact, batch)
            drift = _drift(*streams, plan)
        gradient = functools.partial(_gradient, apply, loss, plan.target, batch)
        is_new = trainability.new_entries(source, plan, blueprint)
        living = None
        if check_life:  # by steps of a size that moves every entry, however small its gradient
            living = trainability.observe(
                gradient, exact, plan, blueprint, is_new, optax.adam(1e-3)
            )
        deviation = _deviation(grown, exact)
    update = None
    if optimizer is not None:
        state = optimizer.init(grown) if opt_state is None else opt_state
        update = _first_update(optimizer, state, gradient(grown), grown, is_new)
        update = (update[0] / learning_rate, update[1] / learning_rate)
    found = _problems(preservation, drift, deviation, living)
    return Certificate(plan, preservation, drift, deviation, living, update, tuple(found))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(apply: Apply, architecture: Architecture, params: Any, batch: Any) -> jax.Array:
    return apply(architecture, params, batch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient(apply: Apply, loss: Any, architecture: Architecture, batch: Any, params: Any) -> Any:
    return jax.grad(lambda tree: loss(apply(architecture, tree, batch), batch))(params)


def next_token_loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The mean cross entropy of each token given those before it; tokens [batch, length]."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return losses.mean()


def _with_dtype(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), tree)


def _compare(before: jax.Array, after: jax.Array) -> Preservation:
    old, new = (np.asarray(logits, np.float64) for logits in (before, after))
    errors = np.abs(new - old) / np.abs(old).max()
    agreement = (old.argmax(-1) == new.argmax(-1)).mean()
    return Preservation(float(errors.max()), float(errors.mean()), float(agreement))


def _drift(
    before: Sequence[jax.Array], after: Sequence[jax.Array], plan: GrowthPlan
) -> tuple[float, ...]:
    result = []
    for layer, origin in enumerate(plan.layer_sources):
        if origin is not None:
            old = np.asarray(before[origin])
            new = np.asarray(after[layer])[..., : plan.source.embed_dim]
            result.append(float(np.abs(new - old).max() / np.abs(old).max()))
    return tuple(result)


def _deviation(grown: Any, exact: Any) -> float:
    def of(given: jax.Array, wanted: jax.Array) -> float:
        rounding = float(jnp.finfo(given.dtype).eps)
        difference = np.abs(np.asarray(given, np.float64) - np.asarray(wanted)).max()
        return float(difference / (np.abs(np.asarray(wanted)).max() + 1e-300) / rounding)

    return max(jax.tree.leaves(jax.tree.map(of, grown, exact)))


def _first_update(
    optimizer: optax.GradientTransformation, state: Any, gradient: Any, grown: Any, is_new: Any
) -> tuple[float, float]:
    updates, _ = optimizer.update(gradient, state, grown)
    sizes = [np.abs(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(updates)]
    masks = jax.tree.leaves(is_new)
    largest = [
        max((float(s[m ^ old].max()) for s, m in zip(sizes, masks, strict=True) if (m ^ old).any()))
        for old in (False, True)
    ]
    return largest[0], largest[1]


def _problems(
    preservation: Mapping[str, Preservation],
    drift: tuple[float, ...],
    deviation: float,
    living: trainability.GradientReport | None,
) -> list[str]:
    problems = [
        f"logits differ by {preservation[dtype].max_error:.1e} in {dtype}; the promise is {limit}"
        for dtype, limit in PROMISES.items()
        if dtype in preservation and not preservation[dtype].max_error <= limit
    ]
    far = [layer for layer, moved in enumerate(drift) if not moved <= PROMISES["float64"]]
    if far:
        problems.append(f"the stream moves in old layer {far[0]}, by {drift[far[0]]:.1e}")
    if deviation > 4:
        problems.append(
            f"the parameters are not what growth.expand makes of the source: they differ by "
            f"{deviation:.0f} times the rounding of their dtype"
        )
    if living is None:
        return problems
    problems += [
        f"{path}: {count} of {living.new[path]} new entries get no gradient"
        for path, count in living.dead.items()
    ]
    problems += [f"{pair} are equal and get equal gradients" for pair in living.locked[:20]]
    return problems
