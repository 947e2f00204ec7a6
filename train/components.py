"""Objects out of config sections: ``{"type": "module:Class", key: value, ...}`` becomes ``Class(key=value, ...)``.

A key that the class does not take, or one that it needs and nobody gives, is an error that names the key.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from data.errors import UserError


def build(section: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Constructs the component of a config section.

    Args:
      section: has ``type`` = "module:Class"; its other keys are constructor arguments.
      where: the section's place, for messages: ``"data"`` is ``config.data``, ``""`` is all of it.
      given: what the run offers to every component (seed, folders, …); passed on where the constructor names it.

    Raises:
      UserError: unknown component, unknown key, missing key.
    """
    target = load(section.get("type", ""), where)
    takes = parameters(target)
    own = {key: value for key, value in section.items() if key != "type"}
    return call(target, own, where, **{key: value for key, value in given.items() if key in takes})


def bind(section: Mapping[str, Any], where: str) -> Callable[..., Any]:
    """The component's constructor with the section's keys filled in; what is missing is the caller's to give.

    A key that is itself a section with a ``type`` becomes that component's constructor: a network's parts are made by
    the network.
    """
    target = load(section.get("type", ""), where)
    own = {key: value for key, value in section.items() if key != "type"}
    _refuse_unknown(target, own, where)
    for key, value in own.items():
        if hasattr(value, "items") and "type" in value:
            own[key] = bind(value, f"{where}.{key}")
    return functools.partial(target, **own)


def call(target: Callable[..., Any], section: Mapping[str, Any], where: str, **given: Any) -> Any:
    """``target(**section, **given)`` with an error that names the key when the two do not fit.

    A key of ``given`` wins over none of the section's: being in both is an error too.
    """
    _refuse_unknown(target, section, where)
    twice = sorted(set(section) & set(given))
    if twice:
        raise UserError(f"config{_dot(where)}.{twice[0]} is set by the run itself; remove it from the config")
    missing = [
        name
        for name, p in parameters(target).items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if name not in section and name not in given
    ]
    if missing:
        raise UserError(f"config{_dot(where)} needs the key(s) {', '.join(missing)} for {_name(target)}")
    return target(**section, **given)


def load(path: str, where: str) -> Any:
    """The object called ``"module:Name"``.

    Raises:
      UserError: not of that form, no such module, or no such name in it.
    """
    module_name, _, name = str(path).partition(":")
    if not module_name or not name:
        raise UserError(f'config{_dot(where)}.type is {path!r}; expected "module:Class", for example "models.dit:DiT"')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # the module is there; something that it imports is not
        raise UserError(f"config{_dot(where)}.type is {path!r}; there is no module {module_name!r}") from None
    if not hasattr(module, name):
        public = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module_name]
        raise UserError(f"config{_dot(where)}.type is {path!r}; {module_name} has {', '.join(public) or 'no classes'}")
    return getattr(module, name)


def parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a function or of a class's constructor, by name.

    Of ``__init__`` itself, because a metaclass with its own ``__call__`` (Flax's) hides its signature.
    """
    if not inspect.isclass(target):
        return inspect.signature(target).parameters
    first, *rest = inspect.signature(target.__init__).parameters.items()
    del first
    return dict(rest)


def check_keys(section: Mapping[str, Any], where: str, *keys: str) -> None:
    """A key too many or too few is an error."""
    for key in section:
        if key not in keys:
            raise UserError(f"config{_dot(where)}.{key} is not a key; config{_dot(where)} has {', '.join(keys)}")
    for key in keys:
        if key not in section:
            raise UserError(f"config{_dot(where)} needs the key {key}")


def _refuse_unknown(target: Callable[..., Any], section: Mapping[str, Any], where: str) -> None:
    takes = parameters(target)
    if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return
    unknown = [key for key in section if key not in takes]
    if unknown:
        raise UserError(
            f"config{_dot(where)}.{unknown[0]} is not a key of {_name(target)}; it takes {', '.join(takes)}"
        )


def _dot(where: str) -> str:
    return f".{where}" if where else ""


def _name(target: Callable[..., Any]) -> str:
    return f"{target.__module__}:{getattr(target, '__qualname__', target)}"
