"""Which files of a folder hold the tensors of its model, and where each tensor is.

What a folder holds besides is left over: shards of an older state, a file in another precision. So
it counts which files transformers reads, and which copy of a tensor that two of them hold:

1. the file or the index that `transformers_weights` of `config.json` names;
2. else `model.safetensors`, also where an index stands beside it;
3. else all files that `model.safetensors.index.json` names, in the order of their names: of two
   copies of a tensor the later one is read, whatever the index says.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from growth.huggingface.checkpoint_files import INDEX, SINGLE, read_json
from growth.huggingface.tensor_files import CheckpointFileError, StoredTensor, stored_tensors

# Keys of `config.json`.
_NAMED = "transformers_weights"

_INDEX_ENDING = ".safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class LocatedTensors:
    """The tensors of a folder, as transformers reads it.

    Attributes:
      tensors: where each is, by its name in the files.
      files: the files that say or hold them, relative to the folder.
      notes: what is not as one would expect, in sentences.
    """

    tensors: Mapping[str, StoredTensor]
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def locate_tensors(directory: Path, config: Mapping[str, Any]) -> LocatedTensors:
    """Where each tensor of a checkpoint is; reads the headers of its files.

    Args:
      directory: the folder.
      config: what its `config.json` says.

    Raises:
      CheckpointFileError: a file is missing or truncated or lies outside the folder, or the index
        is wrong.
    """
    name = config.get(_NAMED)
    if name is None:
        name = next((name for name in (SINGLE, INDEX) if (directory / name).is_file()), None)
        if name is None:
            raise CheckpointFileError(
                f"{directory} has neither {SINGLE} nor {INDEX}: {_what_is_there(directory)}"
            )
    else:
        _check_within(name, f"{_NAMED} of config.json")
        if not str(name).endswith((".safetensors", _INDEX_ENDING)):
            raise CheckpointFileError(
                f"{_NAMED} of config.json is {name!r}, but it must be a *.safetensors or a "
                f"*{_INDEX_ENDING}"
            )
        if not (directory / name).is_file():
            raise CheckpointFileError(
                f"{_NAMED} of config.json names {name}, but {directory / name} is not there"
            )
    if name.endswith(_INDEX_ENDING):
        return _locate_by_index(directory, name)
    return LocatedTensors(stored_tensors(directory / name), (name,))


def _locate_by_index(directory: Path, index: str) -> LocatedTensors:
    weight_map = read_json(directory, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointFileError(f"{directory / index} has no weight_map")
    for file in weight_map.values():
        _check_within(file, index)
    files = sorted(set(weight_map.values()))
    for file in files:
        if not (directory / file).is_file():
            raise CheckpointFileError(
                f"{index} names {file}, but {directory / file} is not there: download it again"
            )
    held = {file: stored_tensors(directory / file) for file in files}
    for name, file in weight_map.items():
        if name not in held[file]:
            raise CheckpointFileError(f"{index} says that {file} has {name}, but it has not")
    tensors: dict[str, StoredTensor] = {}
    notes = []
    for file in files:
        twice = sorted(held[file].keys() & tensors.keys())
        if twice:
            other = tensors[twice[0]].path.name
            more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
            notes.append(
                f"{other} and {file} both hold {twice[0]}{more}: what {file} holds is read, as "
                f"transformers reads it"
            )
        tensors |= held[file]
    return LocatedTensors(tensors, (index, *files), tuple(notes))


def _check_within(name: Any, said_by: str) -> None:
    """Refuses the name of a file that is none, or that leads out of the folder.

    A link in the folder may lead anywhere: so do those of the cache of the Hugging Face Hub.
    """
    path = PurePosixPath(name) if isinstance(name, str) else None
    if path is None or not path.name:
        raise CheckpointFileError(f"{said_by} names {name!r}, but it must be the name of a file")
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise CheckpointFileError(
            f"{said_by} names {name!r}, but only files within the folder are read"
        )


# What may be there instead, and what to do about it.
_INSTEAD = (
    (r"model-\d+-of-\d+\.safetensors", "{} is one of several files, but their index is missing"),
    (
        r"model\.[\w-]+\.safetensors",
        f"{{}} is a variant: give a copy of the folder that has it under the name {SINGLE}",
    ),
    (
        r"pytorch_model.*\.bin|tf_model\.h5|flax_model\.msgpack|consolidated.*\.(pth|safetensors)"
        r"|.*\.gguf|.*\.onnx",
        "{} must be converted to safetensors first, as save_pretrained of transformers writes them",
    ),
)


def _what_is_there(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    for pattern, words in _INSTEAD:
        for name in names:
            if re.fullmatch(pattern, name):
                return words.format(name)
    return "no weights are there"
