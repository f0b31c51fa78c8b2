"""Folders as they lie on people's disks are read as transformers reads them, or refused."""

import json
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch

from growth import huggingface
from growth.cli.main import main
from growth.errors import InputError
from growth.huggingface import expand_checkpoint, plan_expansion
from growth.models import apply
from tests.helpers.small_models import TOKENS, difference, logits, make

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The same model three times: in a file, in several, and with other numbers."""
    directory = tmp_path_factory.mktemp("made")
    make("llama", directory / "one", torch.float32)
    make("llama", directory / "several", torch.float32, max_shard_size="10KB")
    make("llama", directory / "other", torch.float32, seed=1)
    return directory


@pytest.fixture
def folder(made, tmp_path):
    def copy(name="one"):
        return shutil.copytree(made / name, tmp_path / "source")

    return copy


def edit(directory, name="config.json", **changes):
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_tensors(directory, change, name=SINGLE):
    path = directory / name
    tensors = change(safetensors.numpy.load_file(path))
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})


def is_read_as_transformers_reads_it(directory):
    """Grown without verification, and as parameters of the reference model."""
    wanted = logits(directory, torch.float32)
    grown = directory.parent / "grown"
    expand_checkpoint(directory, grown, verify=False, mlp_dim=30, embed_dim=32)
    architecture, params = huggingface.load(directory)
    computed = np.asarray(apply(architecture, params, TOKENS), np.float64)
    assert difference(wanted, logits(grown, torch.float32)) <= 1e-5
    assert difference(wanted, computed) <= 1e-5
    return grown


# Which file, and which of two copies.


def test_a_single_file_is_read_before_the_index_beside_it(folder, made):
    directory = folder("several")
    shutil.copy(made / "other" / SINGLE, directory)
    is_read_as_transformers_reads_it(directory)


def test_a_file_that_the_config_names_is_read_before_any_other(folder, made):
    directory = folder("several")
    shutil.copy(made / "other" / SINGLE, directory / "second.safetensors")
    edit(directory, transformers_weights="second.safetensors")
    grown = is_read_as_transformers_reads_it(directory)
    assert "transformers_weights" not in json.loads((grown / "config.json").read_text())


@pytest.mark.parametrize("which", [0, -1])
def test_of_two_copies_in_several_files_the_last_is_read(which, folder):
    """Whichever of the two the index names."""
    directory = folder("several")
    files = json.loads((directory / INDEX).read_text())["weight_map"]
    name = "model.layers.1.mlp.up_proj.weight"
    file = sorted(set(files.values()) - {files[name]})[which]
    stale = np.random.default_rng(0).normal(size=(20, 24)).astype(np.float32)
    with_tensors(directory, lambda tensors: {**tensors, name: stale}, file)
    is_read_as_transformers_reads_it(directory)
    (note,) = plan_expansion(directory, mlp_dim=30).source.notes
    assert re.search(rf"both hold {name}: what .* holds is read, as transformers reads it", note)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/../../x", "", 3, None])
@pytest.mark.parametrize("key", ["index", "config"])
def test_a_file_outside_the_folder_is_not_read(key, name, folder):
    directory = folder("several")
    if key == "index":
        edit(directory, INDEX, weight_map={HEAD: name})
    elif name is None:
        return
    else:
        edit(directory, transformers_weights=name)
    some = min(directory.glob("*.safetensors"))
    shutil.copy(some, directory.parent / "x.safetensors")
    with pytest.raises(InputError, match=r"within the folder|must be the name of a file|a word"):
        plan_expansion(directory, mlp_dim=30)


def test_links_and_folders_within_are_followed(folder, made):
    """As in the cache of the Hugging Face Hub."""
    directory = folder("several")
    files = json.loads((directory / INDEX).read_text())["weight_map"]
    (directory / "shards").mkdir()
    for path in sorted(directory.glob("*.safetensors")):
        path.unlink()
        (directory / "shards" / path.name).symlink_to(made / "several" / path.name)
    edit(directory, INDEX, weight_map={n: f"shards/{file}" for n, file in files.items()})
    is_read_as_transformers_reads_it(directory)


# Embeddings and output layer.


@pytest.mark.parametrize("head", ["none", "same", "other", "alone"])
def test_an_output_layer_that_the_config_ties(head, folder):
    directory = folder()
    edit(directory, tie_word_embeddings=True)

    def change(tensors):
        if head == "alone":
            return {key: value for key, value in tensors.items() if key != EMBEDDING}
        others = {key: value for key, value in tensors.items() if key != HEAD}
        given = dict(same=tensors[EMBEDDING].copy(), other=tensors[HEAD])
        return others if head == "none" else {**others, HEAD: given[head]}

    with_tensors(directory, change)
    grown = is_read_as_transformers_reads_it(directory)
    names = safetensors.numpy.load_file(grown / SINGLE).keys()
    assert (HEAD in names) == (head == "other")
    assert EMBEDDING in names
    said = json.loads((grown / "config.json").read_text())["tie_word_embeddings"]
    assert said == (head != "other")
    notes = plan_expansion(directory, mlp_dim=30).source.notes
    assert len(notes) == (head in ("other", "alone"))
    assert all(note in (grown / "README.md").read_text() for note in notes)


# What becomes of each file.


def test_of_every_file_is_said_what_becomes_of_it(folder):
    directory = folder("several")
    carried = {
        "additional_chat_templates/rag.jinja": "R",
        "tokenizer.json": "{}",
        "tokenizer.model": "t",
        "modeling_own.py": "",
        "notes.json": "{broken",
        "a/b/c.txt": "",
    }
    left_out = {
        "README.md": "of the small model",
        "adapter_config.json": "{}",
        "training_args.bin": "",
        "optimizer.pt": "",
        "trainer_state.json": "{}",
        "model.fp16.safetensors": "",
        "pytorch_model.bin.index.json": "{}",
        "flax_model.msgpack": "",
    }
    folders = {
        "checkpoint-5/": {"config.json": "{}", "model.safetensors": "", "tokenizer.json": "{}"},
        "original/": {"params.json": "{}", "consolidated.00.pth": ""},
        ".cache/": {"x": ""},
    }
    inside = {f"{at}{name}": text for at, held in folders.items() for name, text in held.items()}
    for name, text in {**carried, **left_out, **inside}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    (directory / "nowhere").symlink_to(directory / "no such file")
    (directory / "round").symlink_to(directory)
    expand_checkpoint(directory, directory.parent / "grown", verify=False, mlp_dim=30)
    fates = {file.path: file for file in plan_expansion(directory, mlp_dim=30).source.files}

    for name, text in carried.items():
        assert fates[name].fate == "carried"
        assert (directory.parent / "grown" / name).read_text() == text
    gone = {*left_out, *folders, "nowhere", "round/"}
    assert {name for name, file in fates.items() if file.fate == "left out"} == gone
    card = (directory.parent / "grown" / "README.md").read_text()
    shards = sorted(name for name in fates if name.startswith("model-"))
    assert len(shards) > 3
    assert f"{shards[0]} to {shards[-1]}" in card
    for name, file in fates.items():
        assert name in card or name in shards
        assert bool(file.reason) == (file.fate == "left out")
        if file.fate == "left out" and name != "README.md":
            assert not (directory.parent / "grown" / name).exists()
    # Nothing is left of which nothing is said.
    there = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert all(name in fates or name.startswith(tuple(folders)) for name in there)


def test_the_commands_say_what_becomes_of_files_and_keys(folder, capsys):
    directory = folder()
    (directory / "optimizer.pt").write_text("")
    (directory / "tokenizer.json").write_text("{}")
    edit(directory, mup_scale=3, rope_scaling={"type": "linear", "factor": 2.0, "own": 1})
    plan = ["plan", f"--source={directory}", "--mlp_dim=30"]
    with pytest.raises(SystemExit):
        main(plan)
    assert "config.json says mup_scale 3, which growth does not" in capsys.readouterr().err
    assert main([*plan, "--ignore_config_keys=mup_scale,rope_scaling.own"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "grown: config.json, model.safetensors" in said
    assert "carried: generation_config.json, tokenizer.json" in said
    assert "left out: optimizer.pt (the state of a training run of the smaller model)" in said


@pytest.mark.parametrize("names", [["dtype"], ["torch_dtype"], ["dtype", "torch_dtype"], []])
def test_a_dtype_is_written_under_all_its_names(names, folder):
    directory = folder()
    fields = json.loads((directory / "config.json").read_text())
    del fields["dtype"]
    given = {**fields, **dict.fromkeys(names, "float32")}
    (directory / "config.json").write_text(json.dumps(given))
    config = plan_expansion(directory, mlp_dim=30, dtype="bfloat16").config
    assert {key: config.get(key) for key in names or ["dtype"]} == dict.fromkeys(
        names or ["dtype"], "bfloat16"
    )


def test_a_model_beside_an_adapter_of_it(folder):
    directory = folder()
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds a model and a PEFT adapter, .*: merge it first"):
        plan_expansion(directory, mlp_dim=30)


@pytest.mark.parametrize("text", ["{", "", "\xff", "[" * 100_000])
@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json"])
def test_a_file_to_carry_that_is_not_json(name, text, folder):
    directory = folder()
    (directory / name).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=rf"{name} is not JSON: .*; download it again"):
        expand_checkpoint(directory, directory.parent / "grown", verify=False, mlp_dim=30)
    assert not (directory.parent / "grown").exists()


# What a message says.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"hidden_size": 1, "a": 2, "hidden_size": 2}', "says 'hidden_size' twice: remove one"),
        ('{"rope_scaling": {"factor": 1, "factor": 2}}', "says 'factor' twice: remove one"),
        ('{"a":' * 40 + "1" + "}" * 40, "is nested more than 32 levels deep"),
        ('{"a":' * 100_000, "is nested more than 32 levels deep"),
        ("\xff", "is not JSON"),
        ('{"hidden_size": 1}', "has no 'model_type': it is no config of transformers"),
    ],
)
def test_a_config_that_is_not_what_it_should_be(text, message, folder):
    directory = folder()
    (directory / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message) as refused:
        plan_expansion(directory, mlp_dim=30)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (None, "no weights are there"),
        (
            "model.fp16.safetensors",
            "model.fp16.safetensors is a variant: give a copy of the folder",
        ),
        ("model-00001-of-00002.safetensors", "is one of several files, but their index is missing"),
        ("pytorch_model.bin", "pytorch_model.bin must be converted to safetensors first"),
        ("consolidated.00.pth", "consolidated.00.pth must be converted to safetensors first"),
    ],
)
def test_a_folder_without_the_weights_that_are_read(rename, message, folder):
    directory = folder()
    (directory / "training_args.bin").write_bytes(b"")
    if rename:
        (directory / SINGLE).rename(directory / rename)
    else:
        (directory / SINGLE).unlink()
    with pytest.raises(InputError, match=message):
        plan_expansion(directory, mlp_dim=30)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("meta-llama/Llama-3.2-1B", "a local directory is needed, `hf download meta-llama/Ll"),
        ("/no/such/directory", "there is no such directory$"),
        (__file__, "a file: give the directory that it is in"),
    ],
)
@pytest.mark.parametrize("door", [huggingface.load, huggingface.load_architecture, plan_expansion])
def test_a_source_that_is_no_directory(door, source, message):
    with pytest.raises(InputError, match=message):
        door(source)


def test_an_adapter_alone(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"no config.json, but adapter_config.json.*merge it first"
    ):
        plan_expansion(tmp_path, mlp_dim=30)


def test_a_body_without_an_output_layer(folder):
    directory = folder()
    edit(directory, architectures=["LlamaModel"])

    def body(tensors):
        return {k.removeprefix("model."): v for k, v in tensors.items() if k != HEAD}

    with_tensors(directory, body)
    with pytest.raises(InputError, match=r"holds the body alone. Load it as a LlamaForCausalLM in"):
        plan_expansion(directory, mlp_dim=30)
    edit(directory, tie_word_embeddings=True)
    assert plan_expansion(directory, mlp_dim=30).source.is_base


def test_a_model_with_the_head_of_a_task_that_is_not_known(folder):
    """Those for sequences and tokens are."""
    directory = folder()
    edit(directory, architectures=["LlamaForQuestionAnswering"])
    with pytest.raises(
        InputError, match=r"LlamaForQuestionAnswering.*but what grows is a LlamaFor"
    ):
        plan_expansion(directory, mlp_dim=30)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(value, folder):
    directory = folder()
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(tensors):
        tensors[name][3, 4] = value
        return tensors

    with_tensors(directory, spoil)
    with pytest.raises(InputError, match=rf"the source holds NaN or infinity.*{name}"):
        expand_checkpoint(directory, directory.parent / "grown", verify=False, num_layers=3)
    assert [path.name for path in directory.parent.iterdir()] == ["source"]
