"""Every grown checkpoint is verified: by whom, in how much memory, and what is said where not."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch

from growth.cli import huggingface_growth
from growth.cli.flags import Expand, Sizes
from growth.errors import InputError
from growth.huggingface import VerificationError, expand_checkpoint, plan_expansion
from growth.huggingface.expansion import execution, model_runs, runnable, verification
from growth.huggingface.expansion.model_files import ModelFiles
from growth.huggingface.expansion.reference_layers import reference_logits
from growth.huggingface.expansion.streamed_models import UnloadableError, streamed_model
from growth.huggingface.expansion.transformers_models import (
    compute_outputs,
    float64_everywhere,
    load_model,
)
from growth.rules import growth_plan
from tests.helpers import small_models
from tests.helpers.networks import first
from tests.helpers.small_models import CONFIGS, TOKENS, difference, make

ALL = dict(embed_dim=36, num_heads=6, head_dim=12, mlp_dim=30, num_layers=4)
COMPUTED = [name for name in CONFIGS if name not in ("mixtral", "opt, norms after branches")]


@pytest.fixture
def without_torch(monkeypatch):
    """Lets torch and transformers be missing for who asks whether they are there."""
    for module in (model_runs, verification, runnable):
        monkeypatch.setattr(module, "has_transformers", lambda: False)


def source_files(name, directory, dtype=torch.float32):
    make(name, directory, dtype)
    return ModelFiles.of_source(plan_expansion(directory, **small_models.steps(name)["all"]))


@pytest.mark.parametrize("name", first(CONFIGS, "llama", "gpt2", "gemma2", "opt", "mixtral"))
def test_a_model_that_is_read_module_by_module_is_the_one_that_a_person_loads(name, tmp_path):
    """To the last bit, in its own dtype."""
    dtype = "float32" if name == "mixtral" else "bfloat16"  # its kernel refuses rows of 20 in two
    files = source_files(name, tmp_path / "source", getattr(torch, dtype))
    assert files.dtype == dtype
    loaded = load_model(files.directory, dtype)
    streamed = streamed_model(files.config, list(files.names), files.read_named, dtype)
    np.testing.assert_array_equal(
        compute_outputs(streamed, TOKENS), compute_outputs(loaded, TOKENS)
    )
    assert all(parameter.is_meta for parameter in streamed.parameters())


@pytest.mark.parametrize("name", first(COMPUTED, "llama", "gpt_neox", "gemma2"))
def test_the_layers_of_the_reference_model_compute_what_transformers_computes(name, tmp_path):
    files = source_files(name, tmp_path / "source")
    with float64_everywhere():
        model = streamed_model(
            files.config, list(files.parameters), files.read, "float64", exact=True
        )
        expected = compute_outputs(model, TOKENS)
    assert difference(expected, reference_logits(files, TOKENS)) <= 1e-14


@pytest.mark.parametrize("layers", [2, 8])
def test_no_more_than_one_module_is_in_memory(layers, tmp_path):
    """What is there while the numbers of the next module are read, whatever the depth."""
    make("llama", tmp_path / "source", torch.float32)
    expansion = plan_expansion(tmp_path / "source", mlp_dim=30, num_layers=layers)
    there = []

    def read(name):
        there.append(sum(p.nbytes for p in model.parameters() if not p.is_meta))
        return expansion.grow(name)

    model = streamed_model(expansion.config, list(expansion.targets), read, "float64")
    compute_outputs(model, TOKENS)
    assert len(there) == len(expansion.targets)
    assert max(there) == 0  # every module of this model has one parameter
    largest = max(8 * spec.size for spec in expansion.specs.values())
    logits = 8 * 2 * 40 * 37
    assert verification._needed_memory(expansion) == 3 * largest + 4 * logits


def test_tensors_that_the_library_would_not_take_are_named(tmp_path):
    files = source_files("llama", tmp_path / "source")
    names = list(files.names)
    lacking = [name for name in names if name != "lm_head.weight"]
    with pytest.raises(UnloadableError, match=r"find no numbers for lm_head\.weight"):
        streamed_model(files.config, lacking, files.read_named, "float32")
    with pytest.raises(UnloadableError, match=r"would leave out model\.layers\.9\.other"):
        streamed_model(files.config, [*names, "model.layers.9.other"], files.read_named, "float32")
    model = streamed_model(
        files.config, names, lambda name: files.read_named(name)[..., 1:], "float32"
    )
    with pytest.raises(UnloadableError, match=r"would want .* of shape"):
        compute_outputs(model, TOKENS)


def unscaled_epsilon(monkeypatch):
    for place in ("growth.rules.transformations", growth_plan.__name__):
        monkeypatch.setattr(f"{place}.scaled_epsilon", lambda arch, embed: arch.norm_eps)


def one_layer_less(monkeypatch):
    """A file that holds a tensor of another layer than it says."""
    real = execution.write_grown

    def write(expansion, directory, **options):
        real(expansion, directory, **options)
        path = directory / "model.safetensors"
        tensors = safetensors.numpy.load_file(path)
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.2.mlp.up_proj.weight"]
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(execution, "write_grown", write)


@pytest.mark.parametrize("judge", ["transformers", "the reference model"])
@pytest.mark.parametrize("fault", [unscaled_epsilon, one_layer_less])
def test_what_is_not_the_same_function_is_found_by_either_judge(
    judge, fault, tmp_path, monkeypatch, request
):
    make("llama, biases, scaled rotary, tied, epsilon 1e-3", tmp_path / "source", torch.float32)
    if judge != "transformers":
        request.getfixturevalue("without_torch")
    monkeypatch.setattr(verification, "_CONTINUED", 1)
    verified = expand_checkpoint(tmp_path / "source", tmp_path / "right", embed_dim=36)
    assert verified.judge.startswith(judge)
    assert verified.exact <= 1e-12
    assert verified.stored <= 1e-6
    assert (verified.run is None) == bool(verified.notes) == (judge != "transformers")
    fault(monkeypatch)
    with pytest.raises(VerificationError, match=r"logits differ by \d\.\de-0\d"):
        expand_checkpoint(tmp_path / "source", tmp_path / "grown", embed_dim=36, num_layers=3)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "right"}


def test_rounding_is_told_from_error(tmp_path, monkeypatch):
    """A bfloat16 checkpoint grows exactly, is rounded, and is run in bfloat16 as it was before."""
    make("llama", tmp_path / "source", torch.bfloat16)
    monkeypatch.setattr(verification, "_CONTINUED", 1)
    kept = expand_checkpoint(tmp_path / "source", tmp_path / "kept", **ALL)
    wide = expand_checkpoint(tmp_path / "source", tmp_path / "wide", dtype="float32", **ALL)
    powers = expand_checkpoint(tmp_path / "source", tmp_path / "four", embed_dim=96, mlp_dim=30)
    assert max(kept.exact, wide.exact, powers.exact) <= 1e-12
    assert 1e-4 <= kept.stored <= 3e-2
    assert wide.stored <= 1e-6
    assert powers.stored == powers.exact  # factors of 1/2 round nothing
    assert kept.dtypes == ("bfloat16", "bfloat16")
    assert wide.dtypes == ("float32", "float32")
    assert 1e-4 <= kept.floor <= 3e-2  # what bfloat16 makes of the source by itself
    assert kept.run <= 4 * kept.floor + kept.stored
    assert "with --dtype=float32 less" in str(kept)
    assert not wide.notes
    assert not powers.notes


UNMET = {
    "--noverify": dict(verify=False),
    "GB of memory": dict(),
    "torch and transformers cannot be imported": dict(),
}


@pytest.mark.parametrize("reason", UNMET)
def test_what_was_not_verified_is_said_last_with_what_to_run(
    reason, tmp_path, monkeypatch, request, capsys
):
    """By the command and in the card."""
    name = "mixtral" if "torch" in reason else "llama"
    source = make(name, tmp_path / "source", torch.float32)
    if "torch" in reason:
        request.getfixturevalue("without_torch")
    if "memory" in reason:
        monkeypatch.setattr(verification, "free_memory", lambda: 1000)
        with pytest.raises(InputError, match=r"verify is True, but it takes .* GB of memory"):
            expand_checkpoint(source, tmp_path / "grown", verify=True, mlp_dim=32)
    flags = Expand(
        source=str(source),
        output=str(tmp_path / "grown"),
        sizes=Sizes(mlp_dim=32),
        **UNMET[reason],
    )
    huggingface_growth.expand(flags)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("NOT VERIFIED")
    assert reason in last
    assert ("pip install 'flax-growth[verify]'" in last) == ("torch" in reason)
    assert "the same command" in last
    assert (tmp_path / "grown" / "README.md").read_text().strip().splitlines()[-1] == last


def test_sizes_that_a_kernel_refuses_are_refused_with_the_nearest_that_it_takes(tmp_path):
    """Rows of 30 numbers of four bytes, which are no multiple of 16 bytes."""
    source = make("mixtral", tmp_path / "source", torch.float32)
    with pytest.raises(runnable.UnrunnableError, match=r"16 bytes; it would run with --mlp_dim=32"):
        expand_checkpoint(source, tmp_path / "grown", mlp_dim=30, num_layers=3)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}
    verified = expand_checkpoint(source, tmp_path / "grown", mlp_dim=32, num_layers=3)
    assert verified.run <= 1e-5


def test_what_does_not_run_before_is_grown_and_said(tmp_path):
    """A checkpoint whose own sizes a kernel refuses is no worse afterwards."""
    source = make("mixtral", tmp_path / "source", torch.bfloat16)
    verified = expand_checkpoint(source, tmp_path / "grown", num_layers=3)
    assert verified.exact <= 1e-12
    assert verified.run is None
    assert "transformers does not run the source in bfloat16" in str(verified)


def test_nobody_chooses_an_implementation_or_a_dtype_for_a_person(tmp_path, monkeypatch):
    """Whole or module by module, models are run as the library runs them by itself."""
    make("llama", tmp_path / "source", torch.bfloat16)
    plain = load_model(tmp_path / "source", "bfloat16").config
    seen = []
    real = model_runs.compute_outputs

    def look(model, tokens):
        seen.append((model.dtype, model.config._attn_implementation))
        return real(model, tokens)

    monkeypatch.setattr(model_runs, "compute_outputs", look)
    monkeypatch.setattr(verification, "_CONTINUED", 1)
    for whole in (1.2e9, 0):
        monkeypatch.setattr(verification, "_WHOLE", whole)
        verified = expand_checkpoint(tmp_path / "source", tmp_path / f"grown_{whole}", mlp_dim=32)
        assert (verified.generated is None) == (whole == 0)
    dtypes = [dtype for dtype, _ in seen]
    judged, run = [torch.float64] * 3, [torch.bfloat16] * 2
    assert dtypes == [*judged, *run] * 2
    assert {kind for _, kind in seen} == {plain._attn_implementation}


def test_a_model_of_another_dtype_than_its_config_says_is_run_in_what_it_says(tmp_path):
    source = make("llama", tmp_path / "source", torch.float32)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    files = ModelFiles.of_source(plan_expansion(source, mlp_dim=30))
    assert files.dtype == "bfloat16"
    assert load_model(source, files.dtype).dtype == torch.bfloat16
