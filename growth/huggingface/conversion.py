"""Checkpoints of Hugging Face as parameters of the reference model, and back.

Both sides name the axes of their arrays, so a tensor is carried over by transposing names.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.blueprints.notation import parse
from growth.blueprints.parameters import Parameter, siblings
from growth.expansion import role_views
from growth.files import atomic_directory
from growth.huggingface import tensors
from growth.huggingface.checkpoint import open_checkpoint, read_json
from growth.huggingface.families import FAMILIES, family_of
from growth.huggingface.family import Config, Family, FamilyError, Tensor
from growth.huggingface.tensors import DTYPES, Spec
from growth.models import blueprint, initial_parameters


def load_architecture(source: str | os.PathLike) -> Architecture:
    """What the model of a Hugging Face checkpoint is; reads `config.json` only.

    Raises:
      FamilyError: the family is not known, or its config says what growth does not know.
    """
    config = read_json(Path(source), "config.json")
    return family_of(config).architecture(config)


def load(source: str | os.PathLike, dtype: str | None = "float32") -> tuple[Architecture, Any]:
    """The reference model of a Hugging Face checkpoint.

    Args:
      source: the directory of the checkpoint.
      dtype: that of the parameters; None for that of the first tensor.

    Returns:
      The architecture, and the parameters as `growth.models` takes them.

    Raises:
      FamilyError: the reference model does not compute what this model does.
      InputError: the checkpoint is broken; see `open_checkpoint`.
    """
    checkpoint = open_checkpoint(Path(source))
    _check_covered(checkpoint.limits)
    architecture = checkpoint.architecture
    stored = DTYPES[next(iter(checkpoint.tensors.values())).spec.dtype]
    numbers = stored if dtype is None else jnp.dtype(dtype)
    shapes = jax.eval_shape(lambda: initial_parameters(architecture, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.empty(leaf.shape, numbers), shapes)
    arrays = {leaf.path: leaf.value for leaf in pytrees.leaves(params)}
    for name, parameter in checkpoint.parameters.items():
        array = checkpoint.read(name)
        for here, there in _pairs(checkpoint.family, parameter, array, arrays, architecture):
            there[...] = here
    return architecture, jax.tree.map(jnp.asarray, params)


def save(
    output: str | os.PathLike,
    architecture: Architecture,
    params: Any,
    *,
    like: str | os.PathLike | None = None,
    family: str | None = None,
    config: Config | None = None,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes parameters of the reference model as a Hugging Face checkpoint.

    Args:
      output: the directory to write, which must not exist. It appears when it is whole.
      architecture: what the model is.
      params: its parameters, as `growth.models` has them.
      like: a checkpoint that the model was loaded from, and maybe grew from: its config is kept but
        for what grew, and its tokenizer is carried over.
      family: the model_type, where there is no `like`.
      config: what `config.json` shall say besides, such as `{"bos_token_id": 1}`.
      dtype: of the tensors: "float32", "bfloat16", ...; None for that of the parameters.
      max_shard_size: how large a file may be, in bytes, or as "500MB", "5GB".

    Raises:
      FamilyError: neither `like` nor a known `family` is given, or it is not covered.
      GrowthError: the family's config cannot say the architecture.
      InputError: `dtype` is not known; or `output` exists, or its disk is full.
    """
    output = Path(output).absolute()
    carried: list[Path] = []
    if like is not None:
        origin = open_checkpoint(Path(like))
        kind, carried = origin.family, origin.carried
        _check_covered(origin.limits)
        if architecture.position != "learned":  # it may have been trained on shorter sequences
            architecture = architecture.replace(max_length=origin.architecture.max_length)
        said = kind.grown_config({**origin.config, **(config or {})}, architecture)
    elif family in FAMILIES:
        kind = FAMILIES[family]
        _check_covered(kind.limits({**kind.defaults, **(config or {})}))
        said = kind.new_config(architecture, config or {})
    else:
        raise FamilyError(f"family is {family!r}, but it must be one of {', '.join(FAMILIES)}")

    arrays = {leaf.path: np.asarray(leaf.value) for leaf in pytrees.leaves(params)}
    name = str(next(iter(arrays.values())).dtype) if dtype is None else dtype
    targets = {parameter.name: parameter for parameter in _tensors(kind, architecture)}
    specs = {n: Spec(_shape(kind, p, architecture), tensors.code(name)) for n, p in targets.items()}
    files = tensors.shards(specs, tensors.number_of_bytes(max_shard_size))
    said["torch_dtype" if "torch_dtype" in said else "dtype"] = name

    def tensors_of(names: Sequence[str]) -> Iterator[np.ndarray]:
        for n in names:
            array = np.zeros(specs[n].shape, DTYPES[specs[n].dtype])
            for here, there in _pairs(kind, targets[n], array, arrays, architecture):
                here[...] = there
            yield array

    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(output, sum(spec.bytes for spec in specs.values())) as directory:
        for path in carried:
            shutil.copy2(path, directory / path.name)
        tensors.write_files(directory, said, files, tensors_of)


def _check_covered(limits: Mapping[str, str]) -> None:
    if "reference" in limits:
        raise FamilyError(f"the reference model does not compute this model: {limits['reference']}")


def _tensors(family: Family, architecture: Architecture) -> Iterator[Parameter]:
    """All tensors that a model of an architecture has, layer after layer."""
    there = {path for path, _, _ in blueprint(architecture).rules}
    for tensor in family.tensors:
        if tensor.reference and there.issuperset(tensor.reference):
            rule, _ = parse(tensor.path, tensor.role, tensor.axes)
            indices = tuple((name, 0) for name in rule.indices)
            yield from siblings(Parameter(rule, indices, "", range(len(indices))), architecture)


def _shape(family: Family, parameter: Parameter, architecture: Architecture) -> tuple[int, ...]:
    length = architecture.max_length + _tensor(family, parameter).skipped
    sizes = {"vocab": architecture.vocab_size, "length": length}
    return role_views.array_shape(parameter, architecture, sizes)


def _tensor(family: Family, parameter: Parameter) -> Tensor:
    return next(t for t in family.tensors if t.path == parameter.rule.path)


def _pairs(
    family: Family,
    parameter: Parameter,
    array: np.ndarray,
    reference: Mapping[str, np.ndarray],
    architecture: Architecture,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Views of the same numbers, in a tensor and in the reference model's arrays, for each role."""
    tensor = _tensor(family, parameter)
    array = array[tensor.skipped :]
    sections = role_views.sections(
        parameter, architecture, role_views.fixed_sizes(parameter, array.shape, architecture)
    )
    views = role_views.split(array, parameter, architecture)
    layer = parameter.layers.start if parameter.layers else None
    for section, view, path in zip(sections, views, tensor.reference, strict=True):
        there, axes = _reference(path, layer, reference, architecture)
        # Heads that all have their own keys are groups of one.
        missing = [axis for axis in axes if axis not in section.axes]
        names = [*section.axes, *missing]
        view = view[(..., *[None] * len(missing))]
        yield view.transpose([names.index(axis) for axis in axes]), there


def _reference(
    path: str,
    layer: int | None,
    arrays: Mapping[str, np.ndarray],
    architecture: Architecture,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """A view of an array of the reference model, or of one of its layers, and its axes."""
    rule = next(
        parse(*written)[0] for written in blueprint(architecture).rules if written[0] == path
    )
    if layer is None:
        parameter = Parameter(rule, (), "", range(0))
    else:
        first, number = next(run for run in architecture.layer_runs if layer < sum(run))
        parameter = Parameter(rule, (("layers", first),), "", range(first, first + number))
    array = arrays[parameter.name]
    fixed = role_views.fixed_sizes(parameter, array.shape, architecture)
    ((section,), (view,)) = (
        role_views.sections(parameter, architecture, fixed),
        role_views.split(array, parameter, architecture),
    )
    if layer is None:
        return view, section.axes
    return view[layer - parameter.layers.start], section.axes[1:]
