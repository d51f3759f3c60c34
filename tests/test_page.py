"""The page of the server: used by its keys and buttons in Chromium, and read as its parts."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, browser

import everstep as es
from everstep.native import toolchain

PAGE = Path(es.__file__).parent / "ship" / "serving" / "page"


class Parts(html.parser.HTMLParser):
    """The elements of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside_label = 0
        self.labelled: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.found.append((tag, given))
        self.inside_label += tag == "label"
        if tag == "label" and given.get("for"):
            self.labelled.add(str(given["for"]))
        if self.inside_label and given.get("id"):
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


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a text model and a classifier, hardly trained."""
    folder = tmp_path_factory.mktemp("page")
    short = ["train.max_steps=2", "train.max_minutes=null", "model.hidden_size=8", "train.validate_every=null"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_COMPILER", "none")
        patch.setattr(toolchain, "_noticed", {*toolchain._noticed, "compiler"})
        for name, recipe in (("play", "shakespeare-minute"), ("reviews", "classify-minute")):
            es.train(recipe, folder / name, lambda _: None, overrides=short)
    environment = {**os.environ, "EVERSTEP_COMPILER": "none", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "everstep", "serve", "--port", "0", str(folder / "play"), str(folder / "reviews")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stderr is not None
            found = next(filter(None, (re.search(r"http://[\d.:]+/", line) for line in server.stderr)))
            yield found[0]
        finally:
            server.terminate()
            server.communicate()


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


def test_every_control_is_used(chromium: Browser, address: str) -> None:
    page = chromium
    page.size(1000, 800)
    page.open(address)
    page.until("document.querySelectorAll('#next li').length === 10")
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
    page.run(
        "(() => { const select = document.getElementById('part'); select.selectedIndex = 1; "
        "select.dispatchEvent(new Event('change')); })()"
    )
    page.until("document.getElementById('units-status').textContent.includes('of unit 3')")
    assert page.run("document.querySelector('#unit-plot svg').getAttribute('aria-label')").startswith("c of unit 3")

    page.run("document.getElementById('tab-learning').click()")
    page.until("document.querySelector('#curves svg polyline, #curves svg circle')")
    page.run(
        "(() => { const select = document.getElementById('measure'); select.selectedIndex = 1; "
        "select.dispatchEvent(new Event('change')); })()"
    )
    page.until("document.querySelectorAll('#curves svg').length === 2")
    page.run("document.getElementById('live').click()")

    page.run(
        "(() => { const select = document.getElementById('run'); select.value = 'reviews'; "
        "select.dispatchEvent(new Event('change')); })()"
    )
    assert text_of(page, "tabs") == "PredictUnitsLearning"
    fill(page, "lines", "not bad at all\ndull")
    page.run("document.getElementById('explain').click()")
    page.run("document.querySelector('#predict-form button').click()")
    page.until("document.querySelectorAll('#predicted article').length === 2")
    assert page.run("document.querySelectorAll('#predicted .bar').length") == 4

    # the refusal that was asked for above is the only thing that the console calls an error
    assert [error for error in page.errors if "422" not in error] == []
    assert {one.split("/")[2] for one in page.requests if one.startswith("http")} == {address.split("/")[2]}


@pytest.mark.parametrize(("width", "height", "dark"), [(320, 640, True), (3840, 2160, False)])
def test_nothing_is_wider_than_the_window(chromium: Browser, address: str, width: int, height: int, dark: bool) -> None:
    page = chromium
    page.size(width, height, dark)
    page.open(address)
    page.until("document.querySelectorAll('#next li').length === 10")
    for name in ("next", "generate", "score", "units", "learning"):
        page.run(f"document.getElementById('tab-{name}').click()")
        assert page.run("document.documentElement.scrollWidth") <= width
        small = "[...document.querySelectorAll('button')].filter((one) => one.offsetParent && one.offsetHeight < 24)"
        assert page.run(f"{small}.length") == 0
    ground = page.run("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
