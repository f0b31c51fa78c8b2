"""The model that is meant where no blueprint is given.

Nothing here knows a module system, so that model is not known here either: `growth.models` makes
itself known when it is imported, and whoever has parameters of it has imported it.
"""

from collections.abc import Callable
from typing import Protocol

import jax

from growth.architecture import Architecture
from growth.blueprints.blueprint import Blueprint
from growth.errors import InputError
from growth.types import Params


class ReferenceModel(Protocol):
    """What is asked of a model that is meant where none is named."""

    @property
    def blueprint(self) -> Callable[[Architecture], Blueprint]:
        """What the parameters of an architecture are."""

    @property
    def initial_parameters(self) -> Callable[[Architecture, jax.Array], Params]:
        """Freshly initialized parameters of an architecture, from a PRNG key."""


_registered: list[ReferenceModel] = []


def register_reference_model(model: ReferenceModel) -> None:
    """Makes a model the one that is meant where no blueprint is given."""
    _registered[:] = [model]


def reference_model() -> ReferenceModel:
    """The model that is meant where no blueprint is given.

    Raises:
      InputError: there is none yet.
    """
    if not _registered:
        raise InputError(
            "blueprint is None, which means the model of growth.models, but that is not imported: "
            "import it, or give the blueprint of the model that the parameters belong to"
        )
    return _registered[0]


def blueprint_for(architecture: Architecture, blueprint: Blueprint | None) -> Blueprint:
    """The given blueprint, or that of the reference model."""
    return reference_model().blueprint(architecture) if blueprint is None else blueprint
