"""States that clients keep: a state as a text that only a server with the same key can have written."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct

import torch
from torch import Tensor

from everstep.ship.serving.faults import Fault
from everstep.ship.serving.hosted import IDENTITY, Catalogue, HostedRun
from everstep.ship.serving.stepping import Stepped

VERSION = 1
HEAD = struct.Struct(f"<B{IDENTITY}sQB")
"""Version, identity of the model, steps, kind of the last output."""
KINDS = (None, torch.float32, torch.float64)
"""Kinds of the last output: none is kept, or its numbers."""
SIGNATURE = hashlib.sha256().digest_size


class StateSeal:
    """Writes states as texts, and reads those that it wrote.

    A text is base64 for URLs, without padding, of: HMAC-SHA256 (RFC 2104) of the rest with the key; version (1 byte),
    identity of the model (16), number of steps (8), kind of the last output (1); the leaves of the state, then the last
    output, as bytes. It is signed and not encrypted. It does not expire: a text can be given again, which is a fork.

    Args:
        key: the secret.
        most: most characters of a text.
    """

    def __init__(self, key: bytes, most: int):
        self._key, self._most = hashlib.sha256(key).digest(), most

    def check_room(self, hosted: HostedRun, keep_last: bool) -> None:
        """Raise unless a state of the run fits into a text.

        Raises:
            Fault: 409, the run has no step, or its states are too large.
        """
        engine, _ = hosted.stepped()
        last = torch.zeros(engine.gives) if keep_last else None
        needed = (4 * (SIGNATURE + HEAD.size + engine.size(engine.initial(), last)) + 2) // 3
        if needed > self._most:
            raise Fault(
                409,
                f"a state of {hosted.name} has {needed:,} characters, and {self._most:,} are allowed; POST /sessions "
                "creates a session, whose state the server keeps",
            )

    def sealed(self, content: Stepped, keep_last: bool) -> str:
        """The text of a state, with its last output if `keep_last`.

        Raises:
            Fault: 409, its size is not that of the state before the first step.
        """
        engine, _ = content.hosted.stepped()
        if [leaf.shape for leaf in content.state] != [leaf.shape for leaf in engine.initial()]:
            raise Fault(409, f"a state of {content.hosted.name} changes its size; POST /sessions keeps it")
        last = content.last if keep_last else None
        if last is not None and last.dtype not in KINDS:
            last = last.float()
        kind = KINDS.index(None if last is None else last.dtype)
        head = HEAD.pack(VERSION, content.hosted.identity, content.steps, kind)
        rest = b"".join((head, *map(_bytes, content.state), b"" if last is None else _bytes(last)))
        return base64.urlsafe_b64encode(self._signature(rest) + rest).decode().rstrip("=")

    def opened(self, text: str, hosted: HostedRun, runs: Catalogue) -> Stepped:
        """The state of a text, for a run.

        Args:
            text: what `sealed` gave.
            hosted: the run.
            runs: all runs, to say whose state it is.

        Raises:
            Fault: 422, it is no such text; 403, it is not signed with this key; 409, it is of another run; 410, it is
                of a model that the server has no more, or of another form.
        """
        data = _decoded(text)
        signature, rest = data[:SIGNATURE], data[SIGNATURE:]
        if not hmac.compare_digest(signature, self._signature(rest)):
            raise Fault(
                403,
                "state: it is not signed with the key of this server: it was changed, or the server was started anew "
                "without --state-key-file; begin without a state",
            )
        _, identity, steps, kind = HEAD.unpack_from(rest)
        if rest[0] != VERSION:
            raise Fault(
                410, f"state: it is of version {rest[0]}, and this server writes {VERSION}; begin without a state"
            )
        if identity != hosted.identity:
            if any(identity == other.identity for other in runs.values()):
                raise Fault(409, f"state: it is of another run than {hosted.name}")
            raise Fault(410, f"state: it is of another model than {hosted.name} is now; begin without a state")
        engine, _ = hosted.stepped()
        likes = list(engine.initial())
        if KINDS[kind] is not None:
            likes.append(torch.empty(engine.gives, dtype=KINDS[kind]))
        if len(rest) != HEAD.size + sum(like.nbytes for like in likes):
            raise Fault(410, f"state: {hosted.name} keeps its state in another form now; begin without a state")
        place, tensors = HEAD.size, list[Tensor]()
        for like in likes:
            tensors.append(_tensor(rest[place : place + like.nbytes], like))
            place += like.nbytes
        last = None if KINDS[kind] is None else tensors.pop()
        return Stepped(hosted, tuple(tensors), last, steps)

    def _signature(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, "sha256")


def _decoded(text: str) -> bytes:
    """The bytes of a text.

    Raises:
        Fault: 422, the text is not what `sealed` writes.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    # base64 has several spellings of some bytes, of which one is written
    if len(data) < SIGNATURE + HEAD.size or base64.urlsafe_b64encode(data).decode().rstrip("=") != text:
        raise Fault(422, "state: expected the state of an earlier answer, as it was")
    return data


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, like: Tensor) -> Tensor:
    if not like.numel():
        return torch.empty_like(like)
    return torch.frombuffer(bytearray(data), dtype=like.dtype).reshape(like.shape).to(like.device)
