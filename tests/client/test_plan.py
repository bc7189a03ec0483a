"""A plan divides a job into parts and shards, and describes how it differs from another plan."""

from dataclasses import replace

import pytest
from sketchbatch_client.scoring.plan import Input, Plan, Segment, Shard, default_part_rows, difference


@pytest.fixture
def plan():
    """Return the plan of a job with three inputs, which have 100, 0 and 57 rows, in parts of 40 rows."""
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


def test_parts_have_every_row_once_in_order(plan):
    """The parts of a plan contain every row once, in order.

    A part can have rows of several inputs, and the last part can have fewer rows.
    """
    assert plan.parts == range(4)
    assert [plan.segments(part) for part in plan.parts] == [
        [Segment(0, 0, 40)],
        [Segment(0, 40, 80)],
        [Segment(0, 80, 100), Segment(2, 0, 20)],
        [Segment(2, 20, 57)],
    ]
    assert [plan.rows_of(part) for part in plan.parts] == [40, 40, 40, 37]


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7])
def test_each_part_belongs_to_one_shard(plan, shards):
    """Each part belongs to exactly one shard, and a shard consists of consecutive parts.

    If there are more shards than parts, some shards are empty.
    """
    plans = [replace(plan, shard=Shard(number, shards)) for number in range(shards)]
    assert [part for each in plans for part in each.parts] == list(plan.parts)
    assert sum(each.rows for each in plans) == plan.rows == 157


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": ()}, "the number of inputs was 3, and is now 0"),
        ({"inputs": (Input(source="a", rows=99, stamp="s"),)}, "a had 100 rows, and now has 99"),
        ({"inputs": (Input(source="z", rows=100, stamp="s"),)}, "an input was a, and is now z"),
        ({"version": "2"}, "the model was m version 1 (digest d), and is now m version 2 (digest d)"),
        ({"model_digest": "e"}, "the model was m version 1 (digest d), and is now m version 1 (digest e)"),
        ({"top_k": 2}, "--top-k was 1, and is now 2"),
        ({"with_all_scores": True}, "--all-scores was False, and is now True"),
        (
            {"reject": 0.95, "reject_below": 0.375},
            "--reject was not given, and is now 0.95 (score 0.375)",
        ),
        ({"part_rows": 41}, "--part-rows was 40, and is now 41"),
        ({"shard": Shard(0, 2)}, "--shard was 0/1, and is now 0/2"),
    ],
)
def test_a_difference_is_described_in_words(plan, change, words):
    """The description of a difference between two plans names the option or the input that has changed.

    A plan that is written to JSON and read again does not differ from the original plan.
    """
    other = replace(plan, **change)
    assert difference(plan, other) == words
    assert difference(Plan.from_json(plan.to_json()), plan) == ""


def test_another_stamp_is_not_a_difference(plan):
    """Plans whose inputs have other file stamps do not differ, because a stamp can change without the contents.

    The part digests show whether the contents of an input have changed.
    """
    assert difference(plan, replace(plan, inputs=tuple(replace(each, stamp="t") for each in plan.inputs))) == ""


@pytest.mark.parametrize(
    ("row_bytes", "rows"), [(4, 65536), (256, 65536), (4 * 345, 11264), (1 << 14, 1024), (40_000, 419), (1 << 30, 1)]
)
def test_parts_fit_into_memory(row_bytes, rows):
    """A part has at most 16 MiB of scores and labels, but at least one row."""
    assert default_part_rows(50_000_000, row_bytes) == rows


@pytest.mark.parametrize("shards", [2, 3, 7, 8, 12, 16])
@pytest.mark.parametrize("rows", [131_072, 137_042, 262_143, 1_096_336, 50_000_000])
def test_shards_have_nearly_equal_work(plan, rows, shards):
    """With the default part size, no shard has more than an eighth more rows than the average shard."""
    inputs = (Input(source="a", rows=rows, stamp="s"),)
    whole = replace(plan, inputs=inputs, part_rows=default_part_rows(rows, 4))
    of_shards = [replace(whole, shard=Shard(number, shards)).rows for number in range(shards)]
    assert sum(of_shards) == rows
    assert max(of_shards) <= rows / shards * 1.125


def test_137042_rows_give_work_to_each_of_8_shards(plan):
    """If a job of 137,042 rows has 8 shards, each shard has 16 or 17 parts of 1,024 rows."""
    inputs = (Input(source="a", rows=137_042, stamp="s"),)
    whole = replace(plan, inputs=inputs, part_rows=default_part_rows(137_042, 4))
    assert whole.part_rows == 1024
    assert {len(replace(whole, shard=Shard(number, 8)).parts) for number in range(8)} == {16, 17}


@pytest.mark.parametrize("rows", [0, 1, 1024, 100_000])
def test_few_rows_have_parts_of_a_request(rows):
    """A part has at least 1,024 rows, about as many as a request, because each part is stored as a file."""
    assert default_part_rows(rows, 4) == 1024
