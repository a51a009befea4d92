"""Opening a file never runs code, never hangs, keeps memory bounded, and ends in the content or in one clear error."""

import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from tests.hostile.corpus import MARKER, Bomb, Case, Context, corpus
from tests.hostile.opening import Reader, fault_of, run
from tests.hostile.originals import write_originals

CASES = [case for case in corpus() if case.reader != "lm"]
LANGUAGE_MODELS = [case for case in corpus() if case.reader == "lm"]
FAMILIES = list(dict.fromkeys(case.family for case in CASES))
SHARE = 120
WHOLE = (
    ("agent", "load"),
    ("memory", "load"),
    ("episodic", "load"),
    ("agent", "load_with_env"),
    ("agent", "set_parameters"),
    ("sb3", "import_sb3"),
    ("pareto", "pareto"),
    ("run", "run_config"),
    ("config", "config"),
    ("run", "evaluate"),
    ("run", "plot"),
    ("pareto", "plot_front"),
)
LONG = ("100 MB", "bomb", "million", "100,000", "billion", "20,000", "60 MB", "200,000")  # seconds each


def share() -> list[Case]:
    """Some of every family, the same ones every time."""
    chosen: list[Case] = []
    for family in FAMILIES:
        quick = [case for case in CASES if case.family == family and not any(word in case.name for word in LONG)]
        count = max(3, round(SHARE * len(quick) / len(CASES)))
        chosen += random.Random(family).sample(quick, min(count, len(quick)))
    return chosen


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    torch.manual_seed(0)
    return Context(write_originals(folder), folder / MARKER)


@pytest.fixture(scope="module")
def reader(context):
    with Reader() as process:
        for name, how in WHOLE:
            process.open(how, context.originals[name], here=True)
        yield process


def test_the_corpus_has_500_cases_in_all_families():
    assert len(CASES) >= 500
    assert len(FAMILIES) >= 15


def test_whole_files_are_opened(context, reader):
    for name, how in WHOLE:
        answer = reader.open(how, context.originals[name])
        assert answer["outcome"] in ("opened", "exit"), answer
        assert answer.get("code", 0) == 0, answer


def test_a_share_of_the_corpus(context, reader, tmp_path):
    faults, figures = run(share(), reader, context, tmp_path / "case")
    assert figures["cases"] >= 110
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_the_corpus(context, reader, tmp_path, family, record_property):
    faults, figures = run([case for case in CASES if case.family == family], reader, context, tmp_path / "case")
    record_property("figures", figures)
    print(family, figures)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_checkpoints_of_language_models(context, tmp_path):
    pytest.importorskip("transformers")
    from rlopt.lm import checkpointing
    from tests.lm.small_models import trainer

    made = trainer(tmp_path / "lm")
    made.iterate()
    checkpointing.save(made, tmp_path / "lm.zip")
    with Reader("lm") as process:
        originals = Context({**context.originals, "lm": tmp_path / "lm.zip"}, context.marker)
        assert process.open("lm", tmp_path / "lm.zip")["outcome"] == "opened"
        faults, figures = run(LANGUAGE_MODELS, process, originals, tmp_path / "case")
    print(figures)
    assert not faults, "\n".join(faults)


# ---------------------------------------------------------------------- negative controls


def control(name: str, write) -> Case:
    return Case("control", name, name, write)


def test_code_that_runs_is_noticed(context, reader, tmp_path):
    def bomb(context: Context, folder: Path) -> Path:
        (folder / "bomb.pkl").write_bytes(pickle.dumps(Bomb(context.marker)))
        return folder / "bomb.pkl"

    faults, _ = run([control("control_unpickle", bomb)], reader, context, tmp_path / "case")
    assert any("it ran code" in fault for fault in faults)


def test_memory_and_errors_without_a_name_are_noticed(context, reader, tmp_path):
    for name, match in {"control_memory": "MB", "control_crash": "KeyError"}.items():
        case = control(name, lambda context, folder: folder)
        answer = reader.open(name, tmp_path)
        assert match in (fault_of(case, answer, context, reader, {}) or ""), answer


@pytest.mark.slow
def test_a_hang_is_noticed(context, reader, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    answer = reader.open("control_hang", tmp_path / "pipe")
    assert "did not end" in fault_of(control("control_hang", lambda *_: tmp_path), answer, context, reader, {})
