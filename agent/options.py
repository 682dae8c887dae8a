"""What a settings model says about each of its options, for error messages and for the commented file."""

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import EnumType
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

PREFIX = "TAPSTER_"
FILE_VARIABLE = "TAPSTER_CONFIG"


@dataclass(frozen=True, slots=True)
class Unit:
    """Annotates a number with what it counts: `Annotated[float, Unit("seconds")]`."""

    name: str


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a settings model.

    Attributes:
        path: The section names and the option's own name, as in the TOML file.
        field: What the model knows of it: type, bounds, default, description.
    """

    path: tuple[str, ...]
    field: FieldInfo

    def __str__(self) -> str:
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The environment variable that sets the option."""
        return PREFIX + "__".join(self.path).upper()

    @property
    def is_table(self) -> bool:
        """Whether the option takes keys of the operator's own choice, as labels do."""
        return get_origin(self.field.annotation) is dict

    @property
    def allowed(self) -> str:
        """Type, unit and range in words: `a whole number of seconds, 5 to 65535`."""
        return _allowed(self.field.annotation, self.field.metadata)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of the section that a field stands for; None when it is an option."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def options(model: type[BaseModel], under: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every option of a model and of the sections in it, in the order of the model."""
    for name, field in model.model_fields.items():
        if section := section_of(field):
            yield from options(section, (*under, name))
        else:
            yield Option((*under, name), field)


def unknown_keys(model: type[BaseModel], table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The dotted keys of a table that the model does not have, each with a sentence on what was probably meant."""
    paths = [option.path for option in options(model)]
    known = [".".join(path[:length]) for path in paths for length in range(1, len(path) + 1)]
    for key in _strangers(model, table):
        yield key, f"there is no such option{_nearest(key, known)}"


def unknown_variables(model: type[BaseModel], environment: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The variables that look like an option's and are none, each with a sentence on what was probably meant."""
    known = {option.variable: option for option in options(model)}
    tables = tuple(f"{name}__" for name, option in known.items() if option.is_table)
    for variable in sorted(environment):
        name = variable.upper()
        if name.startswith(PREFIX) and name != FILE_VARIABLE and name not in known and not name.startswith(tables):
            yield variable, f"there is no such option{_nearest(name, known)}"


def _strangers(model: type[BaseModel], table: Mapping[str, Any], under: str = "") -> Iterator[str]:
    for key, value in table.items():
        field = model.model_fields.get(key)
        if field is None:
            yield under + key
        elif (section := section_of(field)) and isinstance(value, dict):
            yield from _strangers(section, value, f"{under}{key}.")


def _nearest(name: str, known: Iterable[str]) -> str:
    """What was probably meant: the option of that name in another section, or one that is spelled alike."""
    names = list(known)
    moved = [other for other in names if _last(other) == _last(name)]
    alike = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return "".join(f"; did you mean {other}?" for other in (moved or alike)[:1])


def _last(name: str) -> str:
    return re.split(r"\.|__", name.removeprefix(PREFIX))[-1]


def _allowed(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The type in words that an operator knows, then its unit, then its range."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _allowed(arguments[0], [part for field in arguments[1:] for part in getattr(field, "metadata", ())])
    if origin in (Union, types.UnionType):
        return " or ".join(_allowed(part) for part in arguments if part is not types.NoneType)
    if choices := list(annotation) if isinstance(annotation, EnumType) else arguments if origin is Literal else ():
        return "one of " + ", ".join(str(value) for value in choices)
    if origin is tuple:
        return "a list, each " + _allowed(arguments[0])
    if origin is dict:
        return f"a table: names {_allowed(arguments[0])}, values {_allowed(arguments[1])}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", Path: "an absolute path"}
    return plain.get(annotation, "a text") + "".join(_bounds(metadata))


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    """Unit, form and range, as far as the annotation carries them."""
    low = next((item.ge for item in metadata if isinstance(item, annotated_types.Ge)), None)
    high = next((item.le for item in metadata if isinstance(item, annotated_types.Le)), None)
    yield from (f" of {item.name}" for item in metadata if isinstance(item, Unit))
    yield from (f" of the form {item.pattern.strip('^$')}" for item in metadata if getattr(item, "pattern", None))
    if low is not None and high is not None:
        yield f", {low} to {high}"
