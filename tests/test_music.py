"""The job of music: chords as labels and as tokens, its files, what it learns, says, draws and refuses."""

from __future__ import annotations

import gzip
import json
import lzma
import math
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from job_laws import JobLaws
from service_client import served
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.chord_batches import ChordBatches
from everstep.data.readers.chords import chords_of, chords_text, read_pieces
from everstep.data.readers.midi import midi_bytes, midi_piece
from everstep.decode import Sampler
from everstep.errors import ConfigError, DataError
from everstep.heads import NADE
from everstep.networks.chord_decoder import continued, tokens_of
from everstep.networks.chord_model import ChordModel, ChordSection, chord_losses
from everstep.runs.recipe_files import load_task

SMALL = ("model.hidden_size=12", "model.nade_size=5", "data.lowest=55", "data.highest=80", "train.threads=1")
OUTPUTS: list[Literal["nade", "independent"]] = ["nade", "independent"]


def quietly(line: str) -> None:
    del line


def echoes(count: int = 12, seed: int = 0) -> str:
    """Pieces of two voices, of which the second sings, an octave lower, what the first one sang two steps before."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        sung = [int(key) for key in random.integers(70, 74, 10)]
        steps = [{key} for key in sung] + [set[int]() for _ in range(2)]
        for step, key in enumerate(sung, 2):
            steps[step].add(key - 12)
        lines.append(chords_text([tuple(sorted(keys)) for keys in steps]))
    return "\n".join(lines) + "\n"


def recipe(folder: Path, text: str | None = None, data: str = "") -> Path:
    (folder / "pieces.txt").write_text(echoes() if text is None else text)
    path = folder / "recipe.yaml"
    path.write_text(f"task: music\ndata:\n  train: {folder}/pieces.txt\n{data}train:\n  max_epochs: 1\n")
    return path


def model_of(keys: int, output: Literal["nade", "independent"]) -> ChordModel:
    """A model whose parameters are all different."""
    model = ChordModel(keys, ChordSection(hidden_size=6, output=output, nade_size=4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
    return model


# --------------------------------------------------------------------------------------------------------- what it is


def test_nade_is_the_product_of_its_conditionals() -> None:
    head = NADE(4, 5, 3).requires_grad_(False)
    ys = torch.randn(1, 1, 4)
    for labels in product((0.0, 1.0), repeat=5):
        x = torch.tensor(labels)
        nats = 0.0
        for k in range(5):
            a = head.hidden_bias + head.hidden_weight @ ys[0, 0] + sum(x[j] * head.reads[j] for j in range(k))
            p = float((head.bias[k] + head.weight[k] @ ys[0, 0] + head.writes[k] @ a.sigmoid()).sigmoid())
            nats -= math.log(p if x[k] else 1 - p)
        assert head.loss(ys, x[None, None]).item() == pytest.approx(nats, abs=1e-5)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_chord_has_the_same_log_p_key_by_key(output: Literal["nade", "independent"]) -> None:
    model = model_of(4, output)
    roll = np.array([[True, False, True, True], [False] * 4, [False, True, False, False]])
    tokens, state, total = [4, *tokens_of(roll)], model.initial_state(1), 0.0
    with torch.no_grad():
        for token, following in pairwise(tokens):
            log_p, state = model.step(torch.tensor([token]), state)
            assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
            assert not (log_p[0, : token + 1 if token < 4 else 0].exp() > 0).any()  # keys come in order
            total += log_p[0, following].item()
        chords = torch.from_numpy(roll)[None].float()
        assert model.loss(chords, torch.tensor([3])).item() == pytest.approx(-total, abs=1e-4)
        assert model.nats(chords, torch.tensor([3])).sum().item() == pytest.approx(-total, abs=1e-4)


@pytest.mark.parametrize("output", OUTPUTS)
def test_padding_and_other_pieces_change_nothing(output: Literal["nade", "independent"]) -> None:
    model, lengths = model_of(5, output), torch.tensor([3, 1, 0])
    chords = (torch.rand(3, 3, 5) < 0.4).float()
    with torch.no_grad():
        together = model.loss(chords, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = model.loss(chords[row : row + 1, :length], torch.tensor([length])) if length else torch.zeros(1)
            assert together[row].item() == pytest.approx(alone.item(), abs=1e-5)
        torch.testing.assert_close(model.nats(chords, lengths).sum(1), together)


def test_what_is_sampled_has_the_probability_that_is_scored() -> None:
    model, none = model_of(2, "nade"), np.zeros((0, 2), bool)
    sampler = Sampler(generator=torch.Generator().manual_seed(1))
    drawn = [tuple(continued(model, none, 1, sampler)[0]) for _ in range(500)]
    for keys in ([], [0], [1], [0, 1]):
        chord = torch.zeros(1, 1, 2)
        chord[..., keys] = 1
        p = math.exp(-model.loss(chord, torch.tensor([1])).item())
        assert drawn.count(tuple(keys)) / 500 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 500))


def test_it_overfits_one_batch() -> None:
    rolls = [np.random.default_rng(seed).random((6, 5)) < 0.3 for seed in range(3)]
    model, batch = ChordModel(5, ChordSection(hidden_size=32, nade_size=16)), ChordBatches(rolls, 3).batch(0, 0)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(250):
        (loss,) = chord_losses(model, batch)
        optimizer.zero_grad()
        loss.total.sum().backward()
        optimizer.step()
    assert float(loss.reported.sum()) < 3 * math.log(3) + 0.6  # nothing tells which of the three begins


# ------------------------------------------------------------------------------------------------------------ the data


def test_pieces_move_as_far_as_there_are_keys_and_differ_by_epoch() -> None:
    low, high = np.zeros((2, 12), bool), np.zeros((3, 12), bool)
    low[:, [1, 3]] = True
    high[:, [5, 11]] = True
    batches = ChordBatches([low, high], 2, seed=1, transpose=4)
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    for epoch in range(40):
        for index in range(len(batches)):
            batch = batches.batch(epoch, index)
            for roll, place, length in zip(batch.chords, batch.places.tolist(), batch.lengths.tolist(), strict=True):
                keys = roll[0].nonzero()[:, 0].tolist()
                assert keys[1] - keys[0] == (2, 6)[place]
                assert int(roll.sum()) == 2 * length
                seen[place].add(keys[0])
    assert seen == {0: set(range(6)), 1: set(range(1, 6))}
    assert torch.equal(batches.batch(3, 0).chords, batches.batch(3, 0).chords)


def test_text_json_and_midi_are_the_same_piece(tmp_path: Path) -> None:
    piece = [(60, 64), (60,), (), (62, 67, 71)]
    (tmp_path / "a.txt").write_text(chords_text(piece) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps({"train": [[list(keys) for keys in piece]], "valid": []}))
    (tmp_path / "voices.json").write_text(json.dumps([[[64, 60.0, -1], [-1, 60], [], [71, 67, 62]]]))
    (tmp_path / "a.mid").write_bytes(midi_bytes(piece, steps_per_beat=2))
    for name in ("a.txt", "a.json", "voices.json", "a.mid"):
        assert read_pieces(tmp_path / name, "train", steps_per_beat=2) == [piece], name
    assert read_pieces(tmp_path / "a.json", "valid") == []
    assert chords_of(chords_text(piece), "") == piece


def test_files_are_told_by_what_they_hold(tmp_path: Path) -> None:
    piece, text = [(60, 64), (62,)], chords_text([(60, 64), (62,)])
    for name in ("a.kar", "a.MID", "a.txt", "a.json", "a"):
        (tmp_path / name).write_bytes(midi_bytes(piece))
    (tmp_path / "a.mid.gz").write_bytes(gzip.compress(midi_bytes(piece)))
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(text.encode()))
    for path in sorted(tmp_path.iterdir()):
        assert read_pieces(path, "train") == [piece], path.name
    (tmp_path / "c.txt").write_text(f"{text}\n", "utf-16")
    assert read_pieces(tmp_path / "c.txt", "train", encoding="utf-16") == [piece]
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace("pieces.txt", "c.txt"))
    with pytest.raises(DataError, match=r"set data\.encoding=utf-16"):
        load_task(path, SMALL).ready(quietly)
    load_task(path, [*SMALL, "data.encoding=utf-16", "data.valid_fraction=0"]).ready(quietly)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt", b"60,64 hello\n", r"line 1, step 2: expected keys 0 to 127 joined by commas.*got 'hello'"),
        ("x.txt", b"60\n128\n", r"line 2, step 1: expected keys"),
        ("x.txt", b"60,,62\n", "line 1, step 1"),
        ("x.txt", b"", "the file is empty"),
        ("x.json", b"{", "is no JSON"),
        ("x.json", b'{"valid": []}', "expected the part 'train'; it has valid"),
        ("x.json", b'{"train": 3}', "train: expected a list of pieces; got 3"),
        ("x.json", b"[[60]]", "piece 1, step 1: expected a list of keys 0 to 127, or -1 for a pause; got 60"),
        ("x.json", b"[[[60.5]]]", "piece 1, step 1"),
        ("x.json", b"[[[true]]]", "piece 1, step 1"),
        ("x.json", b"[[[NaN]]]", "is no JSON"),
        ("x.json", b"[" * 5000, "is no JSON"),
        ("x.json", b"[[[1e999]]]", r"is no JSON|piece 1, step 1"),
        ("x.mid", b"not midi at all", "is no MIDI file that can be read"),
        ("x.mid", b"MThd\0\0\0\6\0\1\0\1\0\x78MTrk\0\0\0\x20\0\x90", "it ends too early"),
        ("x.mid", b"MThd\0\0\0\6\0\1\0\0\xe8\x28", r"frames of a film \(SMPTE\)"),
        ("x.mid", b"MThd\0\0\0\6\0\1\0\0\0\0", "expected 1 to 32,767 ticks a beat; got 0, which tells no time"),
        ("x.mid", b"MThd\0\0\0\6\0\2\0\0\0\x78", "got type 2, songs of their own"),
        ("x.mid", b"MThd\0\0\0\6\0\0\0\1\0\x78MTrk\0\0\0\3\0\x3c\x40", "an event does not say what it is"),
        ("x.mid", b"MThd\0\0\0\6\0\0\0\1\0\x78MTrk\0\0\0\5\x80\x80\x80\x80\1", "more than four bytes"),
        ("x.mid", b"MThd" + bytes(4 << 20), "expected a MIDI file of at most 4,194,304 bytes"),
        ("x.mid.gz", b"MThd", "damaged or incomplete .gz file"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    path = recipe(tmp_path, "60 62\n")
    path.write_text(path.read_text().replace("pieces.txt", name))
    task: Any = load_task(path, SMALL)
    with pytest.raises(DataError, match=said):
        task.ready(quietly)


def test_midi_files_that_cannot_be_read_are_counted_and_left_out(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.mid").write_bytes(midi_bytes([(60,), (62,)])[: -number or None])
    path, said = recipe(tmp_path), list[str]()
    path.write_text(path.read_text().replace("pieces.txt", "*.mid"))
    task: Any = load_task(path, [*SMALL, "data.valid_fraction=0"])
    task.ready(said.append)
    (note,) = (line for line in said if line.startswith("note"))
    assert note.startswith("note: train: 2 of 3 files cannot be read, left out: ")
    assert note.endswith("1.mid: is no MIDI file that can be read (it ends too early), …")
    assert len(task.pieces.of("train")) == 1
    (tmp_path / "0.mid").unlink()
    with pytest.raises(DataError, match=r"1\.mid: is no MIDI file that can be read"):
        load_task(path, SMALL).ready(quietly)


def test_keys_that_are_not_known_are_counted_and_splits_are_apart(tmp_path: Path) -> None:
    said: list[str] = []
    task: Any = load_task(recipe(tmp_path, echoes(20) + "20,60 - 60\n"), [*SMALL, "data.longest=5"])
    task.ready(said.append)
    assert "note: train: 1 of 403 sounding keys are not among data.lowest 55 to data.highest 80, left out" in said
    train, valid = (task.pieces.of(split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (19, 2)
    learnt = task.batches("train", None, "learn")
    batches = [learnt.batch(0, index) for index in range(len(learnt))]
    assert max(int(batch.lengths.max()) for batch in batches) == 5
    assert sum(batch.count for batch in batches) == sum(map(len, train))
    assert task.batches("valid", None, "score").batch(0, 0).chords.shape[1] == max(map(len, valid))
    two: Any = load_task(recipe(tmp_path, "60 62\n64\n"), [*SMALL, "data.valid_fraction=0.9"])
    assert [len(two.pieces.of(split)) for split in ("train", "valid")] == [1, 1]
    alone: Any = load_task(recipe(tmp_path, "60 62\n"), SMALL)
    with pytest.raises(DataError, match="expected two pieces or more, of which one is held out"):
        alone.ready(quietly)
    with pytest.raises(DataError, match="expected notes from 55 to 80; got none in 2 pieces"):
        load_task(recipe(tmp_path, "20 22\n30\n"), SMALL).ready(quietly)
    with pytest.raises(ConfigError, match=r"data\.highest: expected lowest or more, 90; got 80"):
        load_task(recipe(tmp_path), [*SMALL, "data.lowest=90"])


# ------------------------------------------------------------------------------------------------------------- the job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("echoes")
    (folder / "test.txt").write_text(echoes(8, 1))
    path = recipe(folder, echoes(120), f"  test: {folder}/test.txt\n")
    settings = ["model.hidden_size=64", "model.nade_size=32", "train.max_epochs=30", "train.batch_size=8"]
    settings += ["train.learning_rate=0.02", "train.schedule=cosine", "train.validate_every=1000"]
    return es.train(path, folder / "run", quietly, overrides=[*SMALL, *settings])


def test_it_remembers_what_one_chord_does_not_tell(run: es.Run) -> None:
    scores = run.evaluate("test")
    rivals = {rival["name"]: rival["loss"] for rival in run.rivals("test")}
    assert rivals.keys() == {"key frequencies", "keys as before"}
    best = min(rivals.values())
    assert scores["loss"] < 0.5 * best
    assert scores["bits"] == pytest.approx(scores["loss"] / math.log(2))
    lines = echoes(8, 1).splitlines()
    scored = run.score(lines)
    assert -sum(one.logp for one in scored) / sum(one.tokens for one in scored) == pytest.approx(scores["loss"], 1e-5)
    sung = run.generate(prompt="70 73 58,71 61,70", length=4, temperature=0.0)
    assert sung.startswith("70 73 58,71 61,70 59,")


def test_what_it_is_asked_in_other_words(run: es.Run) -> None:
    with pytest.raises(DataError, match="line 2, step 2: this run knows the keys 55 to 80; got 54"):
        run.score(["60", "60 54,60"])
    with pytest.raises(DataError, match="the prompt, step 1: expected keys 0 to 127"):
        run.generate(prompt="C4")
    assert run.score([""])[0].logp == 0


def test_what_is_generated_becomes_files(run: es.Run, tmp_path: Path) -> None:
    def asked(*options: str) -> Any:
        return CliRunner().invoke(app, ["generate", str(run.path), "--seed", "1", "--length", "30", *options])

    done = asked("--out", str(tmp_path / "song.mid"), "--prompt", "70 72")
    assert done.exit_code == 0, done.output
    sung = chords_of(done.stdout, "")
    while not sung[-1]:
        sung.pop()
    assert midi_piece(tmp_path / "song.mid") == sung
    done = asked("--out", str(tmp_path / "song.txt"), "--count", "2")
    assert done.stdout == "---\n".join((tmp_path / f"song-{number}.txt").read_text() for number in (1, 2))
    done = asked("--out", str(tmp_path / "none.mid"), "--length", "1", "--temperature", "0")
    assert "none.mid: written, but nothing is in it; ask for more with --length" in done.output
    wrong = asked("--out", str(tmp_path / "song.wav"))
    assert wrong.exit_code == 2
    assert "expected a name that ends in .txt, .mid" in wrong.output
    assert "a folder that exists" in asked("--out", str(tmp_path / "no" / "song.mid")).output


@pytest.mark.parametrize("split", ["valid", "test"])
def test_runs_are_compared_on_pieces_of_any_file(tmp_path: Path, split: Literal["valid", "test"]) -> None:
    (tmp_path / "test.json").write_text(json.dumps([[[54, 60], [], [72]], [[61], [62]]]))
    path = recipe(tmp_path, echoes(20), f"  test: {tmp_path}/test.json\n")
    run = es.train(path, tmp_path / "run", quietly, overrides=[*SMALL, "train.max_steps=1"])
    done = CliRunner().invoke(app, ["compare", str(run.path), "--split", split, "--json"])
    assert done.exit_code == 0, done.output
    (first,) = json.loads(done.stdout)["rows"]
    assert first["nats_per_token"] == pytest.approx(run.evaluate(split)["loss"], 1e-5)
    assert first["bits_per_step"] == pytest.approx(run.evaluate(split)["bits"], 1e-5)
    assert "bits_per_char" not in first
    picture = str(tmp_path / "table.png")
    done = CliRunner().invoke(app, ["compare", str(run.path), "--split", split, "--picture", picture])
    assert done.stdout.split("\n")[0].split()[:2] == ["run", "bits/step"]
    assert done.stdout.split("\n")[0].split()[-4:-2] == ["nats/step", "steps"]
    assert "Bits a step, lowest first: run" in done.stderr


def test_before_training_keys_sound_seldom() -> None:
    for output in OUTPUTS:
        model = ChordModel(88, ChordSection(hidden_size=8, output=output))
        nats = model.loss(torch.zeros(1, 4, 88), torch.tensor([4])).item() / 4
        assert nats < 88 * 0.1  # and not 88 log 2


def test_the_server_names_no_symbols_that_people_could_type(run: es.Run) -> None:
    with served([run.path]) as client:
        (told,) = client.get("/runs")["runs"]
        assert told["typed"] is False
        session = client.post("/sessions", 201, begin=True)["session"]
        found = client.get(f"/sessions/{session}?top=3")["top"]
    assert [one["text"] for one in found] == [None] * 3
    assert all(0 < one["p"] < 1 for one in found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_drawn(run: es.Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["look", str(run.path), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert {"piece.png", "continued.png", "surprise.png"} <= {path.name for path in tmp_path.glob("*.png")}


@pytest.mark.usefixtures("unrendered")
def test_pictures_are_of_a_file_of_music(run: es.Run, tmp_path: Path) -> None:
    from everstep.runs.pictures import own_text

    (tmp_path / "song.mid").write_bytes(midi_bytes([(70,), (72, 60), ()]))
    (tmp_path / "songs.json").write_text(json.dumps({"train": [], "test": [[[70], [72]], [[60]]]}))
    (tmp_path / "songs.txt").write_text("70 72\n60\n")
    (tmp_path / "none.mid").write_bytes(midi_bytes([]))
    assert own_text(run, tmp_path / "song.mid") == "70 60,72"
    assert own_text(run, tmp_path / "songs.json") == own_text(run, tmp_path / "songs.txt") == "70 72"
    with pytest.raises(DataError, match=r"none\.mid: there is nothing in it"):
        own_text(run, tmp_path / "none.mid")
    asked = ["look", str(run.path), "--text", str(tmp_path / "song.mid"), "--out", str(tmp_path / "pictures")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "pictures" / "piece.png").exists()


class TestLaws(JobLaws):
    job = "music"
    settings = SMALL
    scored = ("70,71 72 - 60", "60 61", "62,63,64 62 61 60 60")

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        return recipe(folder)
