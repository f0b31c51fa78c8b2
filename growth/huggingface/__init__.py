"""Hugging Face checkpoints: grown as they are, or loaded into the reference model and back."""

from growth.huggingface.conversion import load, load_architecture, save
from growth.huggingface.expand import expand_checkpoint
from growth.huggingface.expansion import plan_expansion

__all__ = ["expand_checkpoint", "load", "load_architecture", "plan_expansion", "save"]
