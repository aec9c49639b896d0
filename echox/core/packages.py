"""Optional packages, and errors for packages that are missing or do not import."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType

from echox.core.errors import PackageError

# Modules whose import errors are bugs of echox, or of the script that calls it.
_OWN_MODULES = ("echox", "echox_cli", "echox_plugins", "echox_recipes", "__main__")
# Compiled against another package, so that the releases of both are chosen together.
_COMPANIONS = {"torchaudio": ("torch",)}
_REASON_CHARACTERS = 240  # a loader's message may list every path that it searched


@dataclass(frozen=True, slots=True)
class OptionalPackage:
    """A package that only some users need."""

    module: str
    """The name by which it is imported."""
    name: str
    """The name by which it is installed."""
    extra: str | None
    """The extra of echox that installs it; None where none does."""
    use: str
    """What needs it."""

    def is_installed(self) -> bool:
        """Return whether the package can be found, without running any of its code."""
        # First, because `find_spec` raises for an imported module that has no spec.
        is_imported = sys.modules.get(self.module) is not None
        return is_imported or importlib.util.find_spec(self.module) is not None

    def load(self, submodule: str = "") -> ModuleType:
        """Import the package, or one of its submodules.

        Args:
            submodule: its name within the package, such as "dsp"; "" is the package itself.

        Raises:
            PackageError: the package is not installed.
        """
        require([self])
        return importlib.import_module(f"{self.module}.{submodule}" if submodule else self.module)


HIBARI = OptionalPackage("hibari", "hibari-tts", "demo", "the demo's voices")
ESPEAK = OptionalPackage(
    "espeakng_loader", "espeakng-loader", "demo", "more voices of the demo's questions"
)
ONNXRUNTIME = OptionalPackage("onnxruntime", "onnxruntime", "demo", "the demo's voices")
GGUF = OptionalPackage("gguf", "gguf", "demo", "reading quantised weights")
JIWER = OptionalPackage("jiwer", "jiwer", "evaluate", "word error rates")
DISTILLMOS = OptionalPackage("distillmos", "distillmos", "evaluate", "how natural speech sounds")
PESQ = OptionalPackage("pesq", "pesq", "quality", "likeness of copies to recordings, PESQ")
STOI = OptionalPackage("pystoi", "pystoi", "quality", "likeness of copies to recordings, STOI")
PYARROW = OptionalPackage("pyarrow", "pyarrow", "data", "reading parquet and arrow files")
TENSORBOARD = OptionalPackage("tensorboard", "tensorboard", "tensorboard", "train.tensorboard=true")
SILERO_VAD = OptionalPackage("silero_vad", "silero-vad", "serve", "finding where speech ends")
STARLETTE = OptionalPackage("starlette", "starlette", "serve", "the server")
UVICORN = OptionalPackage("uvicorn", "uvicorn", "serve", "the server")
WEBSOCKETS = OptionalPackage("websockets", "websockets", "serve", "the server")
PROMETHEUS = OptionalPackage("prometheus_client", "prometheus-client", "serve", "its counters")
ONNXRUNTIME_SERVE = OptionalPackage("onnxruntime", "onnxruntime", "serve", "the same")
SERVE_PACKAGES = (STARLETTE, UVICORN, WEBSOCKETS, PROMETHEUS, SILERO_VAD, ONNXRUNTIME_SERVE)
LIGER = OptionalPackage("liger_kernel", "liger-kernel", "bench", "a rival of the codec-head loss")
CUT_CROSS_ENTROPY = OptionalPackage(
    "cut_cross_entropy", "cut-cross-entropy", "bench", "a rival of the codec-head loss"
)
FLASHINFER = OptionalPackage(
    "flashinfer", "flashinfer-python", None, "a rival of sampling on a GPU"
)


def require(packages: Iterable[OptionalPackage]) -> None:
    """Check that packages are installed, without running any of their code.

    Raises:
        PackageError: some are missing; the text names all of them and the command that
            installs them.
    """
    # A package that several parts need is named once.
    missing = [package for package in dict.fromkeys(packages) if not package.is_installed()]
    if missing:
        raise PackageError(missing_text(missing))


def missing_text(packages: Iterable[OptionalPackage]) -> str:
    """Return one sentence for missing packages: names, uses and the command that installs them."""
    missing = list(packages)
    named = _enumeration([f"{package.name} ({package.use})" for package in missing])
    extras = sorted({package.extra for package in missing if package.extra})
    # An extra rather than its packages, because it also states which releases fit.
    requirements = [f"echox[{','.join(extras)}]"] if extras else []
    requirements += [package.name for package in missing if package.extra is None]
    verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
    return f"{named} {verb} not installed; install {them} with: {_pip_command(requirements)}"


def _enumeration(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _pip_command(requirements: Iterable[str], *options: str) -> str:
    # By the interpreter's path: a bare pip may belong to another environment.
    command = [sys.executable, "-m pip install", *options]
    # In quotes, because "<" and "[" mean something to a shell.
    return " ".join([*command, *(f"'{requirement}'" for requirement in requirements)])


def library_fault(error: BaseException) -> PackageError | None:
    """Translate an error of a library that is missing or does not import.

    Returns:
        An error that names the library and the command that installs it, or None if the fault
        lies with echox or anything else.
    """
    module = _faulty_library(error)
    if module is None:
        return None
    # A module may be installed under another name, as `hibari` is with hibari-tts.
    names = importlib.metadata.packages_distributions().get(module)
    if not names:
        command = _pip_command(_requirements([module]))
        return PackageError(f"{module} is not installed; install it with: {command}")
    return PackageError(_does_not_import_text(names[0], error))


def _does_not_import_text(name: str, error: BaseException) -> str:
    reason = textwrap.shorten(_root_cause(error), _REASON_CHARACTERS, placeholder=" ...")
    companions = _COMPANIONS.get(name, ())
    beside = "".join(
        f" beside {companion} {importlib.metadata.version(companion)}" for companion in companions
    )
    releases = "releases that fit each other" if companions else "one that does"
    # Companions are named in the command, or pip would keep the release that does not fit.
    command = _pip_command(_requirements([*companions, name]), "--upgrade")
    return (
        f"{name} {importlib.metadata.version(name)} does not import{beside} ({reason}); "
        f"install {releases} with: {command}"
    )


def _faulty_library(error: BaseException) -> str | None:
    """Return the import name of the library at fault: the innermost that was being imported."""
    frames = _module_frames(error)
    imported = [module for module, function in frames if function == "<module>"]
    if imported and imported[-1] not in _OWN_MODULES:
        return imported[-1]
    if not isinstance(error, ImportError):
        return None
    # A library that imports its own parts late fails in a function of its own.
    libraries = [module for module, _ in frames if module not in _OWN_MODULES]
    if libraries:
        return libraries[-1]
    # A library that is missing fails in the module that imports it.
    requested = (error.name or "").partition(".")[0]
    is_library = requested not in {"", *_OWN_MODULES, *sys.stdlib_module_names}
    return requested if is_library else None


def _module_frames(error: BaseException) -> list[tuple[str, str]]:
    """Return the top-level module and the function of each frame outside Python's own library."""
    frames = [
        (frame.f_globals.get("__name__", "").partition(".")[0], frame.f_code.co_name)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    # Python's import machinery stands between any two modules and is never at fault.
    return [
        (module, function)
        for module, function in frames
        if module and module not in sys.stdlib_module_names
    ]


def _root_cause(error: BaseException) -> str:
    """Return the text of the first error in a chain of causes, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def _requirements(names: Iterable[str]) -> Iterator[str]:
    """Yield the requirement of echox for each package, or the bare name if there is none."""
    texts = [text.partition(";")[0].strip() for text in importlib.metadata.requires("echox") or ()]
    for name in names:
        yield next((text for text in texts if _is_requirement_of(text, name)), name)


def _is_requirement_of(text: str, name: str) -> bool:
    # Parsed by hand, because this runs where a library is missing: `packaging` may be the one.
    project = re.match(r"[\w.-]+", text)
    return project is not None and _normalized(project[0]) == _normalized(name)


def _normalized(project: str) -> str:
    return project.replace("_", "-").lower()
