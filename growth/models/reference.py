"""The reference models as functions of their architecture: parameters, logits, blueprint.

Every parameter carries the names of its axes, the same that `growth` uses, which is what a model's
blueprint is derived from and what shards it over a mesh.
"""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.models.body import Model
from growth.models.layer import Layer
from growth.models.transformer import Transformer
from growth.models.vision import VisionTransformer
from growth.types import Images, Logits, Params, ParamsLike, Tokens


def make_model(architecture: Architecture, **options: Any) -> Model:
    """The model of an architecture: of images where it has patches, else of tokens.

    Args:
      architecture: what the model is.
      **options: the other attributes of `Model`.

    Examples:
      >>> import growth
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> type(models.make_model(small)).__name__
      'Transformer'

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 2.
    """
    kind = Transformer if architecture.patches is None else VisionTransformer
    return kind(architecture, **options)


def apply(architecture: Architecture, params: Params, inputs: Tokens | Images) -> Logits:
    """Logits [batch, length, vocab] or [batch, classes], in the parameters' dtype; see `logits`.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> models.apply(small, params, jax.numpy.zeros((1, 8), int)).shape
      (1, 8, 11)

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 2.
    """
    return logits(make_model(architecture), params, inputs)


def logits(model: Model, params: Params, inputs: Tokens | Images) -> Logits:
    """The logits of a model.

    Args:
      model: the model.
      params: its parameters, as plain dicts.
      inputs: int tokens [batch, length], or images [batch, height, width, channels].

    Returns:
      [batch, length, vocab], or [batch, classes].

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> model = models.make_model(small, dtype=jax.numpy.bfloat16)
      >>> models.logits(model, params, jax.numpy.zeros((1, 8), int)).dtype.name
      'bfloat16'

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 2.
    """
    result = model.apply({"params": params}, inputs)
    assert isinstance(result, jax.Array)
    return result


def residual_stream(
    architecture: Architecture, params: Params, inputs: Tokens | Images
) -> list[Float[jax.Array, "batch length {architecture.embed_dim}"]]:
    """The residual stream [batch, length, embed] after each layer.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> stream = models.residual_stream(small, params, jax.numpy.zeros((1, 8), int))
      >>> [layer.shape for layer in stream]
      [(1, 8, 8), (1, 8, 8)]

    References:
      Elhage et al., *A Mathematical Framework for Transformer Circuits*, 2021, for the word;
      Gesmundo and Maile, arXiv 2308.06103, section 2, for the stream of this model.
    """
    _, seen = make_model(architecture).apply(
        {"params": params},
        inputs,
        capture_intermediates=lambda module, _: isinstance(module, Layer),
        mutable=["intermediates"],
    )
    runs = [seen["intermediates"][f"layers_{first}"] for first, _ in architecture.layer_runs]
    return [layer for run in runs for layer in run["__call__"][0][0]]


def initial_parameters(architecture: Architecture, key: jax.Array, **options: Any) -> Params:
    """Freshly initialized parameters, as plain nested dicts of arrays.

    Args:
      architecture: what the model is.
      key: a PRNG key.
      **options: the other attributes of `Model`.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> sorted(params)
      ['embed', 'final_norm', 'layers_0', 'unembed']
      >>> params["layers_0"]["mlp"]["up"]["kernel"].shape
      (2, 8, 16)

    References:
      Flax's default initializers: lecun_normal for kernels (LeCun et al., *Efficient BackProp*,
      1998, section 4.6), narrower where a branch writes the stream (Radford et al., *Language
      Models are Unsupervised Multitask Learners*, 2019, section 2.3).
    """
    return nn.unbox(_boxed(architecture, key, **options))


@functools.cache
def logical_axes(architecture: Architecture) -> ParamsLike:
    """The names of the axes of every parameter: a tree of `PartitionSpec`.

    Examples:
      >>> import growth
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> tuple(models.logical_axes(small)["layers_0"]["mlp"]["up"]["kernel"])
      ('layers', 'embed', 'mlp')

    References:
      The guide *Scale up Flax Modules on multiple devices* of Flax, on logical axis names.
    """
    return nn.get_partition_spec(jax.eval_shape(lambda: _boxed(architecture, jax.random.key(0))))


@functools.cache
def blueprint(architecture: Architecture) -> Blueprint:
    """The blueprint of the model of an architecture.

    Axes are the names that the parameters carry. It depends on which parameters there are, and not
    on their sizes, so it fits an architecture and all that it can grow to.

    Examples:
      >>> import growth
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> models.blueprint(small).rules[0]
      ('embed/embedding', 'embedding', 'vocab embed')

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, table 1.
    """
    rules = {}
    for leaf in pytrees.leaves(logical_axes(architecture)):
        path = re.sub(r"^layers_\d+", "layers_{layers}", leaf.path)
        rules[path] = (path, _role(path), " ".join(leaf.value))
    return Blueprint(tuple(rules.values()))


def _role(path: str) -> str:
    *_, module, parameter = ("", *path.split("/"))
    if parameter in ("attention_gain", "mlp_gain"):
        return "branch_gain"
    if module in ("query_norm", "key_norm"):
        return "qk_norm"
    if module.endswith("norm"):
        writes = module.endswith("closing_norm") or module == "embed_norm"
        kind = "closing" if writes else "norm"
        if module == "final_norm":
            kind = "final"
        return f"{kind}_{'gain' if parameter == 'scale' else 'bias'}"
    return {
        "embed": "embedding",
        "patch_embed": "embedding",
        "": "position",  # also the class token, which stands at one
        "out": "attention_out",
        "up": "mlp_in",
        "gate": "mlp_in",
        "down": "mlp_out",
        "head": "unembed",
    }.get(module, module)


def _boxed(architecture: Architecture, key: jax.Array, **options: Any) -> Params:
    if architecture.patches is None:
        inputs = jnp.zeros((1, 1), jnp.int32)
    else:
        inputs = jnp.zeros((1, *architecture.patches.shape))
    return make_model(architecture, **options).init(key, inputs)["params"]
