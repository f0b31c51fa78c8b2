"""A checkpoint of Hugging Face, opened: its config is read, and its tensors are what it says."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from growth.architecture import Architecture
from growth.blueprints.parameters import Parameter
from growth.huggingface.checkpoint_files import CONFIG, read_json
from growth.huggingface.companion_files import FileFate, carry_over, check_adapter, fates_of
from growth.huggingface.config_map import check_config, limits_of, read_config
from growth.huggingface.families import family_of
from growth.huggingface.family import Family, Limits
from growth.huggingface.task_heads import task_heads, with_task_heads
from growth.huggingface.tensor_files import (
    DTYPES,
    CheckpointFileError,
    StoredTensor,
    TensorSpec,
)
from growth.huggingface.tensor_location import locate_tensors
from growth.huggingface.tied_embeddings import output_layer, read_tied
from growth.huggingface.wrapped_names import WrappedNames, unwrap
from growth.models import blueprint


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint, opened and checked; its numbers are still on the disk.

    Attributes:
      directory: where it is.
      config: what `config.json` says, but for what its tensors contradict.
      family: the family of the model.
      architecture: what the model is.
      tensors: where each parameter is, by its name in the family's table.
      parameters: what it is, by that name.
      is_base: whether names in the files lack what the family's begin with.
      wrapped: what they have besides, where a wrapped module was saved.
      files: what becomes of each file of the directory, relative to it.
      notes: what is not as one would expect, and how it is read, in sentences.
    """

    directory: Path
    config: dict[str, Any]
    family: Family
    architecture: Architecture
    tensors: dict[str, StoredTensor]
    parameters: dict[str, Parameter]
    is_base: bool
    wrapped: WrappedNames
    files: tuple[FileFate, ...]
    notes: tuple[str, ...]

    @property
    def limits(self) -> Limits:
        """What cannot be done with it, and why."""
        return limits_of(self.config, self.family)

    def name_in_files(self, name: str) -> str:
        """The name in the files of a tensor of the family's table."""
        is_within = name.startswith(self.family.prefix)
        plain = name.removeprefix(self.family.prefix) if self.is_base and is_within else name
        return self.wrapped.in_files(plain)

    def read(self, name: str) -> np.ndarray:
        """A tensor, by its name in the family's table."""
        return self.tensors[name].read()

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a tensor, by its name in the family's table."""
        return self.tensors[name].spec

    @property
    def carried_bytes(self) -> int:
        """Bytes of the files that belong to the larger model as they are."""
        carried = (self.directory / file.path for file in self.files if file.fate == "carried")
        return sum(path.stat().st_size for path in carried)

    def carry_over(self, output: Path) -> None:
        """Copies the files that belong to the larger model as they are: tokenizer, code, ..."""
        carry_over(self.directory, self.files, output)


def open_checkpoint(directory: Path, ignore_config_keys: Collection[str] = ()) -> Checkpoint:
    """Opens a checkpoint as transformers reads it, and checks that it is whole.

    Args:
      directory: where it is.
      ignore_config_keys: keys of `config.json` that change nothing that the model computes.

    Raises:
      FamilyError: the model's family is not known, or its config says what growth does not know.
      CheckpointFileError: a file is missing or truncated, a tensor is missing, or of a dtype that
        cannot be grown.
      BlueprintError: a tensor is unknown, or its shape is not what the config says.
    """
    config = read_json(directory, CONFIG)
    family = family_of(config)
    check_config(config, family, ignore_config_keys)
    architecture = read_config(config, family)
    located = locate_tensors(directory, config)
    files = fates_of(directory, grown={CONFIG, *located.files})
    check_adapter(directory, files)
    wrapped = unwrap(located.tensors)
    plain = {wrapped.plain[name]: tensor for name, tensor in located.tensors.items()}
    tensors = {n: t for n, t in plain.items() if not re.fullmatch(family.buffers, n)}
    _check_dtypes(tensors)
    is_base = not any(name.startswith(family.prefix) for name in tensors)
    tensors = {_name_in_table(name, family, is_base): t for name, t in tensors.items()}
    notes = located.notes + (wrapped.note,) * bool(wrapped.note)
    if architecture.tied_embeddings:
        tied = read_tied(tensors, family)
        tensors = tied.tensors
        notes += (tied.note,) * bool(tied.note)
        if not tied.is_tied:
            config = {**config, "tie_word_embeddings": False}
            architecture = read_config(config, family)
    family = with_task_heads(family, tensors, config, architecture.embed_dim)
    architecture = read_config(config, family)
    _check_output_layer(tensors, family, architecture)
    specs = {name: tensor.spec for name, tensor in tensors.items()}
    parameters = family.blueprint.parameters(specs, architecture)
    _check_kinds(parameters, family, architecture)
    _check_vocabulary(parameters, specs, architecture)
    return Checkpoint(
        directory, config, family, architecture, tensors, parameters, is_base, wrapped, files, notes
    )


def _name_in_table(name: str, family: Family, is_base: bool) -> str:
    return family.prefix + name if is_base and name != output_layer(family) else name


def _check_output_layer(
    tensors: Mapping[str, StoredTensor], family: Family, architecture: Architecture
) -> None:
    head = output_layer(family)
    if not architecture.tied_embeddings and head not in tensors and not task_heads(family):
        raise CheckpointFileError(
            f"no tensor of the checkpoint is {head}: it holds the body alone. Load it as a "
            f"{family.model_class} in transformers, which adds an output layer, save that and grow "
            f"it; the larger body is the {family.body_class} in it"
        )


def _check_dtypes(tensors: Mapping[str, StoredTensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.spec.dtype not in DTYPES:
            raise CheckpointFileError(
                f"{name} in {tensor.path.name} has dtype {tensor.spec.dtype}, but what can be "
                f"grown is {', '.join(DTYPES)}"
            )


def _check_kinds(
    parameters: Mapping[str, Parameter], family: Family, architecture: Architecture
) -> None:
    """Refuses a checkpoint that lacks a kind of tensor, or has one that its config does not say.

    The reference model, which is built from the architecture, knows which there are.
    """
    in_reference = {path for path, _, _ in blueprint(architecture).rules}
    kinds = {parameter.rule.path for parameter in parameters.values()}
    for rule in family.tensors:
        is_said = in_reference.issuperset(rule.reference)
        instead = rule.path == output_layer(family) and task_heads(family)
        if rule.path not in kinds and is_said and not instead:
            raise CheckpointFileError(f"no tensor of the checkpoint is {rule.path}")
        if rule.path in kinds and not is_said:
            raise CheckpointFileError(
                f"the checkpoint has {rule.path}, but by its config the model has not"
            )


def _check_vocabulary(
    parameters: Mapping[str, Parameter],
    specs: Mapping[str, TensorSpec],
    architecture: Architecture,
) -> None:
    for name, parameter in parameters.items():
        for size, axes in zip(specs[name].shape, parameter.rule.dims, strict=True):
            if axes == ("vocab",) and size != architecture.vocab_size:
                raise CheckpointFileError(
                    f"{name} has {size} rows, but config.json says a vocabulary of "
                    f"{architecture.vocab_size}"
                )
