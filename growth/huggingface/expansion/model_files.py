"""A model as whoever runs it needs it: its config, what each tensor is, and its numbers on demand.

Three models are compared: the source, the larger one in float64, which is in no file, and the
larger one as it was written.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

import numpy as np

from growth.architecture import Architecture
from growth.blueprints.parameters import Parameter
from growth.huggingface.expansion.planning import CheckpointExpansion
from growth.huggingface.family import Config, Family
from growth.huggingface.tensor_files import DTYPES, TensorSpec, dtype_code, stored_tensors


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFiles:
    """A model whose numbers are read when they are needed.

    Attributes:
      directory: where its files are.
      config: what its `config.json` says.
      architecture: what it is.
      family: the family of its tensors.
      parameters: what each tensor is, by its name in the family's table.
      names: those names, by the names in files.
      read: gives a tensor, by its name in the family's table.
      size: the number of its entries.
      dtype: that in which a person loads it, such as "bfloat16".
    """

    directory: Path
    config: Config
    architecture: Architecture
    family: Family
    parameters: Mapping[str, Parameter]
    names: Mapping[str, str]
    read: Callable[[str], np.ndarray]
    size: int
    dtype: str

    @classmethod
    def of_source(cls, expansion: CheckpointExpansion) -> Self:
        """The smaller model."""
        source = expansion.source
        names = {source.name_in_files(name): name for name in source.parameters}
        specs = [source.spec(name) for name in source.parameters]
        return cls(
            source.directory,
            source.config,
            source.architecture,
            source.family,
            source.parameters,
            names,
            source.read,
            sum(spec.size for spec in specs),
            loaded_dtype(source.config, specs),
        )

    @classmethod
    def grown_exactly(cls, expansion: CheckpointExpansion, directory: Path) -> Self:
        """The larger model, whose tensors are grown in float64 as they are read."""
        wide = expansion.with_dtype("float64")
        return cls._of_result(expansion, directory, wide.grow, "float64")

    @classmethod
    def as_written(cls, expansion: CheckpointExpansion, directory: Path) -> Self:
        """The larger model, as its files are."""
        files = [stored_tensors(directory / file) for file in expansion.shards]
        located = {name: tensor for held in files for name, tensor in held.items()}
        in_files = expansion.source.name_in_files
        return cls._of_result(
            expansion,
            directory,
            lambda name: located[in_files(name)].read(),
            loaded_dtype(expansion.config, expansion.specs.values()),
        )

    @classmethod
    def _of_result(
        cls,
        expansion: CheckpointExpansion,
        directory: Path,
        read: Callable[[str], np.ndarray],
        dtype: str,
    ) -> Self:
        names = {expansion.source.name_in_files(name): name for name in expansion.targets}
        family = expansion.source.family
        return cls(
            directory,
            expansion.config,
            expansion.plan.target,
            family,
            expansion.targets,
            names,
            read,
            sum(spec.size for spec in expansion.specs.values()),
            dtype,
        )

    @property
    def bytes_when_loaded(self) -> int:
        """What all its numbers take, as a person loads them."""
        return self.size * DTYPES[dtype_code(self.dtype)].itemsize

    def read_named(self, name: str) -> np.ndarray:
        """A tensor, by its name in files."""
        return self.read(self.names[name])


def loaded_dtype(config: Config, specs: Iterable[TensorSpec]) -> str:
    """The dtype in which a person loads a model: what its config says, else the first tensor's."""
    said = config.get("dtype") or config.get("torch_dtype")
    return (
        said if isinstance(said, str) and said != "auto" else DTYPES[next(iter(specs)).dtype].name
    )
