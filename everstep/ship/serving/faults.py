"""Errors of requests: a status of HTTP, and a sentence that says what was expected and what to do."""

from __future__ import annotations

from everstep.errors import EverstepError, RunError, out_of_memory
from everstep.runs.run import Run


class Fault(EverstepError):
    """A request that is not answered.

    Args:
        status: the HTTP status: 400 to 499 if the request has to change, 500 to 599 if the server failed.
        sentence: what was expected, what came, what to do.
        retry_after: seconds after which the same request may succeed; None: not by waiting.
    """

    def __init__(self, status: int, sentence: str, retry_after: float | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}


class Unexpected(Fault):
    """A failure of the server or of the model. `cause` is logged, and not told to the client."""

    def __init__(self, what: str, cause: BaseException):
        super().__init__(500, f"{what} failed; the server's log has the error")
        self.cause = cause


def as_fault(error: BaseException, what: str, run: Run | None = None) -> Fault:
    """The fault that a client is told about an error. Messages about a run name it instead of its folder.

    Args:
        error: what was raised.
        what: what was tried, such as "predict".
        run: the run that was asked.
    """
    if isinstance(error, Fault):
        return error
    if out_of_memory(error):
        return Fault(503, f"{what}: the server is out of memory; ask for less, or later", retry_after=5)
    if isinstance(error, EverstepError):
        message = str(error)
        for path in () if run is None else (run.path.absolute(), run.path):
            message = message.replace(str(path), path.name)
        return Fault(409 if isinstance(error, RunError) else 422, message)
    return Unexpected(what, error)
