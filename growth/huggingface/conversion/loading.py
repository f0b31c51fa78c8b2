"""A checkpoint of Hugging Face as parameters of the reference model."""

import os
from collections.abc import Collection
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.huggingface.checkpoint import open_checkpoint
from growth.huggingface.checkpoint_files import CONFIG, read_json
from growth.huggingface.config_keys import FamilyError
from growth.huggingface.config_map import check_config, read_config
from growth.huggingface.conversion.matching import matching_views
from growth.huggingface.families import family_of
from growth.huggingface.family import Limits
from growth.huggingface.tensor_files import DTYPES
from growth.models import initial_parameters
from growth.types import Params


def load_architecture(
    source: str | os.PathLike, *, ignore_config_keys: Collection[str] = ()
) -> Architecture:
    """What the model of a Hugging Face checkpoint is; reads `config.json` only.

    Where that says that the output layer is the embedding, and the files hold another one, `load`
    gives the architecture with both.

    Args:
      source: the directory of the checkpoint.
      ignore_config_keys: keys of `config.json` that change nothing that the model computes.

    Raises:
      InputError: there is no `config.json`.
      FamilyError: the family is not known, or its config says what growth does not know.

    Examples:
      >>> from growth import huggingface
      >>> print(huggingface.load_architecture("checkpoint"))
      1 layers × [2 heads, qk 4, v 4, mlp 16], embed 8, vocab 256, length 16, rmsnorm, rope, silu

    References:
      The documentation of transformers on `config.json`, and that of safetensors on its format.
    """
    config = read_json(Path(source), CONFIG)
    family = family_of(config)
    check_config(config, family, ignore_config_keys)
    return read_config(config, family)


def load(
    source: str | os.PathLike,
    *,
    dtype: str | None = "float32",
    ignore_config_keys: Collection[str] = (),
) -> tuple[Architecture, Params]:
    """The reference model of a Hugging Face checkpoint.

    Args:
      source: the directory of the checkpoint.
      dtype: that of the parameters; None for that of the first tensor.
      ignore_config_keys: keys of `config.json` that change nothing that the model computes.

    Returns:
      The architecture, and the parameters as `growth.models` takes them.

    Raises:
      FamilyError: the reference model does not compute what this model does.
      InputError: the checkpoint is broken; see `open_checkpoint`.

    Examples:
      >>> from growth import huggingface
      >>> architecture, params = huggingface.load("checkpoint")
      >>> params["embed"]["embedding"].shape == (architecture.vocab_size, architecture.embed_dim)
      True

    References:
      The documentation of transformers on `config.json`, and that of safetensors on its format.
    """
    checkpoint = open_checkpoint(Path(source), ignore_config_keys)
    check_computed_by_reference(checkpoint.limits)
    architecture = checkpoint.architecture
    stored = DTYPES[next(iter(checkpoint.tensors.values())).spec.dtype]
    numbers = stored if dtype is None else jnp.dtype(dtype)
    shapes = jax.eval_shape(lambda: initial_parameters(architecture, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.empty(leaf.shape, numbers), shapes)
    arrays = {leaf.path: leaf.value for leaf in pytrees.leaves(params)}
    for name, parameter in checkpoint.parameters.items():
        for in_tensor, in_reference in matching_views(
            checkpoint.read(name),
            arrays,
            parameter=parameter,
            family=checkpoint.family,
            architecture=architecture,
        ):
            in_reference[...] = in_tensor
    return architecture, jax.tree.map(jnp.asarray, params)


def check_computed_by_reference(limits: Limits) -> None:
    """Refuses a model that the reference model does not compute.

    Raises:
      FamilyError: it does not; with the reason.
    """
    if limits.reference_model is not None:
        raise FamilyError(
            f"the reference model does not compute this model: {limits.reference_model}"
        )
