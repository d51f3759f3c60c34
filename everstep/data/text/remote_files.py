"""Data files at URLs, such as `s3://bucket/text.txt`: copied once into the cache, and read there."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import Any

from everstep.errors import DataError
from everstep.storage.cache_folder import cache_explained, cache_folder, made_aside, publish

_NAME = r"[a-z][a-z0-9+.-]+"  # of two letters at least: C:// is a drive
_URL = re.compile(rf"({_NAME}::)*{_NAME}://", re.IGNORECASE)
_GLOB = re.compile(r"[*\[]")


def is_url(name: str) -> bool:
    """Whether a name is a URL, as fsspec reads them.

    >>> is_url("s3://bucket/a.txt"), is_url("simplecache::s3://bucket/a.txt")
    (True, True)
    >>> is_url("everstep:shakespeare"), is_url("C:/a.txt"), is_url("part::one.txt")
    (False, False, False)
    """
    return _URL.match(name) is not None


def fetched(url: str) -> list[Path]:
    """Local copies of the files that a URL names, or a glob of one matches; those of a glob sorted.

    A file is copied again if its size, date or tag (what the protocol tells) has changed since. Within a process a URL
    is looked up once.

    Args:
        url: of any protocol that fsspec knows; `s3://` needs the package s3fs, and so on.

    Raises:
        DataError: the protocol is unknown or needs a package, nothing matches, the file cannot be read, or the cache
            cannot be written.
    """
    found = _looked_up(url)
    if not all(path.exists() for path in found):  # somebody has emptied the cache
        _looked_up.cache_clear()
        found = _looked_up(url)
    return list(found)


@cache
def _looked_up(url: str) -> tuple[Path, ...]:
    import fsspec

    try:
        system, inside = fsspec.core.url_to_fs(url)
        names = sorted(system.glob(inside)) if _GLOB.search(inside) else [inside]
        about = [(name, system.info(name)) for name in names]
    except FileNotFoundError:
        raise DataError(f"{url}: there is no such file") from None
    except Exception as error:  # each protocol has errors of its own
        raise DataError(f"{url}: cannot be read ({_told(error)})") from error
    files = [(name, said) for name, said in about if said.get("type") != "directory"]
    if not files:
        what = "no file matches" if _GLOB.search(inside) else f"expected a file, got a folder; name its files: {url}/*"
        raise DataError(f"{url}: {what}")
    return tuple(_copied(system, name, said, url) for name, said in files)


def _copied(system: Any, name: str, about: dict[str, Any], url: str) -> Path:
    """The copy of one file in the cache, in a folder named by its address and by what is said about it."""
    if "local" in system.protocol:
        return Path(name)
    said = repr((system.protocol, system.storage_options, name, sorted(about.items(), key=lambda item: str(item[0]))))
    folder = cache_folder() / "fetched" / hashlib.sha256(said.encode()).hexdigest()[:32]
    path = folder / (PurePosixPath(name.partition("?")[0]).name or "file")
    if not path.exists():
        with cache_explained(cache_folder()):
            aside = made_aside(folder)
        try:
            system.get_file(name, str(aside / path.name))
        except Exception as error:
            rmtree(aside, ignore_errors=True)
            raise DataError(f"{url}: cannot be copied to {aside} ({_told(error)})") from error
        with cache_explained(cache_folder()):
            publish(aside, folder)
    return path


def _told(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
