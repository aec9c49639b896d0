"""echox: train, run and extend EchoX, the speech-to-speech language model (arXiv 2509.09174).

    import echox

    pipeline = echox.load("runs/echo_mini")
    answer = pipeline("question.wav")
    print(answer.text)
    answer.save("answer.wav")

The names in `__all__` are loaded at their first use, so that `import echox` takes milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# For type checkers and editors, which do not call `__getattr__`.
if TYPE_CHECKING:
    from echox.assets import asset_folder
    from echox.core.errors import EchoxError
    from echox.data.manifest import read_manifest, write_manifest
    from echox.inference.answers import Answer
    from echox.inference.base import Pipeline
    from echox.inference.codec import CodecPipeline
    from echox.inference.session import Session
    from echox.pipeline.api import evaluate, generate, load, load_codec, train
    from echox.pipeline.plugins import discover
    from echox.testing import check

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "CodecPipeline",
    "EchoxError",
    "Pipeline",
    "Session",
    "asset_folder",
    "check",
    "discover",
    "evaluate",
    "generate",
    "load",
    "load_codec",
    "read_manifest",
    "train",
    "write_manifest",
]

# Name -> module; importing them here would load PyTorch, which takes seconds.
_MODULES = {
    "Answer": "echox.inference.answers",
    "CodecPipeline": "echox.inference.codec",
    "EchoxError": "echox.core.errors",
    "Pipeline": "echox.inference.base",
    "Session": "echox.inference.session",
    "asset_folder": "echox.assets",
    "check": "echox.testing",
    "discover": "echox.pipeline.plugins",
    "evaluate": "echox.pipeline.api",
    "generate": "echox.pipeline.api",
    "load": "echox.pipeline.api",
    "load_codec": "echox.pipeline.api",
    "read_manifest": "echox.data.manifest",
    "train": "echox.pipeline.api",
    "write_manifest": "echox.data.manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'echox' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
