"""A growth schedule becomes stages, or is refused before anything is trained."""

import itertools

import pytest

from growth.architecture import Architecture
from growth.expansion import initialization
from growth.training.schedule import ScheduleError, flops_spent, stages, training_flops

SMALL = Architecture.llama(
    vocab_size=16, max_length=8, embed_dim=8, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=16
)


def test_no_growth_is_one_stage():
    (stage,) = stages(SMALL, (), 10)
    assert (stage.index, stage.start, stage.stop, stage.plan) == (0, 0, 10, None)
    assert stage.architecture == SMALL
    assert stage.num_steps == 10


def test_stages_follow_each_other():
    growth = (
        dict(step=3, embed_dim=12, mlp_dim=(24, 32)),
        dict(step=5, num_heads=8, qk_dim=4, v_dim=3),
        dict(step=9, num_layers=3, position=1),
    )
    run = stages(SMALL, growth, 20)
    assert [(s.index, s.start, s.stop, s.num_steps) for s in run] == [
        (0, 0, 3, 3),
        (1, 3, 5, 2),
        (2, 5, 9, 4),
        (3, 9, 20, 11),
    ]
    for before, stage in itertools.pairwise(run):
        assert stage.plan.source == before.architecture
        assert stage.plan.target == stage.architecture
    last = run[-1].architecture
    assert (last.embed_dim, last.num_heads, last.num_kv_heads) == (12, 8, 4)
    assert (last.num_layers, last.qk_dim, last.v_dim) == (3, 4, 3)
    assert last.mlp_dim == (24, 24, 32)  # the new layer is shaped like the one below it
    assert run[-1].plan.layer_sources == (0, None, 1)


def test_a_schedule_may_come_from_json():
    """Lists in place of tuples."""
    assert stages(SMALL, [{"step": 3, "mlp_dim": [24, 32]}], 9) == stages(
        SMALL, ({"step": 3, "mlp_dim": (24, 32)},), 9
    )


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        # Steps.
        ([dict(embed_dim=12)], r"growth\[0\] .*stage 2\): step is missing"),
        ([dict(step=0, embed_dim=12)], r"growth\[0\] .*step is 0, .* after 0,.* before 20"),
        ([dict(step=20, embed_dim=12)], r"step is 20, .* before 20, where the run ends"),
        ([dict(step=25, embed_dim=12)], r"step is 25, .* before 20, where the run ends"),
        ([dict(step=3.0, embed_dim=12)], r"step is 3\.0, .* whole number"),
        ([dict(step=True, embed_dim=12)], r"step is True, .* whole number"),
        ([dict(step="3", embed_dim=12)], r"step is '3', .* whole number"),
        (
            [dict(step=9, embed_dim=12), dict(step=5, embed_dim=16)],
            r"growth\[1\] .*stage 3\): step is 5, .* after 9",
        ),
        (
            [dict(step=9, embed_dim=12), dict(step=9, embed_dim=16)],
            r"growth\[1\] .*step is 9, .* after 9",
        ),
        # Sizes.
        ([dict(step=3, embed_dim=6)], r"growth\[0\].* embed_dim is 8 and cannot shrink to 6"),
        ([dict(step=3, mlp_dim=(16, 8))], r"mlp_dim is 16 in layer 1 and cannot shrink to 8"),
        ([dict(step=3, num_layers=1)], r"num_layers is 2 and cannot become 1"),
        (
            [dict(step=3, embed_dim=12), dict(step=5, mlp_dim=24), dict(step=7, embed_dim=10)],
            r"growth\[2\] .*stage 4\): embed_dim is 12 and cannot shrink to 10",
        ),
        ([dict(step=3, num_heads=5)], r"growth\[0\].* num_heads cannot become 5 .* 2 query heads"),
        ([dict(step=3, num_heads=6, num_kv_heads=4)], r"num_kv_heads must divide num_heads"),
        ([dict(step=3, num_heads=4, num_kv_heads=4)], r"must keep its 2 queries"),
        ([dict(step=3, num_kv_heads=4)], r"num_kv_heads is 4, but num_heads is not given"),
        ([dict(step=3, qk_dim=3)], r"growth\[0\].* qk_dim is 3 .* must be even"),
        ([dict(step=3, num_layers=3, position=3)], r"position is 3, .* inserted at 0 to 2"),
        ([dict(step=3, num_layers=3, position=-1)], r"position is -1, .* inserted at 0 to 2"),
        ([dict(step=3, position=1)], r"position is 1, but num_layers is not given"),
        ([dict(step=3)], r"\{\} changes nothing"),
        ([dict(step=3, embed_dim=8)], r"\{'embed_dim': 8\} changes nothing"),
        # Names.
        (
            [dict(step=3, embed=12)],
            r"'embed' is nothing that a growth step has; did you mean embed_dim\?",
        ),
        (
            [dict(step=3, vocab_size=32)],
            r"'vocab_size' is nothing that a growth step has; it may have step, init, moments, ",
        ),
        ([dict(step=3, embed_dim=12, init="zeros")], r"growth\[0\].* zeros are refused"),
        ([dict(step=3, embed_dim=12, init={"mlp": "copy"})], r"growth\[0\].* init names 'mlp'"),
        ([7], r"growth\[0\] .* is 7, but it must be a mapping"),
    ],
)
def test_what_would_not_work_is_refused_by_stage(growth, message):
    with pytest.raises(ScheduleError, match=message):
        stages(SMALL, growth, 20)


@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True, None])
def test_a_run_has_steps(num_steps):
    with pytest.raises(ScheduleError, match=r"num_steps is .* at least 1 step"):
        stages(SMALL, (), num_steps)


def test_growth_that_cannot_be_exact_is_refused():
    architecture = Architecture.gpt2(
        vocab_size=16,
        max_length=8,
        embed_dim=8,
        num_layers=1,
        num_heads=2,
        mlp_dim=16,
        final_norm=False,
    )
    with pytest.raises(ScheduleError, match=r"growth\[0\].* embed_dim cannot grow exactly"):
        stages(architecture, [dict(step=3, embed_dim=12)], 20)


def test_flops_are_those_of_the_architecture_that_is_trained():
    run = stages(SMALL, [dict(step=3, embed_dim=16, num_layers=4)], 10)
    costs = [stage.architecture.training_flops_per_token() for stage in run]
    assert costs[1] > 3 * costs[0]
    assert training_flops(run, 100) == (3 * 100 * costs[0], 7 * 100 * costs[1])

    spent = [flops_spent(run, step, 100) for step in range(12)]
    assert spent[0] == 0
    assert spent[3] == training_flops(run, 100)[0]
    assert spent[4] - spent[3] == 100 * costs[1]
    assert spent[10] == spent[11] == sum(training_flops(run, 100))
    assert spent[:11] == sorted(set(spent))


def test_a_stage_says_what_its_new_entries_are():
    run = stages(SMALL, [dict(step=3, embed_dim=12), dict(step=5, mlp_dim=32, init="copy:4")], 20)
    assert [stage.init for stage in run] == [
        initialization.FRESH,
        initialization.FRESH,
        initialization.InitPolicy(initialization.Copy(4.0)),
    ]
