"""Training, validation, evaluation, scores, texts and pictures run where the model is; runs move between devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from far_device import HERE, FarDevice, far_tensors

import everstep as es
from everstep.errors import ConfigError
from everstep.learn.devices import pick_device
from everstep.runs import training

FIXTURES = Path(__file__).parent / "fixtures"
TEXT = "the cat sat on the mat\nand the dog on the log\n" * 40
TINY = [
    "train.max_minutes=null", "train.max_steps=4", "train.batch_size=4", "train.validate_every=2", "train.threads=null",
    "train.precision=float32", "objective.k1=8", "model.hidden_size=8", "model.embedding_size=6",
]  # fmt: skip
TRICKS = [
    "objective.k2=4", "objective.label_smoothing=0.1", "objective.activation_penalty=0.5", "train.l2=0.001",
    "objective.change_penalty=0.5", "train.averaging=ema", "model.dropout=0.2", "model.variational=true",
    "model.weight_drop=0.2", "model.embedding_dropout=0.1", "train.gradient_noise=0.01", "train.accumulate=2",
]  # fmt: skip


@pytest.fixture
def far(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FarDevice]:
    """A machine with an accelerator: CUDA's, unless the test names another."""
    kind = getattr(request, "param", "cuda")

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> Any:
            return super().__new__(cls)

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # of states of random generators
    graphs = "_accelerator_graph_capture_health_check"  # asks CUDA's driver, which is not there, for captured graphs
    monkeypatch.setattr(torch.optim.Optimizer, graphs, lambda optimizer: None, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *index: "a stand-in")
    with FarDevice(kind) as mode:
        yield mode


def trained(folder: Path, *overrides: str, recipe: str = "shakespeare-minute") -> tuple[es.Run, list[str]]:
    (folder / "own.txt").write_text(TEXT)
    lines: list[str] = []
    changes = [*TINY, f"data.train={folder / 'own.txt'}", *overrides]
    return es.train(recipe, folder / "run", lines.append, overrides=changes), lines


@pytest.mark.parametrize(
    "more", [[], TRICKS, ["data.sequence=lines", "data.eos=true"]], ids=["plain", "tricks", "lines"]
)
def test_a_language_model_there(more: list[str], far: FarDevice, tmp_path: Path) -> None:
    run, lines = trained(tmp_path, *more)
    assert all(far_tensors(far, run.model))
    assert any("cuda" in line for line in lines)  # auto says what it took
    card = (run.path / "README.md").read_text()
    assert "minutes on a stand-in; ended by max_steps" in card
    assert "- again: this recipe sees the same batches" in card
    assert "gives the same bits" not in card
    assert run.evaluate("valid")["loss"] > 0
    assert len(run.score(["the cat", "", "a dog"])) == 3
    assert len(run.generate("the", length=80, seed=1, count=1)) == 83
    assert len(run.generate("the", length=5, seed=1, count=3, top_k=3, top_p=0.9)) == 3
    again = es.load(run.path, device="cuda")
    assert all(far_tensors(far, again.model))
    assert again.score(["the cat"]) == run.score(["the cat"])
    there = es.resume(run.path, lines.append, overrides=["train.max_steps=6"])
    assert all(far_tensors(far, there.model))
    here = es.resume(run.path, lines.append, overrides=["train.max_steps=8", "train.device=cpu"])
    assert not any(far_tensors(far, here.model))
    assert here.evaluate("valid")["loss"] == pytest.approx(
        es.load(run.path, device="cuda").evaluate("valid")["loss"], rel=1e-5
    )


def test_classes_there(far: FarDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_FIXTURES", str(FIXTURES))
    raw = (FIXTURES / "run-format-2" / "config.yaml").read_text().replace("device: cpu", "device: cuda")
    (tmp_path / "own.yaml").write_text(raw)
    run = es.train(tmp_path / "own.yaml", tmp_path / "run", lambda line: None, overrides=["train.threads=null"])
    assert all(far_tensors(far, run.model))
    assert run.evaluate("valid")["count"] == 22
    assert len(list(run.predict(["the food was good", "the road was dull"]))) == 2
    there = es.resume(run.path, lambda line: None, overrides=["train.max_steps=16"])
    assert all(far_tensors(far, there.model))


def test_the_stand_in_is_as_strict_as_an_accelerator(far: FarDevice) -> None:
    there, here = torch.ones(3, device=far.device), torch.ones(3)
    assert (there.device, here.device, there.cpu().device) == (far.device, HERE, HERE)
    assert ((there + 1).device, there.is_mps) == (far.device, False)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([there, here])
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there * torch.tensor(2.0)).tolist() == [2.0] * 3
    weight = torch.nn.Linear(3, 1).to("cuda")
    weight(there).sum().backward()
    assert weight.weight.grad is not None
    assert all(far_tensors(far, weight))


@pytest.mark.parametrize("name", ["cuda", "mps", "cuda:3", "gpu", "meta"])
def test_a_device_that_there_is_not_is_one_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"^device: expected auto or cpu, which this machine has; got {name}$"):
        pick_device(name)


def test_a_recipe_for_a_device_that_there_is_not_leaves_nothing(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=r"^device: expected auto or cpu, which this machine has; got cuda$"):
        trained(tmp_path, "train.device=cuda")
    assert not (tmp_path / "run").exists()


def test_a_number_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="got cuda:2"):
        pick_device("cuda:2")


@pytest.mark.parametrize(("cuda", "mps", "taken"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_fastest(cuda: bool, mps: bool, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == taken


def test_auto_says_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "pick_device", lambda name: torch.device("cpu"))
    _, lines = trained(tmp_path)
    assert "device: cpu (train.device: auto)" in lines


@pytest.mark.parametrize("far", ["mps"], indirect=True)
def test_the_stand_in_for_metal_has_no_float64(far: FarDevice) -> None:
    there = torch.ones(3, device="mps")
    assert (there.device.type, there.is_mps, there.is_cuda, there.is_cpu) == ("mps", True, False, False)
    assert there.cpu().double().dtype == torch.float64
    for wide in (
        there.double,
        lambda: there.to(torch.float64),
        lambda: torch.zeros(3, device="mps", dtype=torch.float64),
    ):
        with pytest.raises(TypeError, match="float64"):
            wide()


@pytest.mark.parametrize("far", ["mps"], indirect=True)
def test_a_language_model_on_metal(far: FarDevice, tmp_path: Path) -> None:
    run, lines = trained(tmp_path, "train.averaging=ema", "train.gradient_noise=0.01", "objective.label_smoothing=0.1")
    assert all(far_tensors(far, run.model))
    assert any("mps" in line for line in lines)
    assert run.evaluate("valid")["loss"] > 0
    assert len(run.score(["the cat", "", "a dog"])) == 3
    assert len(run.generate("the", length=5, seed=1, count=3, top_k=3, top_p=0.9)) == 3


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(("far", "kind"), [("mps", "text"), ("cuda", "classes"), ("mps", "classes")], indirect=["far"])
def test_pictures_there(kind: str, far: FarDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everstep.runs.pictures import draw

    monkeypatch.setenv("EVERSTEP_FIXTURES", str(FIXTURES))
    monkeypatch.setattr("everstep.look.over_passages.landscape.SIDE", 3)
    monkeypatch.setattr("everstep.look.over_passages.landscape.CHARACTERS", 2000)
    monkeypatch.setattr("everstep.look.over_passages.memory_pictures.CHARACTERS", 2000)
    monkeypatch.setattr("everstep.look.over_passages.memory_pictures.TOKENS", 200)
    monkeypatch.setattr("everstep.look.over_passages.unit_pictures.CHARACTERS", 1500)
    path = FIXTURES / ("run-format-1" if kind == "text" else "run-format-2")
    run = es.load(path, device=far.kind)
    assert all(far_tensors(far, run.model))
    drawn = [picture.name for picture, _ in draw(run, tmp_path)]
    assert len(drawn) >= 3
    assert all((tmp_path / name).stat().st_size > 100 for name in drawn)
