"""Recordings and manifests: batches, changes of training, what is told and what is refused."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tones import RATE, SMALL, folder_of, recipe, sung, texts

import everstep as es
from everstep.data.readers.audio import read_recording, wav_bytes
from everstep.data.spoken_batches import Changes, SpokenBatches, masked, warped
from everstep.errors import ConfigError, DataError
from everstep.networks.alphabet import Alphabet
from everstep.runs.recipe_files import load_task

# --------------------------------------------------------------------------------------------------------- the batches


def test_batches_hold_what_was_said_and_masks_differ_by_epoch() -> None:
    frames = [np.full((n, 4), n, np.float32) for n in (10, 20, 5)]
    plain = SpokenBatches(frames, [[1], [2, 2], []], 2, stack=2, max_steps=100)
    seen = [plain.batch(0, index) for index in range(len(plain))]
    assert sorted(place for batch in seen for place in batch.places.tolist()) == [0, 1, 2]
    for batch in seen:
        for row, (place, length) in enumerate(zip(batch.places.tolist(), batch.lengths.tolist(), strict=True)):
            assert length == (5, 10, 3)[place]
            assert batch.inputs[row, 0].tolist() == [len(frames[place])] * 8
            assert batch.inputs[row, length:].abs().sum() == 0
    hidden = SpokenBatches(frames, [[1], [2, 2], []], 3, seed=1, changes=Changes(1, 2, 8))
    zeros = {epoch: [hidden.batch(epoch, index).inputs for index in range(len(hidden))] for epoch in (0, 1, 0)}
    again = [hidden.batch(0, index).inputs for index in range(len(hidden))]
    assert all(torch.equal(one, other) for one, other in zip(zeros[0], again, strict=True))
    assert sum(int((one == 0).sum()) for one in zeros[0]) != sum(int((one == 0).sum()) for one in zeros[1])


def test_masks_are_no_larger_than_they_may_be() -> None:
    for seed in range(50):
        found = masked(np.ones((20, 10), np.float32), Changes(1, 3, 100), np.random.default_rng(seed)) == 0
        assert found.all(0).sum() <= 3
        assert found.all(1).sum() <= 4


def test_warps_keep_the_order_and_enough_steps() -> None:
    frames = np.arange(12, dtype=np.float32)[:, None] + np.zeros((12, 5), np.float32)
    assert np.allclose(np.diff(warped(frames, 23, 1.2)[:, 0]), 0.5)
    bands = np.zeros((3, 5), np.float32) + np.arange(5)
    assert warped(bands, 3, 2.0)[1].tolist() == [0, 0.5, 1, 1.5, 2]
    batches = SpokenBatches([frames], [[0]], 1, seed=1, changes=Changes(warp=0.5), steps=[12])
    lengths = {int(batches.batch(epoch, 0).lengths) for epoch in range(30)}
    assert min(lengths) == 12
    assert 12 < max(lengths) <= 18


def test_labels_are_characters_or_words() -> None:
    characters, words = Alphabet.of(["two  one"], "characters"), Alphabet.of(["two one", "one"], "words")
    assert characters.text(characters.labels("one two") or []) == "one two"
    assert words.text(words.labels("one two one") or []) == "one two one"
    assert words.labels("three") is None
    assert words.strange("three one") == {"three"}


# ------------------------------------------------------------------------------------------------------------ the data


def test_what_is_read_is_told(tmp_path: Path) -> None:
    said = [*texts(8), "cccccccccccccccccc", "aa", "b"]
    path = recipe(tmp_path, said=said)
    wide = np.stack([sung("ab"), sung("ab")], 1).ravel()
    (tmp_path / "wav" / "train-0.wav").write_bytes(_stereo(wide, 4000))
    (tmp_path / "wav" / "train-1.wav").write_bytes(wav_bytes(np.zeros(0), RATE))
    (tmp_path / "wav" / "train-8.wav").write_bytes(wav_bytes(sung("a"), RATE))
    held = folder_of(tmp_path, "valid", ["ab", "xyz"[:0] + "b", "a"])
    held.write_text(held.read_text().replace("\ta\n", "\taq!\n"))
    (tmp_path / "more.tsv").write_text((tmp_path / "train.tsv").read_text() + "wav/train-2.wav\tc\n")
    lines: list[str] = []
    task: Any = load_task(path, [*SMALL, f"data.valid={held}", f"data.train={tmp_path}/more.tsv"])
    task.prepare()
    task.ready(lines.append)
    notes = "\n".join(line for line in lines if line.startswith("note"))
    assert "train: 1 recording without samples, left out, such as" in notes
    assert "train: 1 recording resampled from 4,000 to data.sample_rate 2,000 a second" in notes
    assert "train: 1 recording with several channels, of which the mean is taken" in notes
    assert "train: 1 recording named more than once" in notes
    assert "train: 1 text longer than the steps of the recording, left out, such as 'cccccccccccccccccc'" in notes
    assert "valid: 1 text with symbols that train lacks ('!', 'q'), counted in wer and cer, not in loss" in notes
    assert any(line.startswith("train: 11 recordings, 0.") for line in lines)
    assert sum(len(task.batches("train", None, "learn").batch(0, i).lengths) for i in range(1)) > 0
    learnt = task.batches("train", None, "learn")
    assert sum(learnt.batch(0, index).rows for index in range(len(learnt))) == 10


def _stereo(samples: NDArray[Any], rate: int) -> bytes:
    content = bytearray(wav_bytes(samples, rate))
    content[22:24] = (2).to_bytes(2, "little")
    content[32:34] = (4).to_bytes(2, "little")
    return bytes(content)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_manifests_of_other_kinds_and_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "clips").mkdir()
    for number, text in enumerate(("AB", "B")):
        (tmp_path / "clips" / f"{number}.wav").write_bytes(wav_bytes(sung(text.lower()), RATE))
    rows = [{"path": f"{number}.wav", "sentence": text} for number, text in enumerate(("AB", " B  b"))]
    table = "path,sentence\n" + "".join(f'{row["path"]},"{row["sentence"]}"\n' for row in rows)
    (tmp_path / name).write_text(table if name == "x.csv" else "\n".join(map(json.dumps, rows)))
    keys = ["data.audio=path", "data.text=sentence", "data.folder=clips", "data.lowercase=true"]
    task: Any = load_task(recipe(tmp_path), [*SMALL, *keys, f"data.train={tmp_path / name}", "data.valid_fraction=0"])
    task.prepare()
    assert [one.text for one in task.recordings.of("train")] == ["ab", "b b"]
    assert task.alphabet.symbols == (" ", "a", "b")


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("audio\ttext\nnone.wav\ta\n", r"1 of 1 recording are not there: .*line 2: .*none\.wav.*data\.folder"),
        ("audio\ttext\n\ta\n", r"line 2: expected the path of a recording \(data\.audio\); it is empty"),
        (
            "path\ttext\nx.wav\ta\n",
            r"expected a header with the columns 'audio' \(data\.audio\) and 'text' \(data\.text\)",
        ),
        ("audio\ttext\n", "expected recordings, one a line below the header; got none"),
        ("audio\ttext\nbroken.wav\ta\nbroken.wav\tb\n", r"line 2: .*broken\.wav.*ends too early \(2 such recordings\)"),
        ("audio\ttext\nempty.wav\ta\n", "expected recordings with samples; got none in 1 file"),
        ("audio\ttext\nfull.wav\t\n", "expected texts of what is said; all are empty"),
        (
            "audio\ttext\nfull.wav\taaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n",
            "no text can be spelled by the labels of train",
        ),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, manifest: str, said: str) -> None:
    path = recipe(tmp_path)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "empty.wav").write_bytes(wav_bytes(np.zeros(0), RATE))
    (tmp_path / "full.wav").write_bytes(wav_bytes(sung("a"), RATE))
    (tmp_path / "train.tsv").write_text(manifest)
    task: Any = load_task(path, [*SMALL, "data.valid_fraction=0"])

    def prepared() -> None:
        task.prepare()
        task.batches("train", None, "learn")

    with pytest.raises(DataError, match=said):
        prepared()


def test_a_split_of_which_no_text_can_be_spelled_has_no_loss(tmp_path: Path) -> None:
    held = folder_of(tmp_path, "valid", ["ab"])
    held.write_text(held.read_text().replace("\tab\n", "\txy\n"))
    task: Any = load_task(recipe(tmp_path), [*SMALL, f"data.valid={held}"])
    task.prepare()
    for refused in (lambda: task.ready(print), lambda: task.metrics(task.model(), "valid")):
        with pytest.raises(DataError, match=r"data\.valid: no text can be spelled"):
            refused()


def test_a_window_of_gigabytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.window_ms: expected a number > 0 and ≤ 1,000"):
        load_task("speech-own", ["data.window_ms=1e9"])


def test_broken_recordings_can_be_left_out(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    (tmp_path / "wav" / "train-3.wav").write_bytes(b"RIFF")
    task: Any = load_task(path, [*SMALL, "data.skip_broken=true", "data.valid_fraction=0"])
    task.prepare()
    assert len(task.recordings.of("train")) == 11
    assert "train: 1 recording that cannot be read, left out" in task.recordings.notes[0]


def test_without_soundfile_no_recording_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    path = recipe(tmp_path)
    (tmp_path / "wav" / "train-3.wav").write_bytes(b"fLaC")
    task: Any = load_task(path, [*SMALL, "data.skip_broken=true"])
    with pytest.raises(ConfigError, match=r"pip install 'everstep\[speech\]'"):
        task.prepare()


def test_the_digits_are_divided_by_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(es.__file__).parent.parent / "benchmarks"))
    import make_fsdd

    monkeypatch.setattr(make_fsdd, "STRINGS", {"train": 3, "valid": 2, "test": 2})
    with tarfile.open(tmp_path / "x.tar.xz", "w:xz") as packed:
        for name in ("3_ann_0", "4_ann_4", "5_bob_5", "6_bob_11", "7_ann_49"):
            content = wav_bytes(np.ones(int(name[0]) * 10) / 2, 8000)
            member = tarfile.TarInfo(f"recordings/{name}.wav")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    make_fsdd.make(tmp_path / "x.tar.xz", tmp_path)
    assert (tmp_path / "digits.test.tsv").read_text().splitlines() == [
        "audio\ttext", "recordings/3_ann_0.wav\tthree", "recordings/4_ann_4.wav\tfour",
    ]  # fmt: skip
    for split, known in (("train", {"six", "seven"}), ("valid", {"five"}), ("test", {"three", "four"})):
        rows = [line.split("\t") for line in (tmp_path / f"strings.{split}.tsv").read_text().splitlines()[1:]]
        assert len(rows) == make_fsdd.STRINGS[split]
        for audio, text in rows:
            assert set(text.split()) <= known
            assert 1 <= len(text.split()) <= 7
            length = sum(make_fsdd.NAMES.index(word) * 10 for word in text.split())
            assert len(read_recording(tmp_path / audio).samples) == length
