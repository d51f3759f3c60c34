"""The wheel has all that the package needs: it runs where there is no repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEP = """
import torch, everstep as es
from everstep.native import toolchain
xs = torch.ones(2, 5, 3)
cell = es.LSTM(3, 4)
backend = "fused" if toolchain.compiler() else "reference"
print(es.__file__, tuple(cell(xs, backend=backend)[0].shape))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked in a folder of its own."""
    place = tmp_path_factory.mktemp("wheel")
    copy = place / "source"
    copy.mkdir()
    for name in ("everstep", "pyproject.toml", "setup.py", "README.md", "LICENSE"):  # building writes beside them
        (copy / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(place), str(copy)], check=True, capture_output=True, timeout=300)
    (wheel,) = place.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(place / "site")
    return place / "site"


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=installed.parent, capture_output=True, text=True, timeout=300
    )


def test_a_cell_is_compiled_from_the_wheel(installed: Path) -> None:
    done = run(installed, "-c", STEP)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{installed}/everstep/__init__.py (2, 5, 4)\n"


def test_a_bundled_recipe_trains_from_the_wheel(installed: Path) -> None:
    command = ["-m", "everstep", "train", "classify-minute", "train.max_steps=2", "train.max_minutes=null"]
    done = run(installed, *command, "train.validate_every=null", "--out", str(installed.parent / "run"))
    assert done.returncode == 0, done.stderr
    assert (installed.parent / "run" / "model.safetensors").is_file()


def test_the_page_of_the_server_is_in_the_wheel(installed: Path) -> None:
    folder = Path("ship") / "serving" / "page"
    files = sorted(path.name for path in (ROOT / "everstep" / folder).iterdir())
    assert "page.js" in files
    assert files == sorted(path.name for path in (installed / "everstep" / folder).iterdir())


def test_benchmarks_say_what_they_need_where_there_is_no_repository(installed: Path) -> None:
    done = run(installed, "-m", "everstep", "bench")
    assert done.returncode == 2
    assert "come with the source of everstep, not with the package" in done.stderr


def test_links_of_the_description_lead_to_the_repository(installed: Path) -> None:
    (metadata,) = installed.glob("everstep-*.dist-info/METADATA")
    text = metadata.read_text("utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text.partition("\n\n")[2])
    assert len(links) > 5
    assert all(link.startswith("https://") for link in links)
    assert "/raw/main/docs/pictures/demo.png" in text
    assert "/blob/main/docs/cells.md" in text
