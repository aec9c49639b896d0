"""Refitting a finished run to a tuned language model, and the ablation of Echo's training."""

import dataclasses
import json

import pytest
import torch
from echo_home import recipe_at, words_at, write_home

from echox.backbones.base import BACKBONES
from echox.core import checkpoint
from echox.core.errors import AssetError, CheckpointError, ConfigError
from echox.evaluation.agreement import CASCADE
from echox.inference.load import codec_of, load_checkpoint
from echox.pipeline.ablation import UNTRAINED, AblationConfig, ablate
from echox.pipeline.refit import check_family, joined
from echox.pipeline.run import run_recipe
from echox.tasks.base import Use
from echox_cli import train

BRIEF = (
    "echo.train.steps=1",
    "echo.train.save_every=null",
    "echo.train.validate_every=null",
    "echo.task.rows=2",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refit")
    write_home(folder)
    return folder


def tuned(home, change):
    """The run's language model with other weights, as a folder."""
    config = recipe_at(home).backbone
    lora = dataclasses.replace(config.lora, rank=0)
    backbone = BACKBONES.build(dataclasses.replace(config, lora=lora))
    with torch.no_grad():
        backbone.model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    change(backbone)
    folder = home / f"tuned-{change.__name__}"
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


def unchanged_tokens(backbone):
    pass


def another_token(backbone):
    vocabulary = json.loads(backbone.tokenizer.backend_tokenizer.to_str())
    table = vocabulary["model"]["vocab"]
    first, second = "A", "B"
    table[first], table[second] = table[second], table[first]
    backbone.tokenizer = type(backbone.tokenizer)(
        tokenizer_object=type(backbone.tokenizer.backend_tokenizer).from_str(json.dumps(vocabulary)),
        eos_token="<|end|>", pad_token="<|end|>", chat_template=backbone.tokenizer.chat_template,
    )  # fmt: skip


def a_larger_vocabulary(backbone):
    backbone.model.resize_token_embeddings(backbone.vocab_size + 3)


def test_echo_is_fitted_to_a_tuned_model_and_says_so(home):
    weights = tuned(home, unchanged_tokens)
    new = home / "fitted"
    overrides = [
        *BRIEF,
        f"refit={home / 'run'}",
        f"run_dir={new}",
        f"backbone.weights={weights}",
        "stage=null",
    ]
    assert train.main(["recipe=echo_tiny", *words_at(home, *overrides)]) == 0
    meta = checkpoint.verify(new / "echo" / "final")
    assert [path.name for path in new.iterdir() if path.is_dir()] == ["echo"]
    assert (
        meta["recipe"]["backbone"]["weights"] == str(weights)
        and meta["recipe"]["stages"]["t2c"]["task"]["decoder"]["width"] == 32
    )
    lineage = meta["lineage"]
    assert lineage["parents"] == {
        stage: checkpoint.fingerprint(home / "run" / stage / "final") for stage in ("s2t", "t2c")
    }
    assert lineage["refit"]["from"]["weights"] == "random" and lineage["refit"]["run"] == str(
        home / "run"
    )
    finished, task = load_checkpoint(new / "echo" / "final", Use.answer_aloud)
    backbone = task.restore(finished, codec=codec_of(finished)).speech_llm.backbone
    assert (
        lineage["refit"]["backbone"]
        == backbone.fingerprint()
        != BACKBONES.build(recipe_at(home).backbone).fingerprint()
    )


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        (
            None,
            ("backbone.random_width=96",),
            "hidden states of 96 channels, but .* was trained on 64; "
            "refit takes the same model tuned further",
        ),
        (
            a_larger_vocabulary,
            (),
            "has a vocabulary of 263, but .* was trained on one of 260; refit",
        ),
        (
            another_token,
            (),
            r"has other tokens than .* was trained on, \d in number, such as \d+, "
            r"which is 'B' and was 'A'; refit",
        ),
    ],
)
def test_another_family_is_refused(home, change, settings, sentence):
    weights = () if change is None else (f"backbone.weights={tuned(home, change)}",)
    recipe = recipe_at(home, f"refit={home / 'run'}", *weights, *settings)
    with pytest.raises(CheckpointError, match=sentence):
        check_family(joined(recipe))


def test_what_a_refit_lacks_is_said_before_weights_are_read(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(BACKBONES, "build", lambda *_: pytest.fail("weights were read"))
    refit = (f"refit={home / 'run'}", f"run_dir={tmp_path / 'new'}", "stage=null")
    gone = f"echo.task.data.train=[{tmp_path / 'gone.jsonl'}]"
    with pytest.raises(AssetError, match=r"cannot begin, .* files: \S+/gone.jsonl \(manifest\)"):
        run_recipe(recipe_at(home, *refit, gone))
    with pytest.raises(CheckpointError, match="hidden states of 96 channels"):
        run_recipe(recipe_at(home, *refit, "backbone.random_width=96"))
    with pytest.raises(AssetError):
        run_recipe(recipe_at(home, *refit, gone, "dry_run=true"))
    stages = [line for line in capsys.readouterr().out.splitlines() if " steps; " in line]
    assert len(stages) == 1 and stages[0].startswith("echo: ")
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_not_finished_cannot_be_fitted(home, tmp_path):
    with pytest.raises(CheckpointError, match="train the stage 's2t' first"):
        run_recipe(recipe_at(home, f"refit={tmp_path}"))


def test_ways_are_compared_and_finished_rows_kept(home, capsys):
    ways = {
        "Echo": [],
        "online, cut": ["echo.task.online={}", "echo.task.segments.rule.threshold=-1.0"],
    }
    config = AblationConfig(
        run=str(home / "run"),
        ways=ways,
        settings=list(BRIEF[1:]),
        steps=1,
        questions=3,
        max_tokens=5,
        device="cpu",
    )
    table = ablate(config)
    assert (
        list(table["scores"]) == [CASCADE, UNTRAINED, *ways]
        and table["rows"] == 3
        and table["recorded"] == 2
    )
    cascade, untrained = table["scores"][CASCADE], table["scores"][UNTRAINED]
    # Where bfloat16 is used, one step and a batch of them round differently.
    assert (
        cascade["unit error, pseudo-labels"]["value"]
        == 0
        <= untrained["unit error, pseudo-labels"]["value"]
        < 0.1
    )
    assert (
        abs(untrained["minus the first row"]["value"]) < 0.1
        and untrained["unit error, recordings"]["count"] == 2
    )
    page = (home / "run" / "ablation" / "ablation.md").read_text()
    assert (
        "| online, cut |" in page
        and "echo.task.online={}" in page
        and page in capsys.readouterr().out
    )
    runs = {
        path: path.stat().st_mtime_ns
        for path in (home / "run" / "ablation").rglob("*")
        if path.is_file() and path.name not in ("ablation.md", "ablation.json")
    }
    assert ablate(config)["scores"] == table["scores"]
    assert {path: path.stat().st_mtime_ns for path in runs} == runs


def test_a_way_that_does_not_fit_is_refused_before_training(home):
    with pytest.raises(ConfigError, match="no field 'onlin'"):
        ablate(
            AblationConfig(run=str(home / "run"), ways={"x": ["echo.task.onlin={}"]}, device="cpu")
        )
    with pytest.raises(
        ConfigError, match="only names 'echo', which is no way to train Echo; did you mean 'Echo'"
    ):
        AblationConfig(only=["echo"])
    with pytest.raises(ConfigError, match="that row is always there"):
        AblationConfig(ways={CASCADE: []})
