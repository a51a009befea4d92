import numpy as np
import pytest
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from rlopt import Constant, Linear
from rlopt.schedules import Custom, as_schedule, schedule_from_data, schedule_to_data


def test_linear_at_start_middle_and_end():
    """Detail 4."""
    schedule = Linear(3e-4)
    assert [schedule(p) for p in (1.0, 0.5, 0.0)] == [3e-4, 1.5e-4, 0.0]
    assert Linear(1.0, 0.2, 0.5)(0.75) == pytest.approx(0.6)
    assert [Linear(1.0, 0.2, 0.5)(p) for p in (0.5, 0.25, 0.0)] == [pytest.approx(0.2)] * 3


@pytest.mark.parametrize("progress", [1.0, 0.9, 0.5, 0.31, 0.1, 0.0])
def test_schedules_agree_with_sb3s(progress):
    for mine, theirs in (
        (Linear(0.3, 0.1, 0.7), LinearSchedule(0.3, 0.1, 0.7)),
        (Linear(0.3), LinearSchedule(0.3, 0.0, 1.0)),
        (Constant(0.2), ConstantSchedule(0.2)),
    ):
        assert mine(progress) == pytest.approx(theirs(progress), abs=1e-15)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.1, Constant(0.1)),
        (1, Constant(1.0)),
        (np.float32(0.5), Constant(0.5)),
        ("0.1", Constant(0.1)),
        ("1e-3", Constant(1e-3)),
        ("linear:3e-4", Linear(3e-4)),
        ("linear:1:0.5", Linear(1.0, 0.5)),
        ("linear:1:0.5:0.8", Linear(1.0, 0.5, 0.8)),
        ("lin_0.2", Linear(0.2)),
        (Linear(0.1), Linear(0.1)),
        (LinearSchedule(1.0, 0.1, 0.5), Linear(1.0, 0.1, 0.5)),
        (ConstantSchedule(0.3), Constant(0.3)),
        (FloatSchedule(0.3), Constant(0.3)),
        (FloatSchedule(LinearSchedule(1.0, 0.1, 0.5)), Linear(1.0, 0.1, 0.5)),
    ],
)
def test_whatever_stands_for_a_schedule_becomes_one(given, expected):
    assert as_schedule("learning_rate", given) == expected


@pytest.mark.parametrize(
    "given", ["fast", "linear:", "linear:x", "cosine:1", "linear:1:2:3:4", True, None, [1], "linear:1:0:2"]
)
def test_anything_else_is_an_error_that_names_the_argument(given):
    with pytest.raises(ValueError, match=r"clip_range: expected"):
        as_schedule("clip_range", given)


def test_a_function_trains_but_is_not_stored():
    schedule = as_schedule("learning_rate", lambda progress: 2 * progress)
    assert isinstance(schedule, Custom)
    assert schedule(0.25) == 0.5
    with pytest.raises(ValueError, match=r"learning_rate: .*cannot be saved"):
        schedule_to_data("learning_rate", schedule)


@pytest.mark.parametrize("schedule", [Constant(0.1), Linear(0.1), Linear(0.1, 0.05, 0.3)])
def test_schedules_survive_texts_and_files(schedule):
    assert as_schedule("x", str(schedule)) == schedule
    assert schedule_from_data(schedule_to_data("x", schedule)) == schedule


def test_an_unknown_schedule_in_a_file_is_an_error():
    with pytest.raises(ValueError, match="unknown schedule"):
        schedule_from_data({"schedule": "os.system", "start": 1})


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5])
def test_the_end_fraction_is_checked(fraction):
    with pytest.raises(ValueError, match="end_fraction: expected"):
        Linear(1.0, 0.0, fraction)
