"""A checkpoint of Hugging Face: a directory of `config.json`, safetensors files and others."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from growth.architecture import Architecture
from growth.blueprints.parameters import Parameter
from growth.errors import InputError
from growth.huggingface import rotary, tensors
from growth.huggingface.families import family_of
from growth.huggingface.family import Family
from growth.huggingface.tensors import INDEX, SINGLE, CheckpointFileError, Spec, Stored
from growth.models import blueprint

# Files that hold numbers in other formats, or that a larger model has not.
_NOT_CARRIED = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|index\.json)|config\.json"
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
    tensors: dict[str, Stored]
    parameters: dict[str, Parameter]
    is_base: bool

    @property
    def limits(self) -> dict[str, str]:
        """What cannot grow and why; see `Family.limits`."""
        unusual = rotary.limits(self.config) if self.family.rope is not None else {}
        return {**unusual, **self.family.limits({**self.family.defaults, **self.config})}

    def stored(self, name: str) -> str:
        """The name in the files of a tensor of the family's table."""
        is_within = name.startswith(self.family.prefix)
        return name.removeprefix(self.family.prefix) if self.is_base and is_within else name

    def read(self, name: str) -> np.ndarray:
        """A tensor, by its name in the family's table."""
        return self.tensors[self.stored(name)].read()

    def spec(self, name: str) -> Spec:
        """Shape and dtype of a tensor, by its name in the family's table."""
        return self.tensors[self.stored(name)].spec

    @property
    def carried(self) -> list[Path]:
        """Files that belong to the larger model as they are: tokenizer, generation config, ..."""
        names = sorted(p for p in self.directory.iterdir() if p.is_file())
        return [
            path
            for path in names
            if not _NOT_CARRIED.fullmatch(path.name) and path.name != "README.md"
        ]


def open_checkpoint(directory: Path) -> Checkpoint:
    """Opens a checkpoint and checks that it is whole.

    Raises:
      FamilyError: the model's family is not known, or its config says what growth does not know.
      CheckpointFileError: a file is missing or truncated, a tensor is missing, or of a dtype that
        cannot be grown.
      BlueprintError: a tensor is unknown, or its shape is not what the config says.
    """
    config = read_json(directory, "config.json")
    family = family_of(config)
    architecture = family.architecture(config)
    found = _tensors(directory)
    left_out = {name for name in found if re.fullmatch(family.buffers, name)}
    if architecture.tied_embeddings:  # some files have the tied output layer nonetheless
        left_out |= {name for name in found if name in _output_layers(family)}
    found = {name: tensor for name, tensor in found.items() if name not in left_out}
    for name, tensor in found.items():
        if tensor.spec.dtype not in tensors.DTYPES:
            raise CheckpointFileError(
                f"{name} in {tensor.path.name} has dtype {tensor.spec.dtype}, but what can be "
                f"grown is {', '.join(tensors.DTYPES)}"
            )
    is_base = not any(name.startswith(family.prefix) for name in found)
    shapes = {_with_prefix(name, family, is_base): at.spec for name, at in found.items()}
    parameters = family.blueprint.parameters(shapes, architecture)
    _check_kinds(family, architecture, parameters)
    _check_vocabulary(shapes, parameters, architecture)
    return Checkpoint(directory, config, family, architecture, found, parameters, is_base)


def _with_prefix(name: str, family: Family, is_base: bool) -> str:
    return family.prefix + name if is_base and name not in _output_layers(family) else name


def _output_layers(family: Family) -> set[str]:
    return {t.path for t in family.tensors if t.reference == ("unembed/kernel",)}


def _check_kinds(
    family: Family, architecture: Architecture, parameters: Mapping[str, Parameter]
) -> None:
    """Refuses a checkpoint that lacks a kind of tensor, or has one that its config does not say.

    The reference model, which is built from the architecture, knows which there are.
    """
    there = {path for path, _, _ in blueprint(architecture).rules}
    kinds = {parameter.rule.path for parameter in parameters.values()}
    for tensor in family.tensors:
        is_said = there.issuperset(tensor.reference)
        if tensor.path not in kinds and is_said:
            raise CheckpointFileError(f"no tensor of the checkpoint is {tensor.path}")
        if tensor.path in kinds and not is_said:
            raise CheckpointFileError(
                f"the checkpoint has {tensor.path}, but by its config the model has not"
            )


def _check_vocabulary(
    shapes: Mapping[str, Spec], parameters: Mapping[str, Parameter], architecture: Architecture
) -> None:
    for name, parameter in parameters.items():
        for size, axes in zip(shapes[name].shape, parameter.rule.dims, strict=True):
            if axes == ("vocab",) and size != architecture.vocab_size:
                raise CheckpointFileError(
                    f"{name} has {size} rows, but config.json says a vocabulary of "
                    f"{architecture.vocab_size}"
                )


def _tensors(directory: Path) -> dict[str, Stored]:
    """Where each tensor is; reads the headers of the files."""
    if (directory / INDEX).is_file():
        found = read_json(directory, INDEX).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise CheckpointFileError(f"{directory / INDEX} has no weight_map")
        files = {name: directory / file for name, file in found.items()}
        for path in dict.fromkeys(files.values()):
            if not path.is_file():
                raise CheckpointFileError(f"{INDEX} names {path.name}, but {path} is not there")
        held = {path: tensors.stored(path) for path in dict.fromkeys(files.values())}
        for name, path in files.items():
            if name not in held[path]:
                raise CheckpointFileError(
                    f"{INDEX} says that {path.name} has {name}, but it has not"
                )
        return {name: held[path][name] for name, path in files.items()}
    path = directory / SINGLE
    if not path.is_file():
        others = [p.name for p in directory.glob("*.bin")]
        hint = f"; {others[0]} must be converted to safetensors first" if others else ""
        raise CheckpointFileError(f"{directory} has neither {SINGLE} nor {INDEX}{hint}")
    return tensors.stored(path)


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """What one of the files of a checkpoint says."""
    path = directory / name
    if not path.is_file():
        raise InputError(f"{directory} is no checkpoint: it has no {name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointFileError(f"{path} is not a JSON object")
    return found
