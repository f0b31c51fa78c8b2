"""Models of transformers that hold the numbers of one module at a time.

A model is built without numbers. Each module is given its own right before it runs, and they are
taken away right after, so what is in memory is what the largest module has. All else is what a
person runs who loads the checkpoint: the library's own modules, masks, kernels, names of tensors,
and what it makes of several of them.
"""

import contextlib
import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from growth.huggingface.expansion.transformers_models import (
    UnloadableError,
    compute_outputs,
    model_config,
    model_kind,
    quiet,
    some_of,
)
from growth.huggingface.family import Config

# Gives a tensor by its name in the files.
ReadTensor = Callable[[str], np.ndarray]


class _Parts(NamedTuple):
    """What a parameter is made of.

    Attributes:
      parameter: its name.
      names: the tensors, with the pattern by which the library knows each.
      converter: how the library makes the parameter of several; None if it is one.
    """

    parameter: str
    names: list[tuple[str, str | None]]
    converter: Any


def streamed_model(
    config: Config,
    names: Sequence[str],
    read: ReadTensor,
    dtype: str,
    *,
    optional: Collection[str] = (),
    exact: bool = False,
) -> Any:
    """The model of a checkpoint, ready to be called, whose numbers are read when they are needed.

    Args:
      config: what its `config.json` says.
      names: the names of its tensors in files.
      read: gives each of them.
      dtype: that of the parameters, such as "float64".
      optional: those of them that the library may leave out.
      exact: whether it is the judge of a growth step. The fast implementation of experts knows no
        float64, so that a plain one is taken.

    Raises:
      UnloadableError: the tensors are not those that the model has.
      Exception: whatever transformers raises if it cannot make the model.
    """
    model = _empty_model(config, dtype, exact)
    parts = _parts_of_parameters(model, names, optional)
    # Tied parameters are one, and have one of their names in the files.
    everywhere = list(model.named_parameters(remove_duplicate=False))
    found = {id(value): parts[name] for name, value in everywhere if name in parts}
    missing = [name for name, value in model.named_parameters() if id(value) not in found]
    if missing:
        raise UnloadableError(f"transformers would find no numbers for {some_of(missing)}")

    def load(value: Any, rows: np.ndarray | None) -> Any:
        parts = found[id(value)]
        tensor = _joined(parts, functools.partial(_tensor, read, rows), model)
        wanted = value.shape if rows is None else (len(rows), *value.shape[1:])
        if tensor.shape != wanted:
            raise UnloadableError(
                f"transformers would want {parts.parameter} of shape {tuple(wanted)}, but it is of "
                f"{tuple(tensor.shape)}"
            )
        return tensor.to(value.dtype)

    _load_when_run(model, load)
    return model


def run_with_zeros(config: Config, dtype: str) -> None:
    """Runs a model of zeros on a short text, for its kernels to say whether they can.

    Args:
      config: what its `config.json` says.
      dtype: that of the parameters.

    Raises:
      Exception: whatever transformers and its kernels raise if they cannot.
    """
    import torch

    model = _empty_model(config, dtype, exact=False)
    _load_when_run(
        model,
        lambda value, rows: torch.zeros(
            value.shape if rows is None else (len(rows), *value.shape[1:]), dtype=value.dtype
        ),
    )
    compute_outputs(model, np.zeros((1, 2), np.int64))


def _empty_model(config: Config, dtype: str, exact: bool) -> Any:
    import torch

    with quiet(), _without_numbers():
        read = model_config(config)
        if exact:
            read._experts_implementation = "eager"
        return model_kind(read)._from_config(read, dtype=getattr(torch, dtype)).eval()


@contextlib.contextmanager
def _without_numbers() -> Iterator[None]:
    """Parameters that are made are shapes only; what is no parameter, such as angles, is whole."""
    import torch

    register = torch.nn.Module.register_parameter

    def without_numbers(module: Any, name: str, value: Any) -> None:
        if value is not None and not value.is_meta:
            value = torch.nn.Parameter(value.to("meta"), requires_grad=False)
        register(module, name, value)

    module: Any = torch.nn.Module
    module.register_parameter = without_numbers
    try:
        yield
    finally:
        module.register_parameter = register


# Gives the numbers of a parameter that has none, or some of its rows.
Load = Callable[[Any, np.ndarray | None], Any]


def _load_when_run(model: Any, load: Load) -> None:
    """Gives each module its parameters before each call, and takes them away after it."""
    for module in model.modules():
        own = {key: value for key, value in module._parameters.items() if value is not None}
        if own:
            _load_when_called(module, own, load)


def _load_when_called(module: Any, own: Mapping[str, Any], load: Load) -> None:
    import torch

    looks_up = isinstance(module, torch.nn.Embedding) and next(
        iter(inspect.signature(module.forward).parameters)
    ) in ("input", "input_ids")
    if looks_up:
        module.padding_idx = None  # it is a row, which may not be there, and is for gradients alone

    def before(module: Any, given: tuple) -> tuple:
        rows = None
        if looks_up and len(given) == 1:  # a table: only the rows that are looked up
            rows, places = np.unique(given[0].numpy(), return_inverse=True)
            given = (torch.from_numpy(places.reshape(given[0].shape)),)
        for key, value in own.items():
            numbers = load(value, rows)
            module._parameters[key] = torch.nn.Parameter(numbers, requires_grad=False)
        return given

    def after(module: Any, given: tuple, result: Any) -> None:
        module._parameters.update(own)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)


def _tensor(read: ReadTensor, rows: np.ndarray | None, name: str) -> Any:
    """A tensor, which shares memory with the array that is read; or some rows of it."""
    import torch

    array = read(name)
    if rows is not None:
        array = array[rows]
    with warnings.catch_warnings():  # files are mapped to be read only, and nothing writes here
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)


def _parts_of_parameters(
    model: Any, names: Sequence[str], optional: Collection[str]
) -> dict[str, _Parts]:
    """What each parameter of a model is made of, as the library loads it."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loaded_as = _loader(model, parameters)
    parts: dict[str, _Parts] = {}
    unknown = []
    for name in names:
        parameter, pattern, converter = loaded_as(name)
        if parameter in parameters:
            parts.setdefault(parameter, _Parts(parameter, [], converter)).names.append(
                (name, pattern)
            )
        elif name not in optional:
            unknown.append(name)
    if unknown:
        raise UnloadableError(f"transformers would leave out {some_of(unknown)}")
    return parts


def _loader(
    model: Any, parameters: Mapping[str, Any]
) -> Callable[[str], tuple[str, str | None, Any]]:
    """How the library loads a tensor: as which parameter, by what pattern, with what converter."""
    prefix = f"{model.base_model_prefix}."
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    except ImportError:  # before version 5 every tensor was a parameter

        def loaded_by_name(name: str) -> tuple[str, str | None, Any]:
            others = (name, prefix + name, name.removeprefix(prefix))
            return next((other for other in others if other in parameters), name), None, None

        return loaded_by_name
    mapping = get_model_conversion_mapping(model)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]

    def loaded_as(name: str) -> tuple[str, str | None, Any]:
        renamed, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, dict(parameters)
        )
        if renamed not in parameters and name in parameters:
            return name, None, None
        return renamed, pattern, next((c for c in converters if pattern in c.source_patterns), None)

    return loaded_as


def _joined(parts: _Parts, tensor_of: Callable[[str], Any], model: Any) -> Any:
    """The numbers of a parameter, of one tensor or made of several."""
    if parts.converter is None:
        return tensor_of(parts.names[0][0])
    converter = copy.deepcopy(parts.converter)
    for name, pattern in parts.names:
        get = functools.partial(tensor_of, name)
        converter.add_tensor(parts.parameter, name, pattern, get)
    made = converter.convert(parts.parameter, model=model, config=model.config)[parts.parameter]
    return made[0] if isinstance(made, list) else made
