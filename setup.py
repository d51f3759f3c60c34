"""The package's description: the README, with links that lead to the repository."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def absolute(link: re.Match[str]) -> str:
    """`](docs/cells.md)` → `](https://…/blob/main/docs/cells.md)`; a picture's leads to its bytes."""
    kind = "raw" if link["picture"] else "blob"
    return f"{link['picture']}{link['text']}({REPOSITORY}/{kind}/main/{link['path']})"


LINK = re.compile(r"(?P<picture>!?)(?P<text>\[[^\]]*\])\((?P<path>(?!https?:|#)[^)]+)\)")
README = (ROOT / "README.md").read_text("utf-8")
setup(long_description=LINK.sub(absolute, README), long_description_content_type="text/markdown")
