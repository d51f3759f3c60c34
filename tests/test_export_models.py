"""The models of all jobs compute the same in onnxruntime; those that have no export say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from written_forms import equal

from everstep.heads import Categorical
from everstep.networks.answers import OneOf
from everstep.networks.chord_forms import chord_forms
from everstep.networks.chord_model import ChordModel, ChordSection
from everstep.networks.encoder_decoder import EncoderDecoder, EncoderDecoderSection
from everstep.networks.forecaster import Forecaster
from everstep.networks.forecaster_forms import forecaster_forms
from everstep.networks.forecaster_section import ForecasterSection, WindowShape, checked_sizes
from everstep.networks.forms import Exported, Form
from everstep.networks.memory_forms import memory_forms
from everstep.networks.memory_network import MemoryNetwork, MemoryNetworkSection
from everstep.networks.model_forms import classifier_forms, tagger_forms, token_forms
from everstep.networks.move_forms import move_forms
from everstep.networks.move_model import MoveModel, MoveSection
from everstep.networks.mover import Mover, MoverSection
from everstep.networks.mover_forms import mover_forms
from everstep.networks.number_classifier import NumberClassifier, NumberClassifierSection
from everstep.networks.number_forms import number_forms
from everstep.networks.number_scaling import NumberScaling
from everstep.networks.policy import Policy, PolicySection, policy_forms
from everstep.networks.recogniser import Recogniser, RecogniserSection
from everstep.networks.recogniser_forms import recogniser_forms
from everstep.networks.sequence_classifier import ClassifierSection, SequenceClassifier
from everstep.networks.sequence_tagger import SequenceTagger, TaggerSection
from everstep.networks.token_model import TokenModel, TokenModelSection
from everstep.networks.translator_forms import translator_forms
from everstep.networks.tree_classifier import TreeClassifier, TreeNetworkSection
from everstep.networks.tree_forms import tree_forms
from everstep.networks.word_reader import WordReader
from everstep.runs.capabilities import Exports, Writes, abilities
from everstep.runs.recipe_files import load_task
from everstep.runs.shipped_recipes import recipes
from everstep.ship.c import c_program
from everstep.trees import Children, Composition
from everstep.wirings import Tree

pytestmark = pytest.mark.usefixtures("uncompiled", "quick")

NO_EXPORT = {"ptb-snm", "sparse-matrix"}
"""The recipes whose job has no export: the count that the documentation states."""
ANSWERS = OneOf(("a", "b", "c"))


def model_of(section: Any, **sizes: Any) -> nn.Module:
    """A model as a recipe's section has it, over few symbols, with weights that are nowhere zero."""
    match section:
        case TokenModelSection():
            model: nn.Module = TokenModel(30, section)
        case ClassifierSection():
            paired = sizes.get("paired", False)
            model = SequenceClassifier(30, ANSWERS, section, ends=(3, 7), calibrated=True, paired=paired)
            if model.ratios is not None:
                model.ratios.counts.copy_(torch.randint(4, model.ratios.counts.shape))
        case TaggerSection():
            model = SequenceTagger(section, WordReader(section, 20, 12, [3, 5], [0, *range(19)]), [4, 6], [None, None])
        case EncoderDecoderSection():
            model = EncoderDecoder(section, 20, 20, tags=sizes.get("tags", 0))
        case NumberClassifierSection():
            frames = NumberScaling((), (5, 4, 2), (0.0,), (1.0,), False)
            plain = NumberScaling(("x", "y"), (2,), (0.0, 0.0), (1.0, 1.0), sizes.get("gaps", False))
            model = NumberClassifier(frames if sizes.get("frames") else plain, ANSWERS, section, calibrated=True)
        case ForecasterSection():
            window, horizon, segment = checked_sizes(section, 4)
            shape = WindowShape(window, horizon, segment, 4, sizes.get("past", 0), sizes.get("future", 0), 3, True)
            model = Forecaster(section, shape)
        case MoverSection():
            model = Mover(2, section)
        case ChordSection():
            model = ChordModel(12, section)
        case MemoryNetworkSection():
            model = MemoryNetwork(9, ANSWERS, section, calibrated=True)
        case PolicySection():
            model = Policy(3, 2, section)
        case MoveSection():
            model = MoveModel(section)
        case RecogniserSection():
            model = Recogniser(6, 4, section)
        case TreeNetworkSection():
            model = TreeClassifier([1] * 9, ANSWERS, section)
        case _:
            raise AssertionError(type(section))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return model.eval()


FORMS: dict[type, Any] = {
    TokenModel: token_forms,
    SequenceClassifier: classifier_forms,
    SequenceTagger: tagger_forms,
    EncoderDecoder: translator_forms,
    NumberClassifier: number_forms,
    Forecaster: forecaster_forms,
    Mover: mover_forms,
    ChordModel: chord_forms,
    MemoryNetwork: memory_forms,
    MoveModel: move_forms,
    Policy: policy_forms,
    Recogniser: recogniser_forms,
    TreeClassifier: tree_forms,
}


def compared(model: nn.Module) -> Exported:
    """The forms of a model, which compute the same in onnxruntime."""
    found: Exported = FORMS[type(model)](model)
    for form in found:
        if isinstance(form, Form):
            equal(form)
            assert form.before is None or equal(form.before)
    return found


SEEN: dict[tuple[str, str], Exported] = {}
"""What the sections of the recipes so far export: several recipes have one model but for its sizes."""
SMALL: dict[str, Any] = {
    "hidden_size": 4,
    "embedding_size": 3,
    "character_size": 3,
    "character_units": 2,
    "feature_size": 2,
}
SMALL |= {"frame_size": 4, "window": 12, "horizon": 6, "segment": 4, "lags": (1, 4), "lags_difference": 4}
SMALL |= {"components": 2}
UNREAD = {"unknown_rate", "init_range", "variational", "error", "filters"}
"""Keys that change the training or sizes alone."""


def small(section: Any) -> Any:
    """The section with few units, without dropout."""
    made: dict[str, Any] = {key: value for key, value in SMALL.items() if getattr(section, key, 0)}
    if hasattr(section, "layers"):
        made["layers"] = min(section.layers, 2 if isinstance(section, TokenModelSection) else 1)
    if getattr(section, "affixes", ()):
        made["affixes"] = section.affixes[:2]
    dropouts = {key: 0.0 for key in type(section).model_fields if key.endswith(("dropout", "drop"))}
    return section.model_copy(update={**made, **dropouts})


@pytest.mark.parametrize("name", [name for name, _ in recipes()])
def test_the_model_of_every_recipe_exports(name: str) -> None:
    task = load_task(name)
    if not isinstance(task, Exports):
        assert bool(task.no_export) == (name in NO_EXPORT)
        assert isinstance(task, Writes) == ("export" in abilities(task)) != bool(task.no_export)
        assert in_the_guide(name) == ["–"] * 3
        return
    assert not task.no_export
    section = small(task.recipe.model)
    key = (type(section).__name__, section.model_dump_json(exclude=UNREAD))
    if key not in SEEN:
        frames = name == "classify-clips-minute"
        first = all(kind != key[0] for kind, _ in SEEN)
        SEEN[key] = compared(model_of(section, frames=frames, gaps=not frames))
        if first:
            c_program.written(with_start(SEEN[key], ("step", "sequence")))
    found = SEEN[key]
    assert any(isinstance(form, Form) for form in found)
    both, one = (", ".join(with_start(found, names)) for names in (("step", "sequence"), ("step",)))
    assert in_the_guide(name) == [both, both, one or both]


def with_start(found: Exported, names: tuple[str, ...]) -> dict[str, Form]:
    """The forms of these names, and what comes before them."""
    forms = {name: form for name in names if isinstance(form := getattr(found, name), Form)}
    before = next((form.before for form in forms.values() if form.before is not None), None)
    return forms if before is None else {"start": before, **forms}


def in_the_guide(name: str) -> list[str]:
    """What the guide says that a recipe exports to ONNX, PyTorch and C."""
    lines = (Path(__file__).parents[1] / "docs/export.md").read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and f"`{name}`" in line]
    assert len(rows) == 1, f"docs/export.md should say in one row what {name} exports"
    return [cell.strip() for cell in rows[0].strip("|").split("|")[1:]]


SOFTMAXES: list[dict[str, Any]] = [
    {"softmax": "classes"},
    {"softmax": "adaptive", "cutoffs": (5, 12)},
    {"max_entropy_order": 3, "max_entropy_size": 50},
]


@pytest.mark.parametrize("how", SOFTMAXES, ids=str)
def test_language_models_with_every_softmax(how: dict[str, Any]) -> None:
    section = TokenModelSection(cell="GRU", hidden_size=4, embedding_size=3, **how)
    forms = compared(model_of(section))
    assert c_program.written({"step": forms.step}).calls["step"].outputs  # type: ignore[dict-item]


def test_pairs_of_texts() -> None:
    section = ClassifierSection(hidden_size=4, embedding_size=3, ngrams=2)
    form = compared(model_of(section, paired=True)).sequence
    assert isinstance(form, Form)
    assert set(form.inputs) >= {"first", "second"}


class Counted(Composition):
    """What reads how many children there are."""

    def leaf(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def combine(self, x: torch.Tensor, children: Children) -> torch.Tensor:
        return children.sum(torch.ones_like(children.states))


def test_recognisers_of_one_direction_have_a_step() -> None:
    forms = compared(model_of(RecogniserSection(cell="GRU", hidden_size=4, layers=2, bidirectional=False)))
    assert c_program.written({"step": forms.step}).calls["step"].outputs  # type: ignore[dict-item]


def test_trees_of_every_kind() -> None:
    for cell in ("ChildSumTreeGRU", "MVRNN", "LSTM"):
        compared(model_of(TreeNetworkSection(cell=cell, embedding_size=3, hidden_size=4)))
    forms = tree_forms(model_of(TreeNetworkSection(tracker="GRU", tracker_size=2, hidden_size=4)))  # type: ignore[arg-type]
    assert isinstance(forms.sequence, str)
    assert "tracker" in forms.sequence
    model = model_of(TreeNetworkSection(cell="GRU", embedding_size=3, hidden_size=4))
    assert isinstance(model, TreeClassifier)
    model.tree, model.head = Tree(Counted(3, 3)), Categorical(3, 3)
    assert "depends on the number of children" in str(tree_forms(model).sequence)


def test_dropouts_are_gone() -> None:
    how: Any = dict.fromkeys(("dropout", "input_dropout", "weight_drop", "embedding_dropout"), 0.5)
    compared(model_of(TokenModelSection(cell="GRU", hidden_size=4, embedding_size=3, **how)))


def test_a_tagger_that_reads_one_way() -> None:
    compared(model_of(small(TaggerSection(bidirectional=False))))


@pytest.mark.parametrize(
    ("read_out", "sizes"),
    [
        ("last", {}),
        ("max", {"reader": "hierarchical"}),
        ("mean", {"gaps": False}),
        ("sum", {"gaps": True}),
    ],
)
def test_classifiers_of_every_kind(read_out: Any, sizes: dict[str, Any]) -> None:
    if "gaps" in sizes:
        numbers = NumberClassifierSection(hidden_size=4, filters=(2, 3), frame_size=5, read_out=read_out)
        compared(model_of(numbers, **sizes))
        return
    compared(model_of(ClassifierSection(hidden_size=4, embedding_size=3, read_out=read_out, **sizes)))


TRANSLATORS: list[dict[str, Any]] = [
    *({"attention": name} for name in ("additive", "dot", "concat", "local-m", "local-p")),
    *({"attention": name} for name in ("location", "coverage", "multi-head")),
    {"query": "before", "cell": "LSTM", "bidirectional": True},
    {"input_feeding": True, "layers": 2, "cell": "MinGRU"},
    {"context": "initial"},
    {"context": "every-step", "cell": "GRU"},
]


@pytest.mark.parametrize("how", TRANSLATORS, ids=str)
def test_translators_of_every_kind(how: dict[str, Any]) -> None:
    sizes = {"hidden_size": 4, "embedding_size": 3, "attention_size": 4, "heads": 2}
    section = EncoderDecoderSection(**{**sizes, "cell": "RNN", "bidirectional": False, **how})
    forms = compared(model_of(section, tags=2))
    assert isinstance(forms.step, Form)
    state = forms.step.begun({"batch": 1, "places": 3}, torch.Generator())
    outputs, _ = forms.step.run({"tokens": torch.zeros(1, dtype=torch.int64)}, state)
    assert set(outputs) == ({"log_p"} if "context" in how and how["context"] != "attention" else {"log_p", "weights"})


FORECASTERS: list[dict[str, Any]] = [
    *({"head": name} for name in ("mixture", "point")),
    {"head": "negative-binomial", "level": "none"},
    {"decode": "recursive", "highway": True},
    {"head": "student-t", "decode": "direct", "level": "season", "weight": "season"},
    {"head": "gaussian", "decode": "encoder-decoder", "level": "mean", "spread": "none"},
    {"smoothing": "learned"},
    {"lags": (1, 3), "lags_difference": 4},
    {"cell": "GRUD", "segment": 1, "embedding_size": 3},
]


@pytest.mark.parametrize("how", FORECASTERS, ids=str)
def test_forecasters_of_every_kind(how: dict[str, Any]) -> None:
    section = ForecasterSection(**{"hidden_size": 4, "window": 12, "horizon": 6, "segment": 4, **how})
    model = model_of(section, past=1, future=2)
    assert isinstance(model, Forecaster)
    has: Any = {"quantiles"} if section.head in ("gaussian", "quantiles") else set()
    for _ in range(1 if model.residuals is None else 2):
        form = compared(model).sequence
        assert isinstance(form, Form)
        assert set(form.inputs) >= {"values", "past", "future"}
        given = {name: one.drawn({"batch": 2}, torch.Generator()) for name, one in form.inputs.items()}
        assert set(form.run(given, ())[0]) == {"mean", "law"} | has
        if model.residuals is not None:  # as after a validation
            has = {"quantiles"}
            model.residuals.copy_(torch.linspace(-1, 1, 11).expand_as(model.residuals))
