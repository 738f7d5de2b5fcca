"""Strict YAML configuration: a file and ``a.b=c`` overrides become one frozen dataclass.

Unknown keys, wrong types and values outside a ``Literal`` are refused with the file, the key and the
nearest spelling. Numbers written as YAML strings (``1e-4`` is a string to PyYAML) are read as numbers.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from milo_restore.errors import ConfigError, did_you_mean

T = TypeVar("T")


def load_config(schema: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Read ``path`` (none: all defaults), apply overrides such as ``"loss.kind=milo"``, and check everything.

    Args:
        schema: a dataclass whose fields are numbers, strings, booleans, tuples, ``Literal``, unions with ``None``,
            or further dataclasses.
        path: a YAML file holding a mapping.
        overrides: ``key.sub=value``; the value is YAML. Elements of lists are addressed by number.

    Raises:
        ConfigError: naming the file, the key, and what would be right.
    """
    source = _Source(str(path) if path is not None else "config", tuple(overrides))
    tree = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _set(tree, override)
    return typing.cast(T, _build(schema, tree, source, ""))


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where values are from, for errors: an override where one set the key, else the file."""

    file: str
    overrides: tuple[str, ...]

    def cause(self, key: str) -> str:
        """The last override that set a key, the section around it, or one below it; else the file."""
        for override in reversed(self.overrides):
            name = f"{override.partition('=')[0]}."
            if key and (name.startswith(f"{key}.") or f"{key}.".startswith(name)):
                return f"--set {override}"
        return self.file

    def of(self, key: str) -> str:
        """The same, with the key where it is not in an override; empty: the whole."""
        cause = self.cause(key)
        return cause if cause != self.file or not key else f"{cause}, key {key!r}"

    def all_of(self, section: str) -> str:
        """The settings of a section's keys, which do not go together."""
        start = f"{section}." if section else ""
        given = [override for override in self.overrides if override.startswith(start)]
        return f"--set {' '.join(given)} with {self.file}" if given else self.of(section)


def as_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain dicts and lists, ready for YAML or JSON."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(config)))


def dump_config(config: Any) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(as_dict(config), sort_keys=False, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


class _Loader(yaml.SafeLoader):
    """A key that is there twice is an error: the second one would silently hide the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                twice = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# Beside the parser's own: brackets nested too deep for it, and numbers of more digits than Python reads.
_NOT_YAML = (yaml.YAMLError, RecursionError, ValueError)


def _parsed(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506  it is a SafeLoader


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping as plain dicts and lists; of an empty file an empty one.

    Raises:
        ConfigError: it cannot be read, is not YAML, or holds no mapping.
    """
    try:
        tree = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error})", where=path, mend="Name an existing YAML file") from error
    except _NOT_YAML as error:
        raise ConfigError(f"is not valid YAML ({' '.join(str(error).split())})", where=path) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError("must hold a mapping of keys to values", where=path)
    return tree


def _set(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError("is not of the form key.sub=value", where=f"--set {override}")
    try:
        value = _parsed(text)
    except _NOT_YAML as error:
        raise ConfigError("the value is not valid YAML", where=f"--set {override}") from error
    *parents, last = key.split(".")
    node: Any = tree
    for name in parents:
        node = _element(node, name, override) if isinstance(node, list) else node.setdefault(name, {})
        if not isinstance(node, (dict, list)):
            raise ConfigError(f"{name!r} holds a value, not further keys", where=f"--set {override}")
    if isinstance(node, list):
        _element(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value


def _element(node: list[Any], name: str, override: str) -> Any:
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(f"{name!r} is not one of the elements 0 to {len(node) - 1}", where=f"--set {override}")
    return node[int(name)]


def _build(schema: Any, tree: Any, source: _Source, prefix: str) -> Any:
    section = prefix.rstrip(".")
    if not isinstance(tree, Mapping):
        known = ", ".join(field.name for field in dataclasses.fields(schema))
        raise ConfigError(f"expected keys {known}", where=source.of(section))
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for key in tree:
        if key not in fields:
            hint = did_you_mean(key, fields) or f"Known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown key {prefix + str(key)!r}", where=source.cause(f"{prefix}{key}"), mend=hint)
    missing = [
        name
        for name, field in fields.items()
        if name not in tree and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"missing key {prefix + missing[0]!r}", where=source.cause(section))
    values = {key: _coerce(hints[key], value, source, f"{prefix}{key}") for key, value in tree.items()}
    try:
        return schema(**values)
    except ValueError as error:  # raised by a schema's own __post_init__
        raise ConfigError(str(error), where=source.all_of(section)) from error


def _coerce(hint: Any, value: Any, source: _Source, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, source, f"{key}.")
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, source, key)
    if origin is typing.Literal:
        if value is False and "no" in arguments:  # YAML reads a plain no as false
            return "no"
        if value in arguments and not (isinstance(value, bool) and not any(a is value for a in arguments)):
            return value
        what = f"{value!r} is not one of {', '.join(map(repr, arguments))}"
        raise ConfigError(what, where=source.of(key), mend=did_you_mean(value, arguments))
    if origin is tuple:
        return _tuple(arguments, value, source, key)
    return _scalar(hint, value, source, key)


def _union(arguments: tuple[Any, ...], value: Any, source: _Source, key: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [argument for argument in arguments if argument is not type(None)]
    for option in options[:-1]:
        try:
            return _coerce(option, value, source, key)
        except ConfigError:
            continue
    return _coerce(options[-1], value, source, key)


def _tuple(arguments: tuple[Any, ...], value: Any, source: _Source, key: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple, Mapping, type(None))) and arguments[1:] == (Ellipsis,):
        value = value if dataclasses.is_dataclass(arguments[0]) else [value]  # data.train=photos is [photos]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"expected a list, got {value!r}", where=source.of(key))
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    elif len(arguments) != len(value):
        raise ConfigError(f"expected {len(arguments)} values, got {len(value)}", where=source.of(key))
    return tuple(_coerce(hint, item, source, f"{key}.{i}") for i, (hint, item) in enumerate(zip(arguments, value)))


def _scalar(hint: Any, value: Any, source: _Source, key: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if hint is float:
                return number
            if number == int(number):
                return int(number)
        except (TypeError, ValueError, OverflowError):
            pass
    names = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}
    raise ConfigError(f"expected {names.get(hint, hint)}, got {value!r}", where=source.of(key))
