"""Whether the output layer is the embedding: what the config says, against what the files hold."""

import dataclasses
from collections.abc import Mapping

from growth.huggingface.family import Family
from growth.huggingface.tensor_files import StoredTensor, hold_the_same


@dataclasses.dataclass(frozen=True)
class TiedEmbeddings:
    """What files hold, of a model whose config says that its output layer is the embedding.

    Attributes:
      tensors: the tensors that the model has, by their names in the family's table.
      is_tied: whether the output layer is the embedding.
      note: what is not as one would expect, in a sentence; empty where all is.
    """

    tensors: dict[str, StoredTensor]
    is_tied: bool
    note: str = ""


def output_layer(family: Family) -> str:
    """The name of the output layer in the family's table."""
    return next(rule.path for rule in family.tensors if rule.reference == ("unembed/kernel",))


def read_tied(tensors: Mapping[str, StoredTensor], family: Family) -> TiedEmbeddings:
    """Reads the embedding and the output layer as transformers does, where the config ties them.

    They are one if the files hold the same numbers twice, or one of both alone, under either name.
    They are two if the files hold different ones.
    """
    head = output_layer(family)
    embedding = next(
        rule.path for rule in family.tensors if (rule.role, rule.axes[:5]) == ("embedding", "vocab")
    )
    others = {name: tensor for name, tensor in tensors.items() if name != head}
    if head not in tensors:
        return TiedEmbeddings(others, is_tied=True)
    if embedding not in tensors:
        note = (
            f"config.json says tie_word_embeddings, and the files hold {head} alone: it is the "
            f"embedding, too, and is written as {embedding}"
        )
        return TiedEmbeddings({**others, embedding: tensors[head]}, is_tied=True, note=note)
    if hold_the_same(tensors[head], tensors[embedding]):
        return TiedEmbeddings(others, is_tied=True)
    note = (
        f"config.json says tie_word_embeddings, but {head} and {embedding} hold different numbers: "
        f"both are read, as transformers reads them, and tie_word_embeddings as false"
    )
    return TiedEmbeddings(dict(tensors), is_tied=False, note=note)
