"""Which roles a model of an architecture must have, and which it can't: one table.

An architecture and a blueprint that contradict each other grow by rules that do not belong
together, and the function changes. What is in neither table may be there or not.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator

from growth.architecture import Architecture
from growth.blueprints.parameters import Parameter
from growth.rules import roles


@dataclasses.dataclass(frozen=True)
class Presence:
    """Roles that an architecture demands or forbids.

    Attributes:
      roles: any of these.
      when: whether it does.
      words: why, from the architecture, as a clause.
      in_layers: only in layers, or only outside of them; None for both.
      axes: only arrays that have all of these axes.
      beside: it is demanded where there are arrays of all these roles: a part of a model, such as
        one kind of array alone, may lack it.
    """

    roles: tuple[str, ...]
    when: Callable[[Architecture], bool]
    words: str
    in_layers: bool | None = None
    axes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def concerns(self, roles: Collection[str], axes: Collection[str]) -> bool:
        """Whether it is about an array.

        Args:
          roles: of the array.
          axes: of the array, whether as dimensions or as indices in its path.
        """
        return (
            not {*self.roles}.isdisjoint(roles)
            and self.in_layers in (None, "layers" in axes)
            and {*self.axes} <= {*axes}
        )

    def found(self, parameters: Iterable[Parameter]) -> list[Parameter]:
        """Those of some arrays that it is about."""
        return [
            p for p in parameters if self.concerns(p.rule.roles, {*p.rule.axes, *dict(p.indices)})
        ]


# fmt: off
FORBIDDEN = (
    Presence(("norm_bias", "final_bias", "closing_bias"), lambda a: a.norm == "rmsnorm",
             "norm is 'rmsnorm', which has no bias"),
    Presence(("norm_gain", "final_gain", "closing_gain"), lambda a: not a.norm_gain,
             "norm_gain is False"),
    Presence(("qk_norm",), lambda a: a.qk_norm == "none",
             "qk_norm is 'none'"),
    Presence(("closing_gain", "closing_bias"), lambda a: not a.closes_branches,
             "norm_placement says that no norm closes a branch", in_layers=True),
    Presence(("closing_gain", "closing_bias"), lambda a: not a.embed_norm,
             "embed_norm is False", in_layers=False),
    Presence(("norm_gain", "norm_bias"), lambda a: a.norm_placement == "closing",
             "norm_placement is 'closing', so that no norm stands before attention or MLP",
             in_layers=True),
    Presence(("final_gain", "final_bias"), lambda a: not a.final_norm,
             "final_norm is False"),
    Presence(("branch_gain",), lambda a: not a.branch_gain,
             "branch_gain is False"),
    Presence(("position",), lambda a: a.position != "learned" and a.patches is None,
             "position is not 'learned'", axes=("length",)),
    Presence(("unembed",), lambda a: a.tied_embeddings,
             "tied_embeddings is True", axes=("embed", "vocab")),
)

_BRANCHES = ("attention_out", "mlp_out")
_BODY = ("embedding", *_BRANCHES)

DEMANDED = (
    Presence(("closing_gain",), lambda a: a.closes_branches and a.norm_gain,
             "norm_placement says that a norm closes each branch",
             in_layers=True, beside=_BRANCHES),
    Presence(("closing_gain",), lambda a: a.embed_norm and a.norm_gain,
             "embed_norm is True", in_layers=False, beside=_BODY),
    Presence(("branch_gain",), lambda a: a.branch_gain,
             "branch_gain is True", in_layers=True, beside=_BRANCHES),
    Presence(("norm_gain",), lambda a: a.norm_placement != "closing" and a.norm_gain,
             "norm_placement says that a norm stands beside attention and MLP",
             in_layers=True, beside=_BRANCHES),
    Presence(("final_gain", "norm_gain"), lambda a: a.final_norm and a.norm_gain,
             "final_norm is True", in_layers=False, beside=(*_BODY, "unembed")),
    Presence(("final_gain", "stream_unembed"),
             lambda a: a.final_norm and a.norm_gain and roles.final_gain_differs(a),
             "the final norm makes up for what logits are multiplied by", beside=_BODY),
    Presence(("unembed", "stream_unembed"),
             lambda a: not a.tied_embeddings and roles.output_differs(a),
             "tied_embeddings is False, and an output layer is not scaled as an embedding is",
             beside=_BODY),
)
# fmt: on


def contradictions(parameters: Iterable[Parameter], architecture: Architecture) -> Iterator[str]:
    """What arrays there are that the architecture forbids, and what it demands and is not there."""
    there = list(parameters)
    present = {role for parameter in there for role in parameter.rule.roles}
    for rule in FORBIDDEN:
        if rule.when(architecture) and (found := rule.found(there)):
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            yield (
                f"{found[0].path}{more}: the role is {', '.join(found[0].rule.roles)}, but the "
                f"architecture says that there is none: {rule.words}"
            )
    for rule in DEMANDED:
        if (
            all(role in present for role in rule.beside)
            and rule.when(architecture)
            and not rule.found(there)
        ):
            yield (
                f"no array has the role {' or '.join(rule.roles)}, but the architecture says that "
                f"there is one: {rule.words}"
            )
