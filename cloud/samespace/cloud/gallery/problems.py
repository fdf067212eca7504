"""Errors as answers: problems (RFC 9457) with the stable codes of :mod:`samespace.sdk.gallery.wire`."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from samespace.sdk.errors import GalleryError, SamespaceError
from samespace.sdk.gallery.wire import Problem, code_of

__all__ = ["add_handlers", "problem_of", "unforeseen"]

_log = logging.getLogger(__name__)
#: Seconds after which a client may try again that was refused for a passing reason.
_RETRY_AFTER = 1


def add_handlers(app: FastAPI) -> None:
    """Let an app answer every error as a problem."""
    app.add_exception_handler(SamespaceError, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _not_served)


def problem_of(error: SamespaceError, status: int | None = None, *, diagnosis: bool = False) -> JSONResponse:
    """An error as an answer; ``diagnosis`` says that the client understands that field."""
    code, usual = code_of(error)
    causes = tuple(getattr(error, "causes", ())) if diagnosis else ()
    return _problem(error, status or usual, code, causes)


def unforeseen() -> JSONResponse:
    """The answer to what nobody foresaw: the details go to the log, not to strangers."""
    return _problem(GalleryError("the service failed at this request; its log says why"), 500, "internal")


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, SamespaceError)
    _, status = code_of(error)
    if status >= 500:
        _log.error("%s %s: %s", request.method, request.url.path, error)
    return problem_of(error, diagnosis=bool(getattr(request.state, "diagnoses", False)))


def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"])
    return _problem(GalleryError(f"the request cannot be understood: {place}: {first['msg']}; see /docs"), 422, "bad_request")


def _not_served(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}: {error.detail}; see /docs for what this gallery answers"
    response = _problem(GalleryError(detail), error.status_code, "no_such_path")
    response.headers.update(error.headers or {})
    return response


def _problem(error: Exception, status: int, code: str, diagnosis: tuple[str, ...] = ()) -> JSONResponse:
    problem = Problem(title=type(error).__name__, status=status, detail=str(error), code=code, diagnosis=diagnosis)
    content = problem.model_dump(exclude=set() if diagnosis else {"diagnosis"})
    headers = {"Retry-After": str(_RETRY_AFTER)} if status in (429, 503) else {}
    return JSONResponse(content, status_code=status, media_type="application/problem+json", headers=headers)
