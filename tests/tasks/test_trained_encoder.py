"""An encoder that is trained: its weights move, are kept, resume exactly, and answer."""

import dataclasses
import signal
from pathlib import Path

import pytest
import torch

from echox.core import checkpoint
from echox.core.errors import CheckpointError, ConfigError
from echox.data.audio import load_audio, pad_waveforms
from echox.encoders.base import (
    ENCODERS,
    build_encoder,
    features_fingerprint,
    trains,
    weights_fingerprint,
)
from echox.encoders.ssl import SslConfig
from echox.encoders.whisper import WhisperConfig
from echox.engine.interruption import Interrupted
from echox.engine.step import Stepper
from echox.inference.load import load_pipeline
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import load_recipe
from echox.pipeline.run import run_recipe
from echox.tasks.base import TASKS, Parts, StageContext
from echox.testing.encoders import CHECKS
from echox.testing.noise_corpus import noise_corpus, one_step_recipe

TRAINED = [
    WhisperConfig(weights="random", train=True),
    WhisperConfig(weights="random", train=True, layers=1),
    WhisperConfig(weights="random", train=True, also_layers=[1]),
    SslConfig(weights="random", train=True),
    SslConfig(weights="random", train=True, layer=1),
]


def with_trained_encoder(folder, steps=2):
    """The smoke recipe on noise, with an encoder that is trained."""
    discover()
    recipe = one_step_recipe()
    plans = {
        name: dataclasses.replace(
            plan, train=dataclasses.replace(plan.train, steps=steps, save_every=1, lr=1e-2)
        )
        for name, plan in recipe.stages.items()
    }
    return dataclasses.replace(
        recipe,
        encoder=dataclasses.replace(recipe.encoder, train=True, lr_scale=0.5),
        run_dir=str(folder / "run"),
        cache_dir=str(folder / "cache"),
        stages=plans,
        example=None,
    )


def encoder_tensors(folder, prefix="encoder."):
    return checkpoint.load(folder).part(prefix).tensors


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of all four stages."""
    recipe = with_trained_encoder(tmp_path_factory.mktemp("trained"))
    run_recipe(recipe)
    return recipe


def final(recipe, stage):
    return Path(recipe.run_dir) / stage / "final"


@pytest.mark.parametrize("config", TRAINED, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("rule", CHECKS, ids=lambda rule: rule.__name__)
def test_a_trained_encoder_keeps_the_contract(config, rule):
    rule(config)


def test_each_stage_trains_it_on_and_the_next_one_takes_it_over(run):
    pretrained = dict(build_encoder(run.encoder).named_parameters())
    align, s2t = (encoder_tensors(final(run, stage)) for stage in ("align", "s2t"))
    echo = encoder_tensors(final(run, "echo"), "speech_llm.encoder.")
    assert align.keys() == s2t.keys() == {name.removeprefix("speech_llm.") for name in echo}
    for name, weight in align.items():
        assert not torch.equal(weight, pretrained[name.removeprefix("encoder.")]), name
        assert not torch.equal(weight, s2t[name]), name
        assert torch.equal(echo[f"speech_llm.{name}"], s2t[name]), name


def test_features_are_cached_by_the_stage_alone_that_does_not_train_it(run):
    names = [path.name for path in (Path(run.cache_dir) / "features").iterdir()]
    pretrained = build_encoder(WhisperConfig(weights="random", random_dim=64))
    # Echo's alone, which are of the weights that S2T trained.
    assert len(names) == 1 and not names[0].startswith(pretrained.fingerprint())


@pytest.mark.parametrize("stage", ["s2t", "echo"])
def test_a_checkpoint_answers_with_the_trained_encoder(run, stage):
    pipeline = load_pipeline(final(run, stage), device="cpu")
    encoder = pipeline.speech_llm.encoder
    loaded = dict(encoder.named_parameters())
    for name, weight in encoder_tensors(final(run, "s2t")).items():
        assert torch.equal(loaded[name.removeprefix("encoder.")], weight), name
    clip = load_audio(noise_corpus().folder / "train-0-q.wav", encoder.rate_hz)
    wave = pad_waveforms([clip], encoder.rate_hz)
    with torch.no_grad():
        pretrained = build_encoder(run.encoder).eval()(wave).values
    assert not torch.allclose(pipeline.speech_llm.encode_audio(wave).values, pretrained)


def test_a_run_that_is_stopped_ends_with_the_same_bits(run, tmp_path, monkeypatch):
    recipe = dataclasses.replace(with_trained_encoder(tmp_path), only=["align"])
    run_step = Stepper.run_step

    def stopping(self, step, batches):
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return run_step(self, step, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "run_step", stopping)
        with pytest.raises(Interrupted):
            run_recipe(recipe)
    run_recipe(recipe)
    fingerprints = {checkpoint.fingerprint(final(it, "align")) for it in (run, recipe)}
    assert len(fingerprints) == 1


def test_its_learning_rate_is_a_share_of_the_stage_s(run):
    parts = Parts(run.encoder, run.backbone, run.codec)
    context = StageContext(parts=parts, seed=1, cache_dir=Path(run.cache_dir))
    task = TASKS.build(run.plan("align").task, context)
    groups = {group["name"]: group for group in task.parameter_groups(task.build())}
    assert groups["encoder"]["lr_scale"] == 0.5 and groups["all"]["lr_scale"] == 1.0
    assert len(groups["encoder"]["params"]) == len(encoder_tensors(final(run, "align")))


def test_what_was_trained_on_a_trained_encoder_is_refused_on_a_pretrained_one(run):
    frozen = dataclasses.replace(run.encoder, train=False)
    context = StageContext(
        parts=Parts(frozen, run.backbone, run.codec),
        seed=1,
        cache_dir=Path(run.cache_dir),
        parents={stage: final(run, stage) for stage in ("align", "s2t", "t2c")},
    )
    for stage in ("s2t", "echo"):
        with pytest.raises(CheckpointError, match="was trained with encoder.train=true"):
            TASKS.build(run.plan(stage).task, context).build()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["encoder=mel", "encoder.train=true"], "encoder 'mel' has nothing to train"),
        (["encoder.train=true", "encoder.lr_scale=0"], "encoder.lr_scale is 0.0; use a factor"),
        (
            ["encoder.train=true", "s2t.task.data.augmentation.time_masks=2"],
            "encoder.train is true, but not for stage 's2t': its augmentation masks features",
        ),
        (
            ["encoder.train=true", "stages.turn.task=turn_taking", "turn.criterion=turn_taking"]
            + ["only=[turn]"],
            "not for stage 'turn': TurnTakingTask reads the features of a pretrained encoder",
        ),
    ],
)
def test_a_stage_that_cannot_train_it_is_refused_before_anything_runs(
    workspace, overrides, sentence
):
    discover()
    recipe = load_recipe("echo_tiny", overrides)
    with pytest.raises(ConfigError, match=sentence):
        recipe.check()


def test_a_codec_s_encoder_is_not_trained(workspace):
    discover()
    with pytest.raises(ConfigError, match="a codec's encoder is not trained"):
        load_recipe("echo_tiny", ["codec.fit.encoder.train=true"])


def test_an_encoder_that_is_not_trained_is_described_as_before():
    """Its description is hashed and compared in files that earlier versions wrote."""
    assert not {"train", "lr_scale"} & ENCODERS.describe(WhisperConfig()).keys()
    described = ENCODERS.describe(WhisperConfig(train=True))
    assert described["train"] is True and ENCODERS.parse(described).train


def test_the_frozen_encoder_is_frozen_whatever_its_author_left():
    discover()
    encoder = build_encoder(WhisperConfig(weights="random"))
    assert not trains(encoder) and encoder.trained == ()
    assert weights_fingerprint(encoder) == encoder.fingerprint()


def test_features_of_other_trained_weights_have_another_fingerprint():
    discover()
    encoder = build_encoder(WhisperConfig(weights="random", train=True))
    before = features_fingerprint(encoder)
    with torch.no_grad():
        # The last value of a tensor, which the encoder's own fingerprint does not look at.
        dict(encoder.named_parameters())[encoder.trained[0]].view(-1)[-1] += 1.0
    assert features_fingerprint(encoder) != before
