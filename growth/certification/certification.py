"""`certify`: runs the network before and after a growth step, and measures what was promised.

certificate = growth.certify(
    params, plan, grown=grown, apply=apply, batch=tokens, blueprint=blueprint
)
print(certificate)
certificate.require()
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.blueprints.reference import blueprint_for
from growth.certification import trainability
from growth.certification.causes import likely_causes
from growth.certification.certificate import Certificate, Preservation
from growth.certification.rounding import own_rounding
from growth.errors import InputError
from growth.expansion.parameters import expand
from growth.rules.growth_plan import GrowthPlan
from growth.rules.tolerances import PROMISED
from growth.types import Inputs, OptState, Params, ParamsLike, Tokens

_DTYPES = ("float64", "float32", "bfloat16")

Apply = Callable[[Architecture, Params, Inputs], jax.Array]


def certify(
    params: Params,
    plan: GrowthPlan,
    *,
    grown: Params,
    apply: Apply,
    batch: Inputs,
    blueprint: Blueprint | None = None,
    loss: Callable[[Params], jax.Array] | None = None,
    residual_stream: Callable[[Architecture, Params, Inputs], Sequence[jax.Array]] | None = None,
    tx: optax.GradientTransformation | None = None,
    opt_state: OptState = None,
    learning_rate: float = 1.0,
    dtypes: Sequence[str] = _DTYPES,
    check_gradients: bool = True,
    explain: bool = True,
) -> Certificate:
    """Certifies that a growth step kept the function, and that its new entries can learn.

    The step is done anew in float64 with the free values of `grown`, since what float32 rounds
    would hide what is wrong; and `grown` is compared with that. A model that computes in float32
    inside rounds there all the same: how much is measured, and what is within it is no fault.

    Args:
      params: parameters of `plan.source`.
      plan: the growth step.
      grown: parameters of `plan.target`, which `growth.expand` made of them.
      apply: (architecture, parameters, batch) to logits [..., vocab].
      batch: what `apply` takes. Many and various tokens reach more of the network.
      blueprint: what the parameters are; None means the reference model.
      loss: parameters of `plan.target` to a number, whose gradients are looked at. None: the cross
        entropy of the next token, where `batch` is int tokens [batch, length].
      residual_stream: (architecture, parameters, batch) to the residual stream [batch, length,
        embed] after each layer, where the model offers it.
      tx: the optimizer that goes on; None: Adam, for the gradients only.
      opt_state: its state at the grown parameters; None: a new one.
      learning_rate: what the first updates are divided by.
      dtypes: the dtypes of parameters in which logits are compared.
      check_gradients: whether gradients are looked at, which is the dear part.
      explain: whether it is looked for what would explain that logits move, where they do.

    Raises:
      InputError: a dtype is not one of those three.
      BlueprintError: the blueprint does not fit the parameters.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> plan = growth.mlp_expansion(24)(small)
      >>> grown = growth.expand(params, plan, key=jax.random.key(1))
      >>> tokens = jax.random.randint(jax.random.key(2), (8, 8), 0, 11)
      >>> certificate = growth.certify(params, plan, grown=grown, apply=models.apply, batch=tokens)
      >>> certificate.passed
      True
      >>> wrong = jax.tree.map(lambda leaf: leaf + 1e-3, grown)
      >>> growth.certify(
      ...     params, plan, grown=wrong, apply=models.apply, batch=tokens, dtypes=("float32",),
      ...     check_gradients=False,
      ... ).passed
      False

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
      It proves what is measured here.
    """
    if set(dtypes) - set(_DTYPES):
        raise InputError(f"dtypes is {tuple(dtypes)}, but it must be some of {', '.join(_DTYPES)}")
    blueprint = blueprint_for(plan.source, blueprint)
    batch = jax.tree.map(jnp.asarray, batch)  # the same ints with and without 64 bits
    if loss is None:
        loss = functools.partial(_next_token_loss, apply, plan.target, batch)
    with jax.enable_x64(True):
        old, fresh = (_with_dtype(tree, "float64") for tree in (params, grown))
        # Compiled, for then zeros among the free values are not refused: they are to be found.
        again = jax.jit(lambda old, fresh: expand(old, plan, blueprint=blueprint, fresh=fresh))
        exact = again(old, fresh)
        preservation = {}
        for dtype in dtypes:
            before = _with_dtype(params, dtype)
            after = exact if dtype == "float64" else _with_dtype(grown, dtype)
            found = _compare(
                _logits(apply, plan.source, before, batch),
                _logits(apply, plan.target, after, batch),
            )
            if dtype in PROMISED:
                logits = functools.partial(_logits, apply, plan.source, batch=batch)
                rounding = own_rounding(logits, before, plan.source, blueprint)
                found = dataclasses.replace(found, rounding=rounding)
            preservation[dtype] = found
        broken = [dtype for dtype in preservation if not _is_kept(dtype, preservation[dtype])]
        causes: tuple[str, ...] = ()
        if broken and explain:
            any_size = functools.partial(_logits, apply, batch=batch)
            limit = max(PROMISED[broken[0]], preservation[broken[0]].limit_by_rounding)
            causes = likely_causes(any_size, old, plan, blueprint, limit)
        drift: tuple[float, ...] = ()
        if residual_stream is not None:
            stream = jax.jit(residual_stream, static_argnums=0)
            small, large = stream(plan.source, old, batch), stream(plan.target, exact, batch)
            drift = _drift(small, large, plan)
        gradient = jax.jit(jax.grad(loss))
        is_new = trainability.new_entries(grown, plan, blueprint)
        gradients = None
        if check_gradients:  # by steps of a size that moves every entry, however small its gradient
            gradients = trainability.observe(
                gradient, exact, plan, blueprint, is_new, optax.adam(1e-3)
            )
        deviation = _deviation(grown, exact)
    update = None
    if tx is not None:
        state = jax.jit(tx.init)(grown) if opt_state is None else opt_state
        update = _first_update(tx, state, gradient(grown), grown, is_new)
        update = (update[0] / learning_rate, update[1] / learning_rate)
    problems = tuple(_problems(preservation, drift, deviation, gradients))
    return Certificate(plan, preservation, drift, deviation, gradients, update, problems, causes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(apply: Apply, architecture: Architecture, params: Params, batch: Inputs) -> jax.Array:
    return apply(architecture, params, batch)


def _next_token_loss(
    apply: Apply, target: Architecture, tokens: Tokens, params: Params
) -> jax.Array:
    """The mean cross entropy of each token given those before it; tokens [batch, length]."""
    logits = apply(target, params, tokens)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return losses.mean()


def _with_dtype(tree: Params, dtype: str) -> Params:
    # By numpy: nothing to compile for each shape.
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(dtype)), tree)


def _is_kept(dtype: str, found: Preservation) -> bool:
    """Whether logits moved by no more than was promised, or than the model itself rounds."""
    if dtype not in PROMISED:
        return True
    return found.max_error <= max(PROMISED[dtype], found.limit_by_rounding)


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


def _deviation(grown: Params, exact: Params) -> float:
    def of(given: jax.Array, wanted: jax.Array) -> float:
        rounding = float(jnp.finfo(given.dtype).eps)
        difference = np.abs(np.asarray(given, np.float64) - np.asarray(wanted)).max()
        return float(difference / (np.abs(np.asarray(wanted)).max() + 1e-300) / rounding)

    return max(jax.tree.leaves(jax.tree.map(of, grown, exact)))


def _first_update(
    tx: optax.GradientTransformation,
    state: OptState,
    gradient: ParamsLike,
    grown: Params,
    is_new: Mapping[str, np.ndarray],
) -> tuple[float, float]:
    updates, _ = jax.jit(tx.update)(gradient, state, grown)
    sizes = [np.abs(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(updates)]
    masks = [is_new[leaf.path] for leaf in pytrees.arrays(grown)]
    largest = [
        max((float(s[m ^ old].max()) for s, m in zip(sizes, masks, strict=True) if (m ^ old).any()))
        for old in (False, True)
    ]
    return largest[0], largest[1]


def _problems(
    preservation: Mapping[str, Preservation],
    drift: tuple[float, ...],
    deviation: float,
    gradients: trainability.GradientReport | None,
) -> list[str]:
    problems = []
    for dtype, found in preservation.items():
        if not _is_kept(dtype, found):
            problems.append(
                f"logits differ by {found.max_error:.1e} in {dtype}; the promise is "
                f"{PROMISED[dtype]}, and the model's own rounding {found.rounding:.1e}"
            )
    at_most = PROMISED["float64"]
    if "float64" in preservation:
        at_most = max(at_most, preservation["float64"].limit_by_rounding)
    far = [layer for layer, moved in enumerate(drift) if not moved <= at_most]
    if far:
        problems.append(f"the stream moves in old layer {far[0]}, by {drift[far[0]]:.1e}")
    if deviation > 4:
        problems.append(
            f"the parameters are not what growth.expand makes of the source: they differ by "
            f"{deviation:.0f} times the rounding of their dtype"
        )
    if gradients is None:
        return problems
    problems += [
        f"{path}: {count} of {gradients.new[path]} new entries get no gradient"
        for path, count in gradients.dead.items()
    ]
    problems += [f"{pair} are equal and get equal gradients" for pair in gradients.locked[:20]]
    return problems
