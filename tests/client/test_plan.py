"""How a job is cut into parts and shards, and when two plans are the same job."""

from dataclasses import replace

import pytest
from sketchbatch_client.scoring.plan import Input, Plan, Segment, Shard, difference, good_part_rows


@pytest.fixture
def plan():
    """Three inputs of 100, 0 and 57 rows, in parts of 40."""
    return Plan(
        inputs=tuple(Input(source=name, rows=rows, stamp="s") for name, rows in (("a", 100), ("b", 0), ("c", 57))),
        model="m",
        version="1",
        model_digest="d",
        labels=("x", "y"),
        top_k=1,
        with_all_scores=False,
        part_rows=40,
    )


def test_parts_hold_every_row_once_in_order(plan):
    """A part may hold rows of several inputs, and the last may be shorter."""
    assert plan.parts == range(4)
    assert [plan.segments(part) for part in plan.parts] == [
        [Segment(0, 0, 40)],
        [Segment(0, 40, 80)],
        [Segment(0, 80, 100), Segment(2, 0, 20)],
        [Segment(2, 20, 57)],
    ]
    assert [plan.rows_of(part) for part in plan.parts] == [40, 40, 40, 37]


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7])
def test_shards_share_the_parts(plan, shards):
    """Each part falls to one shard, in order; with more shards than parts some have none."""
    shares = [replace(plan, shard=Shard(number, shards)) for number in range(shards)]
    assert [part for share in shares for part in share.parts] == list(plan.parts)
    assert sum(share.rows for share in shares) == plan.rows == 157


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": ()}, "there were 3 inputs, and are 0"),
        ({"inputs": (Input(source="a", rows=99, stamp="s"),)}, "a had 100 rows, and has 99"),
        ({"inputs": (Input(source="z", rows=100, stamp="s"),)}, "an input was a, and is z"),
        ({"version": "2"}, "the model was m version 1 (digest d), and is m version 2 (digest d)"),
        ({"model_digest": "e"}, "the model was m version 1 (digest d), and is m version 1 (digest e)"),
        ({"top_k": 2}, "--top-k was 1, and is 2"),
        ({"with_all_scores": True}, "--all-scores was False, and is True"),
        ({"part_rows": 41}, "--part-rows was 40, and is 41"),
        ({"shard": Shard(0, 2)}, "--shard was 0/1, and is 0/2"),
    ],
)
def test_a_difference_is_said_in_words(plan, change, words):
    """What a person must put back to go on; a manifest says the same as the plan."""
    other = replace(plan, **change)
    assert difference(plan, other) == words
    assert difference(Plan.from_json(plan.to_json()), plan) == ""


def test_a_stamp_alone_makes_no_other_job(plan):
    """Whether contents changed is for those to say who read them."""
    assert difference(plan, replace(plan, inputs=tuple(replace(each, stamp="t") for each in plan.inputs))) == ""


@pytest.mark.parametrize(("scores", "rows"), [(1, 65536), (3, 65536), (345, 11264), (100_000, 1024)])
def test_parts_fit_into_memory(scores, rows):
    """16 MB of scores at most, but a request's rows at least."""
    assert good_part_rows(scores) == rows
