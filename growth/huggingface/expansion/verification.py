"""Whether the larger model says what the smaller one says: logits, and what is generated.

The growth step itself is judged in float64, with tensors that are grown in float64. transformers
computes some things in float32 whatever the dtype (RMSNorm, the angles of rotary positions); while
it is the judge of the growth step it computes them in float64, too. What is stored is judged apart:
the numbers of the files in float64, which are rounded where something is multiplied, and the files
as a person loads and runs them.

Weights are read module by module, so that the largest tensor bounds the memory. Where torch and
transformers are missing, the layers of the reference model compute in float64.
"""

import collections
import dataclasses
from pathlib import Path

import numpy as np

from growth.errors import InputError
from growth.huggingface.expansion.model_files import ModelFiles
from growth.huggingface.expansion.model_runs import (
    Answer,
    Text,
    answer_as_loaded,
    free_memory,
    has_transformers,
    judge,
    outputs_in_float64,
)
from growth.huggingface.expansion.planning import CheckpointExpansion
from growth.huggingface.tensor_files import DTYPES
from growth.rules.tolerances import (
    MEASURED_BY_TRANSFORMERS,
    MEASURED_IN_FLOAT32,
    PROMISED,
    ROUNDING_MARGIN,
)

_SEQUENCES, _LENGTH = 2, 256
_PROMPT, _CONTINUED = 16, 32
# A text is shorter where it would take more products of tokens and parameters, or more logits.
_PRODUCTS, _LOGITS = 4e11, 8e6
# Models that take no more bytes are loaded whole, to see them generate.
_WHOLE = 6e8
# What is rounded in 32 bits is less than this.
_ROUNDED_MUCH = 1e-5


class VerificationError(InputError):
    """The larger model does not say what the smaller one says; the message lists how."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was made of the two models. Differences are relative to the largest logit.

    Attributes:
      exact: how far the logits of a model grown and computed in float64 differ.
      stored: the same for the numbers in the files, computed in float64: how much was rounded where
        they were multiplied.
      run: the same for the files as transformers runs them by itself, both models in the dtype in
        which they are loaded; None where it did not.
      floor: how far the smaller model run like this is from the smaller one in float64: what that
        dtype makes of it without any growth; None likewise.
      agreement: the share of positions where the likeliest token is the same, as they are run; if
        they were not, as `stored`.
      generated: of how many tokens, chosen greedily after random prompts, how many are the same;
        None where none were, because the models do not fit into memory or have no output layer.
      tokens: how many random tokens were looked at.
      judge: who computed: transformers and its version, or the reference model.
      dtypes: what the tensors are stored in, and what the larger model is run in.
      notes: why transformers has not run the files, and what to do about rounding, in sentences.
      problems: what is not as it must be, in words.

    Examples:
      >>> from growth import huggingface
      >>> verified = huggingface.expand_checkpoint(
      ...     "checkpoint", "verified", verify=True, mlp_dim=24
      ... )
      >>> verified.exact < 1e-12, verified.problems
      (True, ())
      >>> verified.require()

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
      It proves what is measured here.
    """

    exact: float
    stored: float
    run: float | None
    floor: float | None
    agreement: float
    generated: tuple[int, int] | None
    tokens: int
    judge: str
    dtypes: tuple[str, str]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def require(self) -> None:
        """Raises `VerificationError` if there is a problem."""
        if self.problems:
            raise VerificationError("not the same function:\n  " + "\n  ".join(self.problems))

    def __str__(self) -> str:
        stored, loaded = self.dtypes
        rows = [
            ("  grown in float64", f"{self.exact:.1e}"),
            (f"  rounded to {stored}", f"{self.stored:.1e}"),
        ]
        if self.run is not None:
            rows.append((f"  run in {loaded}", f"{self.run:.1e}"))
            rows.append((f"  the source in {loaded}", f"{self.floor:.1e}"))
        rows.append(("same likeliest token", f"{self.agreement:.1%}"))
        if self.generated is not None:
            rows.append(("same greedy continuation", "{} of {} tokens".format(*self.generated)))
        return "\n".join(
            [
                f"logits of {self.tokens:,} random tokens, largest difference / largest logit, by "
                f"{self.judge}",
                *(f"{name:<26} {value}" for name, value in rows),
                *self.notes,
            ]
        )


def unmet_requirement(expansion: CheckpointExpansion) -> str | None:
    """What a verification needs and is not there, in words; None if it can be done."""
    reason = expansion.source.limits.reference_model
    if reason is not None and not has_transformers():
        return (
            f"torch and transformers cannot be imported, and the reference model does not compute "
            f"this model: {reason}"
        )
    needed, free = _needed_memory(expansion), free_memory()
    if needed > free:
        return f"it takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
    return None


def _needed_memory(expansion: CheckpointExpansion) -> int:
    """Bytes that the largest module takes in float64, with what it is made of, and the logits."""
    modules: collections.Counter[tuple] = collections.Counter()
    for name, parameter in expansion.targets.items():  # experts are one module
        key = (parameter.rule.path, parameter.layers)
        modules[key] += expansion.specs[name].size
    logits = _text(expansion).tokens.size * expansion.plan.target.vocab_size
    return 8 * (3 * max(modules.values()) + 4 * logits)


def why_not_verified(expansion: CheckpointExpansion, wanted: bool | None) -> str:
    """The line that says that nothing was verified, why, and what to run.

    Args:
      expansion: the growth step.
      wanted: whether verification was asked for; None if nobody said.
    """
    reason = "--noverify" if wanted is False else unmet_requirement(expansion)
    remedy = "the same command again, with another --output"
    if wanted is False:
        remedy = "the same command without it, with another --output"
    elif not has_transformers():
        remedy = f"pip install 'flax-growth[verify]', and {remedy}"
    return f"NOT VERIFIED ({reason}); to verify, run {remedy}"


def verify(expansion: CheckpointExpansion, directory: Path) -> Verification:
    """Compares the source with its larger model.

    Args:
      expansion: the growth step.
      directory: where the larger model is.

    Raises:
      VerificationError: transformers runs the source, and not the larger model.
    """
    text = _text(expansion)
    source = ModelFiles.of_source(expansion)
    grown = ModelFiles.grown_exactly(expansion, directory)
    written = ModelFiles.as_written(expansion, directory)

    old = outputs_in_float64(source, text.tokens)
    exact = _difference(old, outputs_in_float64(grown, text.tokens))
    new = outputs_in_float64(written, text.tokens)
    stored, agreement = _difference(old, new), _agreement(old, new)
    del new
    run = floor = generated = None
    answers, note = _answers_as_loaded(source, written, text)
    if answers is not None:
        before, after = answers
        run, floor = _difference(before.outputs, after.outputs), _difference(old, before.outputs)
        agreement = _agreement(before.outputs, after.outputs)
        if before.continued is not None and after.continued is not None:
            same = int((before.continued == after.continued).sum())
            generated = same, before.continued.size
    dtypes = {DTYPES[spec.dtype].name for spec in expansion.specs.values()}
    return Verification(
        exact=exact,
        stored=stored,
        run=run,
        floor=floor,
        agreement=agreement,
        generated=generated,
        tokens=text.tokens.size,
        judge=judge(),
        dtypes=(" and ".join(sorted(dtypes)), written.dtype),
        notes=tuple(filter(None, (note, _about_rounding(stored)))),
        problems=_problems(exact, stored, run, floor, dtypes | {written.dtype}),
    )


def _text(expansion: CheckpointExpansion) -> Text:
    """Random tokens, as many as are computed in a few minutes and kept in little memory."""
    target = expansion.plan.target
    parameters = max(cost.parameters for cost in expansion.costs)
    most = int(min(_PRODUCTS / parameters, _LOGITS / target.vocab_size)) // _SEQUENCES
    length = min(target.max_length, max(_PROMPT, min(_LENGTH, most)))
    random = np.random.default_rng(expansion.seed)
    tokens = random.integers(0, target.vocab_size, (_SEQUENCES, length))
    number = min(_CONTINUED, target.max_length // 2)
    return Text(tokens, tokens[:, : min(_PROMPT, target.max_length - number)], number)


def _answers_as_loaded(
    source: ModelFiles, written: ModelFiles, text: Text
) -> tuple[tuple[Answer, Answer] | None, str]:
    """What both models say as a person runs them; if they do not run, None and why not."""
    if not has_transformers():
        return None, "torch and transformers cannot be imported: they have not run the files."
    whole = max(source.bytes_when_loaded, written.bytes_when_loaded) <= _WHOLE
    try:
        before = answer_as_loaded(source, text, whole=whole)
    except Exception as error:  # whatever the library raises: no growth step is to blame
        return None, f"transformers does not run the source in {source.dtype}: {_line(error)}"
    try:
        after = answer_as_loaded(written, text, whole=whole)
    except Exception as error:
        raise VerificationError(
            f"transformers runs the source, and not the larger model in {written.dtype}: "
            f"{_line(error)}"
        ) from error
    return (before, after), ""


def _about_rounding(stored: float) -> str:
    if stored <= _ROUNDED_MUCH:
        return ""
    return (
        "Old numbers are multiplied by roots of what sizes grow by, and rounded: with "
        "--dtype=float32 less, with embed_dim and head_dim times 4 or 16 not at all."
    )


def _problems(
    exact: float, stored: float, run: float | None, floor: float | None, dtypes: set[str]
) -> tuple[str, ...]:
    """What is not as it must be."""
    # Rounding is no error. Where it makes much of the smaller model already, it may of the larger.
    rounded = ROUNDING_MARGIN * (floor or 0.0)
    limit = max(rounded, *(MEASURED_IN_FLOAT32[dtype] for dtype in dtypes))
    judged = [
        ("grown in float64", exact, PROMISED["float64"]),
        ("as they are stored", stored, limit),
    ]
    if run is not None:
        limit = max(rounded, *(MEASURED_BY_TRANSFORMERS[dtype] for dtype in dtypes))
        judged.append(("as transformers runs them", run, limit))
    return tuple(
        f"logits differ by {difference:.1e} {how}, more than {limit:.1g}"
        for how, difference, limit in judged
        if not difference <= limit
    )


def _difference(old: np.ndarray, new: np.ndarray) -> float:
    """The largest difference, relative to the largest. A stream that is wider begins as it did."""
    width = old.shape[-1]
    pairs = zip(old.reshape(-1, width), new.reshape(-1, new.shape[-1])[:, :width], strict=True)
    apart, largest = 0.0, 0.0
    for before, after in pairs:  # logits are many: what is made of them stays small
        apart = np.maximum(apart, np.abs(after - before).max())  # NaN stays NaN
        largest = np.maximum(largest, np.abs(before).max())
    return float(apart / largest)


def _agreement(old: np.ndarray, new: np.ndarray) -> float:
    return float((old.argmax(-1) == new[..., : old.shape[-1]].argmax(-1)).mean())


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
