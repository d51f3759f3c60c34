"""A script under another interpreter, which answers lines of JSON with lines of JSON."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


class Child:
    """A script of this folder under `python`. The first line that it writes is its versions."""

    def __init__(self, python: str, script: str, *words: str):
        command = [python, str(Path(__file__).with_name(script)), *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r}: it ended instead of answering; its own message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **what: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
