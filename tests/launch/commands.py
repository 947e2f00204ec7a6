"""A command's module inside the test process, although commands share names of flags."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

from absl.flags import FLAGS


@contextlib.contextmanager
def command(name: str, *arguments: str) -> Iterator[ModuleType]:
    """``launch.<name>``, freshly imported, with ``arguments`` parsed; other commands' flags come back afterwards."""
    module = f"launch.{name}"
    libraries = ("absl", "array_record", "grain")  # these read their own flags whenever they like
    others = {n: FLAGS[n] for n in FLAGS if not (FLAGS.find_module_defining_flag(n) or "").startswith(libraries)}
    for flag in others:
        delattr(FLAGS, flag)
    sys.modules.pop(module, None)
    own = set(FLAGS)
    was_parsed = FLAGS.is_parsed()
    try:
        loaded = importlib.import_module(module)
        FLAGS([name, *arguments])
        yield loaded
    finally:
        for flag in set(FLAGS) - own:
            delattr(FLAGS, flag)
        sys.modules.pop(module, None)
        for flag, value in others.items():
            FLAGS[flag] = value
        if not was_parsed:
            FLAGS.unparse_flags()
