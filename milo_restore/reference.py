"""The reference of a recipe's keys, made from its configuration classes: as text, and as a JSON schema for editors.

A key's meaning is what stands beside its field in the class: the comment behind it, the comment lines right above it,
or its line under ``Attributes:``. So there is no second list to keep in step.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Any

from milo_restore.config import as_dict

_WORDS = {bool: "true or false", str: "text", int: "whole number", float: "number"}
_JSON = {bool: "boolean", str: "string", int: "integer", float: "number"}


@dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: dotted, as ``--set`` takes it; N stands for the number of an element.
        type: in words.
        default: as YAML; None: the key has to be given.
        meaning: one line; empty where the class says none.
    """

    name: str
    type: str
    default: str | None
    meaning: str


def keys_of(schema: type) -> list[Key]:
    """All keys of a configuration class, in its order; sections are left out, their keys are not.

    Args:
        schema: a dataclass as `milo_restore.config.load_config` takes it.
    """
    return list(_keys(schema, _defaults(schema), ""))


def reference_text(schema: type) -> str:
    """All keys with type, default and meaning, two lines each, 120 columns wide."""
    lines = []
    for key in keys_of(schema):
        default = "required" if key.default is None else f"default {key.default}"
        lines.append(f"{key.name}: {key.type}; {default}")
        lines += textwrap.wrap(key.meaning, 116, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def json_schema(schema: type, title: str) -> dict[str, Any]:
    """JSON schema, draft 7, of the YAML files that `milo_restore.config.load_config` takes for a class.

    Args:
        schema: the class.
        title: of the schema.
    """
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": title}
    return {**head, **_object(schema, _defaults(schema))}


def meanings(schema: type) -> dict[str, str]:
    """Meanings that a class states of its fields, in one line; of inherited ones what the base says."""
    found: dict[str, str] = {}
    for parent in reversed(schema.__mro__):
        if dataclasses.is_dataclass(parent):
            found |= {name: text for name, text in _meanings(parent).items() if text}
    return {field.name: found.get(field.name, "") for field in dataclasses.fields(schema)}


def _meanings(schema: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(schema))
    comments: dict[int, str] = {}
    alone = set()  # lines that are nothing but a comment
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").rstrip()
            alone |= {token.start[0]} if not token.line[: token.start[1]].strip() else set()
    said = _attributes(inspect.getdoc(schema) or "")
    for node in _class(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            line = node.lineno - 1
            while line in alone:
                above.insert(0, comments[line])
                line -= 1
            inside = [
                comments[number] for number in range(node.lineno, (node.end_lineno or 0) + 1) if number in comments
            ]
            if above or inside:
                said[node.target.id] = "; ".join(filter(None, (" ".join(above), " ".join(inside))))
    return said


def _class(source: str) -> ast.ClassDef:
    (found,) = ast.parse(source).body
    assert isinstance(found, ast.ClassDef)  # noqa: S101  (it is a class's source)
    return found


def _attributes(doc: str) -> dict[str, str]:
    """The entries under ``Attributes:`` of a docstring in Google's style, each joined to one line."""
    _, _, section = doc.partition("Attributes:\n")
    section = re.split(r"\n\S", section, maxsplit=1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".").replace("``", "") for name, text in entries}


def _defaults(schema: type) -> dict[str, Any]:
    """The values of a class of which nothing is set; where it needs some, those of its fields that have one."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        if field.default is not dataclasses.MISSING:
            given[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            given[field.name] = field.default_factory()
    return {name: _plain(value) for name, value in given.items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _keys(schema: type, defaults: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    hints, said = typing.get_type_hints(schema), meanings(schema)
    for field in dataclasses.fields(schema):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from _keys(typing.cast(type, hint), defaults[field.name], f"{name}.")
            continue
        default = json.dumps(defaults[field.name], ensure_ascii=False) if field.name in defaults else None
        yield Key(name, _words(hint), default, said[field.name])
        element = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
        if dataclasses.is_dataclass(element):
            yield from _keys(typing.cast(type, element), _defaults(typing.cast(type, element)), f"{name}.N.")


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return f"{{{', '.join(field.name for field in dataclasses.fields(hint))}}}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if option is type(None) else _words(option) for option in arguments)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"list of {_words(arguments[0])}"
        return f"list of {len(arguments)}: {', '.join(dict.fromkeys(map(_words, arguments)))}"
    return _WORDS.get(hint, str(hint))


def _object(schema: type, defaults: Mapping[str, Any]) -> dict[str, Any]:
    hints, said = typing.get_type_hints(schema), meanings(schema)
    properties = {}
    for field in dataclasses.fields(schema):
        about: dict[str, Any] = {"description": said[field.name]} if said[field.name] else {}
        hint = hints[field.name]
        if field.name in defaults and not dataclasses.is_dataclass(hint):
            about["default"] = defaults[field.name]
        if dataclasses.is_dataclass(hint):
            properties[field.name] = about | _object(typing.cast(type, hint), defaults[field.name])
        else:
            properties[field.name] = about | _value(hint)
    required = [field.name for field in dataclasses.fields(schema) if field.name not in defaults]
    found: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    return found | ({"required": required} if required else {})


def _value(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast(type, hint), _defaults(typing.cast(type, hint)))
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if option is type(None) else _value(option) for option in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return _array(arguments)
    return {"type": _JSON[hint]}


def _array(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item = _value(arguments[0])
        many = {"type": "array", "items": item}
        return many if dataclasses.is_dataclass(arguments[0]) else {"anyOf": [many, item]}
    each: list[dict[str, Any]] = [_value(argument) for argument in arguments]
    return {"type": "array", "items": each, "minItems": len(each), "maxItems": len(each)}
