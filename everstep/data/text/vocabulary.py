"""Vocabularies: counting the symbols of a text and building a Hugging Face tokenizer.

Every kind is one `tokenizers.Tokenizer`, so that `tokenizer.json` is complete:

| kind    | model     | pre-tokenizer                          | line end with eos          |
|---------|-----------|----------------------------------------|----------------------------|
| chars   | WordLevel | split after every character            | added token `<eos>`        |
| bytes   | BPE, no merges | ByteLevel                         | added token `<eos>`        |
| words   | WordLevel | newlines alone; white space removed    | the word `<eos>`           |
| bpe     | BPE       | newlines alone; ByteLevel              | added token `<eos>`        |
| unigram | Unigram   | newlines alone; Metaspace              | added token `<eos>`        |

The last steps of the normalizer turn `\\n` into `<eos>` if the vocabulary has it and, for unigram, a literal `▁` into
U+FDD0; the decoder reverses both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HF

from everstep.data.text.text_files import pieces
from everstep.errors import DataError, counted

EOS = "<eos>"
UNK = "<unk>"
KINDS = ("chars", "bytes", "words", "bpe", "unigram")
NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
METASPACE = "▁"
METASPACE_ITSELF = "\ufdd0"  # a noncharacter, which no text has; `unigram` uses `▁` for the space
_MODEL_SWITCHES = (
    "dropout", "fuse_unk", "byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix",
)  # fmt: skip
_NORMALIZERS = (*NORMAL_FORMS, "Lowercase", "Replace")
# The white space of `str.split()` without the newline, as a character class for both regular expression engines.
_SPACES = r"[\x09\x0B-\x0D\x1C-\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]+"
_WORD = re.compile(f"{METASPACE}?[^{METASPACE}\n]+|{METASPACE}")
_SUBWORD_SIZE = 8000
_PIECE_CHARS = 1 << 14
_UNIGRAM_ROUNDS = 4


class Options(NamedTuple):
    """Options of a vocabulary; `max_size` counts every symbol, specials included.

    If `unk` is None, there is an `<unk>` if symbols are dropped.
    """

    kind: str
    max_size: int | None
    min_count: int
    lowercase: bool
    normal_form: str | None
    eos: bool
    unk: bool | None

    @property
    def normalizations(self) -> list[str]:
        return ([self.normal_form] if self.normal_form else []) + ["Lowercase"] * self.lowercase


def build(blocks: Iterable[str], options: Options) -> HF:
    """Build the tokenizer of a text given in blocks, cut between lines; the result does not depend on the cuts.

    Raises:
        DataError: no text, fewer than 2 symbols, or symbols dropped without an `<unk>` to replace them.
    """
    check(options)
    if options.kind == "bytes":
        return _bytes(options)
    steps = normalizer(options.normalizations)
    clean = blocks if steps is None else (normalized(block, steps) for block in blocks)
    if options.kind in ("chars", "words"):
        counts = (_count_chars if options.kind == "chars" else _count_words)(clean)
        options = options._replace(unk=_cuts(counts, options) if options.unk is None else options.unk)
        return _word_level(_kept(counts, options), options)
    return _bpe(clean, options) if options.kind == "bpe" else _unigram(clean, options)


def check(options: Options) -> None:
    """Raise a DataError for invalid options."""
    if options.kind not in KINDS:
        raise DataError(f"data.tokenizer={options.kind!r}: expected one of {', '.join(KINDS)}")
    if options.normal_form not in (None, *NORMAL_FORMS):
        raise DataError(f"data.normal_form={options.normal_form!r}: expected one of {', '.join(NORMAL_FORMS)}")
    if options.min_count < 1:
        raise DataError(f"data.min_count={options.min_count}: expected 1 or more")
    if options.max_size is not None and options.max_size < 2:
        raise DataError(f"data.max_size={options.max_size}: expected 2 or more")
    if options.kind in ("bytes", "unigram") and options.min_count > 1:
        raise DataError(f"data.min_count={options.min_count}: {options.kind} have no such cut; leave it at 1")
    if options.kind in ("bytes", "bpe"):
        if options.unk:
            raise DataError(f"data.unk=true: {options.kind} spell every text from bytes, so nothing is ever unknown")
        if options.max_size is not None and options.max_size < 256:
            raise DataError(f"data.max_size={options.max_size}: {options.kind} need at least the 256 bytes")


def kind_of(described: dict[str, Any], source: str) -> str:
    """The kind of a tokenizer, from its JSON.

    Raises:
        DataError: `build` makes no such kind.
    """
    parts: tuple[Any, Any] = (described["model"]["type"], (described["pre_tokenizer"] or {}).get("type"))
    kind = {
        ("WordLevel", "Split"): "chars",
        ("WordLevel", "Sequence"): "words",
        ("BPE", "ByteLevel"): "bytes",
        ("BPE", "Sequence"): "bpe",
        ("Unigram", "Sequence"): "unigram",
    }.get(parts)
    if kind is None:
        raise DataError(
            f"{source}: a {parts[0]} model split by {parts[1]} is no tokenizer that everstep made; train one"
        )
    return kind


def check_parts(described: dict[str, Any], source: str) -> None:
    """Refuse a tokenizer with parts that would alter a text: truncation, padding, random dropping of merges, ….

    Raises:
        DataError: the JSON has such a part.
    """
    model = described["model"]
    parts = {name: described[name] for name in ("truncation", "padding", "post_processor")}
    parts |= {f"model.{name}": model.get(name) for name in _MODEL_SWITCHES}
    normalizer = described["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = normalizer.get("normalizers", [normalizer])
    if normalizer["type"] != "Sequence" or any(step["type"] not in _NORMALIZERS for step in steps):
        parts[f"normalizer {', '.join(step['type'] for step in steps)}"] = True
    for token in described["added_tokens"]:
        switches = [name for name in ("single_word", "lstrip", "rstrip", "special") if token[name]]
        if token["content"] != EOS or switches:
            parts[f"added token {token['content']!r} {' '.join(switches)}".rstrip()] = True
    if found := [name for name, value in parts.items() if value]:
        raise DataError(
            f"{source}: its {', '.join(found)} should not be there; no tokenizer that everstep made has that"
        )


def normalizer(names: Sequence[str]) -> Any:
    """The Hugging Face normalizer with the named steps, or None for no steps."""
    return normalizers.Sequence([getattr(normalizers, name)() for name in names]) if names else None


def normalized(text: str, steps: Any) -> str:
    """`text` normalised, in pieces, because Hugging Face needs many bytes per character."""
    return "".join(steps.normalize_str(piece) for piece in pieces(text, _PIECE_CHARS))


def _count_chars(blocks: Iterable[str]) -> Counter[str]:
    counts = np.zeros(0x110000, np.int64)
    for block in blocks:
        counts += np.bincount(np.frombuffer(block.encode("utf-32-le", "surrogatepass"), "<u4"), minlength=len(counts))
    return Counter({chr(code): int(counts[code]) for code in np.flatnonzero(counts)})


def _count_words(blocks: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for block in blocks:
        counts.update(block.split())
        counts["\n"] += block.count("\n")
    return counts


def _cuts(counts: Counter[str], options: Options) -> bool:
    """Whether symbols are dropped because they are too rare or too many."""
    symbols = {symbol: count for symbol, count in counts.items() if count and not (options.eos and symbol == "\n")}
    too_many = options.max_size is not None and len(symbols) > options.max_size - options.eos
    return too_many or any(count < options.min_count for count in symbols.values())


def _kept(counts: Counter[str], options: Options) -> list[str]:
    """The symbols kept: specials, then by falling frequency, ties in code point order."""
    specials = [EOS] * options.eos + [UNK] * bool(options.unk)
    if options.eos:
        del counts["\n"]
    for special in specials if options.kind == "words" else ():
        del counts[special]
    ranked = sorted((symbol for symbol, count in counts.items() if count), key=lambda symbol: (-counts[symbol], symbol))
    kept = [symbol for symbol in ranked if counts[symbol] >= options.min_count]
    if options.max_size is not None:
        kept = kept[: max(options.max_size - len(specials), 0)]
    if len(kept) < len(ranked) and not options.unk:
        raise DataError(
            f"min_count={options.min_count} and max_size={options.max_size} cut {len(ranked) - len(kept):,} of "
            f"{len(ranked):,} {options.kind}, and nothing stands for what was cut: leave data.unk out, or cut nothing"
        )
    symbols = specials + kept
    if len(symbols) < 2:
        raise DataError(
            f"vocabulary of {counted(len(symbols), 'symbol')} {symbols}: nothing to predict; give a text with more"
        )
    return symbols


def _word_level(symbols: list[str], options: Options) -> HF:
    # No text has an empty symbol, so without `<unk>` the model refuses unknown symbols.
    model = models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token=UNK if options.unk else "")
    hf = HF(model)
    if options.kind == "chars":
        hf.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    else:
        spaces = pre_tokenizers.Split(Regex(_SPACES), "removed")
        hf.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), spaces])
    return _finish(hf, options)


def _alphabet(eos: bool) -> list[str]:
    """The characters that ByteLevel uses for the bytes 0 to 255, without the newline if `<eos>` replaces it."""
    named = byte_names()
    return [named[byte] for byte in range(256) if not (eos and byte == 10)]


def byte_names() -> list[str]:
    """The character that ByteLevel uses for each byte: printable ones unchanged, the others from U+0100 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _bytes(options: Options) -> HF:
    symbols = [EOS] * options.eos + _alphabet(options.eos)
    hf = HF(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _finish(hf, options)


def _finish(hf: HF, options: Options) -> HF:
    """Add normalizer, decoder and the conversion of line ends to `<eos>`."""
    steps = [getattr(normalizers, name)() for name in options.normalizations]
    if options.eos:
        steps.append(normalizers.Replace("\n", f" {EOS} " if options.kind == "words" else EOS))
    if options.kind == "unigram":
        steps.append(normalizers.Replace(METASPACE, METASPACE_ITSELF))
    if steps:
        hf.normalizer = normalizers.Sequence(steps)
    if options.kind != "words":
        ends = [decoders.Replace(EOS, "\n")] * options.eos
        spaces: list[Any] = [decoders.Metaspace(prepend_scheme="never"), decoders.Replace(METASPACE_ITSELF, METASPACE)]
        joins: dict[str, list[Any]] = {"chars": [decoders.Fuse()], "unigram": spaces}
        hf.decoder = decoders.Sequence([*ends, *joins.get(options.kind, [decoders.ByteLevel()])])
        if options.eos:
            hf.add_tokens([AddedToken(EOS, normalized=True, special=False)])
    return hf


def _subword(model: models.Model, splitter: Any, eos: bool) -> HF:
    hf = HF(model)
    # With `<eos>` the normalizer leaves no newline, and in training a newline must not become a symbol.
    newlines = pre_tokenizers.Split("\n", "removed" if eos else "isolated")
    hf.pre_tokenizer = pre_tokenizers.Sequence([newlines, splitter])
    return hf


def _training_text(blocks: Iterable[str]) -> Iterator[str]:
    """The text in small pieces, because the trainer holds hundreds at a time, at many bytes per character."""
    for block in blocks:
        for piece in pieces(block, _PIECE_CHARS):
            yield from (piece[i : i + _PIECE_CHARS] for i in range(0, len(piece), _PIECE_CHARS))


def _bpe(blocks: Iterable[str], options: Options) -> HF:
    hf = _subword(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), options.eos)
    trainer = trainers.BpeTrainer(
        vocab_size=options.max_size or _SUBWORD_SIZE,
        min_frequency=max(options.min_count, 2),
        special_tokens=[EOS] * options.eos,
        initial_alphabet=_alphabet(options.eos),
        show_progress=False,
    )
    hf.train_from_iterator(_training_text(blocks), trainer)
    return _finish(hf, options)


def _unigram(blocks: Iterable[str], options: Options) -> HF:
    size = options.max_size or _SUBWORD_SIZE
    words: Counter[str] = Counter()
    specials = [EOS] * options.eos + [UNK] * bool(options.unk)
    splitter = pre_tokenizers.Metaspace(prepend_scheme="never")
    hf = _subword(models.Unigram(), splitter, options.eos)
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=specials,
        unk_token=UNK if options.unk else None,
        show_progress=False,
    )
    try:
        hf.train_from_iterator(_counting(_training_text(blocks), words, options.eos), trainer)
    except DataError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"data.max_size={size}: {error}; raise it") from error
    names = [piece for piece in hf.get_vocab() if piece not in specials]
    if len(names) + len(specials) < 2:
        raise DataError("vocabulary of fewer than 2 symbols: nothing to predict; give a text with more")
    scores = _unigram_scores(names, words)
    ranked = sorted(names, key=lambda piece: (-scores[piece], piece))
    table = [(special, 0.0) for special in specials] + [(piece, scores[piece]) for piece in ranked]
    hf = _subword(models.Unigram(table, specials.index(UNK) if options.unk else None, False), splitter, options.eos)
    return _finish(hf, options)


def _counting(texts: Iterable[str], words: Counter[str], eos: bool) -> Iterator[str]:
    """Pass texts on, and count in `words` the pieces into which the pre-tokenizer will split them."""
    for text in texts:
        text = text.replace(METASPACE, METASPACE_ITSELF)
        words.update(_WORD.findall(text.replace(" ", METASPACE)))
        if not eos:
            words["\n"] += text.count("\n")
        yield text


def _unigram_scores(names: list[str], words: Counter[str]) -> dict[str, float]:
    """Log probabilities of the pieces, recomputed from integer counts.

    The trainer adds floats in the order of a randomly seeded hash table, so that its scores differ between runs. Counts
    on best paths under equal scores do not.
    """
    names = sorted(names)
    texts = sorted(words)
    weights = np.array([words[text] for text in texts], np.int64)
    scores = np.full(len(names), -1.0)
    for _ in range(_UNIGRAM_ROUNDS):
        hf = HF(models.Unigram(list(zip(names, scores.tolist(), strict=True)), None, False))
        counts = np.zeros(len(names), np.int64)
        for start in range(0, len(texts), 10_000):
            paths = hf.encode_batch_fast(texts[start : start + 10_000])
            each = np.repeat(weights[start : start + 10_000], [len(path) for path in paths])
            counts += np.bincount(np.concatenate([path.ids for path in paths]), each, len(names)).astype(np.int64)
        # Rounded, because the library parses longer numbers inexactly, and a loaded tokenizer must be equal.
        scores = np.log(np.maximum(counts, 0.5) / max(counts.sum(), 1)).round(6)
    return dict(zip(names, scores.tolist(), strict=True))
