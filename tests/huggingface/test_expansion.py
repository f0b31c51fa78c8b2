"""What becomes of a checkpoint's files, and what is verified."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

from growth.huggingface import expand_checkpoint, plan_expansion
from growth.huggingface.expansion.transformers_models import float64_everywhere
from tests.helpers import small_models
from tests.helpers.small_models import difference, load, logits, make

ALL = dict(embed_dim=36, num_heads=6, head_dim=12, mlp_dim=30, num_layers=4)


def dtypes(directory):
    found = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            names = file.keys()  # the file itself cannot be iterated over
            found |= {file.get_slice(name).get_dtype() for name in names}
    return found


@pytest.mark.parametrize(
    ("kept", "code"), [(torch.float32, "F32"), (torch.bfloat16, "BF16"), (torch.float16, "F16")]
)
def test_several_files_and_every_dtype(kept, code, tmp_path):
    make("llama", tmp_path / "source", kept, max_shard_size="10KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 1
    seen = []
    verified = expand_checkpoint(
        tmp_path / "source",
        tmp_path / "grown",
        max_shard_size="30KB",
        init={"layer_addition": "copy"},
        progress=lambda done, total, name: seen.append((done, total, name)),
        **ALL,
    )
    files = sorted(path.name for path in (tmp_path / "grown").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "grown" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == seen[-1][0] == seen[-1][1]
    assert len({name for *_, name in seen}) == len(index["weight_map"])
    assert dtypes(tmp_path / "grown") == {code}
    assert verified.exact <= 1e-12
    assert verified.stored <= {"F32": 1e-5, "BF16": 3e-2, "F16": 3e-3}[code]
    assert verified.run <= 4 * verified.floor + verified.stored
    if code == "F32":
        assert verified.generated == (40, 40)
        assert verified.agreement == 1


def test_safetensors_reads_what_is_written_here(tmp_path):
    make("llama", tmp_path / "source", torch.bfloat16)
    expand_checkpoint(tmp_path / "source", tmp_path / "grown", verify=False, **ALL)
    read = safetensors.torch.load_file(tmp_path / "grown" / "model.safetensors")
    expansion = plan_expansion(tmp_path / "source", **ALL)
    assert read.keys() == expansion.targets.keys()
    for name, tensor in read.items():
        np.testing.assert_array_equal(
            tensor.float().numpy(), expansion.grow(name).astype(np.float32), err_msg=name
        )
    with safe_open(tmp_path / "grown" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_tokenizer_and_generation_files_are_carried_over(tmp_path):
    source = make("llama", tmp_path / "source")
    (source / "tokenizer.json").write_text('{"any": "thing"}')
    (source / "tokenizer_config.json").write_text("{}")
    (source / "pytorch_model.bin").write_text("of the small model")
    (source / "README.md").write_text("of the small model")
    expand_checkpoint(source, tmp_path / "grown", verify=False, **ALL)
    there = {path.name for path in (tmp_path / "grown").iterdir()}
    assert there == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "grown" / name).read_text() == (source / name).read_text()


def test_the_card_says_what_was_done(tmp_path):
    make("llama", tmp_path / "source")
    expand_checkpoint(tmp_path / "source", tmp_path / "grown", init="copy", seed=7, **ALL)
    card = (tmp_path / "grown" / "README.md").read_text()
    for said in (
        "| embed_dim | 24 | 36 |",
        "| num_layers | 2 | 4 |",
        "New layers: 1, 3",
        "copy:10, seed 7",
        "same greedy continuation   40 of 40 tokens",
    ):
        assert said in card
    expand_checkpoint(tmp_path / "source", tmp_path / "unseen", verify=False, **ALL)
    assert "NOT VERIFIED (--noverify)" in (tmp_path / "unseen" / "README.md").read_text()


def test_layers_go_where_they_are_wanted(tmp_path):
    make("llama", tmp_path / "source")
    sizes = dict(num_layers=5, layer_positions=[2, 0, 0])
    expansion = plan_expansion(tmp_path / "source", **sizes)
    assert expansion.plan.layer_sources == (None, None, 0, 1, None)


def test_every_kind_of_attention_of_a_layer_is_kept(tmp_path):
    """A new layer sees what the layer below it sees, and the config lists it."""
    old = logits(make("gemma2", tmp_path / "source"))
    sizes = dict(num_layers=5, layer_positions=[0, 1, 2])
    expand_checkpoint(tmp_path / "source", tmp_path / "grown", verify=False, **sizes)
    kinds = json.loads((tmp_path / "grown" / "config.json").read_text())["layer_types"]
    slides, full = "sliding_attention", "full_attention"
    assert kinds == [slides, slides, slides, full, full]
    assert difference(old, logits(tmp_path / "grown")) <= 1e-12


def rewritten(source, directory, change):
    """A copy of a checkpoint with other names of tensors, or other tensors."""
    directory.mkdir()
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    safetensors.numpy.save_file(change(tensors), directory / "model.safetensors")
    (directory / "config.json").write_text((source / "config.json").read_text())
    return directory


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_a_base_model_that_was_saved_alone(name, tmp_path):
    """Its names lack what those of the whole model begin with, and the result's do, too."""
    old = logits(make(name, tmp_path / "source"))
    prefix = {"gpt2": "transformer.", "llama": "model.", "opt": "model."}[name]
    base = rewritten(
        tmp_path / "source",
        tmp_path / "base",
        lambda tensors: {key.removeprefix(prefix): value for key, value in tensors.items()},
    )
    step = small_models.steps(name)["all"]
    expand_checkpoint(base, tmp_path / "grown", verify=False, **step)
    assert difference(old, logits(tmp_path / "grown")) <= small_models.limit(name, step)


def test_what_old_files_have_besides_parameters_is_left_out(tmp_path):
    """Masks, frequencies, and the output layer that is the embedding."""
    old = logits(make("gpt2", tmp_path / "source"))

    def change(tensors):
        mask = {f"transformer.h.{i}.attn.bias": np.ones((1, 1, 40, 40)) for i in range(2)}
        return {**tensors, **mask, "lm_head.weight": tensors["transformer.wte.weight"].copy()}

    given = rewritten(tmp_path / "source", tmp_path / "old", change)
    expand_checkpoint(given, tmp_path / "grown", verify=False, mlp_dim=130)
    assert difference(old, logits(tmp_path / "grown")) <= 1e-12
    with safe_open(tmp_path / "grown" / "model.safetensors", "np") as file:
        names = file.keys()
    assert not [n for n in names if n.endswith(".attn.bias") or "lm_head" in n]


def test_growing_twice_is_growing_once(tmp_path):
    old = logits(make("llama", tmp_path / "source"))
    expand_checkpoint(
        tmp_path / "source", tmp_path / "once", verify=False, embed_dim=36, mlp_dim=30
    )
    expand_checkpoint(
        tmp_path / "once", tmp_path / "twice", verify=False, num_layers=3, head_dim=12
    )
    with float64_everywhere():
        exact = logits(tmp_path / "source")
        assert difference(exact, logits(tmp_path / "twice")) <= 1e-12
    assert difference(old, logits(tmp_path / "twice")) <= 1e-6


# Runs a program where torch and transformers are not installed.
WITHOUT_TORCH = """
import runpy, sys
class Missing:
    def find_spec(self, name, *rest):
        if name in ("torch", "transformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_script_writes_a_checkpoint_that_grows_without_torch(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "random_checkpoint"
    fields = "vocab_size=40 hidden_size=24 num_attention_heads=3 intermediate_size=20"
    fields += " num_hidden_layers=1 attention_bias=True"
    command = [sys.executable, "-c", WITHOUT_TORCH, script, tmp_path / "source", *fields.split()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    model = load(tmp_path / "source", torch.float32)
    assert f"{model.num_parameters():,} parameters" in done.stdout
    states = {name: (float(p.mean()), float(p.std())) for name, p in model.state_dict().items()}
    assert states["model.norm.weight"] == (1, 0)
    assert states["model.layers.0.self_attn.q_proj.bias"] == (0, 0)
    assert states["model.layers.0.mlp.up_proj.weight"][1] == pytest.approx(0.02, rel=0.1)
    plan = plan_expansion(tmp_path / "source", num_layers=2, mlp_dim=30).plan
    assert (plan.source.num_kv_heads, plan.source.tied_embeddings) == (3, True)
    assert (plan.source.num_layers, plan.target.num_layers) == (1, 2)


def test_what_is_float64_for_a_while_is_float32_again():
    """Also in a process that opens transformers meanwhile: it has tables by dtype."""
    code = (
        "from growth.huggingface.expansion.transformers_models import float64_everywhere\n"
        "with float64_everywhere():\n"
        "    from transformers import modeling_utils\n"
        "import safetensors.torch, torch\n"
        "print(torch.float32 in safetensors.torch._SIZE)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
