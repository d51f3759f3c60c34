"""One model for several directions: tags, mixing, zero-shot directions, figures, pictures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data import Tokenizer, pair_batches
from everstep.data.pair_batches import PairBatches, TokenSequences
from everstep.data.text.language import Language
from everstep.errors import ConfigError, DataError, RunError
from everstep.look.sentence_map import principal_plane, translations_found
from everstep.networks.encoder_decoder import EncoderDecoder, EncoderDecoderSection
from everstep.networks.translating import TranslationSearch, translated
from everstep.runs import pair_tokens
from everstep.runs.directions import Direction, direction_of, mixture, repeated
from everstep.runs.language_maps import parallel_texts, sentence_vectors
from everstep.runs.pair_data import PairTexts
from everstep.runs.pair_section import PairSection
from everstep.runs.recipe_files import load_task
from everstep.runs.translations import _bounded

WORDS = {
    "en": "one two three four five six seven eight".split(),  # noqa: SIM905
    "de": "eins zwei drei vier fünf sechs sieben acht".split(),  # noqa: SIM905
    "fr": "un deux trois quatre cinq six sept huit".split(),  # noqa: SIM905
}
PAIRS = "data.pairs=[en-de, de-en, en-fr, fr-en]"
SMALL = [
    "model.embedding_size=24", "model.hidden_size=32", "model.input_dropout=0", "model.dropout=0",
    "train.batch_size=16", "train.threads=1", "train.patience=null", "train.learning_rate=0.02",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("uncompiled_module")  # loops this small run sooner than they compile


def quietly(line: str) -> None:
    del line


def corpus(folder: Path, name: str, count: int, seed: int = 0, languages: str = "en de fr") -> str:
    """Files of the same numbers, line by line, in several languages."""
    random = np.random.default_rng(seed)
    rows = [random.choice(8, random.integers(1, 4)).tolist() for _ in range(count)]
    for language in languages.split():
        lines = [" ".join(WORDS[language][word] for word in row) + "\n" for row in rows]
        (folder / f"{name}.{language}").write_text("".join(lines))
    return str(folder / name)


def settings_of(folder: Path, *more: str) -> list[str]:
    files = [f"data.train={corpus(folder, 'train', 160)}", f"data.test={corpus(folder, 'test', 12, 1)}"]
    return [*files, PAIRS, "data.zero_shot=[de-fr]", "data.valid=null", "data.valid_fraction=0.1", "data.unit=words",
            "data.max_size=null", *more]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("run")
    more = [*SMALL, "train.max_epochs=8"]
    return es.train("translate-own", folder / "run", quietly, overrides=settings_of(folder, *more))


def cli(*words: object, given: str = "") -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], input=given)


# ----------------------------------------------------------------------------------------------------------- directions


def test_shares_follow_the_temperature() -> None:
    sizes = [900, 100]
    for temperature in (1.0, 2.0, 5.0, 1e6):
        one, other = mixture(sizes, temperature)
        assert one == 900
        assert other / one == pytest.approx((1 / 9) ** (1 / temperature), rel=0.01)
    rows = repeated(100, 250, np.random.default_rng(0))
    counts = np.bincount(rows, minlength=100)
    assert sorted(set(counts.tolist())) == [2, 3]
    assert len(rows) == 250


def test_several_directions_are_read_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def sequences(lengths: list[int]) -> TokenSequences:
        return TokenSequences.of(np.arange(sum(lengths)) + 1, np.array(lengths, np.int64))

    monkeypatch.setattr(pair_batches, "_BLOCK", 3)
    parts = [sequences([2, 0, 3, 1, 4, 2, 2]), sequences([1, 5]), sequences([]), sequences([3, 3])]
    chosen = [None, np.array([0, 0, 1, 1, 1]), None, np.array([1])]
    rows = [
        part.row(int(number))
        for part, some in zip(parts, chosen, strict=True)
        for number in (range(len(part.lengths)) if some is None else some)
    ]
    found = TokenSequences.joined(parts, chosen)
    assert all(one is part.tokens for one, part in zip(found.tokens.parts, parts, strict=True))  # not copied
    assert [found.row(number) for number in range(len(found.lengths))] == rows
    assert np.concatenate(list(found.parts())).tolist() == [token for row in rows for token in row]
    batches = PairBatches(found, found, 0, 4)
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        for place, tokens, length in zip(batch.places, batch.source, batch.source_lengths, strict=True):
            assert tokens[:length].tolist() == rows[place]


@pytest.mark.parametrize("text", ["ende", "en-", "-de", "en-de-fr", "en-en"])
def test_directions_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="expected two"):
        direction_of(text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pairs": ()}, r"pairs: expected a direction or more"),
        ({"pairs": ("ende",)}, r"pairs: expected two languages with one hyphen .*got 'ende'"),
        ({"pairs": ("en-de", "en-de")}, r"pairs: en-de is named twice"),
        ({"pairs": ("en-de",), "zero_shot": ("en-de",)}, r"en-de is named twice"),
        ({"pairs": ("en-de", "de-en"), "zero_shot": ("de-fr",)}, r"zero_shot: de-fr: no direction of pairs writes fr"),
        ({"pairs": ("en-de",), "zero_shot": ("fr-de",)}, r"zero_shot: fr-de: no direction of pairs reads fr"),
        ({"pairs": ("en-de",), "vocabulary": "separate"}, r"vocabulary: expected joint"),
        ({"pairs": ("0-1",), "tokenisation": "moses"}, r"tokenisation: moses needs languages .*got '0'"),
        ({"zero_shot": ("en-de",)}, r"zero_shot: expected pairs beside it"),
        ({"mixing_temperature": 2.0}, r"mixing_temperature: expected pairs beside it"),
        ({"pairs": ("en-de",), "mixing_temperature": 0.5}, r"mixing_temperature"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PairSection(**settings)


def test_a_language_to_translate_to_that_the_recipe_lacks() -> None:
    with pytest.raises(ConfigError, match=r"decode\.to: expected a target language of this recipe \(fr\); got de"):
        load_task("translate-own", ["decode.to=de"])
    assert load_task("translate-own", ["decode.to=fr"])
    with pytest.raises(ConfigError, match=r"decode\.source: expected a language that is read \(en\); got de"):
        load_task("translate-own", ["decode.source=de"])


# ----------------------------------------------------------------------------------------------------------------- tags


@pytest.mark.parametrize("reverse", [False, True])
def test_a_tag_is_before_each_line(reverse: bool) -> None:
    plain = Language(Tokenizer.train(["a b c\n"] * 3, "words"), reverse=reverse)
    size = plain.tokenizer.vocab_size
    tagged = plain.toward("fr", ["de", "fr"])
    assert plain.tag is None
    for line in ("a b c", "", "b"):
        assert tagged.encode([line]).row(0) == [size + 1, *plain.encode([line]).row(0)]
    assert tagged.pieces(tagged.encode(["a b"]).row(0))[0] == "<2fr>"
    assert tagged.encode([]).lengths.tolist() == []
    cut = _bounded(tagged.encode(["a b c a b c"]), 4, tagged)
    assert tagged.pieces(cut.row(0)) == (["<2fr>", "b", "a", "<eos>"] if reverse else ["<2fr>", "a", "b", "<eos>"])


def test_tags_do_not_depend_on_the_order_of_the_directions() -> None:
    one, other = PairSection(pairs=("en-fr", "en-de")), PairSection(pairs=("en-de", "en-fr"))
    assert one.targets == other.targets == ("de", "fr")


def test_a_tag_beyond_the_type_of_the_tokens() -> None:
    tokenizer = Tokenizer.train(["".join(map(chr, range(0x4E00, 0x4E00 + 254))) + "\n"], "chars", eos=True, unk=True)
    assert (tokenizer.vocab_size, tokenizer.dtype) == (256, np.uint8)
    assert Language(tokenizer).toward("b", ["a", "b"]).encode(["一"]).row(0)[0] == 257


def test_tags_have_an_embedding_of_their_own() -> None:
    section = EncoderDecoderSection(embedding_size=4, hidden_size=6, tied="all")
    model = EncoderDecoder(section, 5, 5, tags=2)
    assert model.tag_embedding is not None

    def losses(tag: int) -> torch.Tensor:
        source = TokenSequences.of(np.array([tag, 1, 2, 0]), np.array([4]))
        target = TokenSequences.of(np.array([3, 0]), np.array([2]))
        return model.losses(PairBatches(source, target, 0, 1).batch(0, 0))[0]

    assert not torch.equal(losses(5), losses(6))
    losses(6).sum().backward()
    grad = model.tag_embedding.weight.grad
    assert grad is not None
    assert not grad[0].any()
    assert grad[1].any()
    assert model.head.weight.shape[0] == 5  # tags are never written


# ----------------------------------------------------------------------------------------------------------------- data


def texts(train: Any, **more: Any) -> PairTexts:
    given = {"pairs": ("en-de", "de-en", "en-fr", "fr-en"), "unit": "words", **more}
    return PairTexts(PairSection(train=train, **given), 1)


def test_a_line_is_held_out_in_every_direction(tmp_path: Path) -> None:
    found = texts(corpus(tmp_path, "t", 200), valid_fraction=0.1)
    lines = {
        split: {str(d): {pair.line for pair in found.pairs(split, d)} for d in found.directions(split)}
        for split in ("train", "valid")
    }
    assert len({frozenset(some) for some in lines["valid"].values()}) == 1
    assert not lines["valid"]["en-de"] & lines["train"]["fr-en"]
    assert len(lines["valid"]["en-de"]) == 20
    assert len(lines["train"]["de-en"]) == 180


def test_what_another_name_adds_changes_which_lines_are_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of a.en and a.de that are held out depend also on the number of lines in b.en and b.fr."""
    monkeypatch.setenv("EVERSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pair_tokens, "CACHED", 0)
    one, other = corpus(tmp_path, "a", 60, languages="en de"), corpus(tmp_path, "b", 4, languages="en fr")
    for count in (4, 400):
        corpus(tmp_path, "b", count, languages="en fr")
        found = texts((one, other), pairs=("en-de", "en-fr"), unit="bytes", valid_fraction=0.1)
        coded = found.coded("valid", found.languages(), direction=Direction("en", "de"))
        assert len(coded.source.lengths) == len(list(found.pairs("valid", Direction("en", "de"))))


def test_a_text_of_several_directions_counts_once_in_the_vocabulary(tmp_path: Path) -> None:
    found = texts(corpus(tmp_path, "t", 50), valid_fraction=0)
    words = sorted(word for line in found._words((0, 1)) for word in line.split())
    every = [word for language in WORDS for word in (tmp_path / f"t.{language}").read_text().split()]
    assert words == sorted(every)


def test_moses_has_rules_for_each_language(tmp_path: Path) -> None:
    lines = {"en": "it's here.", "fr": "l'été, d'accord."}
    for language, line in lines.items():
        (tmp_path / f"m.{language}").write_text(f"{line}\n")
    found = texts(str(tmp_path / "m"), pairs=("en-fr", "fr-en"), tokenisation="moses", valid_fraction=0)
    sides = found.languages()
    parted = {"en": "it 's here .", "fr": "l' été , d' accord ."}
    for source, target in (("en", "fr"), ("fr", "en")):
        both = found.toward(sides, Direction(source, target))
        (ids,) = (both.source.encode([lines[source]]).row(0),)
        assert both.source.pieces(ids) == [f"<2{target}>", *parted[source].split(), "<eos>"]
        assert both.target.text(both.target.encode([lines[target]]).row(0)) == lines[target]
        assert found.asked(sides, target, source).source.encode([lines[source]]).row(0) == ids
    with pytest.raises(ConfigError, match=r"reads en, fr, each with its own rules of Moses.*decode\.source=en"):
        found.asked(sides, "fr", None)
    assert found.coded("train", sides, learn=True).source.lengths.tolist() == [6, 8]


def test_names_may_lack_languages(tmp_path: Path) -> None:
    one, other = corpus(tmp_path, "a", 20, languages="en de"), corpus(tmp_path, "b", 10, languages="en fr")
    found = texts((one, other), valid_fraction=0, mixing_temperature=1e6)
    sides = found.languages()
    sizes = [len(found.coded("train", sides, True, one).source.lengths) for one in found.directions("train")]
    assert sizes == [20, 20, 10, 10]
    assert len(found.coded("train", sides, learn=True).source.lengths) == 80  # each direction as often
    with pytest.raises(DataError, match=r"data\.pairs: en-fr: none of .* is the prefix of its two files"):
        texts(one, valid_fraction=0).languages()
    with pytest.raises(DataError, match=r"c: no file matches.*or the beginning of two files"):
        PairSection(train=one, pairs=("en-de",)).look_for([one, corpus(tmp_path, "c", 3, languages="fr")])
    section = PairSection(train=one, pairs=("en-de",))
    assert {path.name for path in section.look_for(one)} == {"a.en", "a.de"}


def test_what_is_told_and_digested(tmp_path: Path) -> None:
    name = corpus(tmp_path, "t", 30)
    found = texts(name, valid_fraction=0, test=corpus(tmp_path, "s", 5, 3), zero_shot=("fr-de",))
    told = list(found.told(found.languages()))
    assert any(line.startswith("train, en-de: 30 pairs of ") for line in told)
    (zero,) = [line for line in told if "zero-shot" in line]
    assert zero.startswith("test, fr-de: 5 pairs")
    assert found.digest("train") != texts(name, valid_fraction=0, pairs=("en-de", "de-en")).digest("train")


# ------------------------------------------------------------------------------------------------------------ the model


def test_a_run_to_start_from_has_the_same_target_languages(run: es.Run, tmp_path: Path) -> None:
    files = [f"data.train={corpus(tmp_path, 'more', 40, 4)}", "data.unit=words", "data.max_size=null"]
    more = [*files, *SMALL, "train.max_steps=1", "train.max_epochs=null", "data.valid=null"]
    with pytest.raises(RunError, match=r"target languages is \['de', 'en', 'fr'\] there and \['de', 'en'\] here"):
        es.train("translate-own", tmp_path / "fewer", quietly, overrides=[*more, "data.pairs=[en-de, de-en]"],
                 start_from=run.path)  # fmt: skip
    assert not (tmp_path / "fewer").exists()
    other = "data.pairs=[fr-en, en-fr, en-de]"
    es.train("translate-own", tmp_path / "same", quietly, overrides=[*more, other], start_from=run.path)


def test_a_passage_is_read_with_its_tag(run: es.Run) -> None:
    """The encoder gives at the pieces of a passage what it gives in a translation."""
    task: Any = run.task
    model = run.model.eval()
    for to in ("de", "fr"):
        passage = run.decoding([f"decode.to={to}"]).passage("one two seven")
        assert passage.labels == ["one ", "two ", "seven "]
        sides = task.texts.toward(task.sides, Direction("en", to))
        coded = torch.tensor([sides.source.encode(["one two seven"]).row(0)[:-1]])
        with torch.no_grad():
            memory = model.encoded(coded, torch.tensor([4]))[0]
            seen = passage.body(passage.inputs[None])[0][0]
        torch.testing.assert_close(seen[passage.places], memory[1:])
    with pytest.raises(DataError, match="the passage is empty"):
        run.passage(" ")


def test_the_tag_decides_the_language(run: es.Run) -> None:
    lines = ["one two", "three"]
    german = [one.text for one in run.decoding(["decode.to=de"]).predict(lines)]
    french = [one.text for one in run.decoding(["decode.to=fr"]).predict(lines)]
    assert set(" ".join(german).split()) <= set(WORDS["de"])
    assert set(" ".join(french).split()) <= set(WORDS["fr"])
    with pytest.raises(ConfigError, match=r"translates to de, en, fr: say to which \(--to, or decode\.to=de\)"):
        next(run.predict(lines))
    with pytest.raises(
        ConfigError, match=r"decode\.to: expected a target language of this recipe \(de, en, fr\); got es"
    ):
        run.decoding(["decode.to=es"])


def test_the_command_line(run: es.Run) -> None:
    done = cli("predict", run.path, "--to", "fr", "--json", given="one\n\n")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["source_tokens"] == ["<2fr>", "one", "<eos>"]
    assert second["translation"] == ""
    assert "got it" in cli("predict", run.path, "--to", "it", given="one\n").output
    assert "say to which" in cli("predict", run.path, given="one\n").output
    scored = cli("score", run.path, "decode.to=de", given="one\teins\none\tun\n").stdout.splitlines()
    assert float(scored[0].split("\t")[0]) > float(scored[1].split("\t")[0])


def test_a_run_knows_the_tokens_of_its_languages(run: es.Run) -> None:
    known = es.load(run.path).task.sides.target.own  # type: ignore[attr-defined]
    tokenizer = run.task.sides.target.tokenizer  # type: ignore[attr-defined]
    assert sorted(known) == ["de", "en", "fr"]
    words = {tokenizer.symbols[token] for token in known["fr"]} - {"<eos>", "<unk>"}
    assert words == set(WORDS["fr"])
    lines = ["drei eins", "acht", "fünf fünf zwei"]  # German to French is never trained
    own = run.decoding(["decode.to=fr", "decode.own_tokens=true", "decode.min_length=1"])
    written = {word for one in own.predict(lines) for word in one.text.split()}
    assert written
    assert written <= set(WORDS["fr"])
    (run.path / "languages.json").rename(run.path / "away.json")
    try:
        with pytest.raises(RunError, match=r"languages\.json"):
            es.load(run.path)
    finally:
        (run.path / "away.json").rename(run.path / "languages.json")
    with pytest.raises(ConfigError, match=r"decode\.own_tokens: expected false, or data\.pairs"):
        load_task("translate-own", ["decode.own_tokens=true"])


def test_a_run_from_another_one_writes_the_tokens_of_both(run: es.Run, tmp_path: Path) -> None:
    name = corpus(tmp_path, "few", 40, 4)
    for language in WORDS:  # only one word of each language, and a word of English among the German ones
        (tmp_path / f"few.{language}").write_text(f"{WORDS[language][0]}{' two' if language == 'de' else ''}\n" * 40)
    more = [f"data.train={name}", PAIRS, "data.unit=words", "data.max_size=null", "data.valid_fraction=0", *SMALL]
    more += ["data.valid=null", "train.max_steps=1", "train.max_epochs=null"]
    started = es.train("translate-own", tmp_path / "from", quietly, overrides=more, start_from=run.path)
    before, after = (es.load(one.path).task.sides.target for one in (run, started))  # type: ignore[attr-defined]
    assert set(after.own["de"]) - set(before.own["de"]) == {before.tokenizer.symbols.index("two")}
    assert after.own["fr"] == before.own["fr"]


def test_only_own_tokens_are_written(run: es.Run) -> None:
    sides = run.task.texts.asked(run.task.sides, "de", None)  # type: ignore[attr-defined]
    target = sides.target
    (eins,), unk = target.encode(["eins"]).row(0)[:-1], target.tokenizer.unk_id
    source, how = sides.source.encode(["one two three"]), TranslationSearch(min_length=2, max_length=2, own_tokens=True)
    only = Language(target.tokenizer, only=[eins])
    ((best,),) = translated(run.model, source, only, how)
    assert best.tokens == [eins] * 2
    ((best,),) = translated(run.model, source, only, how.replace(replace_unknown=True, no_repeat=1))
    assert sorted(best.tokens) == sorted([eins, unk])  # a source word takes the place of the unknown one


def test_phrases_of_other_tokens_are_told(run: es.Run) -> None:
    to, wish = run.decoding(["decode.to=de", "decode.own_tokens=true"]), '{"text": "one", "phrases": ["un"]}'
    with pytest.raises(DataError, match=r"line 1 .*'un' has 'un', which no training text of the target language has"):
        list(to.predict([wish], format="jsonl"))
    (found,) = run.decoding(["decode.to=de", "decode.length_ratio=9"]).predict([wish], format="jsonl")
    assert "un" in found.text.split()


def test_pictures_of_own_texts_are_of_the_direction_that_is_asked_for(tmp_path: Path) -> None:
    found = texts(corpus(tmp_path, "t", 20), valid_fraction=0)
    assert found.drawn("fr", "de", held_out=False) == Direction("fr", "de")  # which is neither trained nor tested
    assert found.drawn("fr", None, held_out=False) == Direction("fr", "en")
    assert found.drawn("fr", "de", held_out=True) == Direction("en", "de")
    moses = texts(str(tmp_path / "t"), valid_fraction=0, tokenisation="moses")
    with pytest.raises(ConfigError, match=r"decode\.source=en"):
        moses.drawn(None, "de", held_out=False)


def test_pictures_take_settings_of_decode(run: es.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    told = lambda loaded, out, text: asked.append(loaded.task.recipe.decode.to) or []  # noqa: E731
    monkeypatch.setattr("everstep.runs.pictures.draw", told)
    assert cli("look", run.path, "decode.to=fr").exit_code == 0
    assert asked == ["fr"]


def test_figures_of_every_direction(run: es.Run) -> None:
    found = run.evaluate("test")
    assert list(found["directions"]) == ["en-de", "de-en", "en-fr", "fr-en", "de-fr"]
    rows = found["directions"].values()
    assert found["bleu"] == pytest.approx(np.mean([row["bleu"] for row in rows]))
    assert found["pairs"] == 5 * 12
    (alone,) = [run.decoding(["decode.to=de"]).score(["one two\teins zwei"])]
    assert alone[0].tokens == 3
    assert "de-fr" in cli("eval", run.path).stdout
    held_out = run.evaluate("valid")
    assert list(held_out["directions"]) == ["en-de", "de-en", "en-fr", "fr-en"]
    assert run.task.loss_on(run.model, "valid") == pytest.approx(held_out["loss"], rel=1e-6)  # nothing is translated


def test_an_evaluation_of_files_without_some_languages(run: es.Run, tmp_path: Path) -> None:
    name = corpus(tmp_path, "two", 4, 5, "en de")
    assert list(run.evaluate(data=[name])["directions"]) == ["en-de", "de-en"]


def test_predictions_depend_on_neither_order_nor_company(run: es.Run) -> None:
    to = run.decoding(["decode.to=de"])
    lines = ["one two", "", "seven", "trois un", "zzz"]
    together = [one.text for one in to.predict(lines)]
    assert [next(to.predict([line])).text for line in lines] == together


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_maps_of_sentences(run: es.Run, tmp_path: Path) -> None:
    task: Any = run.task
    parallel = parallel_texts(task.texts, "test")
    assert list(parallel) == ["en", "de", "fr"]
    assert parallel["de"][0].split() == [WORDS["de"][WORDS["en"].index(word)] for word in parallel["en"][0].split()]
    sides = task.texts.toward(task.sides, Direction("en", "de"))
    lines = ["one", "one two three", "two"]
    vectors = sentence_vectors(run.model, sides, lines)
    for row, line in zip(vectors, lines, strict=True):
        np.testing.assert_allclose(sentence_vectors(run.model, sides, [line])[0], row, atol=1e-6)
    drawn = dict(task.pictures(run.model, tmp_path, None))
    assert {"sentences.png", "sentences-neighbours.png"} <= {path.name for path in drawn}
    assert all(path.is_file() for path in drawn)


def test_principal_plane_and_neighbours() -> None:
    random = np.random.default_rng(0)
    flat = random.standard_normal((30, 2)) @ random.standard_normal((2, 7)) + 3
    plane, share = principal_plane(flat)
    assert share == pytest.approx(1)
    distances = [np.linalg.norm(points[:, None] - points[None], axis=-1) for points in (flat, plane)]
    np.testing.assert_allclose(distances[0], distances[1], atol=1e-9)  # a plane is seen as it is
    assert translations_found(flat, flat + 1) == 1.0
