"""Checks values against annotations: configurations come from files, and files hold values of any type."""

import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union


def conforms(value: Any, annotation: Any) -> bool:
    """Says whether `value` is of the annotated type.

    An int is accepted for a float, a bool is not accepted for a number, and a str is not a sequence of anything.
    Annotations that cannot be checked at run time (type variables, protocols not made for it) accept everything.

    >>> conforms(3, float), conforms(True, int), conforms((1, 2), tuple[int, ...]), conforms([1, 2], tuple[int, ...])
    (True, False, True, False)
    """
    if annotation is Any or annotation is inspect.Parameter.empty or isinstance(annotation, (str, typing.TypeVar)):
        return True
    if annotation is None or annotation is type(None):
        return value is None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return conforms(value, arguments[0])
    if origin in (Union, types.UnionType):
        return any(conforms(value, argument) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and _tuple_conforms(value, arguments)
    if origin is type:
        return isinstance(value, type)
    if origin is collections.abc.Callable or annotation is Callable:
        return callable(value)
    if origin is not None and inspect.isclass(origin):
        return _container_conforms(value, origin, arguments)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    unchecked = getattr(annotation, "_is_protocol", False) and not getattr(annotation, "_is_runtime_protocol", False)
    if inspect.isclass(annotation) and not unchecked:
        try:
            return isinstance(value, annotation)
        except TypeError:  # a class that refuses isinstance, such as a NewType of a parametrised type
            return True
    return True


def _tuple_conforms(value: tuple, arguments: tuple) -> bool:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return all(conforms(item, arguments[0]) for item in value)
    if arguments == ((),):
        arguments = ()
    return len(value) == len(arguments) and all(map(conforms, value, arguments))


def _container_conforms(value: Any, origin: type, arguments: tuple) -> bool:
    if not isinstance(value, origin) or (isinstance(value, str) and origin is not str):
        return False
    if isinstance(value, Mapping) and len(arguments) == 2:
        return all(conforms(k, arguments[0]) and conforms(v, arguments[1]) for k, v in value.items())
    if isinstance(value, (list, tuple, set, frozenset)) and len(arguments) == 1:
        return all(conforms(item, arguments[0]) for item in value)
    return True


def describe(annotation: Any) -> str:
    """Names a type as a reader would: `int`, `tuple[int, ...]`, `'a' or 'b'`, `int or None`."""
    if annotation is None or annotation is type(None):
        return "None"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin is None and inspect.isclass(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def describe_value(value: Any) -> str:
    """Shows a value and its type, shortened: `'2' (str)`."""
    if value is None:
        return "None"
    text = getattr(value, "__name__", None) if callable(value) else None
    text = text or repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def mismatch(value: Any, annotation: Any) -> str:
    """Says what was expected and got of a value that does not conform, and what a single str of several is written as.

    >>> print(mismatch("runs/pretrain", tuple[str, ...]))
    must be tuple[str, ...], got 'runs/pretrain' (str); write ("runs/pretrain",)
    """
    said = f"must be {describe(annotation)}, got {describe_value(value)}"
    if isinstance(value, str) and conforms((value,), annotation):
        quoted = repr(value) if '"' in value or "\\" in value else f'"{value}"'
        return f"{said}; write ({quoted},)"
    return said


def resolved_annotations(function_or_class: Any) -> dict[str, Any]:
    """The annotations of a function's or constructor's parameters, by name; unresolvable ones stay as written."""
    if inspect.isclass(function_or_class) and not dataclasses.is_dataclass(function_or_class):
        function_or_class = function_or_class.__init__
    try:
        return typing.get_type_hints(function_or_class)
    except (NameError, TypeError):
        return dict(getattr(function_or_class, "__annotations__", {}))


def check_fields(instance: Any) -> None:
    """Checks every field of a dataclass instance against its annotation; made for `__post_init__`.

    Raises:
      ValueError: naming class, field, expected and got.
    """
    annotations = resolved_annotations(type(instance))
    for field in dataclasses.fields(instance):
        annotation = annotations.get(field.name, Any)
        value = getattr(instance, field.name)
        if not conforms(value, annotation):
            raise ValueError(f"{type(instance).__name__}.{field.name} {mismatch(value, annotation)}")


def check_arguments(name: str, function: Callable, arguments: Mapping[str, Any]) -> None:
    """Checks keyword arguments against a function's annotations.

    Args:
      name: how the function is called in messages.
      function: the function whose annotations rule.
      arguments: keyword arguments for it.

    Raises:
      ValueError: naming function, parameter, expected and got.
    """
    annotations = resolved_annotations(function)
    for parameter, value in arguments.items():
        annotation = annotations.get(parameter, Any)
        if not conforms(value, annotation):
            raise ValueError(f"{name}.{parameter} {mismatch(value, annotation)}")
