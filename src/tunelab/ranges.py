"""What is said of a key whose type or range is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from tunelab.errors import show
from tunelab.schema import Recipe

RULES = {
    "greater_than": "be greater than {gt:g}",
    "greater_than_equal": "be at least {ge:g}",
    "less_than": "be less than {lt:g}",
    "less_than_equal": "be at most {le:g}",
    "finite_number": "be a finite number",
    "int_type": "be a whole number",
    "float_type": "be a number",
    "bool_type": "be true or false",
    "string_type": "be text",
    "list_type": "be a list",
    "dict_type": "be a group of keys",
    "model_type": "be a group of keys",
    "string_too_short": "be one character",
    "string_too_long": "be one character",
    "literal_error": "be {expected}",
    "string_pattern_mismatch": "be a folder's name without a slash",
    "too_short": "have {min_length} or more numbers",
    "too_long": "have {max_length} or fewer numbers",
    "missing": "be given",
}


def range_mistakes(values: dict[str, Any], of: type[BaseModel] = Recipe) -> Iterator[str]:
    """A sentence for each key whose type or range is wrong.

    Args:
        values: The recipe, interpolations resolved.
        of: What they are to be.
    """
    try:
        of.model_validate(values)
    except ValidationError as error:
        # A union (batch_size: a count or `full`) reports each alternative: one sentence a key.
        by_key: dict[tuple[str, ...], list[Any]] = {}
        for detail in error.errors():
            key, field = _key_and_field(detail["loc"], of)
            by_key.setdefault(key, []).append((detail, field))
        for key, found in by_key.items():
            rules = dict.fromkeys(
                RULES.get(detail["type"], detail["msg"]).format(**detail.get("ctx", {})) for detail, _ in found
            )
            name = ".".join(key)
            if found[0][0]["type"] == "missing":
                yield f"`{name}` must be given. Choose one: --help lists what there is."
                continue
            example = next((field.examples[0] for _, field in found if field is not None and field.examples), None)
            remedy = f" Try {name}={example}." if example is not None else ""
            given = found[0][0]["input"]
            if isinstance(given, list) and len(given) > 1 and {"be a number", "be a whole number"} & rules.keys():
                remedy = f" To try each write {name}={','.join(map(show, given))} with -m."
            yield f"`{name}` must {' or '.join(rules)}, got {show(given)}.{remedy}"


def _key_and_field(location: tuple[Any, ...], model: Any) -> tuple[tuple[str, ...], Any]:
    """Splits pydantic's location into the key that the user typed and its field; union tags and indices drop out."""
    key: list[str] = []
    field = None
    for step in location:
        fields = getattr(model, "model_fields", {})
        if isinstance(step, str) and step in fields:
            field = fields[step]
            key.append(step)
            model = next(_models_of(field.annotation), None)
        elif isinstance(step, str) and model is not None and field is not None and "dict" in str(field.annotation):
            key.append(step)
        else:
            break
    return tuple(key), field


def _models_of(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_of(argument)
