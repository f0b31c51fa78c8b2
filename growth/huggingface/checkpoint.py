"""A checkpoint of Hugging Face, opened: its config is read, and its tensors are what it says."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from growth.architecture import Architecture
from growth.blueprints.parameters import Parameter
from growth.huggingface.checkpoint_files import CONFIG, locate_tensors, read_json
from growth.huggingface.config_map import limits_of, read_config
from growth.huggingface.families import family_of
from growth.huggingface.family import Family, Limits
from growth.huggingface.tensor_files import DTYPES, CheckpointFileError, StoredTensor, TensorSpec
from growth.models import blueprint

# Files that hold numbers in other formats, or that a larger model has not.
_NOT_CARRIED_OVER = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|index\.json)|config\.json|README\.md"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint, opened and checked; its numbers are still on the disk.

    Attributes:
      directory: where it is.
      config: what `config.json` says.
      family: the family of the model.
      architecture: what the model is.
      tensors: where each parameter is, by its name in the files.
      parameters: what it is, by its name in the family's table.
      is_base: whether names lack what the family's begin with.
    """

    directory: Path
    config: dict[str, Any]
    family: Family
    architecture: Architecture
    tensors: dict[str, StoredTensor]
    parameters: dict[str, Parameter]
    is_base: bool

    @property
    def limits(self) -> Limits:
        """What cannot be done with it, and why."""
        return limits_of(self.config, self.family)

    def name_in_files(self, name: str) -> str:
        """The name in the files of a tensor of the family's table."""
        is_within = name.startswith(self.family.prefix)
        return name.removeprefix(self.family.prefix) if self.is_base and is_within else name

    def read(self, name: str) -> np.ndarray:
        """A tensor, by its name in the family's table."""
        return self.tensors[self.name_in_files(name)].read()

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a tensor, by its name in the family's table."""
        return self.tensors[self.name_in_files(name)].spec

    @property
    def companion_files(self) -> list[Path]:
        """Files that belong to the larger model as they are: tokenizer, generation config, ..."""
        paths = sorted(path for path in self.directory.iterdir() if path.is_file())
        return [path for path in paths if not _NOT_CARRIED_OVER.fullmatch(path.name)]


def open_checkpoint(directory: Path) -> Checkpoint:
    """Opens a checkpoint and checks that it is whole.

    Raises:
      FamilyError: the model's family is not known, or its config says what growth does not know.
      CheckpointFileError: a file is missing or truncated, a tensor is missing, or of a dtype that
        cannot be grown.
      BlueprintError: a tensor is unknown, or its shape is not what the config says.
    """
    config = read_json(directory, CONFIG)
    family = family_of(config)
    architecture = read_config(config, family)
    tensors = locate_tensors(directory)
    left_out = {name for name in tensors if re.fullmatch(family.buffers, name)}
    if architecture.tied_embeddings:  # some files have the tied output layer nonetheless
        left_out |= {name for name in tensors if name in _output_layers(family)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    _check_dtypes(tensors)
    is_base = not any(name.startswith(family.prefix) for name in tensors)
    specs = {_name_in_table(name, family, is_base): t.spec for name, t in tensors.items()}
    parameters = family.blueprint.parameters(specs, architecture)
    _check_kinds(parameters, family, architecture)
    _check_vocabulary(parameters, specs, architecture)
    return Checkpoint(directory, config, family, architecture, tensors, parameters, is_base)


def _name_in_table(name: str, family: Family, is_base: bool) -> str:
    return family.prefix + name if is_base and name not in _output_layers(family) else name


def _output_layers(family: Family) -> set[str]:
    return {rule.path for rule in family.tensors if rule.reference == ("unembed/kernel",)}


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
        if rule.path not in kinds and is_said:
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
