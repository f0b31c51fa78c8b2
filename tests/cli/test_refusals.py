"""A wrong command line is refused with one line, which says what would be right."""

import pytest

from growth.cli import config_files, config_overrides
from growth.cli.main import main, parse
from growth.errors import InputError

PRESETS = "continue_from_huggingface, digits, gpt2_124m, llama_1b, quickstart"


def refusal(capsys, *arguments):
    """The one line with which a command ends."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def run(tmp_path):
    """What is a run by its looks."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def checkpoint(tmp_path):
    """What is no run."""
    (tmp_path / "checkpoint").mkdir()
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["expnd"], 'Unknown command "expnd". Did you mean "expand"?'),
        (["train", "--workdir=x"], "growth train needs --config: a preset, or the path"),
        (["train", "--workdir=x"], f"Presets are {PRESETS}."),
        (["train", "--config=quickstart"], "growth train needs --workdir: where the run keeps"),
        (["train", "--config=quickstart", "--workdr=x"], "did you mean --workdir?"),
        (["sample", "--workdir=x", "--prompt=a", "--top_k=few"], 'convert "few" into int'),
        (["sample", "--workdir=x", "--prompt=a", "b"], "b"),
        (["sample", "--workdir=x", "--prompt=a", "--config.seed=1"], "for growth train and"),
        (["expand", "--source=x", "--output=y", "--dtype=int8"], "float32"),
        (["expand", "--source=nowhere", "--output=y"], "there is no such directory"),
        (["report"], "growth report needs the directory of a run, or of several"),
        (["report", "nowhere"], "nowhere is no run: its config.json cannot be read"),
        (["report", "a", "b", "--outpt=x"], "Did you mean --output?"),
        (["plan"], "give either --config or --source"),
        (["plan", "--config=quickstart", "--source=x"], "give either --config or --source"),
        (["plan", "--config=quickstart", "--mlp_dim=8"], "--mlp_dim applies to --source"),
        (["plan", "--config=quickstart", "--init=copy"], "--init applies to --source"),
        (["plan", "--source=.", "--config.seed=1"], "--config.seed=1 applies to --config"),
        (["plan", "--config=quickstrat"], f"did you mean quickstart? presets are {PRESETS}"),
        (
            ["train", "--config=quickstart", "--config.data=3", "--workdir=x"],
            "config.data is '3', but it is a section: set its fields, such as --config.data.files",
        ),
        (["train", "--config=no.py", "--workdir=x"], "config is 'no.py', but there is no such"),
        (["plan", "--config=none.py"], f"there is no such file; presets are {PRESETS}"),
        (["plan", "--config=quickstart:large"], "quickstart takes no argument after a colon"),
        (["plan", "--config=digits:half"], "size is 'half', but it must be grown or full"),
    ],
)
def test_a_wrong_command_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("expand", "--dtype=float32"),
        ("expand", "--max_shard_size=5GB"),
        ("expand", "--verify"),
        ("expand", "--noverify"),
        ("plan", "--dtype=float32"),
    ],
)
def test_flags_of_hugging_face_are_refused_for_a_run(command, flag, run, capsys):
    """Whatever their value, also the one that would be taken without them."""
    output = ["--output=new"] if command == "expand" else []
    message = refusal(capsys, command, f"--source={run}", *output, "--mlp_dim=9", flag)
    name = flag.partition("=")[0].replace("--no", "--")
    assert message == f"{name} applies to a checkpoint of Hugging Face, but {run} is that of a run"


@pytest.mark.parametrize(
    ("command", "more"),
    [("expand", ["--output=new", "--growth_tolerance=1e-3"]), ("plan", [])],
)
def test_flags_of_runs_are_refused_for_a_checkpoint(command, more, checkpoint, capsys):
    given = [*more, "--moments=zeros", "--step=0"]
    message = refusal(capsys, command, f"--source={checkpoint}", "--mlp_dim=9", *given)
    names = "--step, --moments" + ", --growth_tolerance" * (command == "expand")
    assert message == (f"{names} apply to a checkpoint of a run, but {checkpoint} is none of a run")


def test_flags_that_apply_are_not_refused(run, checkpoint, capsys):
    """What is wrong here is that both are empty."""
    given = ["--output=new", "--mlp_dim=9"]
    message = refusal(capsys, "expand", f"--source={run}", *given, "--moments=zeros")
    assert message.startswith(f"there is no checkpoint in {run}")
    message = refusal(capsys, "expand", f"--source={checkpoint}", *given, "--noverify")
    assert message == f"{checkpoint} is no checkpoint: it has no config.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--config.optimzer.eps=1",
            "unknown field of the config: optimzer; did you mean optimizer?",
        ),
        ("--config.optimizer.lr=1", "optimizer.lr; did you mean optimizer.learning_rate?"),
        ("--config.optimizer.learnin_rate=1", "did you mean optimizer.learning_rate?"),
        ("--config.learning_rate=1", "learning_rate; did you mean optimizer.learning_rate?"),
        ("--config.mesh.depth=1", "unknown field of the config: mesh.depth; mesh has data, fsdp"),
        ("--config.growth[3].step=9", "config.growth[3].step: there is no growth[3]"),
        ("--config.growth[0].stp=9", "growth[0].stp; did you mean growth[0].step?"),
        ("--config.seed.low=1", "config.seed.low: seed is 0, which has no fields"),
        ("--config.data=3", "config.data is '3', but it is a section: set its fields, such as"),
        ("--config.seed=1.5", "config.seed is '1.5', but it must be a whole number"),
        ("--config.optimizer.eps=tiny", "config.optimizer.eps is 'tiny', but it must be a number"),
        ("--config.remat=maybe", "config.remat is 'maybe', but it must be true or false"),
        ("--config.remat yes", "unexpected argument 'yes' after --config.remat"),
        ("--config.seed", "config.seed has no value: write --config.seed=VALUE"),
        ("--config.architecture.patches.size=2", "config.architecture.patches.size: "),
    ],
)
def test_a_wrong_field_of_a_config(arguments, message, capsys):
    line = refusal(capsys, "plan", "--config=quickstart", *arguments.split())
    assert message in line


def test_fields_of_a_config_are_set():
    config = config_files.load_config("quickstart")
    arguments = [
        "--workdir", "x", "--config.seed", "7", "--config.optimizer.learning_rate=1",
        "--config.remat", "--config.architecture.num_kv_heads=1", "--config.growth[0].step=300",
        "--config.samples.prompts=a", "--config.samples.prompts=b", "--config.seed=8",
        "--config.mesh.data", "-1", "--noconfig.certify", "--config=quickstart",
    ]  # fmt: skip
    overrides, others = config_overrides.split(arguments)
    assert others == ("--workdir", "x", "--config=quickstart")
    config_overrides.override(config, overrides)
    assert (config.seed, config.remat, config.certify, config.mesh.data) == (8, True, False, -1)
    assert config.optimizer.learning_rate == 1.0
    assert config.architecture.num_kv_heads == 1
    assert config.growth[0]["step"] == 300
    assert config.samples.prompts == ("a", "b")


def test_flags_with_and_without_an_equals_sign():
    flags = parse(["expand", "--source", "a", "--output=b", "--noverify", "--head_dim", "8"])
    assert (flags.source, flags.output, flags.verify) == ("a", "b", False)
    assert flags.sizes.growth_step() == {"qk_dim": 8, "v_dim": 8}
    assert parse(["expand", "--source=a", "--output=b"]).verify is None


def test_runs_to_report_stand_without_a_flag():
    flags = parse(["report", "a", "--output=b", "c"])
    assert (flags.runs, flags.output) == (("a", "c"), "b")


def test_sizes_become_a_growth_step():
    flags = parse(
        [
            "plan",
            "--source=a",
            "--head_dim=8",
            "--v_dim=4",
            "--num_layers=6",
            "--layer_positions=0,2",
        ]
    )
    step = {"qk_dim": 8, "v_dim": 4, "num_layers": 6, "position": (0, 2)}
    assert flags.sizes.growth_step() == step


def test_a_config_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    with pytest.raises(InputError, match=r"mine.py', but there is no such file"):
        config_files.load_config(str(path))
    path.write_text("def get_config(size):\n    return {'size': size}\n")
    assert config_files.load_config(f"{path}:a:b") == {"size": "a:b"}
    with pytest.raises(InputError, match="needs an argument, after a :"):
        config_files.load_config(str(path))
    path.write_text("config = 1\n")
    with pytest.raises(InputError, match=r"mine\.py has no function get_config"):
        config_files.load_config(str(path))
    for code, message in (
        ("c.num_steps = '8'", r"line 4: TypeError: Could not override field 'num_steps'"),
        ("c.optimzer.eps = 3", r'line 4: AttributeError: .*Did you mean "optimizer"'),
        ("c.seed = 1 / 0", r"line 4: ZeroDivisionError: division by zero"),
        ("raise OSError('a\\nb')", r"line 4: OSError: a b$"),
    ):
        path.write_text(
            "from growth.training.config import defaults\n"
            "def get_config():\n"
            "    c = defaults()\n"
            f"    {code}\n"
        )
        with pytest.raises(InputError, match=rf"^config .*mine\.py, {message}"):
            config_files.load_config(str(path))
    path.write_text("def get_config(:\n")
    with pytest.raises(InputError, match=r"mine\.py, line 1: invalid syntax"):
        config_files.load_config(str(path))
