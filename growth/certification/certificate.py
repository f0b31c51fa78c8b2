"""`Certificate`: what was measured of one growth step, and whether every promise is kept."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growth.certification.trainability import GradientReport
from growth.errors import InputError
from growth.files import write_atomically
from growth.rules.growth_plan import GrowthPlan
from growth.rules.tolerances import ROUNDING_MARGIN


class CertificateError(InputError):
    """A growth step does not keep what growth promises; the message lists what is broken."""


@dataclasses.dataclass(frozen=True)
class Preservation:
    """How far logits moved, in one dtype of the parameters.

    Attributes:
      max_error, mean_error: of the logits, relative to the largest logit before.
      agreement: the share of positions where the likeliest token is the same.
      rounding: how far the smaller model's own rounding moves its logits; None where nothing is
        promised in this dtype.
    """

    max_error: float
    mean_error: float
    agreement: float
    rounding: float | None = None

    @property
    def limit_by_rounding(self) -> float:
        """How far logits may move by rounding alone."""
        return ROUNDING_MARGIN * (self.rounding or 0.0)


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
      gradients: those of new entries; None where they were not looked at.
      first_update: the largest first update of a new entry, and of an old one, over the learning
        rate; None where no optimizer was given.
      problems: the promises that are broken, in words.
      causes: where logits moved, what would explain it, in words.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> plan = growth.mlp_expansion(24)(small)
      >>> certificate = growth.certify(
      ...     params, plan, grown=growth.expand(params, plan, key=jax.random.key(1)),
      ...     apply=models.apply, batch=jax.numpy.arange(8)[None], dtypes=("float64",),
      ...     check_gradients=False,
      ... )
      >>> certificate.require()
      >>> certificate.preservation["float64"].max_error < 1e-12
      True

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
      It proves what is measured here.
    """

    plan: GrowthPlan
    preservation: Mapping[str, Preservation]
    drift: tuple[float, ...]
    deviation: float
    gradients: GradientReport | None
    first_update: tuple[float, float] | None
    problems: tuple[str, ...]
    causes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every promise is kept."""
        return not self.problems

    def require(self) -> None:
        """Raises `CertificateError` where a promise is broken."""
        if self.problems:
            likely = (f"likely: {cause}" for cause in self.causes)
            lines = "\n  ".join((*self.problems, *likely))
            raise CertificateError(f"growth is not certified:\n  {lines}")

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values that JSON can hold."""
        plan = self.plan
        architectures = {"source": plan.source, "target": plan.target}
        return {
            "passed": self.passed,
            "problems": list(self.problems),
            "causes": list(self.causes),
            "layer_sources": list(plan.layer_sources),
            "layer_templates": list(plan.layer_templates),
            **{name: arch.to_dict() for name, arch in architectures.items()},
            **{f"{n}_parameters": arch.num_parameters for n, arch in architectures.items()},
            **{
                f"{n}_training_flops_per_token": arch.training_flops_per_token()
                for n, arch in architectures.items()
            },
            "preservation": {n: dataclasses.asdict(p) for n, p in self.preservation.items()},
            "drift": list(self.drift),
            "deviation": self.deviation,
            "gradients": dataclasses.asdict(self.gradients) if self.gradients else None,
            "first_update": self.first_update,
        }

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def write(self, path: str | os.PathLike) -> None:
        """Writes it to a file as JSON, whole or not at all."""
        write_atomically(Path(path), self.to_json() + "\n")

    def __str__(self) -> str:
        source, target = self.plan.source, self.plan.target
        flops = source.training_flops_per_token(), target.training_flops_per_token()
        lines = [
            f"{self.plan}",
            f"parameters          {source.num_parameters:,} → {target.num_parameters:,}",
            f"FLOPs per token     {flops[0]:.3g} → {flops[1]:.3g}",
            "",
            "logits in           largest error  mean error  same token  own rounding",
        ]
        lines += [
            f"  {name:<17} {p.max_error:>13.1e} {p.mean_error:>11.1e} {p.agreement:>11.1%}"
            + (f" {p.rounding:>13.1e}" if p.rounding is not None else "")
            for name, p in self.preservation.items()
        ]
        if self.drift:
            lines.append("stream after layer  " + "  ".join(f"{d:.0e}" for d in self.drift))
        if self.gradients:
            counts = self.gradients.new, self.gradients.dead, self.gradients.excused
            new, dead, excused = (sum(count.values()) for count in counts)
            lines += [
                "",
                f"new entries         {new:,}; without gradient after two steps: {dead:,}"
                + (f" ({excused:,} more that this batch cannot reach)" if excused else ""),
                f"units locked        {len(self.gradients.locked)}",
            ]
        if self.first_update:
            largest = " new, ".join(f"{size:.2f}" for size in self.first_update)
            lines.append(f"first update / rate {largest} old")
        lines += ["", *(f"BROKEN: {problem}" for problem in self.problems)]
        lines += [f"likely: {cause}" for cause in self.causes]
        return "\n".join(lines + ["every promise is kept"] * self.passed)
