"""Which numbers of a tensor are which of the reference model: views of both, axis for axis.

Both sides name the axes of their arrays, so a tensor is carried over by transposing names.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from growth.architecture import Architecture
from growth.blueprints.notation import parse
from growth.blueprints.parameters import Parameter, siblings
from growth.expansion.role_views import array_layout, layout_of
from growth.huggingface.family import Family, TensorRule
from growth.models import blueprint


def tensors_of(architecture: Architecture, family: Family) -> Iterator[Parameter]:
    """All tensors that a model of an architecture has in files of a family, layer after layer."""
    in_reference = {path for path, _, _ in blueprint(architecture).rules}
    for row in family.tensors:
        if row.reference and in_reference.issuperset(row.reference):
            rule = parse(row.path, row.role, row.axes)
            indices = tuple((name, 0) for name in rule.indices)
            yield from siblings(Parameter(rule, indices, "", range(len(indices))), architecture)


def tensor_shape(
    parameter: Parameter, family: Family, architecture: Architecture
) -> tuple[int, ...]:
    """The shape of a tensor in the files of a family."""
    length = architecture.max_length + _row(parameter, family).skipped
    sizes = {"vocab": architecture.vocab_size, "length": length}
    return array_layout(parameter, architecture, sizes).shape


def matching_views(
    tensor: np.ndarray,
    reference: Mapping[str, np.ndarray],
    *,
    parameter: Parameter,
    family: Family,
    architecture: Architecture,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Views of the same numbers, in a tensor and in the reference model's arrays, for each role.

    Args:
      tensor: as the files of the family have it.
      reference: the arrays of the reference model, by their paths.
      parameter: what the tensor is.
      family: that of the files.
      architecture: what both models are.

    Yields:
      Two arrays of one shape, which share memory with what is given: to read one and write the
      other, in either direction.
    """
    row = _row(parameter, family)
    tensor = tensor[row.skipped :]
    layout = layout_of(parameter, architecture, tensor.shape)
    arrays = layout.split(tensor)
    layer = parameter.layers.start if parameter.layers else None
    for role, in_tensor, path in zip(layout.views, arrays, row.reference, strict=True):
        in_reference, axes = _reference_view(reference, path, layer, architecture)
        # Heads that all have their own keys are groups of one.
        missing = [axis for axis in axes if axis not in role.axes]
        names = [*role.axes, *missing]
        in_tensor = in_tensor[(..., *[None] * len(missing))]
        yield in_tensor.transpose([names.index(axis) for axis in axes]), in_reference


def _row(parameter: Parameter, family: Family) -> TensorRule:
    return next(row for row in family.tensors if row.path == parameter.rule.path)


def _reference_view(
    arrays: Mapping[str, np.ndarray], path: str, layer: int | None, architecture: Architecture
) -> tuple[np.ndarray, tuple[str, ...]]:
    """A view of an array of the reference model, or of one of its layers, and its axes."""
    rule = next(parse(*written) for written in blueprint(architecture).rules if written[0] == path)
    if layer is None:
        parameter = Parameter(rule, (), "", range(0))
    else:
        first, number = next(run for run in architecture.layer_runs if layer < sum(run))
        parameter = Parameter(rule, (("layers", first),), "", range(first, first + number))
    array = arrays[parameter.name]
    layout = layout_of(parameter, architecture, array.shape)
    (role,), (view,) = layout.views, layout.split(array)
    if layer is None:
        return view, role.axes
    return view[layer - parameter.layers.start], role.axes[1:]
