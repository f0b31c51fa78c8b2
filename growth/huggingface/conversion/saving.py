"""Parameters of the reference model as a checkpoint of Hugging Face."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.files import atomic_directory
from growth.huggingface.checkpoint import open_checkpoint
from growth.huggingface.checkpoint_files import parse_bytes, shard, write_checkpoint
from growth.huggingface.companion_files import check_carried
from growth.huggingface.config_keys import FamilyError
from growth.huggingface.config_map import (
    check_config,
    grown_config,
    limits_of,
    new_config,
    with_dtype,
)
from growth.huggingface.conversion.loading import check_computed_by_reference
from growth.huggingface.conversion.matching import matching_views, tensor_shape, tensors_of
from growth.huggingface.families import FAMILIES
from growth.huggingface.family import Config, Family
from growth.huggingface.tensor_files import DTYPES, TensorSpec, dtype_code
from growth.types import Params


def save(
    architecture: Architecture,
    params: Params,
    output: str | os.PathLike,
    *,
    like: str | os.PathLike | None = None,
    family: str | None = None,
    config: Config | None = None,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    ignore_config_keys: Collection[str] = (),
) -> None:
    """Writes parameters of the reference model as a Hugging Face checkpoint.

    Args:
      architecture: what the model is.
      params: its parameters, as `growth.models` has them.
      output: the directory to write, which must not exist. It appears when it is whole.
      like: a checkpoint that the model was loaded from, and maybe grew from: its config is kept but
        for what grew, and its tokenizer is carried over.
      family: the model_type, where there is no `like`.
      config: what `config.json` shall say besides, such as `{"bos_token_id": 1}`.
      dtype: of the tensors: "float32", "bfloat16", ...; None for that of the parameters.
      max_shard_size: how large a file may be, in bytes, or as "500MB", "5GB".
      ignore_config_keys: keys of a `config.json` that change nothing that the model computes.

    Raises:
      FamilyError: neither `like` nor a known `family` is given, or the reference model does not
        compute what such a model does.
      GrowthError: the family's config cannot say the architecture.
      InputError: `dtype` is not known; or `output` exists, or its disk is full.

    Examples:
      >>> from growth import huggingface
      >>> architecture, params = huggingface.load("checkpoint")
      >>> huggingface.save(architecture, params, "saved", like="checkpoint", dtype="bfloat16")
      >>> huggingface.load_architecture("saved") == architecture
      True

    References:
      The documentation of transformers on `config.json`, and that of safetensors on its format.
    """
    output = Path(output).absolute()
    besides = dict(config or {})
    origin = None if like is None else open_checkpoint(Path(like), ignore_config_keys)
    if origin is None:
        chosen = _family_named(family)
        check_config(besides, chosen, ignore_config_keys)
        check_computed_by_reference(limits_of(besides, chosen))
        written = new_config(architecture, chosen, besides)
    else:
        chosen, besides = origin.family, {**origin.config, **besides}
        check_config(besides, chosen, ignore_config_keys)
        check_carried(origin.directory, origin.files)
        check_computed_by_reference(limits_of(besides, chosen))
        if architecture.position != "learned":  # it may have been trained on shorter sequences
            architecture = architecture.replace(max_length=origin.architecture.max_length)
        written = grown_config(besides, chosen, architecture)

    arrays = {leaf.path: np.asarray(leaf.value) for leaf in pytrees.leaves(params)}
    name = str(next(iter(arrays.values())).dtype) if dtype is None else dtype
    parameters = {p.name: p for p in tensors_of(architecture, chosen)}
    specs = {
        n: TensorSpec(tensor_shape(p, chosen, architecture), dtype_code(name))
        for n, p in parameters.items()
    }
    shards = shard(specs, parse_bytes(max_shard_size))
    written = with_dtype(written, name)

    def arrays_of(names: Sequence[str]) -> Iterator[np.ndarray]:
        for n in names:
            tensor = np.zeros(specs[n].shape, DTYPES[specs[n].dtype])
            for in_tensor, in_reference in matching_views(
                tensor,
                arrays,
                parameter=parameters[n],
                family=chosen,
                architecture=architecture,
            ):
                in_tensor[...] = in_reference
            yield tensor

    output.parent.mkdir(parents=True, exist_ok=True)
    num_bytes = sum(spec.bytes for spec in specs.values())
    with atomic_directory(output, num_bytes + (origin.carried_bytes if origin else 0)) as directory:
        if origin is not None:
            origin.carry_over(directory)
        write_checkpoint(directory, written, shards, arrays_of)


def _family_named(name: str | None) -> Family:
    if name not in FAMILIES:
        raise FamilyError(f"family is {name!r}, but it must be one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
