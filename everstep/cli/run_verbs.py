"""Verbs that use a run: `eval`, `score`, `generate`, `look`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import typer

from everstep.cli.common import load_run, log
from everstep.cli.generated_files import OUT, GeneratedFiles
from everstep.cli.printed_tables import rival_table, table
from everstep.data.text.decoding import read_lines
from everstep.errors import DataError, counted
from everstep.storage.reading import json_text

if TYPE_CHECKING:
    from everstep.networks.scoring import Score
    from everstep.runs.run import Run

RUN = typer.Argument(metavar="RUN", help="The folder of a run.")
BLOCK = 1024  # lines scored at a time
CHUNK = 1 << 16  # bytes read at a time


TRUST = typer.Option(False, "--trust-code", help="Execute the Python files stored in the run, with your rights.")
DEVICE = typer.Option("cpu", help="Device of the model: cpu, cuda, mps, or auto.")
DECODE = typer.Argument(
    None, metavar="KEY=VALUE", help="Settings of decode in place of the run's, such as decode.beam_width=10."
)
BESIDE = typer.Option(
    None, "--with", metavar="RUN2", help="Another run of the same job and tokens, for an ensemble; may be repeated."
)


def load_asked(
    path: Path,
    trust_code: bool,
    device: str,
    decode: Sequence[str] | None,
    beside: Sequence[Path] | None,
    files: str = "<",
) -> Run:
    """The run in a folder, with other settings of decode, and with other runs beside it.

    Raises:
        typer.BadParameter: a file stands where settings are expected; `files` is what goes before one.
    """
    if file := next((text for text in decode or () if "=" not in text and Path(text).exists()), None):
        raise typer.BadParameter(f"expected KEY=VALUE; got {file!r}, a file. Files are given as: {files} {file}")
    loaded = load_run(path, trust_code, device)
    if decode:
        loaded = loaded.decoding(decode)
    return loaded.beside([load_run(other, trust_code, device) for other in beside]) if beside else loaded


def evaluate(
    run: Path = RUN,
    decode: list[str] | None = DECODE,
    split: Literal["train", "valid", "test"] | None = typer.Option(
        None, help="The split; by default test if the run has one, else valid.", show_default=False
    ),
    data: list[str] | None = typer.Option(
        None, metavar="FILE", help="Other data of the same kind, in place of the test split."
    ),
    adapt: Literal["cache", "dynamic"] | None = typer.Option(
        None,
        help="Adapt to the text before each token: by what followed similar states, or by learning on.",
        show_default=False,
    ),
    rivals: bool = typer.Option(False, "--rivals", help="Also show simpler models on the same data."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object, for machines."),
    beside: list[Path] | None = BESIDE,
    device: str = DEVICE,
    trust_code: bool = TRUST,
) -> None:
    """Score a run on held-out data.

    \b
      everstep eval runs/mine
      everstep eval runs/mine --split valid --json
      everstep eval runs/mine --data letters.txt
      everstep eval runs/translator decode.beam_width=10
      everstep eval runs/mine --adapt cache

    The whole split is read; every target counts once. --adapt is for language models: cache mixes in a continuous cache
    (Grave 2017), dynamic updates the weights after each segment (Krause 2018); settings come from the validation text.
    """
    if data and split:
        raise typer.BadParameter("--data FILE is a part of its own; expected no --split beside it.")
    loaded = load_asked(run, trust_code, device, decode, beside, "--data")
    others = loaded.rivals(split, data=data) if rivals else []  # first, since a package or their data may be missing
    scores = loaded.evaluate(split, data=data, adapt=adapt)
    if as_json:
        print(json_text({**scores, **({"rivals": others} if rivals else {})}, ensure_ascii=False))
        return
    from everstep.runs.card import meaning_of, shown_measure

    for key, value in scores.items():
        if isinstance(value, dict):
            print(table(key, value))
        elif not isinstance(value, list):
            meaning = meaning_of(loaded.task, scores, key)
            print(f"{key.replace('_', ' '):18} {shown_measure(scores, key):>16}   {meaning}".rstrip())
    if rivals:
        print(rival_table(others))


def predict(
    run: Path = RUN,
    decode: list[str] | None = DECODE,
    as_json: bool = typer.Option(False, "--json", help="JSON lines with the full record of each prediction."),
    explain: bool = typer.Option(
        False,
        "--explain",
        help="Mark the deciding words or numbers, [+for+] and [-against-] the answer; in JSON, their relevance.",
    ),
    probabilities: bool = typer.Option(False, "--probabilities", help="Also print the probability of each prediction."),
    n_best: int = typer.Option(1, "--n-best", metavar="N", help="The N most probable predictions for each (≥ 1)."),
    format: str | None = typer.Option(
        None, help="Format of the lines, such as text or jsonl.", show_default="that of the training data"
    ),
    to: str | None = typer.Option(None, metavar="LANGUAGE", help="Translate to it; the same as decode.to=LANGUAGE."),
    beside: list[Path] | None = BESIDE,
    anomalies: bool = typer.Option(
        False, "--anomalies", help="Score each value by its −log p given the values before it (series)."
    ),
    paths: int = typer.Option(0, "--paths", metavar="N", min=0, help="N sample paths instead of quantiles (series)."),
    encoding: str = typer.Option("utf-8", help="Encoding of the lines."),
    device: str = DEVICE,
    trust_code: bool = TRUST,
) -> None:
    """Predict labels, tags, translations or forecasts for lines of text, depending on RUN.

    \b
      everstep predict runs/mine < lines.txt > answers.txt
      echo "not bad at all" | everstep predict runs/reviews --json
      echo "not bad at all" | everstep predict runs/reviews --explain
      everstep predict runs/tags --probabilities --n-best 3 < words.conll
      everstep predict runs/translator decode.beam_width=10 decode.coverage_penalty=0.2 < en.txt > de.txt
      everstep predict runs/translator --with runs/another < en.txt > de.txt
      everstep predict runs/multilingual --to fr < en.txt > fr.txt
      everstep predict runs/load --anomalies < history.csv > scores.csv

    Predictions are printed in the order of the input as soon as they are ready: one per line, or per sentence if a
    sentence has several lines. The supported options depend on the job of RUN.
    """
    if n_best < 1:
        raise typer.BadParameter(f"expected a whole number ≥ 1; got {n_best}.", param_hint="--n-best")
    asked = [*(decode or ()), *([] if to is None else [f"decode.to={to}"])]
    loaded = load_asked(run, trust_code, device, asked, beside)
    loaded.able("predict")
    lines = standard_input(encoding)
    wanted = {
        "probabilities": probabilities,
        "n_best": n_best,
        "format": format,
        "anomalies": anomalies,
        "paths": paths,
    }
    for found in loaded.predict(lines, explain, **wanted):  # type: ignore[arg-type]
        if found.record or not as_json:
            print(json_text(found.record, ensure_ascii=False) if as_json else found.text, flush=sys.stdout.isatty())


def score(
    run: Path = RUN,
    decode: list[str] | None = DECODE,
    as_json: bool = typer.Option(
        False, "--json", help='JSON lines: {"logp": …, "tokens": …, "line": …, "unknown": …}.'
    ),
    tokens: bool = typer.Option(False, "--tokens", help="With --json: also token_logps, one number per token."),
    beside: list[Path] | None = BESIDE,
    encoding: str | None = typer.Option(None, help="Encoding of the lines.", show_default="the recipe's data.encoding"),
    device: str = DEVICE,
    trust_code: bool = TRUST,
) -> None:
    """Score lines: log-probability, tokens and line for each.

    \b
      everstep score runs/mine < sentences.txt
      printf 'To be, or not to be\\n' | everstep score runs/mine --json --tokens

    Prints log-probability<TAB>tokens<TAB>line in the order of the input. Logarithms are natural. Each line starts in
    the initial state, and its end is scored if the vocabulary has <eos>. Lines end as in training.
    """
    if tokens and not as_json:
        raise typer.BadParameter("--tokens needs --json.")
    loaded = load_asked(run, trust_code, device, decode, beside)
    loaded.able("score")
    from everstep.runs.pictures import recipe_encoding

    trained = recipe_encoding(loaded)
    if encoding is None and trained.lower() != "utf-8":
        log(f"note: the lines are read as {trained}, as the training text was; --encoding utf-8 for others")
    total = unknown = 0
    for number, block in enumerate(blocks(standard_input(encoding or trained))):
        for item in loaded.score(block, number * BLOCK + 1) if block else ():
            total, unknown = total + item.tokens, unknown + (item.unknown or 0)
            print(_row(item, tokens) if as_json else f"{item.logp:.6f}\t{item.tokens}\t{item.line}")
    if unknown:
        share = (
            f"{unknown:,} of {counted(total, 'token')} ({unknown / total:.2%}) {'is' if unknown == 1 else 'are'} <unk>"
        )
        log(f"note: {share}; the probability is that of any unknown word, not of the word that stands there")


def _row(item: Score, tokens: bool) -> str:
    """A scored line as a JSON object."""
    fields: dict[str, Any] = {"logp": item.logp, "tokens": item.tokens, "line": item.line}
    if item.unknown is not None:
        fields["unknown"] = item.unknown
    if tokens:
        fields["token_logps"] = list(item.token_logps)
    return json_text(fields, ensure_ascii=False)


def blocks(lines: Iterator[str]) -> Iterator[list[str]]:
    """The lines in lists of BLOCK; lines before an invalid one are yielded before the error is raised."""
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
    """The lines of stdin, read like training text.

    Raises:
        DataError: stdin is closed, or a line is invalid in the encoding; the message names the line and the byte.
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
    prompt: str | None = typer.Option(None, help="Text to continue.", show_default="the recipe's"),
    length: int | None = typer.Option(None, help="Tokens to sample (≥ 1).", show_default="the recipe's"),
    temperature: float | None = typer.Option(
        None, help="Below 1 safer, above 1 more diverse, 0 greedy (≥ 0).", show_default="the recipe's"
    ),
    top_k: int | None = typer.Option(None, help="Sample only from the K most probable tokens (≥ 1)."),
    top_p: float | None = typer.Option(
        None, help="Sample only from the top tokens of total probability P (0 < P ≤ 1)."
    ),
    seed: int | None = typer.Option(None, help="Same seed, same text (≥ 0).", show_default="another text each time"),
    count: int = typer.Option(1, help="Number of samples, separated by a line --- (≥ 1)."),
    stop: str | None = typer.Option(None, metavar="TEXT", help="End each sample before this text."),
    until_end: bool = typer.Option(False, "--until-end", help="End each sample at the symbol that ends a sequence."),
    unk: bool | None = typer.Option(
        None, "--unk/--no-unk", help="Whether <unk> may be sampled.", show_default="the recipe's"
    ),
    out: Path | None = OUT,
    device: str = DEVICE,
    trust_code: bool = TRUST,
) -> None:
    """Generate text with a run, or music.

    \b
      everstep generate runs/mine --prompt "The" --length 200 --temperature 0.8 --top-k 40 --seed 1
      everstep generate runs/demo --prompt $'ROMEO:\\n' --count 3
      everstep generate runs/music --prompt "60,64,67 60,65,69" --out tune.mid

    Prints only the text, while it is sampled; Ctrl-C ends it. Defaults come from the recipe's decode section.
    """
    wanted = {
        "prompt": prompt, "length": length, "temperature": temperature, "top_k": top_k, "top_p": top_p, "unk": unk
    }  # fmt: skip
    _check_sampling(wanted, seed, count)
    loaded = load_run(run, trust_code, device)
    task = loaded.able("generate")
    how = loaded.decode.replace(**{name: value for name, value in wanted.items() if value is not None})
    if unknown := task.decoder(loaded.model, how.prompt).unknown:
        tokens = f"{counted(unknown, 'token')} of the prompt {'is' if unknown == 1 else 'are'}"
        log(f"note: {tokens} not in the vocabulary, and read as <unk>")
    pieces = loaded.stream(how, seed=seed, count=count, stop=stop or "", until_end=until_end)
    if out is None:
        write_texts(pieces)
        return
    files = GeneratedFiles(task, out, count)
    try:
        write_texts(files.kept(pieces))
    finally:
        files.write()


def _check_sampling(wanted: dict[str, Any], seed: int | None, count: int) -> None:
    length, temperature, top_k, top_p = (wanted[name] for name in ("length", "temperature", "top_k", "top_p"))
    limits = (
        ("--length", length, length is None or length >= 1, "a whole number ≥ 1"),
        ("--temperature", temperature, temperature is None or 0 <= temperature < float("inf"), "a number ≥ 0"),
        ("--top-k", top_k, top_k is None or top_k >= 1, "a whole number ≥ 1"),
        ("--top-p", top_p, top_p is None or 0 < top_p <= 1, "a number above 0 and at most 1"),
        ("--seed", seed, seed is None or 0 <= seed < 2**63, "a whole number ≥ 0"),
        ("--count", count, count >= 1, "a whole number ≥ 1"),
        ("--prompt", repr(wanted["prompt"]), _is_text(wanted["prompt"] or ""), "UTF-8"),
    )
    for name, value, good, expected in limits:
        if not good:
            raise typer.BadParameter(f"expected {expected}; got {value}.", param_hint=name)


def write_texts(pieces: Iterator[list[str]]) -> None:
    """Print the first text while it is sampled, then the others; after Ctrl-C, what was sampled so far."""
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
    """Whether an argument is valid UTF-8; Python represents other bytes by surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def look(
    run: Path = RUN,
    decode: list[str] | None = DECODE,
    out: Path | None = typer.Option(
        None, "--out", "-o", metavar="DIR", help="Folder of the pictures.", show_default="RUN/pictures"
    ),
    text: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="A text, in the encoding of the training text, for all pictures but the curves; or a file of the kind "
        "that the run learned from.",
    ),
    trust_code: bool = TRUST,
) -> None:
    """Draw what a run has learned and what it remembers.

    \b
      everstep look runs/mine
      everstep look runs/mine --text letter.txt --out pictures

    \b
      curves, surprise                     learning; the model's surprise over a passage
      gradient-flow, sensitivity           the reach of gradients; the effect of the first input on later steps
      spectrum, memory                     eigenvalues of the steps; the context that is used
      units, gates, saturation, property   units and gates over the passage, and units that encode its properties
      loss-surface                         the loss around the model, along two random directions

    Pictures are PNG, some also HTML. Each is named as soon as it is drawn; DIR/README.md shows all with captions. The
    passage is from the held-out text, or FILE.
    """
    loaded = load_asked(run, trust_code, "cpu", decode, None, "--text")
    if not loaded.task.optimised:  # no learning to draw
        loaded.able("look")
    from everstep.runs.pictures import draw, pictures_of

    for path, what_to_see in draw(loaded, out or pictures_of(run), text):
        print(f"{path}\n    {what_to_see}", flush=True)
