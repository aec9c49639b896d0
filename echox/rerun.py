"""Before a run: what its folder holds of an earlier one that was made otherwise, which is refused, or made again where asked for.

A stage is made otherwise if settings that decide its weights differ from what its checkpoint says (`echox.config.neutral` marks those
that do not), if a stage before it was trained again, or if a manifest it learned from has changed; a fitted codec, if it was fitted by
other settings or to other speech. Nothing is built for this: only small files are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from echox import checkpoint
from echox.config import decisive
from echox.data.manifest import manifest_fingerprint
from echox.data.writing import appearing
from echox.engine.lineage import Change, changes
from echox.errors import CheckpointError
from echox.progress import say
from echox.recipe import ALL_STAGES, Recipe, freeze
from echox.tasks.base import TASKS, Parts, StageContext

CODEC = "codec"
FITTED_WITH = "fitted_with.json"  # in a fitted codec's folder
REPLACED = "replaced"  # in a run's folder: what was moved aside
SHOWN = 6  # differences that are named
WIDEST = 40  # characters of a value that is named


@dataclass(frozen=True, slots=True)
class Stale:
    """A stage, or the codec, that was made otherwise than the recipe says now."""

    name: str
    folder: Path
    reasons: Sequence[str]  # what differs, each in a few words


def prepare_rerun(recipe: Recipe, *, makes_room: bool = True) -> None:
    """Refuse to run on what was made otherwise; with `overwrite`, move it aside together with all that builds on it.

    Args:
        makes_room: False leaves the moving to another process, which has done it by now.
    Raises:
        CheckpointError: something was made otherwise, and is not to be made again or cannot be by the stages of this run.
    """
    stale = list(_stale(recipe, _with_ancestors(recipe)))
    if not stale:
        return
    if not recipe.overwrite:
        raise CheckpointError(_refusal(recipe, stale))
    doomed = [*stale, *_built_on(recipe, stale)]
    _refuse_others(recipe, doomed)
    if makes_room:
        for item in doomed:
            say(f"{item.name}: made otherwise before, and moved to {_move_aside(Path(recipe.run_dir), item.folder)}")


def refuse_stale(recipe: Recipe, stage: str) -> None:
    """The same for one stage, just before it is trained: what it builds on may have been made again meanwhile.

    Raises:
        CheckpointError: the stage was made otherwise.
    """
    if stale := list(_stale(recipe, [stage])):
        raise CheckpointError(_refusal(recipe, stale))


def note_fit(recipe: Recipe) -> None:
    """Leave word in a codec's folder, once it is fitted, of what it was fitted with."""
    if (folder := _codec_folder(recipe)) is not None:
        prints = {path: manifest_fingerprint(path) for path in recipe.codec_speech}
        with appearing(folder / FITTED_WITH) as unfinished:
            unfinished.write_text(json.dumps({"recipe": freeze(recipe), "speech": prints}, indent=2) + "\n", "utf-8")


def _refusal(recipe: Recipe, stale: Sequence[Stale]) -> str:
    reasons = list(dict.fromkeys(reason for item in stale for reason in item.reasons))
    shown = ", ".join(reasons[:SHOWN]) + (f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else "")
    built_on = [item.name for item in _built_on(recipe, stale)]
    also = f" and what builds on it ({', '.join(built_on)})" if built_on else ""
    names = " and ".join(", ".join(item.name for item in stale).rsplit(", ", 1))
    return (
        f"{names} in {recipe.run_dir} {'was' if len(stale) == 1 else 'were'} made otherwise: {shown}; name another folder with run_dir=, "
        f"make {'it' if len(stale) == 1 else 'them'}{also} again with overwrite=true, or go back to the old settings"
    )


def _refuse_others(recipe: Recipe, doomed: Sequence[Stale]) -> None:
    """What `overwrite` may not touch: stages that this run does not train, and a codec that other runs may use."""
    for item in doomed:
        if item.name == CODEC and not item.folder.resolve().is_relative_to(Path(recipe.run_dir).resolve()):
            raise CheckpointError(
                f"the codec in {item.folder} was made otherwise ({', '.join(item.reasons[:SHOWN])}), and lies outside {recipe.run_dir}, "
                "where other runs may use it, so overwrite=true leaves it alone; set codec.folder to another folder, or delete that one"
            )
        if item.name != CODEC and item.name not in recipe.planned:
            raise CheckpointError(
                f"{item.name} in {recipe.run_dir} was made otherwise ({', '.join(item.reasons[:SHOWN])}), and is none of the stages "
                f"that this run trains ({', '.join(recipe.planned)}); leave out stage=, or add it to stages, to train it again"
            )


def _with_ancestors(recipe: Recipe) -> list[str]:
    """The planned stages and all that they build on, in order; of a refit the planned alone, for the others are another run's."""
    wanted, open_ = set(), list(recipe.planned)
    while open_:
        stage = open_.pop()
        if stage not in wanted and recipe.plan(stage) is not None:
            wanted.add(stage)
            open_ += [] if recipe.refit else recipe.parents(stage)
    return [stage for stage in ALL_STAGES if stage in wanted]


def _stale(recipe: Recipe, stages: Iterable[str]) -> Iterator[Stale]:
    stages = list(stages)
    if any(CODEC in _needs(recipe, stage) for stage in stages) and (found := _stale_codec(recipe)) is not None:
        yield found
    for stage in stages:
        folder = Path(recipe.run_dir) / stage
        meta = _meta_of(folder)
        if meta is not None and (reasons := list(_reasons(recipe, stage, meta))):
            yield Stale(stage, folder, reasons)


def _meta_of(folder: Path) -> dict[str, Any] | None:
    """What a stage's final checkpoint says of itself, else its newest; None where there is none that can be read."""
    candidates = [folder / "final", *reversed(checkpoint.step_folders(folder / "checkpoints"))]
    for found in candidates:
        try:
            return checkpoint.described(found)
        except CheckpointError:  # which is said where the checkpoint is read
            continue
    return None


def _reasons(recipe: Recipe, stage: str, meta: Mapping[str, Any]) -> Iterator[str]:
    lineage, before = meta.get("lineage", {}), meta.get("recipe") or {}
    if stage in before:
        yield from map(_worded, _changes(recipe, stage, before))
    for parent, fingerprint in lineage.get("parents", {}).items():
        final = Path(recipe.run_dir) / parent / "final"
        if not recipe.refit and final.exists() and checkpoint.described(final)["files"][checkpoint.MODEL]["sha256"] != fingerprint:
            yield f"{parent} was trained again since"
    for path in _training_manifests(recipe, stage):
        known = next((lineage["data"][key] for key in _keys(path) if key in lineage.get("data", {})), None)
        if known is not None and Path(path).is_file() and manifest_fingerprint(path) != known:
            yield f"{path} has changed since"


def _keys(path: str) -> list[str]:
    """The names that a manifest's fingerprint may have in a lineage."""
    return [f"manifest:{path}", f"manifest:{Path(path).name}"]


def _changes(recipe: Recipe, stage: str, before: Mapping[str, Any]) -> list[Change]:
    """The settings that decide a stage's weights and differ from those of `before`, a whole recipe as plain data."""
    return changes(_settings(recipe, stage, before), _settings(recipe, stage, freeze(recipe)))


def _settings(recipe: Recipe, stage: str, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Of a whole recipe as plain data what decides a stage's weights, folders by their role; `recipe` says of what types it is."""
    plain = {**freeze(recipe), **plain}
    needs = _needs(recipe, stage)
    kept = {name: plain.get(name) for name in ("seed", "checkpoint", "refit")}
    kept |= {part: decisive(plain.get(part), getattr(recipe, part)) for part in needs}
    kept |= {stage: decisive(plain.get(stage), recipe.plan(stage))}
    kept |= _of_corpus(recipe, plain)
    continues = TASKS.entry_of(recipe.plan(stage).task).implementation.continues
    kept["stages"] = [before for before in continues if before in plain.get("stages", ())]
    return _by_role(kept, plain)


def _of_corpus(recipe: Recipe, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The corpus's settings, where there is one now; one that was made by hand meanwhile is known by its manifests."""
    if recipe.corpus is None or plain.get("corpus") is None:
        return {}
    return {"corpus": decisive(plain["corpus"], recipe.corpus)}


def _by_role(settings: Any, plain: Mapping[str, Any]) -> Any:
    """Settings with folders of the run named by their role, so that a run that was moved is the same."""
    places = {(plain.get("corpus") or {}).get("folder"): "corpus", plain.get("run_dir"): "run_dir", plain.get("cache_dir"): "cache_dir"}
    known = sorted(((path, role) for path, role in places.items() if path), key=lambda place: -len(place[0]))

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [renamed(item) for item in value]
        if isinstance(value, str):
            return next((f"<{role}>{value[len(path):]}" for path, role in known if value == path or value.startswith(f"{path}/")), value)
        return value

    return renamed(settings)


def _needs(recipe: Recipe, stage: str) -> tuple[str, ...]:
    return TASKS.entry_of(recipe.plan(stage).task).implementation.needs


def _training_manifests(recipe: Recipe, stage: str) -> list[str]:
    """Those that a stage learns from; what it validates on decides nothing."""
    plan = recipe.plan(stage)
    context = StageContext(Parts(recipe.encoder, recipe.backbone, recipe.codec), recipe.seed, Path(recipe.cache_dir), device=torch.device("meta"))
    decides = set(_texts(decisive(freeze(recipe)[stage], plan)))
    return [path for path in TASKS.build(plan.task, context).manifests() if path in decides]


def _texts(value: Any) -> Iterator[str]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    yield from (text for item in items for text in _texts(item))
    if isinstance(value, str):
        yield value


def _codec_folder(recipe: Recipe) -> Path | None:
    """Where the recipe's codec is fitted, if that is a folder."""
    folder = getattr(recipe.codec, "folder", None)
    return Path(folder) if isinstance(folder, str) and Path(folder).is_dir() else None


def _stale_codec(recipe: Recipe) -> Stale | None:
    folder = _codec_folder(recipe)
    try:
        noted = json.loads((folder / FITTED_WITH).read_text("utf-8")) if folder is not None else None
    except (OSError, ValueError):  # fitted by hand
        return None
    if noted is None:
        return None
    reasons = [*map(_worded, changes(*(_fit_settings(recipe, plain) for plain in (noted["recipe"], freeze(recipe)))))]
    changed = (path for path, known in noted["speech"].items() if Path(path).is_file() and manifest_fingerprint(path) != known)
    reasons += [f"{path} has changed since" for path in changed if path in recipe.codec_speech]
    return Stale(CODEC, folder, reasons) if reasons else None


def _fit_settings(recipe: Recipe, plain: Mapping[str, Any]) -> Any:
    plain = {**freeze(recipe), **plain}
    kept = {name: plain.get(name) for name in ("codec_speech", "codec_hours")}
    codec = decisive(plain.get(CODEC), recipe.codec) or {}
    # Several runs may use one codec; where it lies decides nothing.
    kept[CODEC] = {name: value for name, value in codec.items() if name != "folder"}
    return _by_role({**kept, **_of_corpus(recipe, plain)}, plain)


def _worded(change: Change) -> str:
    return f"{change.name} {_short(change.before)} -> {_short(change.after)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def _built_on(recipe: Recipe, stale: Sequence[Stale]) -> list[Stale]:
    """What stands in the run's folder, is made by this run, and was built on what is stale."""
    names = {item.name for item in stale}
    found = []
    for stage in ALL_STAGES:
        if stage in names or stage not in recipe.planned:
            continue
        folder = Path(recipe.run_dir) / stage
        grounds = {*recipe.parents(stage), *([CODEC] if CODEC in _needs(recipe, stage) else [])} & names
        if grounds and _meta_of(folder) is not None:
            names.add(stage)
            found.append(Stale(stage, folder, [f"{ground} is made again" for ground in sorted(grounds)]))
    return found


def _move_aside(run: Path, folder: Path) -> Path:
    """Give a folder a place of its own among what was replaced; nothing is deleted."""
    number = 1
    while (target := run / REPLACED / f"{folder.name}-{number}").exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(target)
