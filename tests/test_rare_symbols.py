"""A held-out text may have symbols that the training text lacks: they are `<unk>`, which is said wherever it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from everstep.errors import DataError
from everstep.runs.run import Run
from everstep.runs.training import train

KNOWN = "the cat sat on the mat\n" * 30
TINY = [
    "train.max_minutes=null", "train.max_steps=2", "train.batch_size=4", "train.device=cpu", "train.threads=null",
    "model.hidden_size=8", "model.embedding_size=4", "objective.k1=8",
]  # fmt: skip
SHARE = 1 / 46
"""One of the 46 characters of two lines."""


def trained(folder: Path, text: str, *overrides: str, recipe: str = "shakespeare-minute") -> tuple[Run, list[str]]:
    (folder / "own.txt").write_text(text)
    lines: list[str] = []
    changes = [*TINY, f"data.train={folder / 'own.txt'}", *overrides]
    return train(recipe, folder / f"run{len(list(folder.iterdir()))}", lines.append, overrides=changes), lines


def test_one_rare_character_in_the_held_out_part(tmp_path: Path) -> None:
    run, lines = trained(
        tmp_path, KNOWN + "the çat sat on the mat\nthe cat sat on the mat\n", "data.valid_fraction=0.08"
    )
    assert run.task.tokenizer.symbols[0] == "<unk>"
    assert any(line.startswith("valid: 46 tokens") and "1 unknown (2.17 %)" in line for line in lines)
    assert "note: there are characters that data.train lacks; they are read as <unk>" in lines
    assert lines[-1].endswith("(2.17% of the tokens are <unk>)")
    scores = run.evaluate("valid")
    assert (scores["unknown"], scores["unknown_share"]) == (1, SHARE)
    assert scores["lower_bounds"] == ["bits_per_char", "bits_per_byte", "word_perplexity"]
    card = (run.path / "README.md").read_text()
    assert "2.17% of the tokens are <unk>" in card
    assert "≥ " in card
    assert run.score(["the çat", "ça va"])[1].unknown == 2


@pytest.mark.parametrize("split", ["valid", "test"])
def test_whichever_text_has_it(split: str, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("the cát sat\n")
    run, _ = trained(tmp_path, KNOWN, f"data.{split}={tmp_path / 'other.txt'}")
    assert run.evaluate(split)["unknown"] == 1


def test_a_normal_form_may_know_it(tmp_path: Path) -> None:
    run, lines = trained(tmp_path, KNOWN + "THE CAT SAT\n", "data.lowercase=true", "data.valid_fraction=0.05")
    assert run.task.tokenizer.unk_id is None
    assert not any("<unk>" in line for line in lines)


def test_where_nothing_is_unknown_the_vocabulary_is_as_ever(tmp_path: Path) -> None:
    run, lines = trained(tmp_path, KNOWN)
    assert sorted(run.task.tokenizer.symbols) == sorted({*KNOWN} - {"\n"} | {"\\n"})
    assert not any("<unk>" in line for line in lines)
    assert "lower_bounds" not in run.evaluate("valid")


@pytest.mark.parametrize("cut", ["data.min_count=2", "data.max_size=10"])
def test_a_cut_brings_it(cut: str, tmp_path: Path) -> None:
    run, lines = trained(tmp_path, "the çat\n" + KNOWN, cut, "data.valid_fraction=0")
    assert run.task.tokenizer.symbols[0] == "<unk>"
    assert "ç" not in run.task.tokenizer.symbols
    assert len(run.task.tokenizer.symbols) == (10 if "max" in cut else 12)
    assert any(line.startswith("train: ") and "1 unknown (0.14 %)" in line for line in lines) == ("min" in cut)
    assert "note: there are characters that data.min_count or data.max_size cuts; they are read as <unk>" in lines
    with pytest.raises(DataError, match=r"nothing stands for what was cut: leave data\.unk out, or cut nothing"):
        trained(tmp_path, "the çat\n" + KNOWN, cut, "data.unk=false")


def test_a_cut_of_nothing_brings_none(tmp_path: Path) -> None:
    run, lines = trained(tmp_path, KNOWN, "data.min_count=2", "data.max_size=11")
    assert run.task.tokenizer.unk_id is None
    assert not any("<unk>" in line for line in lines)


def test_it_is_not_added_where_that_is_refused(tmp_path: Path) -> None:
    text = KNOWN + "the çat sat on the mat\n"
    with pytest.raises(DataError, match=r"data.valid \(held out .*'ç' \(U\+00E7\) is not in the vocabulary"):
        trained(tmp_path, text, "data.unk=false")
    assert not list(tmp_path.glob("run*"))


def test_it_is_not_added_where_it_is_not_needed_or_cannot_be(tmp_path: Path) -> None:
    text = KNOWN + "the çat sat on the mat\n"
    for unit in ("bytes", "bpe"):
        run, _ = trained(tmp_path, text, f"data.unit={unit}")
        assert run.task.tokenizer.unk_id is None
        assert "unknown" not in run.evaluate("valid")


def test_a_text_that_cannot_be_read_is_named_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_bytes(b"the c\xe1t sat\n")
    with pytest.raises(DataError, match=r"^data\.valid: .*other\.txt"):
        trained(tmp_path, KNOWN, f"data.valid={tmp_path / 'other.txt'}")
