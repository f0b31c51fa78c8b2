"""Trains a checkpoint of Hugging Face on, and grows it on the way.

    growth train --config=continue_from_huggingface:DIR --workdir=runs/on
    growth export --workdir=runs/on --output=DIR2 --like=DIR

DIR holds `config.json` and safetensors of a model that the reference model covers (Llama, Mistral,
Qwen, Gemma, GPT-2, GPT-NeoX, OLMo, ...). Its `tokenizer.json` is used where there is one; else
tokens are bytes. Half-way the MLP becomes half as wide again and two layers are added, which every
family can say, so that transformers loads what is exported. Expect the loss to fall from that of
the checkpoint on your text, and the same evaluation loss before and after growth.
"""

from pathlib import Path

from ml_collections import ConfigDict

from growth.errors import InputError
from growth.huggingface import load_architecture
from growth.training.config import defaults


def get_config(source: str = "") -> ConfigDict:
    """The config.

    Args:
      source: the directory of the checkpoint.
    """
    if not source:
        raise InputError("give the checkpoint: --config=continue_from_huggingface:DIR")
    architecture = load_architecture(source)
    if architecture.position != "learned":
        architecture = architecture.replace(max_length=min(architecture.max_length, 512))
    config = defaults(**architecture.to_dict())
    config.initialize_from = source
    if (Path(source) / "tokenizer.json").is_file():
        config.data.tokenizer = str(Path(source) / "tokenizer.json")
    config.num_steps = 1000
    config.growth = (
        dict(
            step=500,
            mlp_dim=architecture.layers[0].mlp_dim * 3 // 2,
            num_layers=architecture.num_layers + 2,
        ),
    )
    config.batch_size = 8
    config.optimizer.learning_rate = 1e-4
    return config
