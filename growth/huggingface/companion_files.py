"""What becomes of each file of a checkpoint's folder: grown, carried over, or left out and why."""

import dataclasses
import json
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from growth.errors import InputError
from growth.huggingface.checkpoint_files import ADAPTER_CONFIG
from growth.huggingface.tensor_files import CheckpointFileError

# Files with numbers of the smaller model, by why they are left out.
_WEIGHTS = (
    (r"adapter_(config\.json|model\..*)", "an adapter fits the smaller model alone"),
    (
        r"(optimizer|scheduler|scaler|rng_state.*|training_args)\.(pt|pth|bin)|trainer_state\.json",
        "the state of a training run of the smaller model",
    ),
    (
        r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|gguf|npz|pkl|index\.json)",
        "weights of the smaller model, which transformers does not read beside the others",
    ),
)
# Of what a folder with such files holds, the rest belongs to them.
_CARD, _CARD_REASON = "README.md", "the larger model has a card of its own"
# What transformers reads of a folder besides.
_JSON = (
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_HIDDEN = (".git", ".cache", ".ipynb_checkpoints", "__pycache__")


@dataclasses.dataclass(frozen=True)
class FileFate:
    """What becomes of a file.

    Attributes:
      path: where it is, relative to the folder of the checkpoint; a folder that is left out whole
        ends in a slash.
      fate: whether the larger model has one that is made of it, has it as it is, or has it not.
      reason: why it is left out; empty for the others.
    """

    path: str
    fate: Literal["grown", "carried", "left out"]
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})" if self.reason else self.path


def fates_of(directory: Path, grown: Collection[str]) -> tuple[FileFate, ...]:
    """What becomes of each file, in the order of their paths.

    Args:
      directory: the folder of a checkpoint.
      grown: the paths of the files that are read, relative to it.
    """
    return tuple(_fates_within(directory, "", grown))


def _fates_within(directory: Path, within: str, grown: Collection[str]) -> Iterable[FileFate]:
    for path in sorted(directory.iterdir()):
        name = f"{within}{path.name}"
        if name in grown:
            yield FileFate(name, "grown")
        elif path.is_dir():
            reason = _why_without_folder(path, f"{name}/", grown)
            if reason:
                yield FileFate(f"{name}/", "left out", reason)
            else:
                yield from _fates_within(path, f"{name}/", grown)
        else:
            reason = _why_without_file(path, within)
            yield FileFate(name, "left out" if reason else "carried", reason)


def _why_without_file(path: Path, within: str) -> str:
    if not path.is_file():
        return "a link to nothing" if path.is_symlink() else "no file"
    if not within and path.name == _CARD:
        return _CARD_REASON
    return next((why for names, why in _WEIGHTS if re.fullmatch(names, path.name)), "")


def _why_without_folder(path: Path, within: str, grown: Collection[str]) -> str:
    if path.is_symlink():
        return "a link to another folder"
    if path.name in _HIDDEN:
        return "made by other programs"
    if any(name.startswith(within) for name in grown):
        return ""
    files = [file for file in path.iterdir() if file.is_file()]
    if any(_why_without_file(file, within) for file in files):
        return "it belongs to weights of the smaller model that it holds"
    return ""


def summary(files: Iterable[FileFate]) -> dict[str, str]:
    """The files by what becomes of them, as text; a fate that none has is not there."""
    named: dict[str, dict[str, list[str]]] = {"grown": {}, "carried": {}, "left out": {}}
    for file in files:
        row = re.sub(r"-\d+-of-(\d+\.)", r"-N-of-\1", file.path)
        named[file.fate].setdefault(row, []).append(str(file))
    return {
        fate: ", ".join(
            held[0] if len(held) == 1 else f"{held[0]} to {held[-1]}" for held in rows.values()
        )
        for fate, rows in named.items()
        if rows
    }


def check_adapter(directory: Path, files: Iterable[FileFate]) -> None:
    """Refuses a folder that may be a model or that model with an adapter.

    Raises:
      InputError: it holds both.
    """
    names = {file.path for file in files}
    weights = sorted(name for name in names if re.fullmatch(r"adapter_model\..*", name))
    if weights and ADAPTER_CONFIG in names:
        raise InputError(
            f"{directory} holds a model and a PEFT adapter, {weights[0]}, which transformers adds "
            f"to it where peft is installed: merge it first (merge_and_unload of peft, then "
            f"save_pretrained), or grow a copy of the folder without {ADAPTER_CONFIG}"
        )


def check_carried(directory: Path, files: Iterable[FileFate]) -> None:
    """Refuses files that are carried over and that transformers could not read.

    Raises:
      CheckpointFileError: a JSON file is not JSON.
    """
    for file in files:
        if file.fate == "carried" and file.path in _JSON:
            try:
                json.loads((directory / file.path).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise CheckpointFileError(
                    f"{directory / file.path} is not JSON: {error}; download it again, or remove it"
                ) from error


def carry_over(source: Path, files: Iterable[FileFate], output: Path) -> None:
    """Copies the files that are carried over, with their folders."""
    for file in files:
        if file.fate == "carried":
            (output / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / file.path, output / file.path)
