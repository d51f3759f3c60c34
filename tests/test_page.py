"""The page of the server: used by its keys and buttons in Chromium, and read as its parts."""

from __future__ import annotations

import html.parser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from apart import ended
from chromium import Browser, browser
from service_client import running

import everstep as es
from everstep.native import toolchain

PAGE = Path(es.__file__).parent / "ship" / "serving" / "page"
AUDIT = (Path(__file__).parent / "page_audit.js").read_text("utf-8")
TOKEN = "a-token-that-nobody-guesses"
NOTE = """(() => {
  window.keyOf = (node) => node.id || `a button of ${node.closest("form")?.id}`;
  window.used = new Set();
  const note = ({ target }) => {
    if (target.closest?.("input, select, textarea, button")) used.add(keyOf(target));
  };
  for (const kind of ["input", "change", "click"]) document.addEventListener(kind, note, true);
})()"""
"""Notes which controls are used."""
UNUSED = """[...document.querySelectorAll("input, select, textarea, form button, #halt")].map(keyOf)
  .filter((key) => !used.has(key))"""


class Parts(html.parser.HTMLParser):
    """The elements of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside_label = 0
        self.holds_output = False
        self.labelled: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.found.append((tag, given))
        self.inside_label += tag == "label"
        self.holds_output |= self.inside_label > 0 and tag == "output"
        if tag == "label":
            self.holds_output = False
            self.labelled |= {str(given["for"])} if given.get("for") else set()
        if self.inside_label and given.get("id") and not self.holds_output:  # a label is of the first that can have one
            self.labelled.add(str(given["id"]))

    def handle_endtag(self, tag: str) -> None:
        self.inside_label -= tag == "label"


def test_each_control_has_a_label_and_each_id_is_one() -> None:
    parts = Parts()
    parts.feed((PAGE / "index.html").read_text("utf-8"))
    controls = [given["id"] for tag, given in parts.found if tag in ("input", "select", "textarea")]
    assert len(controls) > 10
    assert not [name for name in controls if name not in parts.labelled]
    ids = [given["id"] for _, given in parts.found if "id" in given]
    assert len(ids) == len(set(ids))
    assert not [given for _, given in parts.found if any(name.startswith("on") or name == "style" for name in given)]


def test_the_scripts_ask_for_ids_that_are_there_and_no_other_host() -> None:
    ids = set(re.findall(r'id="([^"]+)"', (PAGE / "index.html").read_text("utf-8")))
    for path in PAGE.iterdir():
        text = path.read_text("utf-8")
        assert not [one for one in re.findall(r"https?://[^\s\"'`]+", text) if "www.w3.org" not in one], path
        for name in re.findall(r'byId\("([^"]+)"\)', text):
            assert name in ids, (path, name)
        assert "innerHTML" not in text  # what a model writes is text


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_have_the_contrast_of_wcag_aa(theme: int) -> None:
    css = (PAGE / "style.css").read_text("utf-8").replace("#fff;", "#ffffff;")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css.split(":root")[1 + theme]))
    for text, ground, least in (
        ("ink", "ground", 7), ("soft", "ground", 4.5), ("soft", "raised", 4.5), ("ink", "raised", 4.5),
        ("accent", "ground", 4.5), ("on-accent", "accent", 4.5), ("second", "ground", 4.5), ("bad", "ground", 4.5),
        ("line", "ground", 3),
    ):  # fmt: skip
        assert contrast(colours[text], colours[ground]) >= least, (text, ground)


JOBS = {"play": "shakespeare-minute", "reviews": "classify-minute", "orders": "tag-own"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a text model, a classifier and a tagger, hardly trained, that asks for its token."""
    folder = tmp_path_factory.mktemp("page")
    short = ["train.max_steps=2", "train.max_minutes=null", "model.hidden_size=8", "train.validate_every=null"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_COMPILER", "none")
        patch.setattr(toolchain, "_noticed", {*toolchain._noticed, "compiler"})
        for name, recipe in JOBS.items():
            small = ["model.characters=none"] if name == "orders" else []
            es.train(recipe, folder / name, lambda _: None, overrides=[*short, *small])
        patch.setenv("EVERSTEP_TOKEN", TOKEN)
        server, found = running([str(folder / name) for name in JOBS], folder / "log")
    yield found
    server.terminate()
    assert ended(server) == 0


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as found:
        yield found


def fill(page: Browser, name: str, text: str) -> None:
    page.run(f"document.getElementById('{name}').focus()")
    page.run(f"document.getElementById('{name}').select?.()")
    page.type(text)


def text_of(page: Browser, name: str) -> str:
    return str(page.run(f"document.getElementById('{name}').textContent"))


def enter(page: Browser, address: str, script: str = "0") -> None:
    """Open the page, run a script there, and give the token that it asks for."""
    page.open(address)
    page.until("document.activeElement?.id === 'token'")
    page.run(script)
    page.type(TOKEN)
    page.run("document.querySelector('#token-form button').click()")
    page.until("document.querySelectorAll('#next li').length === 10")


def choose(page: Browser, name: str, value: str) -> None:
    """Choose an option."""
    page.run(
        f"(() => {{ const select = document.getElementById('{name}'); select.value = '{value}'; "
        "select.dispatchEvent(new Event('change')); })()"
    )


def test_every_control_is_used(chromium: Browser, address: str) -> None:
    page = chromium
    page.size(1000, 800)
    enter(page, address, NOTE)
    tabs = page.run("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.textContent)")
    assert tabs == ["Next symbol", "Generate", "Score", "Units", "Learning"]

    fill(page, "typed", "To be")
    page.until("document.querySelectorAll('#surprised span').length === 5")
    assert "bits a symbol" in text_of(page, "surprise-words")
    page.run("document.querySelector('#next button').click()")
    page.until("document.querySelectorAll('#surprised span').length === 6")

    page.run("document.querySelector('[role=tab]').focus()")
    page.key("ArrowRight")
    assert page.run("document.activeElement.id") == "tab-generate"
    assert page.run("document.activeElement.getAttribute('aria-selected')") == "true"
    assert page.run("!document.getElementById('panel-generate').hidden")
    fill(page, "prompt", "To be")
    for name, value in (("length", 20), ("temperature", 0.5), ("top-k", 5), ("top-p", 0.9)):
        page.run(
            f"(() => {{ const slider = document.getElementById('{name}'); slider.value = {value}; "
            "slider.dispatchEvent(new Event('input')); })()"
        )
        assert page.run(f"document.querySelector('output[for={name}]').textContent") == str(value)
    fill(page, "seed", "3")
    texts = []
    for _ in range(2):
        page.run("document.getElementById('generate-status').textContent = ''")
        page.run("document.getElementById('go').click()")
        page.until("document.getElementById('generate-status').textContent.startsWith('20 tokens')")
        texts.append(text_of(page, "generated"))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 25
    page.run("(() => { const slider = document.getElementById('length'); slider.value = 2000; })()")
    page.run("document.getElementById('go').click()")
    page.until("document.getElementById('generated').textContent.length > 5")
    page.run("document.getElementById('halt').click()")
    page.until("document.getElementById('generate-status').textContent === 'Stopped.'")

    page.run("document.getElementById('tab-score').click()")
    fill(page, "scored-lines", "To be\nor not")
    page.run("document.querySelector('#score-form button').click()")
    page.until("document.querySelectorAll('#scored tbody tr').length === 2")
    fill(page, "scored-lines", "東")
    page.run("document.querySelector('#score-form button').click()")
    page.until("document.getElementById('trouble').textContent.includes('not in the vocabulary')")

    page.run("document.getElementById('tab-units').click()")
    fill(page, "units-text", "To be, or not")
    page.run("document.querySelector('#units-form button').click()")
    page.until("document.querySelectorAll('#unit-text span').length === 13")
    fill(page, "unit", "3")
    choose(page, "part", "c")
    page.until("document.getElementById('units-status').textContent.includes('of unit 3')")
    assert page.run("document.querySelector('#unit-plot svg').getAttribute('aria-label')").startswith("c of unit 3")
    page.run("document.getElementById('units-status').textContent = ''")
    choose(page, "layer", "0")
    page.until("document.getElementById('units-status').textContent.includes('of unit 3')")

    page.run("document.getElementById('tab-learning').click()")
    page.until("document.querySelector('#curves svg polyline, #curves svg circle')")
    page.run(
        "(() => { const select = document.getElementById('measure'); select.selectedIndex = 1; "
        "select.dispatchEvent(new Event('change')); })()"
    )
    page.until("document.querySelectorAll('#curves svg').length === 2")
    page.run("document.getElementById('live').click()")

    choose(page, "run", "reviews")
    assert text_of(page, "tabs") == "PredictUnitsLearning"
    assert text_of(page, "lines-form") == "One text per line."
    fill(page, "lines", "not bad at all\ndull")
    page.run("document.getElementById('explain').click()")
    page.run("document.querySelector('#predict-form button').click()")
    page.until("document.querySelectorAll('#predicted article').length === 2")
    assert page.run("document.querySelectorAll('#predicted .bar').length") == 4

    choose(page, "run", "orders")
    assert text_of(page, "lines-form") == "One word per line, and an empty line after each sentence."
    fill(page, "lines", "two\nlarge\npizzas\n")
    fill(page, "n-best", "2")
    page.run("document.getElementById('probabilities').click()")
    page.run("document.querySelector('#predict-form button').click()")
    page.until("document.querySelectorAll('#predicted .word').length === 3")

    assert page.run(UNUSED) == []
    # the refusals that were asked for above are the only thing that the console calls an error
    assert [error for error in page.errors if "422" not in error and "401" not in error] == []
    assert {one.split("/")[2] for one in page.requests if one.startswith("http")} == {address.split("/")[2]}


SHOWN = """(async () => {
  const { shown } = await import("/page/predictions.js");
  const words = ["Alice", "in", "Paris"];
  const tags = { tokens: words, tags: ["B-PER", "O", "B-LOC"], probabilities: [{ "B-PER": 0.9 }, {}, {}] };
  const alignment = [[0.9, 0.1, 0], [0, 0.2, 0.8]];
  const translation = {
    translation: "a b", source_tokens: words, tokens: ["a", "b"], token_log_p: [-0.1, -2], alignment,
  };
  const explanation = { pieces: ["not ", "bad"], gradient: [2, -1] };
  const label = { text: "not bad", label: "good", probabilities: { good: 0.9, bad: 0.1 }, explanation };
  const rows = [0, 1, 2].map((k) => (
    { unique_id: "a", ds: `2024-01-0${k + 1}`, mean: k, "q0.05": k - 1, "q0.95": k + 1 }));
  const found = [tags, { ...translation, n_best: [translation, { ...translation, log_p: -3 }] }, label];
  document.getElementById("panel-predict").hidden = false;
  document.getElementById("predicted").replaceChildren(
    ...shown(found.map((record) => ({ text: "x", record }))), ...shown(rows.map((record) => ({ text: "x", record }))));
  document.querySelector("button.word").focus(); // shows what the word reads
})()"""
"""Shows a prediction of each kind."""
TICKS = """(async () => {
  const { names, plot, ticks } = await import("/page/plot.js");
  const of = (low, high) => ticks(low, high).length;
  const flat = (value, more) => plot({
    lines: [{ name: "a", points: [[0, value], [1, value + more]] }], along: "x", across: "y", label: "z",
  }).querySelectorAll("text").length;
  return {
    plain: ticks(0, 1), steps: ticks(3, 47), below: ticks(-0.2, 0.1), wide: of(-1e308, 1e308),
    near: of(1e16, 1e16 + 2), nearer: of(1, 1 + 2e-16),
    same: [flat(1e16, 2), flat(1e16, 0), flat(0, 0), flat(1, 1e-16)],
    names: [[1e6, 1.5e6], [1000.001, 1000.002], [0, 0.5], [2e16, 2e16]].map((some) => names(some)),
  };
})()"""


def test_ticks_end_also_where_numbers_hardly_differ(chromium: Browser, address: str) -> None:
    chromium.open(address)
    chromium.until("document.readyState === 'complete' && document.activeElement?.id === 'token'")
    found = chromium.run(TICKS)
    assert found["plain"] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert found["steps"] == [10, 20, 30, 40]
    assert found["below"] == [-0.2, -0.1, 0, 0.1]
    assert found["names"][:3] == [["1.0e+6", "1.5e+6"], ["1,000.001", "1,000.002"], ["0", "0.5"]]
    assert found["names"][3] == ["2e+16", "2e+16"]
    assert 3 <= found["wide"] <= 6
    assert 1 <= found["near"] <= 6
    assert 1 <= found["nearer"] <= 6
    assert all(8 < texts < 20 for texts in found["same"])


LONG_TICKS = """(async () => {
  const { plot } = await import("/page/plot.js");
  const points = Array.from({ length: 24 }, (_, k) => [k, k]);
  const svg = plot({ lines: [{ name: "a", points }], along: "x", across: "y", label: "z",
    named: (k) => `06-08 ${k}:00` });
  document.body.append(svg);
  const named = [...svg.querySelectorAll("text")].filter((text) => text.textContent.startsWith("06-08"));
  return [svg.viewBox.baseVal.width, ...named.map((text) => text.getBBox().x + text.getBBox().width)];
})()"""


def test_long_ticks_are_whole_where_the_window_is_narrow(chromium: Browser, address: str) -> None:
    chromium.size(320, 640)
    chromium.open(address)
    chromium.until("document.readyState === 'complete' && document.activeElement?.id === 'token'")
    width, *ends = chromium.run(LONG_TICKS)
    assert len(ends) == 2
    assert max(ends) <= width


@pytest.mark.parametrize(("width", "height", "dark"), [(320, 640, True), (3840, 2160, False)])
def test_nothing_is_wider_than_the_window(chromium: Browser, address: str, width: int, height: int, dark: bool) -> None:
    page = chromium
    page.size(width, height, dark)
    enter(page, address)
    fill(page, "typed", "To be, or not")
    page.until("document.querySelectorAll('#surprised span').length === 13")
    for name in ("next", "generate", "score", "units", "learning"):
        page.run(f"document.getElementById('tab-{name}').click()")
        if name == "units":
            fill(page, "units-text", "To be, or not")
            page.run("document.querySelector('#units-form button').click()")
            page.until("document.querySelector('#unit-plot svg')")
        if name == "learning":
            page.until("document.querySelector('#curves svg')")
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run(AUDIT) == [], name
    page.run(SHOWN)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(AUDIT) == []
    ground = page.run("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
