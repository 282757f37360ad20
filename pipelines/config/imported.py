"""`module:callable` from a study file to the callable itself, and modules of rules."""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from prunefront.errors import PrunefrontError


class NotImportable(PrunefrontError):
    """A `module:callable` in the study file does not lead to something that can be called."""


def import_callable(spec: str, *, key: str) -> Callable[..., Any]:
    """Returns the callable that `spec`, written `package.module:name`, stands for.

    key: the key of the study file that asked, for the error. The current directory is importable, as it is
    for `python -m` (a console script leaves it out). Raises NotImportable: what was tried and why it failed.
    """
    module_name, colon, path = spec.partition(":")
    if not (colon and all(part.isidentifier() for part in (*module_name.split("."), *path.split(".")))):
        raise NotImportable(f"{key} = {spec!r} is not of the form 'package.module:callable'")
    target: Any = _imported(module_name, key=key, spec=spec)
    for part in path.split("."):
        if not hasattr(target, part):
            names = [name for name in dir(target) if callable(getattr(target, name)) and name[0] != "_"]
            near = get_close_matches(part, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise NotImportable(f"{key} = {spec!r}: {module_name} has no {part!r}{hint}")
        target = getattr(target, part)
    if not callable(target):
        raise NotImportable(f"{key} = {spec!r} is a {type(target).__name__}, which cannot be called")
    return target  # type: ignore[no-any-return]  # callable() narrows Any to a callable of unknown signature


def import_rules(spec: str, *, key: str) -> None:
    """Imports the module that registers rules, `package.module` or `folder/file.py` in the current folder.

    key: as in `import_callable`. Raises NotImportable, and what the file itself raises as PrunefrontError.
    """
    _imported(module_of(spec, key=key), key=key, spec=spec)


def module_of(spec: str, *, key: str) -> str:
    """Returns the dotted module that `package.module`, or a file in the current folder, is imported as.

    A file is a module too, so that workers and jobs find it as they find the module of a factory. Raises NotImportable.
    """
    name = spec.removesuffix(".py").replace("/", ".") if spec.endswith(".py") else spec
    if not all(part.isidentifier() for part in name.split(".")):
        raise NotImportable(
            f"{key} = {spec!r} is no module: write 'package.module', or a path from the current folder such as "
            "'folder/file.py', of letters, digits and underscores"
        )
    return name


class _Parsed(SystemExit):
    """A module parsed the command line, which is ours, and did not like it."""


@contextmanager
def _without_usage() -> Iterator[None]:
    """Keeps argparse from printing its usage within, which is that of another program."""

    def error(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise _Parsed(message)

    before = argparse.ArgumentParser.error
    argparse.ArgumentParser.error = error  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = before  # type: ignore[method-assign]


def _imported(module_name: str, *, key: str, spec: str) -> ModuleType:
    """Returns a module, which may lie in the current folder. Raises NotImportable."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        with _without_usage():
            return importlib.import_module(module_name)
    except SystemExit as error:
        what = "parsed the command line" if isinstance(error, _Parsed) else "ended the program"
        raise NotImportable(
            f"{key} = {spec!r}: importing {module_name} {what} ({error.code}); put what runs there below "
            "`if __name__ == '__main__':`, so that the module can be imported"
        ) from None
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise NotImportable(
                f"{key} = {spec!r}: there is no module {missing!r}, neither installed nor in {here}"
            ) from error
        raise NotImportable(
            f"{key} = {spec!r}: {module_name} was found, but it needs {missing!r}, which is not installed"
        ) from error
    except PrunefrontError:
        raise
    except Exception as error:
        raise NotImportable(
            f"{key} = {spec!r}: importing {module_name} failed: {type(error).__name__}: {one_line(error)}"
        ) from error


def call(function: Callable[..., Any], options: Mapping[str, Any], *, key: str, spec: str) -> Any:
    """Returns what `function(**options)` returns. Raises PrunefrontError, in one line, for whatever it raises."""
    try:
        return function(**options)
    except PrunefrontError:
        raise
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise PrunefrontError(
            f"{key} = {spec!r}: calling it with ({given}) failed: {type(error).__name__}: {one_line(error)}"
        ) from error


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line, cut at `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
