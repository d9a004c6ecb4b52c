"""Compiling kernels: one decorator, and a disk cache that notices every edit of a kernel.

Numba's own disk cache looks at the file of the function it compiles and not at the functions which that one
calls, so an edit of a helper in another file gives stale results. Here the cache folder is named by a digest of
every file that holds a kernel: an edit anywhere is a new folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import llvmlite.binding as ll
import numba
import numpy as np
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.registry import CPUDispatcher

__all__ = ["cache_folder", "cache_is_warm", "interpreted", "kernel", "placeholder", "specialise", "template"]

Function = TypeVar("Function", bound=Callable[..., Any])

# Full fastmath compiles `x != x` away, and with it every check for NaN. Even so, isfinite must be spelled
# `abs(x) < inf` in a kernel: Numba's tests x - x, which reassociation turns into 0.
FASTMATH = {"contract", "reassoc", "arcp", "nsz"}
KEPT_DIGESTS = 6
#: Of the globals of a kernel, those that decide what it compiles to.
CONSTANTS = (int, float, tuple, np.generic, np.ndarray, types.FunctionType)


_digested: set[Path] = set()


def _digest() -> str:
    """Digest of every source file of the package that defines a kernel."""
    digest = hashlib.sha256(numba.__version__.encode())
    here = Path(__file__).resolve().parent
    # In a checkout two sub-packages are links, which rglob does not follow.
    folders = [(here / name).resolve() for name in ("", "envs", "agents")]
    for path in sorted({path for folder in folders for path in folder.rglob("*.py")}):
        source = path.read_bytes()
        if b"@kernel" in source or b"@template" in source or path.name == Path(__file__).name:
            digest.update(path.name.encode())
            digest.update(source)
            _digested.add(path)
    return digest.hexdigest()[:16]


def _candidates() -> list[Path]:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return [Path(chosen) / "valueapprox"]
    folders = []
    with contextlib.suppress(RuntimeError):  # no home
        folders.append(Path(os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache") / "valueapprox")
    # A cache holds machine code: in a folder that others can write to, it must belong to this user alone.
    user = os.getuid() if hasattr(os, "getuid") else "user"
    with contextlib.suppress(OSError):  # no temporary folder either
        folders.append(Path(tempfile.gettempdir()) / f"valueapprox-{user}")
    return folders


def _is_ours(folder: Path) -> bool:
    status = folder.stat()
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _choose_cache_folder() -> Path | None:
    digest = _digest()
    for parent in _candidates():
        folder = parent / digest
        try:
            parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            if not (_is_ours(parent) and _is_ours(folder)):
                continue
            tempfile.TemporaryFile(dir=folder).close()
            os.utime(folder)  # in use: other checkouts, which clean up, remove what was not used for longest
        except OSError:
            continue
        _forget_old(parent, keep=folder)
        return folder
    return None


def _forget_old(parent: Path, keep: Path) -> None:
    """Remove the folders that were not used for longest."""
    with contextlib.suppress(OSError):
        folders = sorted((f for f in parent.iterdir() if f.is_dir() and f != keep), key=lambda f: f.stat().st_mtime)
        for folder in folders[: max(0, len(folders) - KEPT_DIGESTS)]:
            shutil.rmtree(folder, ignore_errors=True)


_folder = _choose_cache_folder()


def cache_folder() -> Path | None:
    """Folder of the compiled kernels, or None where no folder can be written (then every process compiles)."""
    return _folder


def cache_is_warm() -> bool:
    """Whether the kernels of these very sources were compiled before."""
    return _folder is not None and any(_folder.rglob("*.nbi"))


@overload
def kernel(function: Function) -> Function: ...
@overload
def kernel(*, inline: bool = False, exact: bool = False, blas: bool = False) -> Callable[[Function], Function]: ...
def kernel(
    function: Callable[..., Any] | None = None, *, inline: bool = False, exact: bool = False, blas: bool = False
) -> Any:
    """Compile a function with Numba, without Python objects or allocation, and cache the result on disk.

    Kernels trust their caller: no bounds are checked, division by zero gives inf. `NUMBA_DISABLE_JIT=1` runs them as
    plain Python, which a test compares with the compiled form.

    Parameters
    ----------
    function
        The function, when used as ``@kernel``.
    inline
        Copy it into every kernel that calls it: for the small steps of an inner loop, where a call with a dozen arrays
        costs more than its arithmetic.
    exact
        IEEE arithmetic as written: no fused, reordered or reciprocal operations. Elsewhere they change a last bit and
        no more; in the dynamics of a world that bit would depend on the loop into which the compiler inlines it, and
        one seed would give two experiences.
    blas
        It calls `np.dot`, or a kernel that does. Numba's matrix products need its runtime, which counts references to
        arrays: nothing beside a product, too much in the loop over transitions.
    """
    if function is None:
        return lambda f: _compile(f, inline, exact, blas)
    return _compile(function, inline, exact, blas)


NUMBAS = "_ZN5numba"  # how the names of functions that Numba brings begin


class _Closed(JITCodeLibrary):
    """The machine code of one kernel and of a copy of every kernel that it calls, optimised together, once.

    Numba optimises and compiles a kernel on its own and once more as a part of each of its callers, and a call that
    is not inlined then finds the one or the other, by what the process has compiled and what it has loaded; where
    sums may be reordered the two round differently. Here every kernel that is not `inline` stays a function, which is
    optimised from the code as it was written, and calls find the copies beside it. So a kernel's arithmetic is the
    same in every object that holds it, and an object from the disk cache is the one that would be compiled.
    """

    def __init__(self, codegen: Any, name: str, door: bool) -> None:
        super().__init__(codegen, name)
        self.door = door

    def finalize(self) -> None:
        own = {function.name for function in self._final_module.functions if not function.is_declaration}
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        for function in self._final_module.functions:
            if not function.is_declaration and not any(b"alwaysinline" in word for word in function.attributes):
                # Numba's own, such as x ** 2 and max, are small; as calls they keep loops from being vectorised.
                function.add_function_attribute("alwaysinline" if function.name.startswith(NUMBAS) else "noinline")
        if self.door:
            self._optimize_final_module()
            # Calls shall find these copies, and not a function of the same name that the process has from elsewhere.
            for function in self._final_module.functions:
                if not function.is_declaration and function.name not in own:
                    function.linkage = "internal"
            self._final_module.verify()
            self._finalize_final_module()
        else:
            self._finalized = True

    def serialize_using_object_code(self) -> tuple[str, str, tuple[bytes, bytes]]:
        """As for a library of Numba's, but without the bitcode: nothing is linked with a door."""
        symbols = [*self.get_defined_functions(), *self._final_module.global_variables]
        text = "".join(f'@"{s.name}" = global i8 0\n' for s in symbols if s.linkage.name == "external")
        return self.name, "object", (self._get_compiled_object(), ll.parse_assembly(text).as_bitcode())


class _Door(Compiler):
    """Compiles a kernel to be called from Python."""

    door = True

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, args: Any, *rest: Any) -> None:
        super().__init__(typingctx, targetctx, library, args, *rest)
        flags = self.state.flags
        # No caller passes two arrays that overlap, unless both are only read: `restrict` in C. Without it, every short
        # loop first compares addresses.
        flags.noalias = True
        flags.no_cfunc_wrapper = True
        flags.no_cpython_wrapper = flags.no_compile = not self.door
        self.state.library = _Closed(targetctx.codegen(), "kernel", self.door)
        self.state.library.enable_object_caching()


class _Inner(_Door):
    """Compiles a kernel as far as its callers need it: types and LLVM's code, not optimised."""

    door = False


class _Callee(CPUDispatcher):
    """A kernel as other kernels see it."""

    def add_overload(self, cres: Any) -> None:
        cres = cres._replace(entry_point=object())  # a name by which Numba finds the overload
        self.targetctx.insert_user_function(cres.entry_point, cres.fndesc, [cres.library])
        self.overloads[tuple(cres.signature.args)] = cres

    def compile(self, sig: Any) -> Any:
        super().compile(sig)
        return self.get_overload(sig)


class _Kernel(CPUDispatcher):
    """A kernel as Python sees it; to the compiler it stands for its `_Callee`."""

    def __init__(self, py_func: Callable[..., Any], locals: Any = None, targetoptions: Any = None, **rest: Any) -> None:
        super().__init__(py_func, locals, targetoptions, pipeline_class=_Door)
        self.callee = _Callee(py_func, locals, targetoptions, pipeline_class=_Inner)

    def get_call_template(self, args: Any, kws: Any) -> Any:
        return self.callee.get_call_template(args, kws)

    def get_overload(self, sig: Any) -> Any:
        return self.callee.get_overload(sig)


def _compile(function: Callable[..., Any], inline: bool, exact: bool, blas: bool) -> Any:
    if numba.config.DISABLE_JIT:
        return function
    # Without Numba's runtime (_nrt) no array can be made in a kernel, and none is counted: taking a view inside a
    # loop is then free, where an atomic count would cost more than the row's arithmetic.
    options = {
        "nopython": True,
        "boundscheck": None,
        "nogil": True,
        "error_model": "numpy",
        "fastmath": False if exact else FASTMATH,
        "forceinline": inline,
        "_nrt": blas,
    }
    compiled = _Kernel(function, targetoptions=options)
    if _folder is not None:
        # Numba's cache goes by the path of the source: one path, whether links led to it or not.
        path = Path(function.__code__.co_filename).resolve()
        if path.exists():
            function.__code__ = function.__code__.replace(co_filename=str(path))
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(_folder)  # read once by enable_caching; other users of Numba keep theirs
        try:
            compiled.enable_caching()
        except RuntimeError:  # no place to cache: compile in memory
            pass
        finally:
            numba.config.CACHE_DIR = before
    return compiled


# --- kernels with parts that are chosen later ---------------------------------------------------------------------


class _Placeholder:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any) -> Any:
        raise TypeError(f"{self.name} is a placeholder; expected a kernel in its place: see valueapprox.compiling")


def placeholder(name: str) -> Any:
    """Stand for a kernel that `specialise` puts in its place, in templates: ``step = placeholder("step")``."""
    return _Placeholder(name)


class _Template:
    """A kernel that calls placeholders, or templates: not compiled until it is specialised."""

    def __init__(self, function: Callable[..., Any], options: dict[str, bool]) -> None:
        functools.update_wrapper(self, function)
        self.function, self.options = function, options

    def __call__(self, *_: Any) -> Any:
        raise TypeError(f"{self.function.__name__} is a template; call what specialise({self.function.__name__}) gives")

    def parts(self) -> dict[str, Any]:
        """The global names of the function that stand for placeholders and templates."""
        own = self.function.__globals__
        names = {name: own.get(name) for name in self.function.__code__.co_names}
        return {name: part for name, part in names.items() if isinstance(part, _Placeholder | _Template)}

    @functools.cached_property
    def placeholders(self) -> frozenset[str]:
        """Names of all placeholders, also of the templates that it calls."""
        parts = self.parts().values()
        own = {part.name for part in parts if isinstance(part, _Placeholder)}
        return frozenset(own).union(*(part.placeholders for part in parts if isinstance(part, _Template)))


@overload
def template(function: Function) -> Function: ...
@overload
def template(*, inline: bool = False, exact: bool = False, blas: bool = False) -> Callable[[Function], Function]: ...
def template(function: Callable[..., Any] | None = None, **options: bool) -> Any:
    """A kernel, with the options of `kernel`, that calls placeholders: `specialise` makes it one that can be called."""
    if function is None:
        return lambda f: _Template(f, options)
    return _Template(function, options)


_specialised: dict[tuple[Any, ...], Any] = {}


def specialise(function: Any, **bound: Any) -> Any:
    """The kernel that a template becomes with these kernels in place of its placeholders; the same one every time.

    Templates that it calls are specialised in the same way. Bound names that it does not call are ignored. A kernel
    itself is returned as it is.

    Numba's disk cache finds neither closures nor functions that are passed as arguments in another process. What is
    made here is a function of its own, whose name says what is bound, and so it is found.

    Raises
    ------
    TypeError
        If a placeholder is left over.
    """
    if not isinstance(function, _Template):
        return function
    missing = function.placeholders - set(bound)
    if missing:
        raise TypeError(f"{function.function.__name__} has no kernel for {', '.join(sorted(missing))}")
    used = {name: bound[name] for name in sorted(function.placeholders)}
    key = (function, *used.items())
    if key not in _specialised:
        chosen = {
            name: used[part.name] if isinstance(part, _Placeholder) else specialise(part, **used)
            for name, part in function.parts().items()
        }
        plain = function.function
        own = types.FunctionType(plain.__code__, {**plain.__globals__, **chosen}, plain.__name__, plain.__defaults__)
        own.__module__, own.__doc__ = plain.__module__, plain.__doc__
        own.__qualname__ = f"{plain.__qualname__}_{_identity(used)}"
        _specialised[key] = kernel(**function.options)(own)
    return _specialised[key]


def interpreted(function: Any) -> Any:
    """A kernel as plain Python, with all kernels that it calls: slow, and an index outside of an array is an error."""
    plain = getattr(function, "py_func", function)
    own = {name: plain.__globals__.get(name) for name in plain.__code__.co_names}
    inner = {name: interpreted(value) for name, value in own.items() if hasattr(value, "py_func")}
    return types.FunctionType(plain.__code__, {**plain.__globals__, **inner}, plain.__name__, plain.__defaults__)


def _identity(bound: dict[str, Any]) -> str:
    """A digest of what is bound: names of kernels, and all they do where they stand in files that `_digest` misses."""
    digest, seen = hashlib.sha256(), set[int]()
    for name, value in bound.items():
        digest.update(f"{name}=".encode())
        _add(digest, value, seen)
    return digest.hexdigest()[:12]


def _add(digest: Any, value: Any, seen: set[int]) -> None:
    """A kernel: its name and, if it is of a user's own, its code, constants and everything that it calls."""
    plain = getattr(value, "py_func", value)
    if not isinstance(plain, types.FunctionType):  # what Numba compiles into the code as a constant
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else f"{value!r};".encode())
        return
    digest.update(f"{plain.__module__}.{plain.__qualname__};".encode())
    code = plain.__code__
    if Path(code.co_filename).resolve() in _digested or id(plain) in seen:
        return
    seen.add(id(plain))
    digest.update(code.co_code)
    digest.update(f"{code.co_consts}{code.co_names}".encode())
    for cell in plain.__closure__ or ():
        _add(digest, cell.cell_contents, seen)
    for name in code.co_names:
        part = plain.__globals__.get(name)
        if hasattr(part, "py_func") or isinstance(part, CONSTANTS):
            digest.update(f"{name}=".encode())
            _add(digest, part, seen)
