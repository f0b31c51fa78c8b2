"""What a model of Hugging Face computes, by the reference model's layers, one at a time in float64.

For where torch and transformers are not installed. What is in memory is one layer's weights, or a
table, and the residual stream of a short text.
"""

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int

from growth.architecture import Architecture
from growth.architecture.fields import LAYER_FIELDS
from growth.architecture.positions import sinusoids
from growth.blueprints import pytrees
from growth.blueprints.parameters import Parameter
from growth.huggingface.conversion.matching import matching_views
from growth.huggingface.expansion.model_files import ModelFiles
from growth.models import initial_parameters
from growth.models.layer import Layer
from growth.models.parts import Norm
from growth.types import Params

# How many rows of the output layer are multiplied at once.
_ROWS = 8192


def reference_logits(
    files: ModelFiles, tokens: Int[np.ndarray, "batch length"]
) -> Float64[np.ndarray, "batch length vocab"]:
    """The logits of a text in float64.

    Args:
      files: the model, one that the reference model computes.
      tokens: the text.
    """
    arch = files.architecture
    with jax.enable_x64(True):
        x = jnp.asarray(_embedded(files, tokens))
        for index in range(arch.num_layers):
            one = _one_layer(arch, index)
            layer = Layer(one, one.layers[0], None, jnp.float64)
            x = _apply(layer, _module_parameters(files, one, "layers_0", index), x)
            x.block_until_ready()  # else the numbers of the next layers are read meanwhile
        if arch.final_norm:
            one = _one_layer(arch, 0)
            norm = Norm(one, None, jnp.float64)
            x = _apply(norm, _module_parameters(files, one, "final_norm"), x)
        return _logits(files, np.asarray(x))


def _one_layer(architecture: Architecture, index: int) -> Architecture:
    """A model that has one of the layers alone."""
    shape = architecture.layers[index]
    own = {field: getattr(shape, field) for field in LAYER_FIELDS}
    return architecture.replace(num_layers=1, **own)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: Layer | Norm, params: Params, x: jax.Array) -> jax.Array:
    """What a layer or a norm makes of the stream [batch, length, embed]."""
    result: Any = module.apply({"params": params}, x, *([None] * isinstance(module, Layer)))
    return result[0] if isinstance(module, Layer) else result


@functools.lru_cache(maxsize=16)
def _shapes(one: Architecture) -> Params:
    return jax.eval_shape(lambda: initial_parameters(one, jax.random.key(0)))


def _module_parameters(
    files: ModelFiles, one: Architecture, module: str, layer: int | None = None
) -> Params:
    """The parameters of a module of the reference model, read from the tensors that hold them.

    Args:
      files: the model.
      one: a model of one layer, of the shape of the layer that is read.
      module: its name in the parameters of that model.
      layer: which layer of the whole model it is; None if it is none.
    """
    shapes = _shapes(one).get(module, {})  # norms may have no parameters
    params = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float64), shapes)
    arrays = {f"{module}/{leaf.path}": leaf.value for leaf in pytrees.leaves(params)}
    _fill(arrays, files, one, layer)
    return params if layer is None else jax.tree.map(lambda leaf: leaf[0], params)


def _fill(
    arrays: dict[str, np.ndarray], files: ModelFiles, one: Architecture, layer: int | None = None
) -> None:
    """Writes arrays of a module of the reference model, by their paths there."""
    for name, parameter in _tensors_of(files, arrays, layer).items():
        if layer is not None:
            parameter = parameter.moved(range(1), layers=0)
        for in_tensor, in_reference in matching_views(
            files.read(name), arrays, parameter=parameter, family=files.family, architecture=one
        ):
            in_reference[...] = in_tensor


def _tensors_of(
    files: ModelFiles, arrays: Collection[str], layer: int | None
) -> dict[str, Parameter]:
    """The tensors that hold some arrays of the reference model, in one layer or in none."""
    reference = {rule.path: rule.reference for rule in files.family.tensors}
    layers = range(0) if layer is None else range(layer, layer + 1)
    return {
        name: parameter
        for name, parameter in files.parameters.items()
        if parameter.layers == layers
        and any(p.format(layers=0) in arrays for p in reference[parameter.rule.path])
    }


def _embedded(files: ModelFiles, tokens: np.ndarray) -> np.ndarray:
    """What the first layer reads."""
    arch, length = files.architecture, tokens.shape[1]
    rows, places = np.unique(tokens, return_inverse=True)
    x = _table(files, "embed/embedding")[rows].astype(np.float64)[places.reshape(tokens.shape)]
    if arch.scaled_embedding:
        x *= arch.embed_dim**0.5
    if arch.position == "learned":
        positions = {"position": np.empty((arch.max_length, arch.embed_dim))}
        _fill(positions, files, arch)
        x += positions["position"][:length]
    elif arch.position == "sinusoidal":
        x += sinusoids(length, arch.embed_dim)
    return x


def _logits(files: ModelFiles, stream: np.ndarray) -> np.ndarray:
    arch = files.architecture
    table = _table(files, "embed/embedding" if arch.tied_embeddings else "unembed/kernel")
    logits = np.empty((*stream.shape[:-1], arch.vocab_size))
    for start in range(0, arch.vocab_size, _ROWS):
        rows = table[start : start + _ROWS].astype(np.float64)
        logits[..., start : start + _ROWS] = stream @ rows.T
    cap = arch.logit_softcap
    return logits if cap is None else cap * np.tanh(logits / cap)


def _table(files: ModelFiles, path: str) -> np.ndarray:
    """A table [vocab, embed], as files have both the embedding and the output layer."""
    (name,) = _tensors_of(files, (path,), None)
    return files.read(name)
