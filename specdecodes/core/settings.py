"""Components' settings as people type them."""

from __future__ import annotations

import ast
import inspect
import json
from typing import Any


class SettingWarning(UserWarning):
    """A setting that can be used, but is probably not what was wanted; the commands print it as one line."""


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}


def read_setting(parameter: inspect.Parameter, value: Any) -> Any:  # noqa: ANN401 - any setting
    """The value of a factory's keyword ``parameter``; a string is read as a Python or JSON literal where it is no text.

    Raises:
        ValueError: not of the annotated type, as far as that is made of int, float, bool, str and None.
    """
    annotation = parameter.annotation
    named = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    names = [name.strip() for name in named.split("|")]
    if isinstance(value, str) and "str" not in names and not isinstance(parameter.default, str):
        value = _literal(value)
    if all(name in _TYPES for name in names):
        types = tuple(kind for name in names for kind in _TYPES[name])
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{parameter.name}: expected {' or '.join(names)}, got {value!r}")
    return value


def _literal(text: str) -> Any:  # noqa: ANN401
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text
