"""`Architecture`: what a transformer is, as data.

An architecture says everything that decides the shapes of a model's parameters and what the model
computes from them, and nothing about how it is trained. It is frozen, hashable and printable, and
goes to JSON and back, so that a checkpoint can carry it.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

from growth.architecture import cost, presets
from growth.architecture.fields import ArchitectureFields
from growth.architecture.patches import Patches
from growth.architecture.validation import ArchitectureError


@dataclasses.dataclass(frozen=True)
class Architecture(ArchitectureFields):
    __doc__ = ArchitectureFields.__doc__

    @property
    def num_parameters(self) -> int:
        """The number of parameters, biases and embeddings included."""
        return cost.num_parameters(self)

    def training_flops_per_token(self, length: int | None = None) -> float:
        """Operations of one training step per token; see `growth.architecture.cost`."""
        return cost.training_flops_per_token(self, length)

    # Text.

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        values = dataclasses.asdict(self).items()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises `ArchitectureError` for fields that it does not know."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ArchitectureError(
                f"unknown field {', '.join(unknown)}; an architecture has {', '.join(known)}"
            )
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [name for name in required if name not in fields]
        if missing:
            raise ArchitectureError(f"an architecture needs {', '.join(missing)}")
        values: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()
        }
        return cls(**values)

    def to_json(self) -> str:
        """This architecture as a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    def __str__(self) -> str:
        heads = f"{_show(self.num_heads)} heads"
        if self.num_kv_heads != self.num_heads:
            heads += f" in {_show(self.num_kv_heads)} groups"
        return (
            f"{self.num_layers} layers × [{heads}, qk {_show(self.qk_dim)}, v {_show(self.v_dim)}, "
            f"mlp {_show(self.mlp_dim)}], embed {self.embed_dim}, "
            f"{'vocab' if self.patches is None else 'classes'} {self.vocab_size}, "
            f"length {self.max_length}, {self.norm}, {self.position}, {self.activation}"
        )

    # Presets: each takes the sizes, and any field that should differ.

    @classmethod
    def paper(cls, **fields: Any) -> Self:
        """The architecture of Gesmundo & Maile, section 2: RMSNorm, ReLU, learned positions.

        Its MLP has biases and its attention has none, `qk_dim` and `v_dim` are independent of each
        other, and there is no final norm.
        """
        return cls(**presets.PAPER | fields)

    @classmethod
    def gpt2(cls, **fields: Any) -> Self:
        """GPT-2's: LayerNorm, GELU, biases everywhere, learned positions, tied embeddings."""
        return cls(**presets.GPT2 | fields)

    @classmethod
    def llama(cls, **fields: Any) -> Self:
        """Llama's: RMSNorm, a SiLU gate, rotary positions, no biases."""
        return cls(**presets.LLAMA | fields)

    @classmethod
    def vit(cls, patches: Patches, **fields: Any) -> Self:
        """ViT's: patches of images, bidirectional, LayerNorm, GELU, learned positions, biases."""
        sizes = dict(patches=patches, max_length=patches.number + 1)
        return cls(**presets.VIT | sizes | fields)


def _show(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
