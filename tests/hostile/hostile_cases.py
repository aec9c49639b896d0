"""Cases by kind: each writes damaged files into a working folder and names a command to run.

A case is its kind and a seed, and the same two make the same files.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.torch
import soundfile
import torch
from hostile_home import MANIFEST, UNITS, training_words
from hostile_mutations import TEXTS, damaged, dump, mutated, wrong_value

from echox.data.manifest_index import IndexConfig
from echox.data.manifest_making import MakeManifestConfig
from echox.data.manifest_split import SplitConfig
from echox.data.manifest_stats import StatsConfig
from echox.evaluation.manifest_validation import ValidateConfig
from echox.inference.config import GenerateConfig
from echox.pipeline.recipe import load_recipe, to_dict
from echox_cli import generate, info, prepare, train

Main = Callable[[Sequence[str]], int]
# What a case writes, drawn from the generator, and the command that reads it.
Prepare = Callable[[Path, Random], tuple[Main, list[str]]]
ECHO = "checkpoint=run/echo/final"
ANSWER = [ECHO, "device=cpu", "max_tokens=4"]
FORMATS = (
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_U8"),
    ("WAV", "FLOAT"),
    ("WAV", "ULAW"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("W64", "PCM_16"),
    ("RF64", "PCM_16"),
)
CANARY = "../outside/executed"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of cases."""

    prepare: Prepare
    folders: tuple[str, ...] = ("clips",)
    """What of the home is copied beside its manifests."""


def prepare_case(kind: str, seed: int, home: Path, work: Path) -> tuple[Main, list[str]]:
    """Write the files of a case.

    Args:
        kind: a name in `KINDS`.
        seed: which case of the kind.
        home: folder of `write_home`, which is only read.
        work: folder that the case's command runs in; it is made.

    Returns:
        the command's main function and the words of its command line.
    """
    work.mkdir(parents=True)
    for name in (MANIFEST, UNITS):
        shutil.copy(home / name, work / name)
    for name in KINDS[kind].folders:
        shutil.copytree(home / name, work / name)
    if not (work / "run").exists():
        (work / "run").symlink_to(home / "run")  # only read
    return KINDS[kind].prepare(work, Random(f"{kind} {seed}"))


def _audio(work: Path, random: Random) -> tuple[Main, list[str]]:
    container, subtype = random.choice(FORMATS)
    rate_hz, channels = random.choice((8_000, 16_000, 48_000)), random.choice((1, 1, 2, 3))
    if subtype == "MPEG_LAYER_III":
        channels = min(channels, 2)
    samples = np.random.default_rng(random.getrandbits(32)).uniform(
        -0.3, 0.3, (rate_hz // 2, channels)
    )
    content = io.BytesIO()
    soundfile.write(content, samples, rate_hz, format=container, subtype=subtype)
    clip = work / "clips" / f"q-0.{random.choice(('wav', container.lower()))}"
    clip.write_bytes(damaged(content.getvalue(), random))
    _replace_text(work / MANIFEST, "clips/q-0.wav", f"clips/{clip.name}")
    return random.choice(
        (
            (generate.main, [f"input=clips/{clip.name}", *ANSWER]),
            (prepare.main, ["manifest", "clips"]),
            (prepare.main, ["validate", MANIFEST]),
            (
                prepare.main,
                ["units", MANIFEST, "codec=kmeans", "codec.folder=random", "device=cpu"],
            ),
        )
    )


def _replace_text(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def _manifest(work: Path, random: Random) -> tuple[Main, list[str]]:
    rows = [json.loads(line) for line in (work / UNITS).read_text().splitlines()]
    lines = [
        dump(mutated(row, random, random.choice((0, 1, 1, 2))), random) for row in [*rows, *rows]
    ]
    content = b"\n".join(lines) + random.choice((b"\n", b"", b"\n\n\n", b"\r\n", b"\xff\n"))
    if random.random() < 0.2:
        content = damaged(content, random)
    (work / MANIFEST).write_bytes(content)
    command = random.choice(("validate", "stats", "split", "index", "units", "window", "generate"))
    if command == "generate":
        return generate.main, [f"manifest={MANIFEST}", *ANSWER]
    codec = ["codec=kmeans", "codec.folder=random", "device=cpu"]
    return prepare.main, [command, MANIFEST, *(codec if command == "units" else [])]


def _recipe(work: Path, random: Random) -> tuple[Main, list[str]]:
    # Written by lists of words rather than by YAML, since a recipe is read key by key.
    tree: dict[str, Any] = {"doc": "A recipe.", "defaults": ["echo_tiny", "_self_"]}
    for word in training_words()[1:]:
        key, _, value = word.partition("=")
        _assign(tree, key.split("."), value.strip("[]").split(",") if "[" in value else value)
    text = dump(mutated(tree, random, random.choice((1, 1, 2, 4))), random)
    if random.random() < 0.3:
        text = random.choice((damaged, _with_aliases, _with_tag))(text, random)
    (work / "recipes").mkdir()
    (work / "recipes" / "mine.yaml").write_bytes(text)
    return random.choice(
        (
            (train.main, ["recipe=mine", "dry_run=true"]),
            (train.main, ["recipe=recipes/mine.yaml", "--cfg", "job"]),
            (train.main, ["--help"]),
            (info.main, ["recipe", "mine"]),
        )
    )


def _assign(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    if keys[0] in _STAGES and "stages" not in keys:
        keys = ["stages", *keys]
    *parents, last = keys
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


_STAGES = ("align", "s2t", "t2c", "echo")


def _with_aliases(text: bytes, random: Random) -> bytes:
    """Return YAML whose aliases expand to many more values than it has characters."""
    levels = random.choice((2, 8, 30))
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, levels)
    )
    return bomb.encode() + b"recipe: " + text + b"\n"


def _with_tag(text: bytes, random: Random) -> bytes:
    tags = (
        f"!!python/object/apply:os.system ['touch {CANARY}']",
        f"!!python/object/new:subprocess.Popen [['touch', '{CANARY}']]",
        "!!binary aGVsbG8=",
        "!!set {a, b}",
        "&a *a",
        "*nowhere",
        "9" * 5_000,
        "2001-12-14t21:59:43.10-05:00",
        "0x" + "f" * 40,
    )
    return b"doc: " + random.choice(tags).encode() + b"\nrecipe: " + text + b"\n"


def _archive(work: Path, random: Random) -> tuple[Main, list[str]]:
    name = random.choice(tuple(_ARCHIVES))
    content = _ARCHIVES[name](work, random)
    if random.random() < 0.7:
        content = damaged(content, random)
    (work / name).write_bytes(content)
    return prepare.main, ["manifest", name, "output=made.jsonl", "allow_outside=false"]


def _tar(work: Path, random: Random) -> bytes:
    content = io.BytesIO()
    format = random.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=content, mode="w", format=format) as tar:
        for clip in sorted((work / "clips").iterdir())[: random.randint(1, 4)]:
            for _ in range(random.choice((1, 1, 2))):
                _add_member(tar, clip, random)
    return content.getvalue()


def _add_member(tar: tarfile.TarFile, clip: Path, random: Random) -> None:
    member = tar.gettarinfo(
        str(clip), random.choice((clip.name, f"a/{clip.name}", f"../{clip.name}"))
    )
    if random.random() < 0.3:
        types = (
            tarfile.FIFOTYPE,
            tarfile.CHRTYPE,
            tarfile.LNKTYPE,
            tarfile.SYMTYPE,
            tarfile.DIRTYPE,
        )
        member.type = random.choice((*types, tarfile.GNUTYPE_SPARSE, b"Z"))
        member.linkname = random.choice(
            ("/dev/zero", "../../outside/secret.wav", "gone", clip.name)
        )
    if random.random() < 0.1:
        member.name = (
            "n" * 90 + "/" + "m" * 200 + ".wav" if tar.format != tarfile.USTAR_FORMAT else "x"
        )
    tar.addfile(member, io.BytesIO(clip.read_bytes()))
    if random.random() < 0.5:
        text = dump(mutated({"text": "Hello.", "speaker": "a"}, random), random)
        beside = tarfile.TarInfo(Path(member.name).with_suffix(".json").name)
        beside.size = len(text)
        tar.addfile(beside, io.BytesIO(text))


def _packed_tar(work: Path, random: Random) -> bytes:
    return gzip.compress(_tar(work, random), 1, mtime=0)


def _table(work: Path, random: Random) -> bytes:
    rows = ["path\tsentence\tclient_id"]
    for clip in sorted((work / "clips").iterdir()):
        values = (f"clips/{clip.name}", "Hello.", "a", *TEXTS)
        rows.append("\t".join(random.choice(values) for _ in range(random.choice((1, 3, 3, 4)))))
    return "\n".join(rows).encode("utf-8", "surrogatepass")


def _rows(work: Path, random: Random) -> bytes:
    rows = [json.loads(line) for line in (work / MANIFEST).read_text().splitlines()]
    return b"\n".join(dump(mutated(row, random, random.choice((0, 1, 2))), random) for row in rows)


def _list_of_rows(work: Path, random: Random) -> bytes:
    return b"[" + _rows(work, random).replace(b"\n", b",") + b"]"


_ARCHIVES: dict[str, Callable[[Path, Random], bytes]] = {
    "data.tar": _tar,
    "data.tar.gz": _packed_tar,
    "data.tsv": _table,
    "data.jsonl": _rows,
    "data.json": _list_of_rows,
}


def _checkpoint(work: Path, random: Random) -> tuple[Main, list[str]]:
    files = _files_in(work / "run")
    path = random.choice(files)
    _damage_checkpoint_file(path, files, random)
    if random.random() < 0.6:
        return generate.main, ["input=clips/q-0.wav", *ANSWER]
    # Training goes on from the step checkpoints of one stage.
    stage = path.relative_to(work / "run").parts[0]
    last = stage if stage in _STAGES else "echo"
    shutil.rmtree(work / "run" / last / "final", ignore_errors=True)
    return train.main, training_words(f"stage={last}")


def _damage_checkpoint_file(path: Path, files: list[Path], random: Random) -> None:
    content = path.read_bytes()
    action = random.choice(("bytes", "bytes", "bytes", "swap", "remove", "value", "pickle"))
    if action == "remove":
        path.unlink()
    elif action == "swap":
        path.write_bytes(
            random.choice([other for other in files if other.suffix == path.suffix]).read_bytes()
        )
    elif action == "pickle" and path.suffix in (".pt", ".safetensors"):
        path.write_bytes(pickle.dumps(_Executed()))
    elif action == "value" and (value := _json_or_none(content)) is not None:
        path.write_bytes(dump(mutated(value, random, random.choice((1, 3))), random))
    elif action == "value" and path.suffix == ".safetensors":
        _change_tensor(path, random)
    else:
        path.write_bytes(damaged(content, random))


class _Executed:
    """A pickle of this runs a program when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {CANARY}",)


def _change_tensor(path: Path, random: Random) -> None:
    tensors = safetensors.torch.load_file(path)
    name = random.choice(sorted(tensors))
    tensor = tensors[name]
    changes = {
        "nan": torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor,
        "shape": tensor.reshape(-1),
        "longer": torch.cat([tensor, tensor]) if tensor.ndim else tensor,
        "type": tensor.to(torch.int8),
        "empty": tensor.new_zeros(0),
    }
    tensors[name] = changes[random.choice(sorted(changes))].contiguous()
    if random.random() < 0.2:
        tensors[f"{name}.more"] = tensors.pop(name)
    safetensors.torch.save_file(tensors, path)


def _cache(work: Path, random: Random) -> tuple[Main, list[str]]:
    files = _files_in(work / "cache")
    chosen = random.sample(files, random.choice((1, 1, 2)))
    for path in chosen:
        _damage_cache_file(path, files, random)
    # The stage that reads what was damaged last is trained again.
    cache = chosen[-1].relative_to(work / "cache").parts[0]
    stage = _READERS.get(cache) or random.choice(("align", "s2t", "echo"))
    shutil.rmtree(work / "run" / stage)
    if cache == "units":
        (work / UNITS).unlink()
    return train.main, training_words(f"stage={stage}")


_READERS = {"alignments": "t2c", "units": "t2c", "pseudo_labels": "echo"}


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def _damage_cache_file(path: Path, files: list[Path], random: Random) -> None:
    content, other = path.read_bytes(), random.choice(files)
    action = random.choice(("bytes", "bytes", "bytes", "swap", "remove", "value", "folder"))
    if action == "swap":
        # The other may be damaged already, and is a file or a folder then.
        path.write_bytes(other.read_bytes() if other.is_file() else b"")
    elif action == "value" and (value := _json_or_none(content)) is not None:
        path.write_bytes(dump(mutated({"": value}, random), random))
    elif action in ("remove", "folder"):
        path.unlink()
        if action == "folder":
            path.mkdir()
    else:
        path.write_bytes(damaged(content, random))


def _json_or_none(content: bytes) -> Any:
    """Return a file's JSON value; None where it has none, or more than one."""
    try:
        return json.loads(content)
    except ValueError:
        return None


def _numbers(work: Path, random: Random) -> tuple[Main, list[str]]:
    main, words, keys = random.choice(
        (
            (train.main, ["dry_run=true", *training_words()], _recipe_keys()),
            (train.main, ["dry_run=true", *training_words()], _recipe_keys()),
            (generate.main, ["input=clips/q-0.wav", *ANSWER], _keys(GenerateConfig)),
            *(
                (prepare.main, [name, MANIFEST], _keys(config))
                for name, config in _SUBJECTS.items()
            ),
        )
    )
    # As Hydra's grammar writes values, or as nobody would.
    value = wrong_value(random)
    text = value if isinstance(value, str) else json.dumps(value)
    return main, [*words, f"{random.choice(keys)}={text}"]


_SUBJECTS: dict[str, type] = {
    "manifest": MakeManifestConfig,
    "validate": ValidateConfig,
    "stats": StatsConfig,
    "index": IndexConfig,
    "split": SplitConfig,
}


def _keys(config: type) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


@functools.cache
def _recipe_keys() -> list[str]:
    return _leaves(to_dict(load_recipe("echo_tiny", training_words()[1:])))


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        leaf
        for key, value in tree.items()
        for leaf in (
            _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
        )
    ]


KINDS = {
    "audio": Kind(_audio),
    "manifest": Kind(_manifest),
    "recipe": Kind(_recipe),
    "archive": Kind(_archive),
    "checkpoint": Kind(_checkpoint, ("clips", "run", "cache")),
    "cache": Kind(_cache, ("clips", "run", "cache")),
    "number": Kind(_numbers),
}
