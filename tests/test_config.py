"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everstep.errors import ConfigError
from everstep.runs.recipe_files import explained_keys, load_recipe, parse_recipe, to_yaml
from everstep.runs.shipped_recipes import RECIPES, recipes

MINIMAL = "task: language-model\ntrain:\n  max_steps: 3\n"


def refusal(text: str = MINIMAL, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, "r.yaml", overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name, _ in recipes()])
def test_shipped_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_recipe(name)
    written = tmp_path / "config.yaml"
    written.write_text(to_yaml(config), encoding="utf-8")
    assert load_recipe(written) == config


def test_shipped_recipes_say_what_they_are() -> None:
    listed = dict(recipes())
    assert {
        "shakespeare-minute",
        "shakespeare",
        "ptb-small",
        "ptb-30min",
        "text-words",
        "text-subwords",
        "text-bytes",
        "text-chars",
    } <= set(listed)
    assert all(len(about) > 20 and not about.startswith("#") for about in listed.values())
    further = [(RECIPES / f"{name}.yaml").read_text("utf-8").splitlines()[1] for name in listed]
    assert not [line for line in further if line.startswith("#") and not line[2].isupper()]  # no sentence is cut


def test_zarembas_small_setting_in_mean_per_token_terms() -> None:
    config = load_recipe("ptb-small")
    train, model, k1 = config.train, config.model, config.objective.k1
    assert (model.hidden_sizes, model.embedding_size, model.init_range, model.dropout) == ((200, 200), 200, 0.1, 0.0)
    assert (train.optimizer, train.schedule, train.constant_epochs, train.decay) == ("sgd", "step", 5, 2.0)
    assert (train.batch_size, k1, train.max_epochs) == (20, 20, 13)
    # his sum over k1 steps against our mean
    assert (train.learning_rate / k1, train.clip_norm) == (1.0, 5 / k1)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.learning_rate=1e-3", ("train", "learning_rate", 0.001)),  # text to YAML 1.1
        ("train.betas=[0.8, 0.99]", ("train", "betas", (0.8, 0.99))),
        ("train.clip_norm=null", ("train", "clip_norm", None)),
        ("model.hidden_size=[8, 16]", ("model", "hidden_sizes", (8, 16))),
        ("model.tied=true", ("model", "tied", True)),
        ("decode.prompt=ROMEO:", ("decode", "prompt", "ROMEO:")),  # a mapping to YAML
        ("decode.prompt= The", ("decode", "prompt", " The")),
        ("decode.prompt=12:30", ("decode", "prompt", "12:30")),
        ("decode.prompt=no", ("decode", "prompt", "no")),
        ("decode.prompt='a: b'", ("decode", "prompt", "a: b")),
        ("decode.prompt=", ("decode", "prompt", "")),
        ("data.train=[a.txt, b*.txt]", ("data", "train", ("a.txt", "b*.txt"))),
        ("data.train=2024.txt", ("data", "train", "2024.txt")),
        ("data.valid=null", ("data", "valid", None)),
        ("data.eos=true", ("data", "eos", True)),
    ],
)
def test_overrides_are_read_as_meant(override: str, read: tuple[str, str, object]) -> None:
    section, key, value = read
    config = parse_recipe(MINIMAL, "r.yaml", [override])
    assert getattr(getattr(config, section), key) == value
    assert parse_recipe(to_yaml(config), "again") == config


def test_a_column_is_a_number_or_a_name() -> None:
    data: Any = load_recipe("tag-own", ["data.word_column=0", "data.tag_column=-1"]).data
    assert (data.word_column, data.tag_column) == (0, -1)
    data = load_recipe("tag-own", ["data.word_column='0'", "data.tag_column=ner"]).data
    assert (data.word_column, data.tag_column) == ("0", "ner")


def test_the_last_override_wins_and_leaves_the_rest() -> None:
    config = parse_recipe(MINIMAL, "r.yaml", ["seed=2", "seed=3", "model.layers=2"])
    assert (config.seed, config.model.layers, config.train.max_steps, config.model.cell) == (3, 2, 3, "LSTM")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.batchsize=3", ["train.batchsize: unknown key", "did you mean train.batch_size?"]),
        ("batch_size=3", ["batch_size: unknown key", "did you mean train.batch_size?"]),
        ("modle.layers=3", ["modle: unknown key", "did you mean model?"]),
        ("train.hiden_size=3", ["train.hiden_size: unknown key", "did you mean model.hidden_size?"]),
        ("train.zzz=3", ["train.zzz: unknown key", "known in train:", "max_minutes"]),
        ("model.layers.x=1", ["model.layers.x: unknown key"]),
        ("model.layers=two", ["model.layers: expected a whole number ≥ 1", "got 'two' (text)"]),
        ("model.layers=2.5", ["model.layers: expected a whole number ≥ 1", "got 2.5 (a number)"]),
        ("model.layers=true", ["model.layers", "got true (true or false)"]),
        ("model.hidden_size=-4", ["model.hidden_size: expected a whole number ≥ 1", "got -4"]),
        ("model.hidden_size=[4, -4]", ["model.hidden_size", "or a list", "got [4, -4]"]),
        ("model.hidden_size=[]", ["model.hidden_size", "got []"]),
        ("train.batch_size=0", ["train.batch_size: expected a whole number ≥ 1", "got 0"]),
        ("objective.k2=0", ["objective.k2", "≥ 1 or null", "got 0"]),
        ("train.threads=100000", ["train.threads: expected a whole number ≥ 1 and ≤ 1,024 or null", "got 100000"]),
        ("train.threads=0", ["train.threads: expected a whole number ≥ 1", "got 0"]),
        ("seed=-1", ["seed: expected a whole number ≥ 0", "got -1"]),
        ("model.dropout=1.0", ["model.dropout: expected a number ≥ 0 and < 1", "got 1.0"]),
        ("model.zoneout=-0.1", ["model.zoneout", "got -0.1"]),
        ("objective.label_smoothing=1.5", ["objective.label_smoothing", "got 1.5"]),
        ("train.learning_rate=.nan", ["train.learning_rate: expected a number > 0", "got nan"]),
        ("train.max_minutes=.inf", ["train.max_minutes", "got inf"]),
        ("train.betas=[0.9]", ["train.betas: expected a list of 2", "got [0.9]"]),
        ("model.cell=lstm", ["model.cell: there is no cell 'lstm'", "did you mean LSTM?"]),
        ("data.unit=word", ["data.unit", "did you mean words?"]),
        ("data.lowercase=yes", ["data.lowercase: expected true or false", "got 'yes' (text)"]),
        ("data.encoding=utf-88", ["data.encoding", "utf-8", "got 'utf-88'"]),
        ("data.train=", ["data.train: expected a path"]),
        ("data.train=[a, 3]", ["data.train: expected text or a list (each text)", "got ['a', 3]"]),
        ("decode.top_p=0", ["decode.top_p: expected a number > 0 and ≤ 1 or null", "got 0"]),
        ("train=5", ["train: expected a mapping of keys", "got 5"]),
        ("train.max_steps", ["expected key=value", "got 'train.max_steps'"]),
        ("=3", ["expected key=value"]),
        ("model.layers=[", ["the value of model.layers", "line 1, column 2"]),
        ("task=composing", ["task: expected one of ", "language-model", "got 'composing'"]),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, said: list[str]) -> None:
    message = refusal(MINIMAL, override)
    assert [part for part in said if part not in message] == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.max_steps=null"], "at least one of max_steps, max_epochs, max_minutes"),
        (["model.layers=3", "model.hidden_size=[8, 8]"], "one size for each of 3 layers"),
        (["model.hidden_size=[8, 16]", "model.residual=true"], "model.residual: expected layers of one size"),
        (["model.embedding_size=8", "model.residual=true"], "model.residual: expected embedding_size = hidden_size"),
        (["train.schedule=plateau", "data.valid_fraction=0"], "plateau needs validation"),
        (["train.averaging=nt-asgd", "data.valid_fraction=0"], "nt-asgd needs validation"),
        (["train.patience=3", "data.valid_fraction=0"], "train.patience: patience needs validation"),
        (["data.sequence=lines", "objective.k2=5"], "objective.k2: expected null"),
        (["data.sequence=lines", "objective.random_k1=true"], "objective.random_k1: expected false"),
        (["train.min_learning_rate=1"], "train.min_learning_rate: expected at most"),
        (["train.momentum=0.9"], "train.momentum: expected optimizer sgd or rmsprop"),
        (["data.unit=bytes", "data.min_count=2"], "data.min_count"),
        (["data.unit=bpe", "data.unk=true"], "data.unk: expected null or false"),
    ],
)
def test_keys_that_do_not_go_together(overrides: list[str], said: str) -> None:
    assert said in refusal(MINIMAL, *overrides)


def test_every_problem_is_in_the_one_message() -> None:
    message = refusal(MINIMAL, "model.layers=two", "train.lr=1", "data.unit=char")
    assert all(part in message for part in ("model.layers", "train.lr", "data.unit")), message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "r.yaml is empty"),
        ("# only a comment\n", "r.yaml is empty"),
        ("- a\n- b\n", "expected a mapping of keys"),
        ("just text", "expected a mapping of keys"),
        ("train:\n  max_steps: 3\n bad: 1\n", "r.yaml, line 3, column"),
        ("train: {max_steps: 3\n", "r.yaml, line"),
        ("train:\n\tmax_steps: 3\n", "r.yaml, line 2, column 1"),
        ("a: \x01", "r.yaml: expected YAML"),
        ("train: !!python/object:os.system {}\n", "r.yaml, line 1"),
        ("train:\n  max_steps: 3\n  seed: 1\n  max_steps: 4\n", "r.yaml, line 4, column 3"),
        ("[1, 2]: 3\n", "r.yaml"),
        ("task: language-model\n1: 2\n", "1: unknown key"),
    ],
)
def test_unreadable_yaml_is_refused_with_its_place(text: str, said: str) -> None:
    assert said in refusal(text)


def test_duplicate_keys_are_named_with_line_and_values() -> None:
    message = refusal("seed: 1\ntrain:\n  max_steps: 3\nseed: 2\n")
    assert "line 4" in message
    assert 'duplicate key "seed" with value "2" (original value: "1")' in message


def test_an_empty_section_is_one_of_defaults() -> None:
    assert parse_recipe("task: language-model\nmodel:\ntrain: {max_steps: 1}\n", "r").model.layers == 1
    assert "at least one of max_steps" in refusal("task: language-model\ntrain:\n")


def test_a_recipe_file_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"seed: 1\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.yaml.*UTF-8; line 2, byte 13"):
        load_recipe(latin)
    with pytest.raises(ConfigError, match=r"no recipe '.*missing.yaml'"):
        load_recipe(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="Did you mean shakespeare-minute"):
        load_recipe("shakespere-minute")
    with pytest.raises(ConfigError, match=r"Shipped: .*ptb-small"):
        load_recipe("qqqq")


def test_a_file_and_a_shipped_name_do_not_hide_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ptb-small").mkdir()
    assert load_recipe("ptb-small") == load_recipe(RECIPES / "ptb-small.yaml")
    Path("ptb-small.yaml").write_text(MINIMAL, encoding="utf-8")
    assert load_recipe("ptb-small.yaml").train.max_steps == 3


def test_settings_made_in_python_are_refused_in_the_words_of_recipes() -> None:
    from everstep.learn import FitSettings

    assert FitSettings(max_steps=3) == parse_recipe(MINIMAL, "r.yaml").train
    for options, said in (
        ({}, "at least one of max_steps, max_epochs, max_minutes"),
        ({"max_steps": 0}, "max_steps: expected a whole number ≥ 1 or null; got 0"),
        ({"max_steps": 1, "learning_rat": 1.0}, "learning_rat: unknown key; did you mean learning_rate?"),
        ({"max_steps": 1, "min_learning_rate": 1.0}, "min_learning_rate: expected at most learning_rate"),
    ):
        with pytest.raises(ConfigError) as caught:
            FitSettings(**options)
        assert said in str(caught.value)


def test_every_key_says_what_it_means() -> None:
    for name, _ in recipes():
        assert [row["key"] for row in explained_keys(name) if not row["meaning"]] == []
    row = next(row for row in explained_keys("text-words") if row["key"] == "data.min_count")
    assert row == {
        "key": "data.min_count",
        "type": "a whole number ≥ 1",
        "default": "1",
        "value": "2",
        "meaning": "rarer tokens become <unk>",
    }
    own = explained_keys(f"{Path(__file__).parents[1]}/examples/parity.py:Parity")
    assert [row["meaning"] for row in own if row["key"] == "data.length"] == ["symbols of each sequence"]


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("shakespeare").seed = 5
