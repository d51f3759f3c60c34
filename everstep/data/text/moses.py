"""Words and punctuation marks parted as Moses does it, and put together again; needs `sacremoses`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from everstep.errors import ConfigError

REMEDY = "pip install 'everstep[translation]'"


def check_moses() -> None:
    """Refuse where `sacremoses` is missing.

    Raises:
        ConfigError: it is.
    """
    if find_spec("sacremoses") is None:
        raise ConfigError(f"data.tokenisation=moses needs sacremoses: {REMEDY}")


class Moses:
    """Moses' tokenizer of one language (Koehn 2007), as `sacremoses` has it; nothing is escaped as in XML.

    >>> moses = Moses("en")
    >>> moses.parted("It's here, isn't it?")
    "It 's here , isn 't it ?"
    >>> moses.joined("It 's here , isn 't it ?")
    "It's here, isn't it?"

    Raises:
        ConfigError: `sacremoses` is missing.
    """

    def __init__(self, language: str):
        check_moses()
        from sacremoses import MosesDetokenizer, MosesTokenizer

        self._tokenizer: Any = MosesTokenizer(lang=language)
        self._detokenizer: Any = MosesDetokenizer(lang=language)

    def parted(self, line: str) -> str:
        """The line with a space between any two tokens."""
        return self._tokenizer.tokenize(line, return_str=True, escape=False)  # type: ignore[no-any-return]

    def joined(self, line: str) -> str:
        """Tokens with a space between any two, as one writes them."""
        return self._detokenizer.detokenize(line.split(" "), unescape=False)  # type: ignore[no-any-return]
