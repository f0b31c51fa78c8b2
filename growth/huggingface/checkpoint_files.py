"""The files of a checkpoint: `config.json`, one file of tensors, or several and their index."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from growth.errors import InputError
from growth.huggingface.tensor_files import (
    CheckpointFileError,
    TensorFileWriter,
    TensorSpec,
)

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
# Where tensors are: in the first, or in files that the second names.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# No file of a checkpoint is nested deeper, and what recurses through one ends somewhere.
_MOST_NESTED = 32

# The tensors of each file by name.
Shards = Mapping[str, Mapping[str, TensorSpec]]


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """What one of the JSON files of a checkpoint says.

    Raises:
      InputError: there is no such directory, or no such file in it.
      CheckpointFileError: it is no JSON object, says one thing twice, or is nested without end.
    """
    check_directory(directory)
    path = directory / name
    if not path.is_file():
        raise InputError(f"{directory} is no checkpoint: it has no {name}{_adapter(directory)}")
    content = parse_json(path)
    if not isinstance(content, dict):
        raise CheckpointFileError(f"{path} is not a JSON object")
    return content


def parse_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
      CheckpointFileError: it is not JSON, says one thing twice, or is nested without end.
    """

    def without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [key for key, _ in pairs]
            repeated = next(key for key in found if names.count(key) > 1)
            raise CheckpointFileError(f"{path} says {repeated!r} twice: remove one")
        return found

    deep = CheckpointFileError(f"{path} is nested more than {_MOST_NESTED} levels deep")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_repetition)
    except CheckpointFileError:
        raise
    except ValueError as error:
        raise CheckpointFileError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise deep from error
    if _is_nested(content, _MOST_NESTED):
        raise deep
    return content


def _is_nested(content: Any, levels: int) -> bool:
    """Whether JSON is nested deeper than so many levels."""
    inner = [content]
    for _ in range(levels + 1):
        inner = [
            part
            for whole in inner
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
        ]
    return bool(inner)


def check_directory(source: str | Path) -> None:
    """Refuses a source that is no directory, with what it may be instead.

    Raises:
      InputError: it is none.
    """
    path = Path(source)
    if path.is_dir():
        return
    if path.exists():
        raise InputError(f"source is {str(source)!r}, a file: give the directory that it is in")
    hint = ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.parent.is_dir():
        hint = (
            f". If it is a name of the Hugging Face Hub: a local directory is needed, "
            f"`hf download {source} --local-dir DIR`"
        )
    raise InputError(f"source is {str(source)!r}, but there is no such directory{hint}")


def _adapter(directory: Path) -> str:
    """What to do about an adapter that stands alone, in words that follow others."""
    if not (directory / ADAPTER_CONFIG).is_file():
        return ""
    return (
        f", but {ADAPTER_CONFIG}. A PEFT adapter grows with its base model: merge it first "
        f"(merge_and_unload of peft, then save_pretrained)"
    )


def shard(specs: Mapping[str, TensorSpec], max_bytes: int) -> dict[str, dict[str, TensorSpec]]:
    """Splits tensors into files of at most so many bytes, one tensor at least in each.

    Returns:
      The tensors of each file, by its name: `model.safetensors`, or `model-00001-of-00003...`.
    """
    files: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if files[-1] and filled + spec.bytes > max_bytes:
            files.append({})
            filled = 0
        files[-1][name] = spec
        filled += spec.bytes
    if len(files) == 1:
        return {SINGLE: files[0]}
    return {
        f"model-{number:05}-of-{len(files):05}.safetensors": held
        for number, held in enumerate(files, start=1)
    }


def index_of(shards: Shards) -> dict[str, Any]:
    """What `model.safetensors.index.json` says of several files."""
    specs = [spec for held in shards.values() for spec in held.values()]
    return {
        "metadata": {
            "total_parameters": sum(spec.size for spec in specs),
            "total_size": sum(spec.bytes for spec in specs),
        },
        "weight_map": {name: file for file, held in shards.items() for name in sorted(held)},
    }


def write_checkpoint(
    directory: Path,
    config: Mapping[str, Any],
    shards: Shards,
    arrays_of: Callable[[Sequence[str]], Iterable[np.ndarray]],
) -> None:
    """Writes `config.json`, all tensors, and the index where they are in several files.

    Args:
      directory: where; it is there.
      config: what `config.json` says.
      shards: the tensors of each file.
      arrays_of: gives the tensors of some names, in that order.
    """
    _write_json(directory / CONFIG, config)
    if len(shards) > 1:
        _write_json(directory / INDEX, index_of(shards))
    for file, held in shards.items():
        with TensorFileWriter(directory / file, held) as writer:
            for array in arrays_of(writer.names):
                writer.write(array)


def parse_bytes(size: int | str) -> int:
    """A number of bytes, also where it is written as "5GB" or "500MB".

    Raises:
      InputError: it is neither.
    """
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    match = re.fullmatch(r"(\d+)\s*([KMG]?B?)", str(size).strip().upper())
    if not match or match[2] not in units or not int(match[1]):
        raise InputError(f"max_shard_size is {size!r}, but it must be bytes, or like 500MB or 5GB")
    return int(match[1]) * units[match[2]]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
