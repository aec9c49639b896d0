"""Checks before a run that its folder holds nothing trained with other settings or data.

Such a stage is stale, and is refused, or moved aside and trained again where `overwrite` asks for
it. A stage is stale if settings that decide its weights differ from those in its checkpoint
(`echox.core.config.neutral` marks the fields that do not; `resume=with_new_settings` lets an
unfinished stage go on with others), if the code of a plugin that it is trained with was edited, if
a stage that it builds on was trained again or its codec fitted again, or if a manifest that it was
trained on or a folder of pretrained weights has changed; a fitted codec, if it was fitted with
other settings, to other speech, or with plugins that were edited since. Nothing is built for these
checks: small files are read, and of weights the begin of each tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echox.assets.folder_digest import folder_digest
from echox.core import checkpoint
from echox.core.config import decisive, to_plain
from echox.core.errors import CheckpointError
from echox.core.files import atomic_write
from echox.core.progress import print_message
from echox.data.manifest import manifest_fingerprint
from echox.engine.lineage import Change, changes
from echox.pipeline.plugins import code_of_named, inner_parts, plugin_code
from echox.pipeline.recipe import Recipe, Resume, own_parts, to_dict
from echox.pipeline.tasks import outlined_task, parent_folder, run_of_parents
from echox.tasks.recorded import (
    PRETRAINED,
    WEIGHT_FOLDERS,
    chosen_in,
    plans_of,
    weight_folders,
)

CODEC = "codec"
PLUGIN_CODE = "plugin_code"  # in lineages and records of fits: "encoder mel" -> digest
FITTED_WITH = "fitted_with.json"  # in a fitted codec's folder
FITTED = "config.json"  # there too: what codecs that are fitted state their fingerprint in
REPLACED = "replaced"  # in a run's folder: what was moved aside
SHOWN = 6  # differences that an error lists
WIDEST = 40  # characters of a value in an error


@dataclass(frozen=True, slots=True)
class Stale:
    """A stage, or the codec, that was made with other settings or data than the recipe's."""

    name: str
    folder: Path
    reasons: Sequence[str]  # what differs, each in a few words
    is_resumable: bool = False  # only settings differ, and there are checkpoints to go on from
    is_edited: bool = False  # only the code of plugins differs


def made_again(recipe: Recipe) -> set[str]:
    """Return the stages, and `CODEC`, that `overwrite` makes again; none without it."""
    if not recipe.overwrite:
        return set()
    stale = list(_stale(recipe, _checked_stages(recipe)))
    return {item.name for item in (*stale, *_built_on(recipe, stale))}


def prepare_rerun(recipe: Recipe, *, makes_room: bool = True) -> None:
    """Refuse to run on stale stages; with `overwrite`, move them and their descendants aside.

    Args:
        recipe: the recipe of the run.
        makes_room: False leaves the moving to another process, which has done it by now.

    Raises:
        CheckpointError: something is stale, and `overwrite` is not set or may not replace it.
    """
    stale = list(_stale(recipe, _checked_stages(recipe)))
    if not stale:
        return
    if not recipe.overwrite:
        raise CheckpointError(_refusal(recipe, stale))
    replaced = [*stale, *_built_on(recipe, stale)]
    # Before the first is moved, so that a refusal leaves the folder as it was.
    for item in replaced:
        _check_replaceable(recipe, item)
    if makes_room:
        for item in replaced:
            target = _move_aside(Path(recipe.run_dir), item.folder)
            print_message(f"{item.name}: made otherwise before, and moved to {target}")


def _checked_stages(recipe: Recipe) -> Sequence[str]:
    # Of a refit only the planned stage: those that it builds on are another run's.
    return recipe.planned if recipe.refit else recipe.with_ancestors(recipe.planned)


def refuse_stale(recipe: Recipe, stage: str) -> None:
    """Refuse to train one stage that is stale, just before its training.

    What it builds on may have been trained again since `prepare_rerun`.

    Raises:
        CheckpointError: the stage is stale.
    """
    if stale := list(_stale(recipe, [stage])):
        raise CheckpointError(_refusal(recipe, stale))


def note_fit(codec: Any, recipe: Recipe | None = None) -> None:
    """Record in the folder of a fitted codec what it was fitted with.

    Args:
        codec: its config; without a folder nothing is recorded.
        recipe: whose run fitted it; None where it was fitted by itself.

    Raises:
        ManifestError: a manifest of `codec_speech` cannot be read.
    """
    if (folder := _codec_folder(codec)) is not None:
        record: dict[str, Any] = {PLUGIN_CODE: plugin_code([(CODEC, codec), *inner_parts(codec)])}
        if recipe is not None:
            prints = {path: manifest_fingerprint(path) for path in recipe.codec_speech}
            record = {"recipe": to_dict(recipe), "speech": prints, **record}
        with atomic_write(folder / FITTED_WITH) as unfinished:
            unfinished.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _refusal(recipe: Recipe, stale: Sequence[Stale]) -> str:
    reasons = list(dict.fromkeys(reason for item in stale for reason in item.reasons))
    more = f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    built_on = _built_on(recipe, stale)
    also = f" and what builds on it ({', '.join(item.name for item in built_on)})"
    also = also if built_on else ""
    folders = [str(item.folder) for item in (*stale, *built_on)]
    names = _listed([item.name for item in stale])
    were, them = ("was", "it") if len(stale) == 1 else ("were", "them")
    return (
        f"{names} in {recipe.run_dir} {were} made otherwise: {', '.join(reasons[:SHOWN])}{more}; "
        f"name another folder with run_dir=, make {them}{also} again with overwrite=true, which "
        f"moves {_listed(folders)} aside, {_way_to_go_on(stale)}or go back to the old settings"
    )


def _way_to_go_on(stale: Sequence[Stale]) -> str:
    """Return how to keep or to train stages further with the new settings; "" if they cannot."""
    if all(item.is_edited for item in stale):
        # An edit may change no number, and a finished stage would have to be trained again for it.
        return "keep what is trained with resume=with_new_settings, "
    if not all(item.is_resumable for item in stale):
        return ""
    finals = [str(item.folder / "final") for item in stale if (item.folder / "final").exists()]
    delete = f"delete {_listed(finals)} and " if finals else ""
    return f"{delete}go on from the last checkpoint with resume=with_new_settings, "


def _listed(names: Sequence[str]) -> str:
    """Return `align, s2t and echo`."""
    return " and ".join(", ".join(names).rsplit(", ", 1))


def _check_replaceable(recipe: Recipe, item: Stale) -> None:
    """Refuse to replace a codec of other runs, or a stage that this run does not train."""
    run = Path(recipe.run_dir)
    reasons = ", ".join(item.reasons[:SHOWN])
    is_inside = item.folder.resolve().is_relative_to(run.resolve())
    if item.name == CODEC and not is_inside:
        raise CheckpointError(
            f"the codec in {item.folder} was made otherwise ({reasons}), and lies outside "
            f"{recipe.run_dir}, where other runs may use it, so overwrite=true leaves it alone; "
            "set codec.folder to another folder, or delete that one"
        )
    if item.name != CODEC and item.name not in recipe.planned:
        raise CheckpointError(
            f"{item.name} in {recipe.run_dir} was made otherwise ({reasons}), and is none of the "
            f"stages that this run trains ({', '.join(recipe.planned)}); "
            "leave out stage=, or add it to only, to train it again"
        )


def _stale(recipe: Recipe, stages: Iterable[str]) -> Iterator[Stale]:
    """Yield the codec, where one of the stages uses it, and the stages that are stale."""
    stages = list(stages)
    uses_codec = any(CODEC in recipe.kinds(stage) for stage in stages)
    if uses_codec and (codec := _stale_codec(recipe)) is not None:
        yield codec
    for stage in stages:
        folder = Path(recipe.run_dir) / stage
        meta = _meta_of(folder)
        if meta is None:
            continue
        settings = _changed_recipe(recipe, stage, meta["recipe"])
        edits = _edited_plugins(recipe, stage, meta["lineage"])
        others = list(_other_reasons(recipe, stage, meta))
        is_resumable = bool(checkpoint.step_folders(folder / "checkpoints")) and not others
        is_edited = not settings and not others
        is_kept = is_edited or not (folder / "final").exists()
        takes_new = recipe.resume is Resume.with_new_settings and is_kept
        changed = [] if takes_new else [_sentence(item) for item in (*settings, *edits)]
        if reasons := [*changed, *others]:
            yield Stale(stage, folder, reasons, is_resumable, is_edited)


def _meta_of(folder: Path) -> dict[str, Any] | None:
    """Return the metadata of a stage's final checkpoint, else of its newest; None without any."""
    candidates = [folder / "final", *reversed(checkpoint.step_folders(folder / "checkpoints"))]
    for candidate in candidates:
        try:
            meta = checkpoint.described(candidate)
            return {
                **meta,
                "recipe": meta.get("recipe") or {},
                "lineage": meta.get("lineage") or {},
            }
        except CheckpointError:
            continue  # a damaged one is reported where it is loaded
    return None


def _other_reasons(recipe: Recipe, stage: str, meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a stage is stale beside its settings: its parents, its manifests."""
    lineage = meta["lineage"]
    yield from _changed_parents(recipe, stage, lineage.get("parents", {}))
    fingerprints = lineage.get("data", {})
    codec, folder = fingerprints.get(CODEC), _codec_folder(recipe.codec)
    fitted = None if folder is None or CODEC not in recipe.kinds(stage) else _fit_in(folder)
    # The settings may be the same: a folder can be replaced, and runs can share one.
    if codec is not None and fitted is not None and codec != fitted:
        yield f"the codec in {folder} was fitted again since"
    yield from _changed_weights(recipe, stage, meta)
    for path in _training_manifests(recipe, stage):
        # Tasks name a manifest by its path, or by its file name where that is unique.
        keys = (f"manifest:{path}", f"manifest:{Path(path).name}")
        recorded = next((fingerprints[key] for key in keys if key in fingerprints), None)
        if recorded is not None and _has_changed(path, recorded):
            yield f"{path} has changed since"


def _changed_weights(recipe: Recipe, stage: str, meta: Mapping[str, Any]) -> Iterator[str]:
    recorded, before = meta["lineage"].get(WEIGHT_FOLDERS, {}), meta["recipe"]
    for kind in set(PRETRAINED) & {*recipe.kinds(stage)}:
        for name, folder in weight_folders(kind, getattr(recipe, kind)).items():
            # Another folder is a changed setting.
            is_same = _at(before, name) == _at(to_dict(recipe), name)
            if name in recorded and is_same and folder_digest(folder) != recorded[name]:
                yield f"the weights in {folder} have changed since"


def _at(plain: Any, name: str) -> Any:
    """Return the value at a dotted name in nested mappings, None where there is none."""
    for key in name.split("."):
        plain = plain.get(key) if isinstance(plain, Mapping) else None
    return plain


def _changed_parents(recipe: Recipe, stage: str, parents: Mapping[str, str]) -> Iterator[str]:
    for parent, fingerprint in parents.items():
        name = recipe.parents(stage).get(parent, parent)
        final = parent_folder(run_of_parents(recipe), name)
        if not final.exists():
            continue
        weights = checkpoint.described(final)["files"].get(checkpoint.MODEL, {})
        if weights.get("sha256") != fingerprint:
            yield f"{name} was trained again since"


def _has_changed(path: str, fingerprint: str) -> bool:
    # A manifest that is gone is reported by the step that reads it.
    return Path(path).is_file() and manifest_fingerprint(path) != fingerprint


def changed_settings(recipe: Recipe, stage: str, meta: Mapping[str, Any]) -> list[Change]:
    """List the settings that decide a stage's weights and differ, and the plugins edited since.

    Args:
        recipe: the recipe of the run now.
        stage: name of the stage.
        meta: the metadata of a checkpoint of the stage.
    """
    return [
        *_changed_recipe(recipe, stage, meta.get("recipe") or {}),
        *_edited_plugins(recipe, stage, meta.get("lineage") or {}),
    ]


def _edited_plugins(recipe: Recipe, stage: str, lineage: Mapping[str, Any]) -> list[Change]:
    # Another part in its place is a changed setting, and an old checkpoint records no code.
    return _edits(lineage.get(PLUGIN_CODE, {}), plugin_code(own_parts(recipe, stage)))


def _edits(before: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    return [
        Change(f"code of {part}", before[part], now[part])
        for part in now
        if part in before and before[part] != now[part]
    ]


def _changed_recipe(recipe: Recipe, stage: str, before: Mapping[str, Any]) -> list[Change]:
    # A checkpoint that was not written by a recipe records no settings to compare.
    if stage not in plans_of(before):
        return []
    return changes(_settings(recipe, stage, before), _settings(recipe, stage, to_dict(recipe)))


def _settings(recipe: Recipe, stage: str, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a stage's weights, folders by their role.

    Args:
        recipe: its types say which fields are neutral.
        stage: name of the stage.
        plain: a whole recipe as plain data, which the settings are taken from.
    """
    # A field that a later version added is not in the data of an old checkpoint.
    plain = {**to_dict(recipe), **plain}
    settings = {name: plain.get(name) for name in ("seed", "checkpoint", "refit")}
    for kind in recipe.kinds(stage):
        settings[kind] = decisive(plain.get(kind), getattr(recipe, kind))
    settings[stage] = decisive(plans_of(plain).get(stage), recipe.plan(stage))
    settings |= _corpus_settings(recipe, plain)
    # Whether the recipe has a stage to continue from decides where training starts.
    continues, chosen = recipe.task_type(stage).continues, chosen_in(plain)
    settings["only"] = [role for role in continues if role in chosen]
    return _by_role(settings, plain)


def _corpus_settings(recipe: Recipe, plain: Mapping[str, Any]) -> dict[str, Any]:
    # Where one of the two has no corpus, its manifests are compared instead.
    if recipe.corpus is None or plain.get("corpus") is None:
        return {}
    return {"corpus": decisive(plain["corpus"], recipe.corpus)}


def _by_role(settings: Any, plain: Mapping[str, Any]) -> Any:
    """Name the run's folders by their role, so that a run that was moved compares equal."""
    roles = {
        (plain.get("corpus") or {}).get("folder"): "corpus",
        plain.get("run_dir"): "run_dir",
        plain.get("cache_dir"): "cache_dir",
    }
    folders = [(folder, role) for folder, role in roles.items() if folder]
    # The longest first, since one folder may lie in another.
    folders.sort(key=lambda entry: -len(entry[0]))
    return _with_roles(settings, folders)


def _with_roles(value: Any, folders: Sequence[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        return {key: _with_roles(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_roles(item, folders) for item in value]
    if isinstance(value, str):
        for folder, role in folders:
            if value == folder or value.startswith(f"{folder}/"):
                return f"<{role}>{value[len(folder) :]}"
    return value


def _training_manifests(recipe: Recipe, stage: str) -> list[str]:
    """List the manifests that a stage is trained on, without those that it validates on."""
    plan = recipe.plan(stage)
    # The fields of validation manifests are neutral, so only training manifests remain.
    decisive_texts = set(_texts(decisive(to_plain(plan), plan)))
    return [path for path in outlined_task(recipe, stage).manifests() if path in decisive_texts]


def _texts(value: Any) -> Iterator[str]:
    """Yield every string in a nesting of dicts and lists."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        yield from _texts(item)
    if isinstance(value, str):
        yield value


def _codec_folder(codec: Any) -> Path | None:
    """Return the folder that a codec is fitted in; None for a codec without one."""
    # "random" is a value of the field too, and is no folder.
    folder = getattr(codec, "folder", None)
    return Path(folder) if isinstance(folder, str) and Path(folder).is_dir() else None


def _fit_in(folder: Path) -> str | None:
    """Return the fingerprint that a folder of a codec states, None where it states none."""
    try:
        return json.loads((folder / FITTED).read_text("utf-8")).get("fingerprint")
    except (OSError, ValueError, AttributeError):
        return None  # a damaged one is reported where it is loaded


def _stale_codec(recipe: Recipe) -> Stale | None:
    folder = _codec_folder(recipe.codec)
    record = {} if folder is None else _fit_record(folder)
    if folder is None or not record:
        return None
    # A codec that was fitted by itself records no settings to compare.
    before = _fit_settings(recipe, record.get("recipe", {}))
    reasons = [*map(_sentence, changes(before, _fit_settings(recipe, to_dict(recipe))))]
    for path, fingerprint in record.get("speech", {}).items():
        # A manifest that was left out since is a changed setting already.
        if path in recipe.codec_speech and _has_changed(path, fingerprint):
            reasons.append(f"{path} has changed since")
    recorded = record.get(PLUGIN_CODE, {})
    # Those that it was fitted with: the folder's encoder need not be the recipe's.
    edits = _edits(recorded, code_of_named(recorded))
    is_edited = not reasons
    if not is_edited or recipe.resume is not Resume.with_new_settings:
        reasons += map(_sentence, edits)
    return Stale(CODEC, folder, reasons, is_edited=is_edited) if reasons else None


def _fit_record(folder: Path) -> dict[str, Any]:
    """Return what a codec's folder records of its fit; nothing where it records none."""
    try:
        record = json.loads((folder / FITTED_WITH).read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # fitted by an earlier version
    return record if isinstance(record, dict) else {}


def _fit_settings(recipe: Recipe, plain: Mapping[str, Any]) -> Any:
    """Return the settings of a whole recipe that decide what a codec was fitted to."""
    plain = {**to_dict(recipe), **plain}
    settings = {name: plain.get(name) for name in ("codec_speech", "codec_hours")}
    codec = decisive(plain.get(CODEC), recipe.codec) or {}
    # Without the folder: several runs may use one codec, by different paths.
    settings[CODEC] = {name: value for name, value in codec.items() if name != "folder"}
    return _by_role({**settings, **_corpus_settings(recipe, plain)}, plain)


def _sentence(change: Change) -> str:
    return f"{change.name} {_short(change.before)} -> {_short(change.after)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def _built_on(recipe: Recipe, stale: Sequence[Stale]) -> list[Stale]:
    """List the stages of this run that have a checkpoint and build on what is stale."""
    names = {item.name for item in stale}
    descendants = []
    # In the order of training, so that one pass also meets descendants of descendants.
    for stage in recipe.planned:
        if stage in names:
            continue
        folder = Path(recipe.run_dir) / stage
        inputs = {*recipe.parents(stage).values()}
        inputs |= {CODEC} & {*recipe.kinds(stage)}
        if (inputs & names) and _meta_of(folder) is not None:
            reasons = [f"{name} is made again" for name in sorted(inputs & names)]
            names.add(stage)
            descendants.append(Stale(stage, folder, reasons))
    return descendants


def _move_aside(run: Path, folder: Path) -> Path:
    """Move a folder to a new name among those that were replaced, and return where it is now."""
    # Nothing is deleted: the earlier weights may have taken days.
    number = 1
    while (target := run / REPLACED / f"{folder.name}-{number}").exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(target)
