"""TOML in and out of pydantic models: reading with messages that name the key, writing what was read."""

from __future__ import annotations

import json
import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from samespace.sdk.errors import ConfigError

__all__ = ["did_you_mean", "explain", "merged", "read_toml", "to_toml"]


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: missing, not a file, not UTF-8, or not TOML; with the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` over it; tables are merged key by key, all else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def to_toml(value: Mapping[str, Any]) -> str:
    """A mapping of plain values (as ``model_dump(mode="json")`` gives them) as TOML; keys whose value is None are left out."""
    return "\n".join(_table(value, ())).lstrip("\n") + "\n"


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """All complaints in one line: the dotted key, what is wrong with it, and the key that was probably meant."""
    return "; ".join(_complaint(detail, model) for detail in error.errors())


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing when no known word is close."""
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _complaint(detail: ErrorDetails, model: type[BaseModel]) -> str:
    location = detail["loc"]
    tags: list[int] = []
    found = _fields_at(model, location[:-1], tags)
    shown = ".".join(str(part) for index, part in enumerate(location) if index not in tags)
    if detail["type"] == "extra_forbidden":
        wrong = str(location[-1])
        if close := did_you_mean(wrong, found):
            return f"{shown}: unknown key{close}"
        return f"{shown}: unknown key; known here: {', '.join(found)}"
    if detail["type"] == "missing":
        return f"{shown}: missing"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{shown}: {message}" if shown else message


def _fields_at(annotation: Any, location: tuple[int | str, ...], tags: list[int], depth: int = 0) -> list[str]:
    """Names of the fields where ``location`` leads; indices of parts that are union tags, not keys, go to ``tags``."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    if not location:
        return list(annotation.model_fields) if is_model else []
    part, rest = location[0], location[1:]
    if is_model:
        field = annotation.model_fields.get(str(part))
        return _fields_at(field.annotation, rest, tags, depth + 1) if field else []
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            if _has_tag(member, part):
                tags.append(depth)
                return _fields_at(member, rest, tags, depth + 1)
        members = [member for member in get_args(annotation) if member is not type(None)]
        return _fields_at(members[0], location, tags, depth) if len(members) == 1 else []
    if get_origin(annotation) is dict:
        return _fields_at(get_args(annotation)[1], rest, tags, depth + 1)
    return []


def _has_tag(member: Any, tag: int | str) -> bool:
    while get_origin(member) is Annotated:
        member = get_args(member)[0]
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return False
    literals = [field.annotation for field in member.model_fields.values() if get_origin(field.annotation) is Literal]
    return any(tag in get_args(literal) for literal in literals)


def _table(value: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: item for key, item in value.items() if not isinstance(item, Mapping) and item is not None}
    tables = {key: item for key, item in value.items() if isinstance(item, Mapping)}
    lines = ["", f"[{'.'.join(map(_key, path))}]"] if path and (plain or not tables) else []
    lines += [f"{_key(key)} = {_inline(item)}" for key, item in plain.items()]
    for key, item in tables.items():
        lines += _table(item, (*path, key))
    return lines


def _key(key: str) -> str:
    bare = key and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in key)
    return key if bare else _string(key)


def _inline(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return str(value) if math.isfinite(value) else repr(value).replace("infinity", "inf")
        case str():
            return _string(value)
        case Mapping():
            return "{ " + ", ".join(f"{_key(key)} = {_inline(item)}" for key, item in value.items() if item is not None) + " }"
        case Sequence():
            return "[" + ", ".join(_inline(item) for item in value) + "]"
    raise TypeError(f"no TOML for {type(value).__name__}")


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
