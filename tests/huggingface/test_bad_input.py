"""Whatever is wrong gives one clear error, and nothing is left behind."""

import errno
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import safetensors.numpy
import torch

from growth.errors import InputError
from growth.files import atomic_directory
from growth.huggingface import expand_checkpoint, tensor_files
from tests.helpers.small_models import make


@pytest.fixture
def source(tmp_path):
    return make("llama", tmp_path / "source", torch.float32, max_shard_size="10KB")


@pytest.fixture
def single(tmp_path):
    return make("llama", tmp_path / "source", torch.float32)


def refused(directory, message, **options):
    """Expansion is refused with a message; neither source nor target directory has changed."""
    before = {p: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
    output = directory.parent / "output"
    with pytest.raises(InputError, match=message):
        expand_checkpoint(directory, output, verify=False, **(options or dict(mlp_dim=30)))
    assert not list(directory.parent.glob("output*"))
    assert before == {p: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def edit(path, **changes):
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, **changes}))


def with_tensors(directory, change):
    path = directory / "model.safetensors"
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(path)), path)


def test_a_truncated_file(source):
    path = sorted(source.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])
    refused(source, rf"{path.name} is not a whole safetensors file: .*; download it again")


def test_an_index_that_names_a_file_that_is_not_there(source):
    path = sorted(source.glob("*.safetensors"))[1]
    path.unlink()
    refused(source, rf"model.safetensors.index.json names {path.name}, but .* is not there")


def test_an_index_that_names_a_tensor_that_is_not_there(source):
    index = source / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    name = next(name for name in files if "up_proj" in name)
    other = next(file for file in files.values() if file != files[name])
    edit(index, weight_map={**files, name: other})
    refused(source, f"says that {other} has {name}, but it has not")


def test_no_files_of_tensors(single):
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    refused(single, "pytorch_model.bin must be converted to safetensors first")


def test_a_tensor_of_another_shape(single):
    name = "model.layers.1.mlp.up_proj.weight"
    with_tensors(single, lambda t: {**t, name: np.zeros((21, 24), np.float32)})
    refused(single, rf"{name}: shape \(21, 24\) does not fit .*\(mlp\) is 20 in the architecture")


def test_a_tensor_that_is_missing_in_one_layer(single):
    name = "model.layers.1.mlp.up_proj.weight"
    with_tensors(single, lambda t: {k: v for k, v in t.items() if k != name})
    kind = name.replace(".1.", ".{layers}.")
    refused(single, f"layer 0 has {re.escape(kind)}, layer 1 has not")


def test_a_kind_of_tensor_that_is_missing(single):
    with_tensors(single, lambda t: {k: v for k, v in t.items() if "q_proj" not in k})
    refused(single, r"no tensor of the checkpoint is model.layers.\{layers\}.self_attn.q_proj")


def test_a_tensor_that_the_config_does_not_say(single):
    name = "model.layers.{}.self_attn.q_proj.bias"
    biases = {name.format(i): np.zeros(32, np.float32) for i in range(2)}
    with_tensors(single, lambda t: {**t, **biases})
    refused(single, "by its config the model has not")


def test_a_tensor_that_nobody_knows(single):
    with_tensors(single, lambda t: {**t, "model.layers.0.extra": np.zeros(3, np.float32)})
    refused(single, "model.layers.0.extra: matched by no rule")


def test_a_vocabulary_of_another_size(single):
    edit(single / "config.json", vocab_size=38)
    refused(single, "has 37 rows, but config.json says a vocabulary of 38")


def test_a_dtype_that_cannot_be_grown(single):
    name = "model.layers.0.mlp.up_proj.weight"
    with_tensors(single, lambda t: {**t, name: t[name].astype(np.int8)})
    refused(single, f"{name} .* has dtype I8, but what can be grown is F64, F32, F16, BF16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model_type="llama7"), "'llama7', but known are .*WORKSPACE.md says how one is added"),
        (dict(model_type=None), "model_type None, but known are gemma, gemma2"),
        (dict(quantization_config={"bits": 4}), "quantized tensors cannot be grown"),
        (dict(hidden_act="mish"), "the activation 'mish', but known are relu, silu"),
        (dict(hidden_size=None), "says hidden_size None, but it must be a whole number"),
        (dict(num_key_value_heads=3), "num_kv_heads must divide num_heads"),
    ],
)
def test_a_config_that_growth_does_not_know(single, changes, message):
    edit(single / "config.json", **changes)
    refused(single, message)


def test_a_config_without_a_field(single):
    fields = json.loads((single / "config.json").read_text())
    del fields["num_hidden_layers"]
    (single / "config.json").write_text(json.dumps(fields))
    refused(single, "config.json has no 'num_hidden_layers'")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_json_object(single, text):
    (single / "config.json").write_text(text)
    refused(single, r"config.json is not( a)? JSON")


def test_no_checkpoint(tmp_path):
    (tmp_path / "source").mkdir()
    refused(tmp_path / "source", "source is no checkpoint: it has no config.json")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(embed_dim=20), "embed_dim is 24 and cannot shrink to 20"),
        (dict(num_layers=1), "num_layers is 2 and cannot become 1: it cannot shrink"),
        (dict(mlp_dim=19), "mlp_dim is 20 in layer 0 and cannot shrink to 19"),
        (dict(mlp_dim=20), "nothing would grow: the checkpoint has 2 layers"),
        (dict(), "nothing would grow"),
        (dict(num_heads=5), "a group has 2 query heads"),
        (dict(head_dim=9), "it must be even"),
        (dict(v_dim=12), "have one width: give head_dim"),
        (dict(num_heads=10), "a multiple of num_heads. Near is --embed_dim=30; or --num_heads=12"),
        (dict(num_layers=4, layer_positions=[0]), "position names 1 places for the 2 new layers"),
        (dict(num_layers=3, layer_positions=[3]), "layers can be inserted at 0 to 2 of 2 layers"),
        (dict(layer_positions=[0]), "num_layers is not given"),
        (dict(head_dim=900), "ends at 3.4e[+]38: head_dim must stay smaller|no float can hold"),
        (dict(mlp_dim=30, init="gradmax"), "for a checkpoint it is 'fresh', 'copy'"),
        (dict(mlp_dim=30, init="zeros"), "zeros are refused"),
        (dict(mlp_dim=30, seed=-1), "seed is -1, but it must be at least 0"),
        (dict(mlp_dim=30, dtype="int8"), "dtype is 'int8', but it must be one of float64"),
        (dict(mlp_dim=30, max_shard_size="5XB"), "max_shard_size is '5XB', but it must be bytes"),
    ],
)
def test_a_target_that_cannot_be(single, sizes, message):
    refused(single, message, **(sizes or dict(seed=1)))


def test_an_output_that_exists(single):
    output = single.parent / "output"
    output.mkdir()
    (output / "precious").write_text("kept")
    with pytest.raises(InputError, match=r"output .* exists already: give another one"):
        expand_checkpoint(single, output, verify=False, mlp_dim=30)
    assert (output / "precious").read_text() == "kept"
    assert not list(single.parent.glob(".growth-*"))


@pytest.mark.parametrize("where", [".", "within", "deeper/within"])
def test_an_output_within_the_source(single, where):
    with pytest.raises(InputError, match=r"lies in the source|exists already"):
        expand_checkpoint(single, single / where, verify=False, mlp_dim=30)
    assert not (single / "deeper").exists()
    assert not (single / "within").exists()


def test_rotary_positions_that_depend_on_the_width_in_other_ways(single):
    fields = json.loads((single / "config.json").read_text())
    table = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0)
    edit(single / "config.json", rope_parameters={**fields["rope_parameters"], **table})
    refused(single, "qk_dim cannot grow exactly: rope_type is 'yarn'", head_dim=12)
    expand_checkpoint(single, single.parent / "grown", verify=True, mlp_dim=30, num_layers=3)


def test_a_disk_that_is_too_small(single, monkeypatch):
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    refused(single, r"the disk of .* is full: [\d.]+ kB are needed, and 1 kB are free")


def test_a_disk_that_fills_up_meanwhile(tmp_path):
    """The device that is always full gives the error that a full disk gives."""
    with (
        pytest.raises(InputError, match=r"the disk of .* is full"),
        atomic_directory(tmp_path / "output", 1),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"a")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_a_small_disk(single, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(InputError, match=r"the disk of .* is full"):
            expand_checkpoint(single, disk / "output", verify=False, mlp_dim=3000)
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_two_processes_that_write_the_same_output(tmp_path):
    with atomic_directory(tmp_path / "output", 1) as directory:
        with (
            pytest.raises(InputError, match="another process is writing to"),
            atomic_directory(tmp_path / "output", 1),
        ):
            pass
        (directory / "file").write_text("kept")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["file"]


def test_an_error_while_a_file_is_written_leaves_nothing(single, monkeypatch):
    def failing(writer, array):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(tensor_files.TensorFileWriter, "write", failing)
    with pytest.raises(OSError, match="the disk is broken"):
        expand_checkpoint(single, single.parent / "output", verify=False, mlp_dim=30)
    assert not list(single.parent.glob("output*"))
