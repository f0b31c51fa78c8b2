"""Text, tokens, sides and batches."""

import json
import shutil
import sys
import sysconfig
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from growth.training.data.batches import Batch, eval_batches, train_iterator
from growth.training.data.config import DataConfig, DataError
from growth.training.data.text import Windows, load_corpus
from growth.training.data.tokenizers import ByteTokenizer, load_tokenizer

LENGTH = 8


def write_files(root: Path, names: list[str]) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<{name}> holds this text.", encoding="utf-8")


def sides(
    root: Path, pattern: str = "**/*.txt", fraction: float = 0.3
) -> tuple[set[str], set[str]]:
    """The documents of the training side and of the validation side."""
    corpus = load_corpus(DataConfig(str(root / "**/*.txt"), validation_fraction=fraction), LENGTH)
    texts = (corpus.tokenizer.decode(side) for side in (corpus.train, corpus.validation))
    train, validation = (set(text.removesuffix("\0").split("\0")) for text in texts)
    return train, validation


def some_windows(count: int) -> Windows:
    """Different windows, of tokens that are all different."""
    return Windows(np.arange(count * LENGTH + 1, dtype=np.uint16), LENGTH)


def take(iterator, count: int) -> list[Batch]:
    return [next(iterator) for _ in range(count)]


def starts(batches: list[Batch]) -> list[int]:
    return [int(start) for batch in batches for start in batch.inputs[:, 0]]


def assert_consecutive(batch: Batch) -> None:
    """Tokens count up, and targets are the tokens after them."""
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    assert np.array_equal(batch.inputs, batch.inputs[..., :1] + np.arange(LENGTH))
    assert np.array_equal(batch.targets, batch.inputs + 1)


# Configuration.


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan"), 1, "0.1", None])
def test_validation_fraction_must_be_between_0_and_1(fraction):
    with pytest.raises(DataError, match=r"validation_fraction is .* between 0 and 1"):
        DataConfig(validation_fraction=fraction)


@pytest.mark.parametrize("name", ["files", "tokenizer"])
def test_paths_must_be_strings(name):
    with pytest.raises(DataError, match=f"{name} is None"):
        DataConfig(**{name: None})


# Tokenizers.


def test_bytes_round_trip():
    text = "naïve Σ 🌱\n"
    tokenizer = load_tokenizer()
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.uint8
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text
    assert tokenizer.vocab_size == 256


def test_bytes_that_are_not_utf8_are_replaced():
    assert ByteTokenizer().decode([104, 0xFF, 105]) == "h�i"


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory) -> Path:
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 1)]
    )
    bpe.enable_truncation(4)
    bpe.enable_padding(length=64)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    bpe.save(str(path))
    return path


def test_tokenizer_file(tokenizer_file):
    text = "def test_tokenizer_file(tokenizer_file):\n    naïve = Σ"
    tokenizer = load_tokenizer(str(tokenizer_file))
    tokens = tokenizer.encode(text)
    assert tokenizer.vocab_size == 400
    assert tokens.dtype == np.uint16
    assert 4 < len(tokens) < len(text)  # neither truncated nor padded, and shorter than bytes
    assert tokenizer.decode(tokens) == text


def test_tokenizer_file_ends_documents_with_its_own_token(tokenizer_file, tmp_path):
    write_files(tmp_path, ["a.txt", "b.txt", "c.txt"])
    corpus = load_corpus(DataConfig(str(tmp_path / "*.txt"), str(tokenizer_file)), 4)
    assert corpus.tokenizer.decode([corpus.tokenizer.end_of_document]) == "<|endoftext|>"
    for side in (corpus.train, corpus.validation):
        assert side.dtype == np.uint16
        assert side[-1] == corpus.tokenizer.end_of_document
    ends = [
        np.sum(s == corpus.tokenizer.end_of_document) for s in (corpus.train, corpus.validation)
    ]
    assert sum(ends) == 3


def test_tokenizer_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"no\.json.* no such file"):
        load_tokenizer(str(tmp_path / "no.json"))


def test_tokenizer_that_is_something_else(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(DataError, match=r"other\.json.* not a Hugging Face tokenizer\.json"):
        load_corpus(DataConfig(tokenizer=str(path)), LENGTH)


def test_tokenizers_that_is_not_installed(tokenizer_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install 'flax-growth\[huggingface\]'"):
        load_tokenizer(str(tokenizer_file))
    assert load_tokenizer("").vocab_size == 256


# Corpora.


def test_default_corpus_is_the_standard_library():
    corpus = load_corpus(DataConfig(), 256)
    again = load_corpus(DataConfig(), 256)
    assert np.array_equal(corpus.train, again.train)
    assert np.array_equal(corpus.validation, again.validation)
    assert 0.01 < len(corpus.validation) / len(corpus.train) < 0.15
    assert np.sum(corpus.train == 0) + np.sum(corpus.validation == 0) == corpus.num_files

    both = corpus.train.tobytes() + corpus.validation.tobytes()
    stdlib = Path(sysconfig.get_path("stdlib"))
    assert both.count((stdlib / "argparse.py").read_bytes()) == 1
    assert (stdlib / "encodings" / "cp1252.py").read_bytes() not in both
    assert not any(path.read_bytes() in both for path in stdlib.glob("_sysconfigdata*.py"))


def test_every_file_is_on_one_side(tmp_path):
    names = [f"{i % 7}/{i}.txt" for i in range(200)]
    write_files(tmp_path, names)
    train, validation = sides(tmp_path)
    assert not train & validation
    assert train | validation == {f"<{name}> holds this text." for name in names}
    assert 0.2 < len(validation) / len(names) < 0.4


def test_a_file_never_changes_sides(tmp_path):
    write_files(tmp_path / "here", [f"{i % 7}/{i}.txt" for i in range(100)])
    train, validation = sides(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "elsewhere" / "there")
    assert sides(tmp_path / "elsewhere" / "there") == (train, validation)

    write_files(tmp_path / "here", [f"new/{i}.txt" for i in range(100)])
    more_train, more_validation = sides(tmp_path / "here")
    assert train < more_train
    assert validation < more_validation


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_neither_side_is_empty(tmp_path, count, fraction):
    write_files(tmp_path, [f"{i}.txt" for i in range(count)])
    train, validation = sides(tmp_path, fraction=fraction)
    assert train
    assert validation
    assert len(train) + len(validation) == count


def test_a_single_file_is_cut_in_two(tmp_path):
    path = tmp_path / "only.txt"
    path.write_text("".join(map(chr, range(33, 126))) + "xyzxyz")
    corpus = load_corpus(DataConfig(str(path), validation_fraction=0.2), LENGTH)
    assert corpus.train.tobytes() + corpus.validation.tobytes() == path.read_bytes() + b"\0"
    assert len(corpus.validation) == 20
    assert corpus.num_files == 1


def test_files_that_are_not_text(tmp_path):
    write_files(tmp_path, ["a.txt", "b.txt"])
    (tmp_path / "binary.txt").write_bytes(b"some text, but then\0\1\2\3")
    (tmp_path / "latin1.txt").write_bytes("déjà vu, more than once".encode("latin-1"))
    (tmp_path / "folder.txt").mkdir()
    corpus = load_corpus(DataConfig(str(tmp_path / "*.txt")), LENGTH)
    assert (corpus.num_files, corpus.num_binary_files) == (3, 1)
    text = corpus.tokenizer.decode([*corpus.train, *corpus.validation])
    assert "d�j� vu, more than once\0" in text
    assert "but then" not in text


def test_home_is_expanded(tmp_path, monkeypatch):
    write_files(tmp_path, ["deep/er/a.txt", "deep/b.txt"])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_corpus(DataConfig("~/**/*.txt"), LENGTH).num_files == 2


def test_relative_globs(tmp_path, monkeypatch):
    write_files(tmp_path, ["a.txt", "b.txt"])
    monkeypatch.chdir(tmp_path)
    assert load_corpus(DataConfig("*.txt"), LENGTH).num_files == 2


def test_glob_that_matches_nothing(tmp_path):
    with pytest.raises(DataError, match=r"files is '.*\*\.nothing', which matches no file"):
        load_corpus(DataConfig(str(tmp_path / "*.nothing")), LENGTH)


def test_files_that_are_all_binary(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="all 1 files that it matches are binary"):
        load_corpus(DataConfig(str(tmp_path / "*")), LENGTH)


def test_text_that_is_too_short(tmp_path):
    (tmp_path / "only.txt").write_text("x" * 99)  # 100 tokens with the last: 90 and 10
    config = DataConfig(str(tmp_path / "only.txt"), validation_fraction=0.1)
    assert len(load_corpus(config, 9).validation) == 10
    with pytest.raises(DataError, match=r"validation side has 10 tokens.* length 10 needs 11"):
        load_corpus(config, 10)
    with pytest.raises(DataError, match=r"training side has 90 tokens.* length 90 needs 91"):
        load_corpus(config, 90)


# Batches.


def test_an_epoch_holds_every_window_once():
    tokens = some_windows(12)
    iterator = train_iterator(tokens, batch_size=4, seed=0)
    first, second = take(iterator, 3), take(iterator, 3)
    for batch in first + second:
        assert batch.inputs.shape == (4, LENGTH)
        assert_consecutive(batch)
    every = list(range(0, 12 * LENGTH, LENGTH))
    assert sorted(starts(first)) == every
    assert sorted(starts(second)) == every
    assert starts(first) != every
    assert starts(second) != starts(first)


def test_order_depends_on_the_seed_alone():
    def order(seed: int, batch_size: int) -> list[int]:
        iterator = train_iterator(some_windows(50), batch_size=batch_size, seed=seed)
        return starts(take(iterator, 60 // batch_size))

    assert order(0, 4) == order(0, 4) == order(0, 6)
    assert order(0, 4) != order(1, 4)


def test_state_resumes_and_counts_examples():
    tokens = some_windows(7)
    through = train_iterator(tokens, batch_size=2, seed=3)
    expected = starts(take(through, 30))

    stopped = train_iterator(tokens, batch_size=2, seed=3)
    seen = starts(take(stopped, 9))
    state = json.loads(json.dumps(stopped.get_state()))

    larger = train_iterator(tokens, batch_size=6, seed=3)
    take(larger, 2)
    larger.set_state(state)
    assert seen + starts(take(larger, 7)) == expected


def test_processes_share_the_sequences():
    tokens = some_windows(11)
    alone = train_iterator(tokens, batch_size=4, seed=1)
    both = [
        train_iterator(tokens, batch_size=2, seed=1, process_index=i, process_count=2)
        for i in range(2)
    ]
    for _ in range(10):
        parts = [starts([next(iterator)]) for iterator in both]
        assert sorted(parts[0] + parts[1]) == sorted(starts([next(alone)]))
    assert both[0].get_state() == both[1].get_state() == alone.get_state()

    alone.set_state(both[0].get_state())
    parts = [starts([next(iterator)]) for iterator in both]
    assert sorted(parts[0] + parts[1]) == sorted(starts([next(alone)]))


def test_one_window_is_enough():
    iterator = train_iterator(some_windows(1), batch_size=3, seed=0)
    assert starts(take(iterator, 2)) == [0] * 6


def test_iterators_start_no_threads():
    before = threading.active_count()
    iterator = train_iterator(some_windows(9), batch_size=2, seed=0)
    take(iterator, 3)
    assert threading.active_count() == before


def test_eval_batches_are_fixed_and_spread():
    batches = eval_batches(some_windows(100), batch_size=2, num_batches=5)
    assert batches.inputs.shape == (5, 2, LENGTH)
    assert batches.inputs[..., 0].ravel().tolist() == [10 * LENGTH * i for i in range(10)]
    assert_consecutive(batches)


def test_eval_batches_repeat_where_there_are_too_few():
    batches = eval_batches(some_windows(3), batch_size=4, num_batches=2)
    counts = Counter(batches.inputs[..., 0].ravel().tolist())
    assert set(counts) == {0, LENGTH, 2 * LENGTH}
    assert sorted(counts.values()) == [2, 3, 3]
