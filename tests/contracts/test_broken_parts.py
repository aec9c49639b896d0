"""Contracts of parts with one fault each: the fault breaks the rules that are named here."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from echox_plugins.dmel_codec import DmelCodec, DmelConfig

from echox.backbones.base import BACKBONES
from echox.backbones.hub import HubBackbone, HubBackboneConfig
from echox.codecs.base import CODECS, CodecConfig
from echox.codecs.kmeans.codec import KMeansCodec, KMeansCodecConfig
from echox.core.errors import ConfigError, PluginError
from echox.core.signals import Batch, Features, Loss, Units, Waveform
from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, UnitOutputs
from echox.encoders.base import ENCODERS
from echox.encoders.whisper import WhisperConfig, WhisperEncoder
from echox.tasks.base import TASKS
from echox.tasks.t2c.task import TextUnitsTask, TextUnitsTaskConfig
from echox.testing import check, offline_config


@dataclass(kw_only=True, slots=True)
class LeakyEncoderConfig(WhisperConfig):
    weights: str = "random"


class LeakyEncoder(WhisperEncoder):
    """Encodes its padding too, and has weights in its outline."""

    def forward(self, wave: Waveform) -> Features:
        full_lengths = torch.full_like(wave.lengths, wave.samples.shape[1])
        padded = Waveform(wave.samples.nan_to_num(0.5), full_lengths, wave.rate_hz)
        features = super().forward(padded)
        return Features(features.values, super().forward(wave).lengths, features.rate_hz)

    @classmethod
    def outline(cls, config):
        return cls(config)


@dataclass(kw_only=True, slots=True)
class NonCausalConfig(HubBackboneConfig):
    weights: str = "random"


class NonCausalBackbone(HubBackbone):
    """Adds the mean over all positions, later ones included."""

    def forward(self, embeddings, mask, cache=None, use_cache=False):
        return super().forward(
            embeddings + embeddings.mean(1, keepdim=True), mask, cache, use_cache
        )


@dataclass(kw_only=True, slots=True)
class NoisyCodecConfig(KMeansCodecConfig):
    folder: str = "random"


class NoisyCodec(KMeansCodec):
    """Adds random noise to its speech, and maps two units to one word."""

    def decode(self, units: Units) -> Waveform:
        wave = super().decode(units)
        samples = (wave.samples + 0.1 * torch.rand_like(wave.samples)).clamp(-1, 1)
        return Waveform(samples, wave.lengths, wave.rate_hz)

    def unit_tokens_of(self, units: list[int]) -> list[int]:
        return [unit // 2 for unit in super().unit_tokens_of(units)]


@dataclass(kw_only=True, slots=True)
class MeanLossConfig(CriterionConfig):
    """A mean where a sum is asked for."""


class MeanLoss(Criterion):
    def __init__(self, config: MeanLossConfig) -> None:
        super().__init__()

    def forward(self, outputs: UnitOutputs, batch: Batch) -> Loss:
        logits = outputs.unit_head(outputs.unit_states.float())
        mean = torch.nn.functional.cross_entropy(logits, outputs.unit_labels)
        return Loss(mean, batch.count)


@dataclass(kw_only=True, slots=True)
class IncompleteTaskConfig(TextUnitsTaskConfig):
    aligner_steps: int = 1


class IncompleteTask(TextUnitsTask):
    """Leaves a trained weight out of its checkpoints, and draws random numbers in collate."""

    def trained_state_dict(self, model):
        return dict(list(super().trained_state_dict(model).items())[:-1])

    def collate(self, examples):
        torch.rand(1)
        return super().collate(examples)


@pytest.mark.parametrize(
    ("registry", "config_type", "implementation", "rules"),
    [
        (
            ENCODERS,
            LeakyEncoderConfig,
            LeakyEncoder,
            ["padding_and_neighbours_do_not_matter", "the_outline_has_its_shapes"],
        ),
        (
            BACKBONES,
            NonCausalConfig,
            NonCausalBackbone,
            ["nothing_sees_the_future", "padding_does_not_matter", "a_cache_changes_nothing"],
        ),
        (
            CODECS,
            NoisyCodecConfig,
            NoisyCodec,
            ["the_same_units_sound_the_same", "words_are_another_spelling_of_units"],
        ),
        (
            CRITERIA,
            MeanLossConfig,
            MeanLoss,
            [
                "twice_the_batch_is_twice_the_loss",
                "nothing_to_learn_costs_nothing",
                "every_codebook_counts",
            ],
        ),
        (
            TASKS,
            IncompleteTaskConfig,
            IncompleteTask,
            ["a_checkpoint_holds_what_was_trained", "collating_is_repeatable"],
        ),
    ],
)
def test_a_broken_part_breaks_its_rules(workspace, registry, config_type, implementation, rules):
    registry.register("broken", config_type)(implementation)
    with pytest.raises(AssertionError) as error:
        check(offline_config(config_type))
    for rule in rules:
        assert f"{rule}: " in str(error.value)


@dataclass(kw_only=True, slots=True)
class RaisingLossConfig(CriterionConfig):
    """Its criterion raises what is no assertion."""


class RaisingLoss(MeanLoss):
    def forward(self, outputs: UnitOutputs, batch: Batch) -> Loss:
        raise KeyError("weights")


def test_any_exception_breaks_the_rule_in_which_it_was_raised_and_hides_no_other(workspace):
    CRITERIA.register("raising", RaisingLossConfig)(RaisingLoss)
    with pytest.raises(AssertionError) as error:
        check(RaisingLossConfig())
    text = str(error.value)
    assert "gradients_flow: KeyError: 'weights'" in text
    assert "nothing_to_learn_costs_nothing: KeyError: 'weights'" in text
    assert isinstance(error.value.__cause__, KeyError)
    assert "it_owns_no_weight" not in text


def test_a_config_that_is_not_registered_is_refused(workspace):
    with pytest.raises(
        PluginError, match="MeanLossConfig is not the config of any registered part"
    ):
        check(MeanLossConfig())


@dataclass(kw_only=True, slots=True)
class FittedGainConfig(CodecConfig):
    folder: str = "not fitted"
    fails: bool = False


class FittedGain(DmelCodec):
    """Bands of loudness, relative to the loudest sample that it was fitted to."""

    fits = 0

    def __init__(self, config: FittedGainConfig) -> None:
        super().__init__(DmelConfig(bands=4, iterations=1))
        self.peak = float((Path(config.folder) / "peak").read_text())

    @classmethod
    def is_ready(cls, config: FittedGainConfig) -> bool:
        return (Path(config.folder) / "peak").is_file()

    @classmethod
    def expected_unit_vocab_size(cls, config: FittedGainConfig) -> int:
        return DmelConfig().levels

    @classmethod
    def expected_codebooks(cls, config: FittedGainConfig) -> int:
        return 4

    @classmethod
    def fit(cls, config: FittedGainConfig, clips, device) -> None:
        cls.fits += 1
        if config.fails:
            raise ConfigError("more speech is needed")
        assert 5 < sum(map(len, clips)) / cls.fit_rate_hz(config) < 20
        Path(config.folder).mkdir(parents=True)
        peak = max(float(clip.abs().max()) for clip in clips)
        (Path(config.folder) / "peak").write_text(str(peak))

    def encode(self, wave: Waveform) -> Units:
        return super().encode(Waveform(wave.samples / self.peak, wave.lengths, wave.rate_hz))

    def fingerprint(self) -> str:
        return f"gain-{self.peak}"


def test_a_codec_that_needs_a_fit_is_fitted_once_and_checked(workspace):
    CODECS.register("fitted_gain", FittedGainConfig)(FittedGain)
    check(FittedGainConfig())
    assert FittedGain.fits == 1 and not Path("not fitted").exists()
    with pytest.raises(AssertionError) as error:
        check(FittedGainConfig(fails=True))
    assert "a_fit_makes_it_ready: ConfigError: more speech is needed" in str(error.value)
    assert "units_fit: it could not be fitted" in str(error.value)
    assert isinstance(error.value.__cause__, ConfigError) and FittedGain.fits == 2


@dataclass(kw_only=True, slots=True)
class NeverReadyConfig(FittedGainConfig):
    """Its codec does not find what its fit wrote."""


class NeverReady(FittedGain):
    @classmethod
    def is_ready(cls, config: NeverReadyConfig) -> bool:
        return False


def test_a_codec_that_does_not_find_its_fit_is_named(workspace):
    CODECS.register("never_ready", NeverReadyConfig)(NeverReady)
    with pytest.raises(AssertionError, match="a_fit_makes_it_ready: is_ready must say True of"):
        check(NeverReadyConfig())
