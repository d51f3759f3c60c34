"""Verbs that use a run: `eval`, `score`, `generate`, `look`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import typer

from everstep.cli.common import load_run, log
from everstep.data.decoding import read_lines
from everstep.errors import DataError
from everstep.reading import json_text

if TYPE_CHECKING:
    from everstep.tasks.scoring import Score

RUN = typer.Argument(metavar="RUN", help="The folder of a run.")
BLOCK = 1024  # lines scored at a time
CHUNK = 1 << 16  # bytes read at a time
MEANING = {
    "unknown": "tokens that are <unk>, of which nothing is known but that they are rare",
    "unknown_share": "of all tokens",
    "nats_per_token": "mean of -ln p",
    "bits_per_token": "mean of -log2 p",
    "perplexity": "exp of nats per token",
    "bits_per_char": "whatever the tokens, comparable between models of the same text",
    "bits_per_byte": "as UTF-8",
    "word_perplexity": "per word and line end, whatever the tokens",
}


def evaluate(
    run: Path = RUN,
    split: Literal["train", "valid", "test"] | None = typer.Option(
        None, help="Which part; by default test where the run has one, else valid.", show_default=False
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object, for machines."),
) -> None:
    """Score a run on held-out text: nats, bits, perplexity.

    \b
      everstep eval runs/mine
      everstep eval runs/mine --split valid --json

    The whole split is read in order with the state carried along; every token counts once.
    """
    loaded = load_run(run)
    scores = loaded.evaluate(split or ("valid" if loaded.config.data.test is None else "test"))
    if as_json:
        print(json_text(scores, ensure_ascii=False))
        return
    bounds = scores.pop("lower_bounds", ())
    for key, value in scores.items():
        said = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        meaning = MEANING.get(key, "")
        if key in bounds:
            share = f"{scores['unknown_share']:.2%}"
            said, meaning = f"≥ {said}", f"a lower bound: {share} of the tokens are <unk>, which are not spelled"
        print(f"{key.replace('_', ' '):16} {said:>16}   {meaning}".rstrip())


def score(
    run: Path = RUN,
    as_json: bool = typer.Option(
        False, "--json", help='JSON lines: {"logp": …, "tokens": …, "line": …, "unknown": …}.'
    ),
    tokens: bool = typer.Option(False, "--tokens", help="With --json: also token_logps, one number a token."),
    encoding: str | None = typer.Option(None, help="Of the lines.", show_default="the recipe's data.encoding"),
) -> None:
    """Score lines: log-probability, tokens and line for each.

    \b
      everstep score runs/mine < sentences.txt
      printf 'To be, or not to be\\n' | everstep score runs/mine --json --tokens

    Prints log-probability<TAB>tokens<TAB>line in the order of the input. The logarithm is natural, the state is fresh
    for each line, and the line's end counts where the vocabulary has <eos>. Lines end where they do in training.
    """
    if tokens and not as_json:
        raise typer.BadParameter("--tokens needs --json.")
    loaded = load_run(run)
    trained = loaded.config.data.encoding
    if encoding is None and trained.lower() != "utf-8":
        log(f"note: the lines are read as {trained}, as the training text was; --encoding utf-8 for others")
    total = unknown = 0
    for number, block in enumerate(blocks(standard_input(encoding or trained))):
        for item in loaded.score(block, number * BLOCK + 1) if block else ():
            total, unknown = total + item.tokens, unknown + (item.unknown or 0)
            print(_row(item, tokens) if as_json else f"{item.logp:.6f}\t{item.tokens}\t{item.line}")
    if unknown:
        share = f"{unknown:,} of the {total:,} tokens ({unknown / total:.2%}) are <unk>"
        log(f"note: {share}; their probability is that of any unknown word, not of the word that stands there")


def _row(item: Score, tokens: bool) -> str:
    """A scored line as JSON."""
    fields: dict[str, Any] = {"logp": item.logp, "tokens": item.tokens, "line": item.line}
    if item.unknown is not None:
        fields["unknown"] = item.unknown
    if tokens:
        fields["token_logps"] = list(item.token_logps)
    return json_text(fields, ensure_ascii=False)


def blocks(lines: Iterator[str]) -> Iterator[list[str]]:
    """The lines in lists of BLOCK; those before a bad line still come, then its error."""
    block: list[str] = []
    try:
        for line in lines:
            block.append(line)
            if len(block) == BLOCK:
                yield block
                block = []
    except DataError:
        yield block
        raise
    yield block


def standard_input(encoding: str) -> Iterator[str]:
    """The lines of stdin, read as training reads text.

    Raises:
        DataError: it is closed, or a line is not text in that encoding; names the line and the byte in it.
    """
    if sys.stdin is None:
        raise DataError("standard input is closed: expected lines there, such as … < sentences.txt")
    if sys.stdin.isatty():
        log("Reading lines from the keyboard; Ctrl-D ends them.")
    stream = cast(io.BufferedReader, sys.stdin.buffer)
    chunks = iter(lambda: stream.read1(CHUNK), b"")
    return read_lines(chunks, "standard input", encoding, "--encoding ")


def generate(
    run: Path = RUN,
    prompt: str | None = typer.Option(None, help="The text goes on from this.", show_default="the recipe's"),
    length: int | None = typer.Option(None, help="Tokens to draw (≥ 1).", show_default="the recipe's"),
    temperature: float | None = typer.Option(
        None, help="Below 1 safer, above 1 wilder, 0 always the likeliest (≥ 0).", show_default="the recipe's"
    ),
    top_k: int | None = typer.Option(None, help="Only from the K likeliest tokens (≥ 1)."),
    top_p: float | None = typer.Option(None, help="Only from the likeliest that make up probability P (0 < P ≤ 1)."),
    seed: int | None = typer.Option(None, help="Same seed, same text (≥ 0).", show_default="another text each time"),
    count: int = typer.Option(1, help="Samples, with a line --- between two of them (≥ 1)."),
) -> None:
    """Write text by a run.

    \b
      everstep generate runs/mine --prompt "The" --length 200 --temperature 0.8 --top-k 40 --seed 1
      everstep generate runs/demo --prompt $'ROMEO:\\n' --count 3

    Prints the text alone, as it is drawn; Ctrl-C ends it. What is not given comes from the recipe's decode section.
    """
    limits = (
        ("--length", length, length is None or length >= 1, "a whole number ≥ 1"),
        ("--temperature", temperature, temperature is None or 0 <= temperature < float("inf"), "a number ≥ 0"),
        ("--top-k", top_k, top_k is None or top_k >= 1, "a whole number ≥ 1"),
        ("--top-p", top_p, top_p is None or 0 < top_p <= 1, "a number above 0 and at most 1"),
        ("--seed", seed, seed is None or 0 <= seed < 2**63, "a whole number ≥ 0"),
        ("--count", count, count >= 1, "a whole number ≥ 1"),
        ("--prompt", repr(prompt), _is_text(prompt or ""), "UTF-8"),
    )
    for name, value, good, expected in limits:
        if not good:
            raise typer.BadParameter(f"expected {expected}; came {value}.", param_hint=name)
    loaded = load_run(run)
    decode = loaded.config.decode
    prompt = decode.prompt if prompt is None else prompt
    if unknown := loaded.unknown(prompt):
        log(f"note: {unknown} of the prompt's words are not in the vocabulary and are read as <unk>")
    pieces = loaded.stream(
        prompt=prompt,
        length=length or decode.length,
        temperature=decode.temperature if temperature is None else temperature,
        top_k=top_k or decode.top_k,
        top_p=top_p or decode.top_p,
        seed=seed,
        count=count,
    )
    write_texts(pieces)


def write_texts(pieces: Iterator[list[str]]) -> None:
    """The first text as it is drawn, the others after it; Ctrl-C leaves of each what was drawn."""
    others: list[list[str]] = []
    stopped: KeyboardInterrupt | None = None
    try:
        for first, *rest in pieces:
            print(first, end="", flush=True)
            if rest:
                others.append(rest)
    except KeyboardInterrupt as stop:
        stopped = stop
    for text in zip(*others, strict=True):
        print(f"\n---\n{''.join(text)}", end="")
    print(flush=True)
    if stopped is not None:
        raise stopped


def _is_text(argument: str) -> bool:
    """Whether the shell gave UTF-8: Python stands in for other bytes by surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def look(
    run: Path = RUN,
    out: Path | None = typer.Option(
        None, "--out", "-o", metavar="DIR", help="Where to draw.", show_default="RUN/pictures"
    ),
    text: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="A text of your own, in the encoding of the training text, to draw all but the curves over.",
    ),
) -> None:
    """Draw what a run has learned and what it remembers.

    \b
      everstep look runs/mine
      everstep look runs/mine --text letter.txt --out pictures

    \b
      curves, surprise                     learning; the model's surprise over a passage
      gradient-flow, sensitivity           how far back a gradient reaches; what the first input still changes
      spectrum, memory                     eigenvalues of its steps; how much context it uses
      units, gates, saturation, property   units and gates over the passage, and the units that tell something about it
      loss-surface                         the loss around the model, as its weights move along two random directions

    Pictures as PNG, some as HTML too; each is named as soon as it is drawn, and all stand in DIR/README.md with what to
    see. The passage is from the held-out text, or FILE.
    """
    loaded = load_run(run)
    from everstep.cli.pictures import draw, pictures_of

    for path, what_to_see in draw(loaded, out or pictures_of(run), text):
        print(f"{path}\n    {what_to_see}", flush=True)
