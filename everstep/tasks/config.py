"""Recipes as typed values: every key, its type, its range and its default, checked before any work.

A recipe is a YAML file (or the name of a shipped one) and `key=value` overrides with dotted keys. What is wrong with it
is said in one message: the dotted key, what was expected, what came and the nearest right one.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from everstep.data.decoding import reads_text
from everstep.errors import ConfigError
from everstep.reading import read_small, reason
from everstep.tasks.recipe_errors import came, explain, fields, nearest, sections
from everstep.tasks.recipe_yaml import dump_yaml, parse_yaml

_LARGEST = 1 << 20  # bytes of a recipe; the parser takes seconds for so many
RECIPES = Path(__file__).resolve().parent.parent / "recipes"

FUNCTION = ("model.cell", "model.residual")
"""Keys that make another function of the same weights; others that do so change their names or shapes too."""

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Threads = Annotated[int, Field(ge=1, le=max(1024, os.cpu_count() or 1))]  # of ten thousands, OpenMP ends the process
Probability = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Files = str | tuple[str, ...]
Names = str | tuple[str, ...]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataConfig(_Section):
    """Which text, and what a token of it is."""

    train: Files = "everstep:shakespeare"  # path, list or globs; everstep:NAME is a bundled text; ${EVERSTEP_DATA}
    valid: Files | None = None  # None: the last `valid_fraction` of train, cut at a line's end
    valid_fraction: Probability = 0.1  # 0: no validation
    valid_chars: Count = 2_000_000  # and at most that many characters of it
    test: Files | None = None
    encoding: str = "utf-8"
    unit: Literal["chars", "bytes", "words", "bpe", "unigram"] = "chars"
    lowercase: bool = False
    normal_form: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = None
    min_count: Count = 1
    max_size: Annotated[int, Field(ge=2)] | None = None  # of the vocabulary; None: 8000 sub-words, all of the others
    eos: bool | None = None  # None: by unit
    unk: bool | None = None
    sequence: Literal["stream", "documents", "lines"] = "stream"
    document_separator: Literal["blank-line", "file"] = "blank-line"


class ModelConfig(_Section):
    """The network: embedding, a stack of cells, a softmax."""

    cell: Literal["LSTM", "GRU", "GRUBefore", "RNN", "MinGRU"] | tuple[Any, ...] = "LSTM"  # a list: a `TreeCell`'s tree
    embedding_size: Count = 128
    hidden_size: Count | tuple[Count, ...] = 256  # a list: one size a layer
    layers: Annotated[int, Field(ge=1, le=1000)] = 1  # with a list of sizes: its length, may be left out
    tied: bool = False  # the head's weights are the embedding's; a linear layer joins them where sizes differ
    dropout: Probability = 0.0  # between layers and before the head
    input_dropout: Probability = 0.0  # on embeddings
    variational: bool = False  # the same dropout mask at every step
    embedding_dropout: Probability = 0.0  # whole words
    weight_drop: Probability = 0.0  # weights of the recurrent matrices
    state_dropout: Probability = 0.0  # what the recurrent matrices read of h, one mask for all steps
    zoneout: Probability = 0.0
    residual: bool = False
    init_range: Positive | None = None  # r: every weight uniform in [-r, r]; None: each layer's own initialisation

    @model_validator(mode="before")
    @classmethod
    def _layers_from_sizes(cls, raw: Any) -> Any:
        if (
            isinstance(raw, dict)
            and "layers" not in raw
            and isinstance(sizes := raw.get("hidden_size"), tuple)
            and sizes
        ):
            return {**raw, "layers": len(sizes)}
        return raw

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """One size a layer."""
        return self.hidden_size if isinstance(self.hidden_size, tuple) else (self.hidden_size,) * self.layers


class TrainConfig(_Section):
    """How it learns and when it stops."""

    batch_size: Count = 32
    k1: Count = 64  # steps between updates; unused where data.sequence is lines
    k2: Count | None = None  # steps the gradient goes back; None: k1
    optimizer: Literal["adamw", "sgd", "rmsprop", "adagrad"] = "adamw"
    learning_rate: Positive = 0.002
    momentum: Probability = 0.0
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "cosine", "step", "plateau"] = "cosine"
    warmup_steps: Whole = 0
    constant_epochs: Count = 1  # step: this many epochs at learning_rate, then divided by `decay` each epoch
    decay: Annotated[float, Field(ge=1)] = 2.0
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_patience: Count = 2
    min_learning_rate: NonNegative = 0.0
    l2: NonNegative = 0.0  # λ: λ·w is added to the gradient of the weights `l2_on`
    l2_on: Names = "*"  # names of parameters, or a list; * stands for anything
    activation_penalty: NonNegative = 0.0  # α of AR: α times the mean square of the outputs, after dropout
    change_penalty: NonNegative = 0.0  # β of TAR: β times the mean square of their change in a step, before dropout
    clip_value: Positive | None = None  # of each entry of the gradient; comes before fixed_norm and clip_norm
    fixed_norm: Positive | None = None  # the gradient is scaled to this norm at every step
    gradient_noise: NonNegative = 0.0  # η: variance η / (1 + step)^γ, added before clip_norm
    gradient_noise_decay: NonNegative = 0.55  # γ
    clip_norm: Positive | None = 1.0
    label_smoothing: Probability = 0.0
    accumulate: Count = 1  # batches to an update
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    averaging: Literal["none", "ema", "nt-asgd"] = "none"
    ema_decay: Probability = 0.999
    nt_asgd_patience: Count = 5
    patience: Count | None = None  # validations without a better score before it stops
    max_steps: Count | None = None  # at least one of the three; whichever is met first
    max_epochs: Count | None = None
    max_minutes: Positive | None = None  # where it ends the run, cosine follows the clock and another run differs
    validate_every: Count | None = None  # steps; None: every epoch
    checkpoint_every: Count | None = None  # steps; None: at each validation
    checkpoint_minutes: Positive = 5.0  # and whenever that much time has passed
    keep_last: Count = 2
    log_every_seconds: NonNegative = 5.0  # between two records of metrics.jsonl
    tensorboard: bool = False
    threads: Threads | None = None


class DecodeConfig(_Section):
    """How text is drawn from the model."""

    prompt: str = ""
    length: Count = 500
    temperature: NonNegative = 1.0  # 0: always the likeliest
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None


class Config(_Section):
    """One recipe, whole: what is learned from what, with every default filled in."""

    task: Literal["language-model"] = "language-model"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig
    decode: DecodeConfig = DecodeConfig()

    @model_validator(mode="after")
    def _agrees(self) -> Config:
        problems = list(_disagreements(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _disagreements(config: Config) -> Iterable[str]:
    """What no key shows alone."""
    data, model, train = config.data, config.model, config.train
    if not isinstance(model.cell, str):
        from everstep.cells.tree_cell import TreeCell

        try:
            TreeCell(1, 1, model.cell, device="meta")
        except ValueError as error:
            yield f"model.cell: {error}"
    if train.max_steps is None and train.max_epochs is None and train.max_minutes is None:
        yield "train: expected at least one of max_steps, max_epochs, max_minutes; none came, so training would not end"
    if isinstance(model.hidden_size, tuple) and len(model.hidden_size) != model.layers:
        sizes = list(model.hidden_size)
        yield f"model.hidden_size: expected one size for each of {model.layers} layers (model.layers); came {sizes}"
    elif model.residual and len(set(model.hidden_sizes)) > 1:
        yield f"model.residual: expected layers of one size, so that they can be added; came {list(model.hidden_sizes)}"
    elif model.residual and model.layers == 1 and model.embedding_size != model.hidden_sizes[0]:
        sizes = [model.embedding_size, *model.hidden_sizes]
        yield f"model.residual: expected embedding_size = hidden_size, or more than one layer; came {sizes}"
    yield from _dropout_disagreements(model)
    if train.fixed_norm is not None and train.clip_norm is not None and train.fixed_norm > train.clip_norm:
        yield (
            f"train.fixed_norm: expected at most train.clip_norm ({train.clip_norm:g}), which comes after it; came "
            f"{train.fixed_norm:g}; set train.clip_norm=null"
        )
    if data.valid is None and data.valid_fraction == 0:
        for key, needs, instead in (
            ("train.schedule: plateau", train.schedule == "plateau", "train.schedule=cosine"),
            ("train.averaging: nt-asgd", train.averaging == "nt-asgd", "train.averaging=ema"),
            ("train.patience", train.patience is not None, "train.patience=null"),
        ):
            if needs:
                yield f"{key} needs validation; set data.valid, or data.valid_fraction above 0, or {instead}"
    if train.min_learning_rate > train.learning_rate:
        least, most = train.min_learning_rate, train.learning_rate
        yield f"train.min_learning_rate: expected at most train.learning_rate ({most:g}); came {least:g}"
    if train.momentum and train.optimizer not in ("sgd", "rmsprop"):
        yield f"train.momentum: expected optimizer sgd or rmsprop beside it; came {train.optimizer}"
    if data.sequence == "lines" and train.k2 is not None:
        yield "train.k2: expected null where data.sequence is lines: each line's gradient goes back to its start"
    if data.unit == "bytes" and (data.max_size is not None or data.min_count > 1):
        yield "data.max_size, data.min_count: expected null and 1 where data.unit is bytes: there are 256 of them"
    if data.unit in ("bytes", "bpe") and data.unk:
        yield f"data.unk: expected null or false where data.unit is {data.unit}: no text is unknown to it; came true"
    if not data.train or (isinstance(data.train, tuple) and not all(data.train)):
        yield "data.train: expected a path; came none"
    if not reads_text(data.encoding):
        yield f"data.encoding: expected an encoding that Python knows, such as utf-8 or latin-1; came {data.encoding!r}"


def _dropout_disagreements(model: ModelConfig) -> Iterable[str]:
    """Cells that have no place for a dropout within their recurrence."""
    if model.weight_drop and model.cell == "MinGRU":
        yield "model.weight_drop: expected a cell with a recurrent matrix; came MinGRU, which has none"
    if model.state_dropout and (model.cell == "MinGRU" or not isinstance(model.cell, str)):
        kind = model.cell if isinstance(model.cell, str) else "a tree"
        yield f"model.state_dropout: expected cell LSTM, GRU, GRUBefore or RNN beside it; came {kind}"
    if model.state_dropout and model.zoneout:
        yield f"model.state_dropout: expected zoneout 0 beside it, which also changes the step; came {model.zoneout:g}"


# ---------------------------------------------------------------------------------------------------- recipe to Config


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The recipe of that shipped name or YAML file, with `key=value` overrides, checked.

    Raises:
        ConfigError: it cannot be found, read or used; nothing has been done yet.
    """
    path = recipe_path(name_or_path)
    source = f"recipe {path.stem}" if path.parent == RECIPES else str(path)
    if path.suffix not in (".yaml", ".yml") and not _holds_recipe(path):
        raise ConfigError(f"{path} is no recipe, which is a YAML file. {_as_text(path, str(path))}")
    return parse_recipe(read_recipe(path), source, overrides)


def _holds_recipe(path: Path) -> bool:
    """Whether a file of any name has a key of a recipe at its top; a text has none."""
    try:
        raw = parse_yaml(read_recipe(path), str(path))
    except ConfigError:
        return False
    return isinstance(raw, dict) and not set(raw).isdisjoint(Config.model_fields)


def _as_text(path: Path, files: str) -> str:
    """What to type where a text was given in the place of a recipe."""
    data = shlex.quote(f"data.train={files}")
    return f"To learn from it as a text: everstep train text-chars {data} --out runs/{shlex.quote(path.stem or 'mine')}"


def parse_recipe(text: str, source: str, overrides: Sequence[str] = ()) -> Config:
    """As `load_recipe`, from the YAML itself; `source` names it in messages."""
    raw = parse_yaml(text, source)
    if raw is None:
        raise ConfigError(f"{source} is empty: expected a recipe, such as `everstep recipes show text-words` prints.")
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: expected a mapping of keys (task, data, model, train, …); came {came(raw)}.")
    for override in overrides:
        _override(raw, override)
    # an empty section (`model:` and nothing below) is one with every default
    raw = {"train": {}} | {
        key: {} if value is None and key in sections(Config) else value for key, value in raw.items()
    }
    try:
        return Config.model_validate(_tuples(raw))
    except ValidationError as error:
        lines = explain(error, raw, Config)
        body = f" {lines[0]}" if len(lines) == 1 else "".join(f"\n  {line}" for line in lines)
        raise ConfigError(f"{source}:{body}") from None


def to_yaml(config: Config) -> str:
    """The whole recipe, every default written out; `load_recipe` reads it back equal."""
    return dump_yaml(config.model_dump())


def flat(config: Config, leave_out: Set[str] = frozenset()) -> dict[str, Any]:
    """Every dotted key of a recipe with its value as JSON has it, but for those to `leave_out`.

    >>> flat(load_recipe("text-words"))["model.cell"]
    'LSTM'
    """
    found: dict[str, Any] = {}
    for key, value in config.model_dump(mode="json").items():
        found |= {f"{key}.{name}": entry for name, entry in value.items()} if key in sections(Config) else {key: value}
    return {key: value for key, value in found.items() if key not in leave_out}


def recipes() -> list[tuple[str, str]]:
    """Name and first comment line of each shipped recipe."""
    files = sorted(RECIPES.glob("*.yaml"))
    return [(file.stem, read_recipe(file).partition("\n")[0].removeprefix("#").strip()) for file in files]


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a shipped name, or the path given; what ends in .yaml, exists or has a folder in it is a path."""
    name = str(name_or_path)
    shipped = RECIPES / f"{name}.yaml"
    path = Path(name)
    if os.sep not in name and path.suffix not in (".yaml", ".yml") and shipped.is_file():
        return shipped
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{name} is a folder; expected a recipe. {_as_text(path, os.path.join(name, '*.txt'))}")
    names = [known for known, _ in recipes()]
    near = difflib.get_close_matches(path.stem, names, 1)
    hint = f" Did you mean {near[0]}?" if near else f" Shipped: {', '.join(names)}."
    raise ConfigError(f"no recipe {name!r}: expected a shipped name or a YAML file.{hint}")


def read_recipe(path: Path) -> str:
    """The YAML of a recipe's file.

    Raises:
        ConfigError: it cannot be read, is no regular file, is too large for a recipe, or is not UTF-8.
    """
    try:
        return read_small(path, _LARGEST).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {reason(error)}.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: expected YAML in UTF-8; line {line}, byte {error.start} is not UTF-8.") from None


def _override(raw: dict[Any, Any], override: str) -> None:
    """Puts `a.b=value` into the nest."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        hint = f" For a text: {shlex.quote(f'data.train={override}')}." if os.path.exists(override) else ""
        raise ConfigError(f"expected key=value, such as train.max_minutes=5; came {override!r}.{hint}")
    *above, last = key.split(".")
    for part in above:
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict) or ".".join(above) in fields(Config):
            raise ConfigError(f"{key}: unknown key{nearest(key, Config)}")
    raw[last] = _value(key, text)


def _value(key: str, text: str) -> Any:
    """YAML, but what a text key is given needs no quotes: decode.prompt=ROMEO: is no mapping."""
    field = fields(Config).get(key)
    if field is not None and _takes_text(field.annotation) and not re.match(r"""["'\[]|null$|~$""", text):
        return text
    return parse_yaml(text, f"the value of {key}")


def _takes_text(annotation: Any) -> bool:
    return annotation is str or str in get_args(annotation) or any(map(_takes_text, get_args(annotation)))


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
