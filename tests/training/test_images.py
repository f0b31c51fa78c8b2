"""Images: sets of them, and a vision transformer that grows in the same loop."""

import json
import sys

import jax
import numpy as np
import pytest

from growth import Architecture, ArchitectureError
from growth.architecture.patches import Patches
from growth.architecture.presets import VIT
from growth.cli import errors
from growth.errors import InputError
from growth.models import VisionTransformer
from growth.training.config import defaults, parse
from growth.training.config_sections import ConfigError
from growth.training.data.batches import Batch, train_iterator
from growth.training.data.config import DataConfig, DataError
from growth.training.data.dataset import load_dataset
from growth.training.data.images import load_images, shifts
from growth.training.data.tokenizers import ByteTokenizer
from growth.training.generation import generate
from growth.training.loop import train
from growth.training.report.trackers import TrackerError
from growth.training.run.restore import load_model
from tests.helpers import networks, runs

DIGITS = DataConfig(images="digits", validation_fraction=0.25)


def digits_config():
    """Growth along all six dimensions, on a mesh of one device."""
    config = defaults(
        **VIT,
        vocab_size=10,
        max_length=17,
        patches=dict(height=8, width=8, channels=1, size=2),
        embed_dim=16,
        num_layers=1,
        num_heads=2,
        qk_dim=8,
        v_dim=8,
        mlp_dim=32,
    )
    config.growth = (
        dict(step=80, embed_dim=24, mlp_dim=48, num_layers=2),
        dict(step=160, num_heads=3, qk_dim=12, v_dim=10),
    )
    config.data.update(images="digits", validation_fraction=0.25, max_shift=1)
    config.num_steps, config.batch_size, config.eval_batches = 240, 32, 14
    config.optimizer.learning_rate = 1e-2
    config.mesh.data = 1
    return config


def test_digits_are_split_and_normalized():
    train_side, validation = load_images(DIGITS)
    assert len(train_side) == 1348
    assert len(validation) == 449
    assert train_side.images.shape[1:] == (8, 8, 1)
    np.testing.assert_allclose(train_side.images.mean(), 0, atol=1e-4)
    np.testing.assert_allclose(train_side.images.std(), 1, rtol=1e-4)
    assert set(train_side.labels) == set(validation.labels) == set(range(10))
    both = np.concatenate([train_side.images, validation.images])
    assert len(np.unique(both, axis=0)) == len(both)
    again, _ = load_images(DIGITS)
    np.testing.assert_array_equal(again.images, train_side.images)


def test_a_file_of_ones_own_images(tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (20, 6, 4, 3), np.uint8), np.arange(20) % 4
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    config = DataConfig(images=str(tmp_path / "set.npz"), validation_fraction=0.2)
    sizes = dict(vocab_size=4, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=8)
    architecture = Architecture.vit(Patches(6, 4, 3, 2), **sizes)
    data = load_dataset(config, architecture)
    assert (len(data.train), len(data.validation)) == (16, 4)
    for changes, message in (
        (dict(vocab_size=3), r"labels are 0 to 3, but architecture\.vocab_size is 3"),
        (dict(patches=Patches(4, 6, 3, 2)), r"images are \(6, 4, 3\), but architecture\.patches"),
    ):
        with pytest.raises(DataError, match=message):
            load_dataset(config, architecture.replace(**changes))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(images=np.zeros((4, 2, 2))), "labels"),
        (dict(images=np.zeros((4, 2)), labels=np.zeros(4, int)), r"with images \(4, 2\)"),
        (dict(images=np.zeros((4, 2, 2)), labels=np.zeros(4)), r"labels \(4,\) float64"),
        (dict(images=np.zeros((1, 2, 2)), labels=np.zeros(1, int)), "one side of 1 images empty"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_images(DataConfig(images=str(tmp_path / "set.npz")))


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"images is 'none\.npz', but it must be 'digits' or"):
        load_images(DataConfig(images="none.npz"))


def test_shifts_move_an_image_and_repeat_its_edges():
    image = np.arange(12.0, dtype=np.float32).reshape(3, 4, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    possible = [padded[y : y + 3, x : x + 4] for y in range(3) for x in range(3)]
    shift, random, seen = shifts(1), np.random.default_rng(0), set()
    for _ in range(100):
        moved = shift(Batch(image, 7), random)
        assert moved.targets == 7
        (at,) = (i for i, other in enumerate(possible) if np.array_equal(other, moved.inputs))
        seen.add(at)
    assert len(seen) == 9


def test_an_order_with_shifts_resumes():
    data = load_dataset(DataConfig(images="digits", max_shift=2), digits_architecture())

    def make():
        return train_iterator(data.train, batch_size=4, seed=0, augment=data.augment)

    iterator = make()
    next(iterator)
    state = iterator.get_state()
    expected = next(iterator)
    resumed = make()
    resumed.set_state(state)
    networks.assert_same_trees(next(resumed), expected)


def digits_architecture():
    return parse(digits_config()).architecture


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("digits") / "run"
    train(parse(digits_config()), workdir)
    return workdir


def test_a_vision_transformer_learns_and_grows_by_the_same_loop(finished):
    growths, evals = runs.records(finished, "growth"), runs.records(finished, "eval")
    assert [growth["step"] for growth in growths] == [80, 160]
    for growth in growths:
        assert abs(growth["loss_after"] - growth["loss_before"]) <= 1e-5
        assert growth["logit_error"] <= 1e-5
    assert evals[-1]["accuracy"] > 0.5
    page = (finished / "report.html").read_text()
    assert "Evaluation accuracy" in page
    assert f"{evals[-1]['accuracy']:.1%}" in page
    model, params, _ = load_model(finished)
    assert isinstance(model, VisionTransformer)
    assert params["patch_embed"]["kernel"].shape == (4, 24)


@pytest.mark.full
def test_growths_of_images_are_certified(tmp_path):
    config = digits_config()
    config.certify = True
    train(parse(config), tmp_path / "run")
    for step in (80, 160):
        assert json.loads((tmp_path / f"run/certificates/step_{step}.json").read_text())["passed"]


def test_a_text_cannot_be_continued(finished):
    model, params, _ = load_model(finished)
    with pytest.raises(InputError, match="the model sees images, and continues no text"):
        generate(model, params, ByteTokenizer(), "def", num_tokens=3)


@pytest.mark.full
def test_eight_devices_give_the_same_losses(finished, tmp_path):
    config = digits_config()
    config.num_steps, config.growth = 100, config.growth[:1]
    losses = []
    for name, mesh in (("one", dict(data=1)), ("eight", dict(data=2, fsdp=2, tensor=2))):
        config.mesh.update(mesh)
        train(parse(config), tmp_path / name)
        losses.append([r["loss"] for r in runs.records(tmp_path / name, "train")])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.data.update(images=""), DataError, "name a set of images"),
        (lambda c: c.data.update(max_shift=-1), DataError, "max_shift is -1"),
        (lambda c: c.data.update(max_shift=8), DataError, r"max_shift is 8, but .* less"),
        (lambda c: c.update(batch_size=2000), DataError, r"batch_size is 2000, but .* at most"),
        (lambda c: c.update(wandb_project="x"), TrackerError, "wandb is not installed"),
        (lambda c: c.samples.update(prompts=("a",)), ConfigError, "the model sees images"),
        (
            lambda c: c.architecture.update(max_length=16),
            ArchitectureError,
            "max_length is 16, but with patches it is 17",
        ),
        (
            lambda c: c.architecture.patches.update(size=3),
            ArchitectureError,
            r"patches\.size is 3, but it must divide patches\.height, 8",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, change, error, message, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # how Python marks what cannot be imported
    config = digits_config()
    change(config)
    with pytest.raises(error, match=message):
        train(parse(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert issubclass(error, errors.InputError)


def test_a_model_of_tokens_takes_no_images():
    text = networks.ARCHITECTURES["gpt2"]
    with pytest.raises(DataError, match="the architecture has no patches"):
        load_dataset(DIGITS, text)


def test_an_image_of_another_size_is_refused():
    architecture = digits_architecture()
    with pytest.raises(ValueError, match=r"images have shape \(4, 8, 1\)"):
        jax.eval_shape(
            lambda: VisionTransformer(architecture).init(jax.random.key(0), np.zeros((1, 4, 8, 1)))
        )
