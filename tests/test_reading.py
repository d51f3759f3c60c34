"""Files that anyone may have written: read if they are what they should be, else refused in one sentence."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from everstep.data import Tokenizer
from everstep.errors import CheckpointError, ConfigError, DataError, RunError
from everstep.learn import Checkpoint, checkpoint, read_metrics
from everstep.runs import yaml_text
from everstep.runs.recipe_files import load_recipe
from everstep.runs.yaml_text import dump_yaml, parse_yaml
from everstep.storage.reading import open_regular, parse_json, read_small

RECIPE = "task: language-model\ntrain: {max_steps: 1}\n"


def test_a_small_regular_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert read_small(path, 10) == b"0123456789"
    (tmp_path / "link").symlink_to(path)
    assert read_small(tmp_path / "link", 10) == b"0123456789"
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "none", 10)


def test_a_larger_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.touch()
    os.truncate(path, 1 << 40)  # of no blocks: the memory would be the first to be full
    with pytest.raises(OSError, match="expected at most 10 bytes, but it holds 1,099,511,627,776"):
        read_small(path, 10)


def test_what_is_no_regular_file_is_told_by_its_kind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))
    kinds = {tmp_path: "a folder", tmp_path / "pipe": "a pipe", tmp_path / "socket": "a socket"}
    for path, kind in {**kinds, Path("/dev/zero"): "a device"}.items():
        with pytest.raises(OSError, match=f"expected a regular file, but it is {kind}"):
            open_regular(path)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\xfa", b"", b"{", b"NaN", b"[Infinity]", b"[" * 100_000, b'{"a":' * 100_000]
)
def test_what_is_no_json_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(content)


def test_json_is_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, null, "\xc3\xbc"]}') == {"a": [1, 2.5, None, "ü"]}


# ------------------------------------------------------------------------------------------------------------- recipes

BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('seed: !!int ""', "line 1, column 7: .*a tag, .*int"),
        ('seed: !!float ""', "float"),
        ("seed: !!bool 3", "bool"),
        ("seed: !!null 3", "null"),
        ('seed: !!timestamp ""', "timestamp"),
        ("seed: !!timestamp 2001-12-14", "timestamp"),
        ("seed: !!binary aGFsbG8=", "binary"),
        ("seed: !!set {a, b}", "set"),
        ("seed: !!omap [a: 1]", "omap"),
        ("seed: !!pairs [a: 1]", "pairs"),
        ("!!merge x: {a: 1}", "merge"),
        ("seed: !!python/object/apply:os.system [true]", "python/object"),
        ("data: &a [*a]", "nest deeper than 100 levels"),
        ("data: &a {train: *a}", "nest deeper than 100 levels"),
        ("? &a [*a]\n: 1", "nest deeper than 100 levels"),
        (BOMB, "nest of more than 100,000 values"),
        ("a: " + "[" * 300 + "]" * 300, "deep"),
        ("a: " + "[" * 50_000, "deeper than"),
        ("a: " + "{a: " * 50_000, "deeper than"),
        ("- " * 50_000, "deeper than"),
        ("a: \x00", "not allowed"),
    ],
)
def test_yaml_that_no_recipe_needs_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe.yaml.*expected YAML; .*{told}|(?s:recipe.yaml.*{told})"):
        parse_yaml(text, "recipe.yaml")


def test_an_alias_is_its_anchor() -> None:
    assert parse_yaml("a: &x [1, two]\nb: *x\nc: '5'\nd: 12:30\n", "r") == {
        "a": [1, "two"],
        "b": [1, "two"],
        "c": "5",
        "d": "12:30",
    }
    assert parse_yaml("# nothing", "r") is None


PARTS = [
    *(None, True, False, 0, -12, 10**20, 1.5, -0.25, 1e-5, 1e16, float("inf"), "", " ", "a", "a.txt", "/x/y-z.txt"),
    *(
        "everstep:shakespeare",
        "a:",
        "a: b",
        "a, b",
        "True",
        "NULL",
        "null",
        "no",
        "on",
        "12",
        "1e5",
        ".5",
        "~",
        "-",
        "- a",
    ),
    *(
        "#a",
        "a #b",
        "a#b",
        "[a]",
        "{a}",
        "*a",
        "&a",
        "!a",
        "%a",
        "@a",
        "|",
        ">",
        "a\nb",
        " a",
        "a ",
        "it's",
        "ß",
        "1:30",
    ),
    *([], {}, [1, "a", None], ["a: b", 2], [[1, 0.5], ["x"]], [{"a": [1]}]),
]


@pytest.mark.parametrize("part", PARTS, ids=repr)
def test_what_is_written_quickly_is_what_a_writer_of_all_yaml_writes(part: Any) -> None:
    one, two, three = (copy.deepcopy(part) for _ in range(3))  # one object would be written once
    keyed = {} if isinstance(part, dict | list) else {part: 1}
    for value in (part, keyed, {"a": one, "b": {"c": two, "d": {"e": three}}}):
        text = dump_yaml(value)
        assert text == yaml_text._emitted(value)
        assert parse_yaml(text, "r") == value


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"seed: \xff\n" + RECIPE.encode(), "line 1, byte 6 is not UTF-8"),
        (RECIPE.encode("utf-16"), "is not UTF-8"),
        (b"#" * (2 << 20), "expected at most 1,048,576 bytes"),
        (f"seed: {2**63}\n{RECIPE}".encode(), "seed: expected a whole number ≥ 0 and < 2\\^63"),
        (f"seed: {'9' * 5000}\n{RECIPE}".encode(), "digits"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        load_recipe(path)


@pytest.mark.parametrize("encoding", ["idna", "undefined", "punycode", "rot13", "base64", "no-such", "a\0b", ""])
def test_an_encoding_that_reads_no_text_is_refused(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data: {{encoding: {json.dumps(encoding)}}}\n{RECIPE}")
    with pytest.raises(ConfigError, match=r"data\.encoding: expected an encoding"):
        load_recipe(path)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "UTF-32-LE", "latin-1", "cp1252", "gb18030", "hz"]
)
def test_an_encoding_that_reads_text_is_taken(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data: {{encoding: {encoding}}}\n{RECIPE}")
    assert load_recipe(path).data.encoding == encoding


# ---------------------------------------------------------------------------------------------------------- tokenizers


PROCESSOR = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
PADDING |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
TOKEN = {
    "id": 1,
    "content": "b",
    "single_word": True,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": False,
}


@pytest.mark.parametrize("kind", ["chars", "bytes", "words", "bpe", "unigram"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"truncation": TRUNCATION}, "truncation"),
        ({"padding": PADDING}, "padding"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "StripAccents"}]}}, "normalizer StripAccents"),
        ({"added_tokens": [TOKEN]}, "added token 'b' single_word"),
        ({"post_processor": PROCESSOR}, "post_processor"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_does_more_than_ours_is_refused(kind: str, change: dict[str, Any], told: str) -> None:
    text = Tokenizer.train(["ab abab ba\n" * 3], kind, max_size=300).to_json() if kind != "bytes" else None
    described = json.loads(text or Tokenizer.train(["ab\n"], "bytes").to_json())
    Tokenizer.from_json(json.dumps(described))
    with pytest.raises(DataError, match=f"its {told} should not be there"):
        Tokenizer.from_json(json.dumps({**described, **change}))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("bpe", {"dropout": 0.5}),
        ("bpe", {"byte_fallback": True}),
        ("bpe", {"ignore_merges": True}),
        ("bpe", {"fuse_unk": True}),
        ("bytes", {"continuing_subword_prefix": "##"}),
        ("unigram", {"byte_fallback": True}),
    ],
)
def test_a_model_that_does_more_than_ours_is_refused(kind: str, change: dict[str, Any]) -> None:
    options = {} if kind == "bytes" else {"max_size": 300}
    described = json.loads(Tokenizer.train(["ab abab ba\n" * 3], kind, **options).to_json())
    described["model"] |= change
    with pytest.raises(DataError, match=f"its model.{next(iter(change))} should not be there"):
        Tokenizer.from_json(json.dumps(described))


def test_a_tokenizer_is_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    os.mkfifo(path)
    with pytest.raises(DataError, match="it is a pipe"):
        Tokenizer.load(path)
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(DataError, match="expected at most"):
        Tokenizer.load(path)


# ------------------------------------------------------------------------------------------------- metrics, checkpoints


def test_metrics_that_are_no_regular_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"[" * 100_000 + b'\n{"step": 2}\n')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RunError, match="it is a pipe; move it away"):
        read_metrics(path)
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(RunError, match="expected at most"):
        read_metrics(path)


def sealed(content: dict[str, Any]) -> bytes:
    def text(value: Any) -> bytes:
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()

    return text({**content, "digest": hashlib.sha256(text(content)).hexdigest()})


@pytest.mark.parametrize(
    "content",
    [
        {"format": "1", "files": {}},
        {"format": 1},
        {"format": 1, "valid": "low", "files": {}},
        {"format": 1, "files": []},
        {"format": 1, "files": {"../../x": {"size": 1, "sha256": ""}}},
        {"format": 1, "files": {"x": {"size": "1", "sha256": ""}}},
        {"format": 1, "files": {"x": 1}},
    ],
)
def test_a_manifest_that_fits_its_digest_and_is_none_of_ours_is_refused(content: Any, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(sealed(content))
    with pytest.raises(CheckpointError, match=r"manifest\.json (was not written|is damaged)"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "data.json", "model.safetensors"])
def test_a_checkpoint_is_made_of_regular_files(name: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", Checkpoint({"model": {"w": torch.ones(3)}}, {"step": 1}))
    path = tmp_path / "c" / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: .* a pipe"):
        checkpoint.load(tmp_path / "c")
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: expected at most"):
        checkpoint.load(tmp_path / "c")
