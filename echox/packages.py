"""Packages that echox imports: those that an extra brings, and one sentence where one is missing or does not import."""

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

from echox.errors import PackageError

OURS = ("echox", "echox_cli", "echox_plugins", "echox_recipes", "__main__")
# Compiled against another package, so that the releases of both are chosen together.
_BESIDE = {"torchaudio": ("torch",)}
_REASON_CHARACTERS = 240


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
        """Whether it is there; nothing of it is run."""
        return sys.modules.get(self.module) is not None or importlib.util.find_spec(self.module) is not None

    def load(self, submodule: str = "") -> ModuleType:
        """Import it, or one of its modules, such as "dsp".

        Raises:
            PackageError: it is not installed.
        """
        require([self])
        return importlib.import_module(f"{self.module}.{submodule}" if submodule else self.module)


HIBARI = OptionalPackage("hibari", "hibari-tts", "demo", "the demo's voices")
ESPEAK = OptionalPackage("espeakng_loader", "espeakng-loader", "demo", "more voices of the demo's questions")
ONNXRUNTIME = OptionalPackage("onnxruntime", "onnxruntime", "demo", "the demo's voices")
GGUF = OptionalPackage("gguf", "gguf", "demo", "reading quantised weights")
JIWER = OptionalPackage("jiwer", "jiwer", "evaluate", "word error rates")
DISTILLMOS = OptionalPackage("distillmos", "distillmos", "evaluate", "how natural speech sounds")
PESQ = OptionalPackage("pesq", "pesq", "quality", "likeness of copies to recordings, PESQ")
STOI = OptionalPackage("pystoi", "pystoi", "quality", "likeness of copies to recordings, STOI")
PYARROW = OptionalPackage("pyarrow", "pyarrow", "data", "reading parquet and arrow files")
TENSORBOARD = OptionalPackage("tensorboard", "tensorboard", "tensorboard", "train.tensorboard=true")
LIGER = OptionalPackage("liger_kernel", "liger-kernel", "bench", "a rival of the codec-head loss")
CUT_CROSS_ENTROPY = OptionalPackage("cut_cross_entropy", "cut-cross-entropy", "bench", "a rival of the codec-head loss")
FLASHINFER = OptionalPackage("flashinfer", "flashinfer-python", None, "a rival of sampling on a GPU")


def require(packages: Iterable[OptionalPackage]) -> None:
    """Check that packages are there; nothing of them is run.

    Raises:
        PackageError: some are not; the text names all of these and the command that installs them.
    """
    missing = [package for package in dict.fromkeys(packages) if not package.is_installed()]
    if missing:
        raise PackageError(missing_text(missing))


def missing_text(packages: Iterable[OptionalPackage]) -> str:
    """That packages are not installed, what they are for, and the command that installs them, as one sentence."""
    missing = list(packages)
    named = _listed([f"{package.name} ({package.use})" for package in missing])
    extras = sorted({package.extra for package in missing if package.extra})
    wanted = [f"echox[{','.join(extras)}]"] if extras else []
    wanted += [package.name for package in missing if package.extra is None]
    verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
    return f"{named} {verb} not installed; install {them} with: {_pip(wanted)}"


def _listed(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _pip(wanted: Iterable[str], *options: str) -> str:
    # By the interpreter's path: a bare pip may belong to another environment.
    return " ".join([sys.executable, "-m pip install", *options, *(f"'{text}'" for text in wanted)])


def library_fault(error: BaseException) -> PackageError | None:
    """What to tell where `error` is a library's that is missing or does not import; None where it is a fault of echox or of anything else."""
    module = _blamed(error)
    if module is None:
        return None
    names = importlib.metadata.packages_distributions().get(module)
    if not names:
        return PackageError(f"{module} is not installed; install it with: {_pip(_requirements([module]))}")
    reason = textwrap.shorten(_reason(error), _REASON_CHARACTERS, placeholder=" ...")
    beside = _BESIDE.get(names[0], ())
    company = "".join(f" beside {name} {importlib.metadata.version(name)}" for name in beside)
    return PackageError(
        f"{names[0]} {importlib.metadata.version(names[0])} does not import{company} ({reason}); "
        f"install {'releases that fit each other' if beside else 'one that does'} with: {_pip(_requirements([*beside, names[0]]), '--upgrade')}"
    )


def _blamed(error: BaseException) -> str | None:
    """The library that is at fault, by the name under which it is imported: the innermost one that was being imported."""
    frames = [(frame.f_globals.get("__name__", "").partition(".")[0], frame.f_code.co_name) for frame, _ in traceback.walk_tb(error.__traceback__)]
    frames = [(module, function) for module, function in frames if module and module not in sys.stdlib_module_names]
    imported = [module for module, function in frames if function == "<module>"]
    if imported and imported[-1] not in OURS:
        return imported[-1]
    if not isinstance(error, ImportError):
        return None
    # A library that imports its own parts late fails in a function; one that is missing, in whoever asks for it.
    late = [module for module, _ in frames if module not in OURS]
    asked = (error.name or "").partition(".")[0]
    known = {"", *OURS, *sys.stdlib_module_names}
    return late[-1] if late else asked if asked not in known else None


def _reason(error: BaseException) -> str:
    """What the first of the errors behind one another says, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def _requirements(names: Iterable[str]) -> Iterator[str]:
    """What echox asks of packages, or their bare names."""
    asked = [text.partition(";")[0].strip() for text in importlib.metadata.requires("echox") or ()]
    for name in names:
        yield next((text for text in asked if re.match(r"[\w.-]+", text)[0].replace("_", "-").lower() == name.replace("_", "-").lower()), name)
