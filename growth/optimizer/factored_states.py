"""Statistics of whole arrays that optimizers keep in place of a moment of every entry.

To grow them, each is written out as an array of the parameter's shape, the estimate of every
entry's own moment; that grows as any moment does, and the larger array's statistic is taken of it.
Where the estimate is all that the optimizer uses, old entries keep it exactly.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growth.optimizer.scaling_exponents import agreed_exponent
from growth.optimizer.state_fields import state_type
from growth.types import OptState, Params, ParamsLike

# optax exports layer-wise DoG, but not its state.
DistanceOverGradientsState = state_type(optax.scale_by_distance_over_gradients())


class Expander(Protocol):
    """What a rule needs of the way through a state.

    Attributes:
      params: the smaller parameters.
      grown: the larger parameters.
    """

    params: Params
    grown: Params

    def moments(
        self, tree: ParamsLike, before: ParamsLike, begun: ParamsLike, exponent: int
    ) -> ParamsLike:
        """Moments, larger, from what they begin as."""

    def parameters(self, tree: ParamsLike, begun: ParamsLike) -> ParamsLike:
        """What is valued like parameters, larger."""


def grow_factored(
    state: optax.FactoredState,
    before: optax.FactoredState,
    begun: optax.FactoredState,
    exponents: OptState,
    expander: Expander,
) -> optax.FactoredState:
    """Adafactor's second moments, by rows and columns or whole, in the form that the sizes ask for.

    An entry's estimate is row · column / mean row (Shazeer & Stern, arXiv 1804.04235, algorithm 4).
    """

    def estimate(param: jax.Array, v: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        dims = _factored(param.shape, v.shape)
        if dims is None:
            return v
        d1, d0 = dims
        mean = jnp.mean(row, axis=d1 - 1 if d1 > d0 else d1, keepdims=True)
        share = jnp.expand_dims(row / jnp.where(mean == 0, 1, mean), d0)
        return (share * jnp.expand_dims(column, d1)).astype(param.dtype)

    def parts(
        param: jax.Array, square: jax.Array, row: jax.Array, column: jax.Array, v: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        dims = _factored(param.shape, v.shape)
        if dims is None:
            return row, column, square.astype(v.dtype)
        d1, d0 = dims
        rows, columns = jnp.mean(square, axis=d0), jnp.mean(square, axis=d1)
        return rows.astype(row.dtype), columns.astype(column.dtype), v

    squares = _map(estimate, expander.params, state.v, state.v_row, state.v_col)
    squares = _grow(squares, begun.v, _exponent(exponents.v, -2, expander), expander)
    fields = (squares, begun.v_row, begun.v_col, begun.v)
    row, column, v = (
        _map(lambda *given, part=part: parts(*given)[part], expander.grown, *fields)
        for part in range(3)
    )
    return optax.FactoredState(state.count, row, column, v)


def grow_sm3(
    state: optax.ScaleBySM3State,
    before: optax.ScaleBySM3State,
    begun: optax.ScaleBySM3State,
    exponents: OptState,
    expander: Expander,
) -> optax.ScaleBySM3State:
    """SM3's accumulators, one for each index of each dimension.

    An entry's estimate is the least of those of its indices (Anil et al., arXiv 1901.11150).
    """

    def estimate(param: jax.Array, accumulators: Sequence[jax.Array]) -> jax.Array:
        if param.ndim < 2:
            return accumulators[0]
        shapes = [
            [n if a == b else 1 for b, n in enumerate(param.shape)] for a in range(param.ndim)
        ]
        spread = [jnp.reshape(one, shape) for one, shape in zip(accumulators, shapes, strict=True)]
        least = spread[0]
        for one in spread[1:]:
            least = jnp.minimum(least, one)
        return least

    def parts(param: jax.Array, square: jax.Array) -> list[jax.Array]:
        if param.ndim < 2:
            return [square]
        return [
            jnp.max(square, axis=tuple(b for b in range(param.ndim) if b != a))
            for a in range(param.ndim)
        ]

    squares = _grow(_map(estimate, expander.params, state.mu), begun.mu, -2, expander)
    momentum = expander.moments(state.nu, before.nu, begun.nu, _exponent(exponents.nu, 0, expander))
    return optax.ScaleBySM3State(_map(parts, expander.grown, squares), momentum)


def grow_novograd(
    state: optax.ScaleByNovogradState,
    before: optax.ScaleByNovogradState,
    begun: optax.ScaleByNovogradState,
    exponents: OptState,
    expander: Expander,
) -> optax.ScaleByNovogradState:
    """NovoGrad's squared norm of each array; an array of layers that is cut shares it out."""
    momentum = expander.moments(state.mu, before.mu, begun.mu, _exponent(exponents.mu, 0, expander))
    norms = _grow_sums(state.nu, begun.nu, _exponent(exponents.nu, -2, expander), expander)
    return optax.ScaleByNovogradState(state.count, momentum, norms)


def grow_distance_over_gradients(
    state: OptState, before: OptState, begun: OptState, exponents: OptState, expander: Expander
) -> OptState:
    """Layer-wise DoG's greatest distance and sum of squared gradients of each array."""
    squares = jax.tree.map(jnp.square, state.max_dist)
    distances = jax.tree.map(jnp.sqrt, _grow_sums(squares, begun.max_dist, 2, expander))
    sums = _grow_sums(state.grad_sum_of_squares, begun.grad_sum_of_squares, -2, expander)
    first = expander.parameters(state.init_params, begun.init_params)
    return DistanceOverGradientsState(distances, sums, first)


RULES: dict[type, Callable[..., OptState]] = {
    optax.FactoredState: grow_factored,
    optax.ScaleBySM3State: grow_sm3,
    optax.ScaleByNovogradState: grow_novograd,
    DistanceOverGradientsState: grow_distance_over_gradients,
}


def _exponent(powers: ParamsLike, default: int, expander: Expander) -> int:
    return agreed_exponent(powers, default, expander.params)


def _grow_sums(
    sums: ParamsLike, begun: ParamsLike, exponent: int, expander: Expander
) -> ParamsLike:
    """A sum over each array; an entry's estimate is an equal share of it."""

    def shares(param: jax.Array, total: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.sum(total) / param.size, param.shape)

    def total(_: jax.Array, share: jax.Array, like: jax.Array) -> jax.Array:
        return jnp.sum(share).reshape(like.shape).astype(like.dtype)

    larger = _grow(_map(shares, expander.params, sums), begun, exponent, expander)
    return _map(total, expander.grown, larger, begun)


def _grow(tree: ParamsLike, begun: ParamsLike, exponent: int, expander: Expander) -> ParamsLike:
    """Estimates of all entries, larger; `begun` shows what is masked."""
    before = jax.tree.map(jnp.zeros_like, tree)
    larger = _map(lambda param, _: jnp.zeros(param.shape, param.dtype), expander.grown, begun)
    return expander.moments(tree, before, larger, exponent)


def _map(function: Callable[..., Any], params: Params, *trees: ParamsLike) -> ParamsLike:
    """Maps over parameters and what a state has for each; masked nodes stay."""
    leaves, structure = jax.tree.flatten(params)
    assert structure is not None
    columns = [structure.flatten_up_to(tree) for tree in trees]
    results = [
        given[0] if isinstance(given[0], optax.MaskedNode) else function(leaf, *given)
        for leaf, *given in zip(leaves, *columns, strict=True)
    ]
    return jax.tree.unflatten(structure, results)


def _factored(shape: tuple[int, ...], kept: tuple[int, ...]) -> tuple[int, int] | None:
    """Which two dimensions optax factors: the two largest; None where it keeps the whole array.

    Args:
      shape: of a parameter.
      kept: of what the state has for the whole array: a single number where it is factored.
    """
    if kept == shape:
        return None
    *_, d1, d0 = (int(axis) for axis in np.argsort(shape))
    return d1, d0
