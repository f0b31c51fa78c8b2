"""Which growth step added which entry of a model that has grown several times.

An entry was there after a step if it is old in all that came later, and it was there before the
step if it is old counted from there, too. So the plans of a run say it, and nothing is stored.
"""

import functools
from collections.abc import Sequence

import jax

from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.blueprints.notation import BlueprintError
from growth.expansion.accounts import target_accounts
from growth.expansion.blocks import Kind
from growth.expansion.jax_backend import mask
from growth.rules.growth_plan import GrowthPlan
from growth.types import ParamsLike


def added_by(
    tree: ParamsLike, plans: Sequence[GrowthPlan], number: int, *, blueprint: Blueprint
) -> ParamsLike:
    """Which entries one of a run's growth steps has added: a tree like `tree` of booleans.

    Each is a comparison of indices with a few numbers, so that a compiled function neither stores
    nor reads anything for it.

    Args:
      tree: parameters of the last plan's target, or anything of their shapes.
      plans: the growth steps so far, each from where the one before it leads.
      number: which of them is asked for.
      blueprint: what the parameters are.
    """
    target = plans[-1].target
    nothing = GrowthPlan(target, target, tuple(range(target.num_layers)))
    after = functools.reduce(GrowthPlan.followed_by, (*plans[number + 1 :], nothing))
    since = plans[number].followed_by(after)
    accounts = [target_accounts(tree, plan, blueprint) for plan in (since, after)]

    def added(leaf: pytrees.Leaf) -> jax.Array:
        if leaf.path not in accounts[0]:
            return leaf.value  # an empty node
        was_there, was_there_after = (mask(known[leaf.path], (Kind.OLD,)) for known in accounts)
        return was_there_after & ~was_there

    return pytrees.build([(leaf.keys, leaf, added(leaf)) for leaf in pytrees.leaves(tree)], tree)


def number_of_steps(
    tree: ParamsLike, plans: Sequence[GrowthPlan], blueprints: Sequence[Blueprint]
) -> int:
    """How many of a run's growth steps have been, by the shapes of a tree.

    Args:
      tree: parameters, or anything of their shapes.
      plans: all growth steps of the run, at least one.
      blueprints: what the parameters are before the first step, and after each.

    Raises:
      BlueprintError: the tree fits no architecture of the run.
    """
    architectures = [plans[0].source, *(plan.target for plan in plans)]
    problem: BlueprintError | None = None
    for number in reversed(range(len(architectures))):
        try:
            blueprints[number].check(tree, architectures[number])
        except BlueprintError as error:
            problem = problem or error
        else:
            return number
    assert problem is not None
    raise problem
