"""Base class of every record of settings: validated, immutable, readable from and written to plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from xai_abn.errors import InvalidInputError, UnknownNameError, XaiAbnError, shown

S = TypeVar("S", bound="Settings")

#: Largest height and width of a network's input, which bounds the memory that a file or an argument can ask for.
MAX_SIZE = 4096

#: What was expected, by pydantic's type of error.
_EXPECTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "text",
    "tuple_type": "a list",
}


class Settings(BaseModel):
    """An immutable record of settings. A subclass declares its settings as annotated fields.

    Each field has a type, a default, and a ``Field`` with its bounds and a ``description``: one sentence that the
    command line shows as the help of the option. Values given as text, as on a command line or in YAML, are converted
    to the type of the field.

    Raises:
        UnknownNameError: a setting does not exist; the message suggests the nearest names.
        InvalidInputError: a value has the wrong type or is out of range; the message says what was expected.

    Examples:
        >>> from pydantic import Field
        >>> class Blur(Settings):
        ...     radius: int = Field(3, ge=1, description="Radius of the blur in pixels.")
        >>> Blur(radius="5")
        Blur(radius=5)
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False, defer_build=True
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _as_own_error(type(self), error) from None

    @field_validator("*", mode="before")
    @classmethod
    def _split_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Take text for a list: one item, or numbers separated by commas."""
        kind = cls.model_fields[str(info.field_name)].annotation
        item = next((get_args(part)[0] for part in (kind, *get_args(kind)) if get_origin(part) is tuple), None)
        if not isinstance(value, str) or item is None:
            return value
        return (value,) if item is str else tuple(value.split(","))

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_mixed_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse True for a number, 1 for true, and bytes for text, which pydantic would convert."""
        kind = cls.model_fields[str(info.field_name)].annotation
        kinds = {kind, *get_args(kind)}
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise ValueError("a whole number" if int in kinds else "a number")
        if isinstance(value, int | float) and not isinstance(value, bool) and kind is bool:
            raise ValueError("true or false")
        if isinstance(value, bytes) and str in kinds:
            raise ValueError("text")
        return value

    def replace(self: S, **changes: Any) -> S:
        """Return a validated copy with some settings changed."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as values that JSON and YAML can hold; ``type(self)(**values)`` is the inverse."""
        return self.model_dump(mode="json")

    def changed(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults, as values that JSON and YAML can hold."""
        fields = type(self).model_fields
        return {name: value for name, value in self.to_dict().items() if getattr(self, name) != fields[name].default}

    @classmethod
    def describe(cls) -> list[tuple[str, str, str]]:
        """Return the name, the default as text (empty without one) and the description of each setting."""
        rows = []
        for name, field in cls.model_fields.items():
            hidden = field.is_required() or field.default is None or isinstance(field.default, tuple)
            default = "" if hidden else str(field.default)
            rows.append((name, default, field.description or ""))
        return rows


def parse_options(text: str) -> dict[str, str]:
    """Parse ``"masks=500,seed=1"`` into a mapping; an empty text has no options.

    Raises:
        InvalidInputError: a part is not of the form ``NAME=VALUE``, or a name is given twice.
    """
    options: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise InvalidInputError(f"expected options such as 'masks=500,seed=1', got {part!r}")
        if name in options:
            raise InvalidInputError(f"option {name!r} is given twice; give it once")
        options[name] = value
    return options


def split_specs(text: str) -> list[str]:
    """Split comma-separated specifications; a piece ``option=value`` belongs to the method before it.

    Examples:
        >>> split_specs("rise:masks=500,seed=1,cam")
        ['rise:masks=500,seed=1', 'cam']
    """
    specs: list[str] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        if specs and "=" in piece and ":" not in piece:
            specs[-1] += ("," if ":" in specs[-1] else ":") + piece
        else:
            specs.append(piece)
    return specs


def _as_own_error(kind: type[Settings], error: ValidationError) -> XaiAbnError:
    """Return the first problem that pydantic found as an error of the package."""
    problem: Mapping[str, Any] = error.errors(include_url=False)[0]
    inner = problem.get("ctx", {}).get("error")
    if isinstance(inner, XaiAbnError):  # raised by a validator of the subclass
        return inner
    name = str(problem["loc"][0]) if problem["loc"] else kind.__name__
    if problem["type"] == "extra_forbidden":
        return UnknownNameError("setting", name, kind.model_fields)
    if problem["type"] == "missing":
        return InvalidInputError(f"{name} is required: {kind.model_fields[name].description}")
    if problem["type"] == "literal_error":
        kinds = (kind.model_fields[name].annotation, *get_args(kind.model_fields[name].annotation))
        choices = [choice for literal in kinds if get_origin(literal) is Literal for choice in get_args(literal)]
        return UnknownNameError(name, str(problem["input"]), map(str, choices))
    message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    bounds = {n: int(b) if isinstance(b, float) and b.is_integer() else b for n, b in problem.get("ctx", {}).items()}
    expected = _EXPECTED[problem["type"]].format(**bounds) if problem["type"] in _EXPECTED else message
    return InvalidInputError(f"{name} must be {expected}, got {shown(repr(problem['input']))}")
