"""The documentation site; `make docs` writes it to build/docs. Every page can be read as Markdown, too."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

import everstep

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/everstep/everstep"

project = "everstep"
author = "The everstep authors"
copyright = author
version = release = everstep.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["results/records"]
myst_heading_anchors = 3
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures have them as they are written; the docstring says what they mean
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = "everstep"
html_copy_source = False
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}

SHOWN: set[str] = set()
PLAIN = re.compile(r"(``.+?``|`[^`]+`)(?P<joined>\w)?|([*|\\]|(?<=\w)_(?!\w))")


class Public(SphinxDirective):
    """`{public} cells heads`: the public names that come from these rooms of the package, each with its docstring."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        rooms = tuple(f"everstep.{room}." for room in self.arguments[0].split())
        names = [name for name, home in everstep._HOME.items() if f"{home}.".startswith(rooms)]
        if not names:
            raise self.error(f"no public name comes from {self.arguments[0]}")
        SHOWN.update(names)
        lines = [line for name in sorted(names) for line in self.described(name)]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))

    @staticmethod
    def described(name: str) -> list[str]:
        value = getattr(everstep, name)
        if not inspect.isclass(value):
            return [f".. autofunction:: everstep.{name}", ""]
        return [f".. autoclass:: everstep.{name}", "   :members:", "   :exclude-members: state_type", ""]


def plain(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: `x` is code, and no other character has a meaning; examples and programs stay."""
    program = False
    for number, line in enumerate(lines):
        program = program and (not line or line.startswith(" "))
        if not program and not line.lstrip().startswith((">>>", "...")):
            lines[number] = escaped(line)
        program = program or (line.endswith("::") and not line.startswith(" "))


def escaped(line: str) -> str:
    def written(found: re.Match[str]) -> str:
        if found[1] is None:
            return f"\\{found[3]}"
        code = f"``{found[1].strip('`')}``"
        return f"{code}\\ {found['joined']}" if found["joined"] else code

    return PLAIN.sub(written, line)


def outside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links to files that are no pages lead to the repository."""
    folder = (ROOT / "docs" / docname).parent

    def there(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        if target.is_relative_to(ROOT / "docs") and target.suffix in (".md", ".png", ".svg"):
            return link[0]
        if not target.exists():
            raise ExtensionError(f"docs/{docname}.md links to {link['path']}, which does not exist")
        kind = "tree" if target.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{target.relative_to(ROOT)}{link['anchor'] or ''})"

    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", source[0], flags=re.M | re.S)  # every other part is code
    parts[::2] = [re.sub(r"\]\((?P<path>(?!https?:|#)[^)#]+)(?P<anchor>#[^)]*)?\)", there, part) for part in parts[::2]]
    source[0] = "".join(parts)


def complete(app: Sphinx, failure: Exception | None) -> None:
    missing = sorted({*everstep._HOME} - SHOWN)
    if failure is None and SHOWN and missing:
        raise ExtensionError(f"public names that are on no page of docs/api: {', '.join(missing)}")


def setup(app: Sphinx) -> None:
    app.add_directive("public", Public)
    app.connect("source-read", outside)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon, which adds markup of its own
    app.connect("build-finished", complete)
