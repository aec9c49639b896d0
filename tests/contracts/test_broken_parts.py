"""A contract that cannot fail keeps nothing: parts with one fault each are found out, and the fault is named."""

from dataclasses import dataclass

import pytest
import torch

from echox.backbones.base import BACKBONES
from echox.backbones.hub import HubBackbone, HubBackboneConfig
from echox.codecs.base import CODECS
from echox.codecs.unit_vocoder.codec import KMeansCodec, KMeansCodecConfig
from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, UnitOutputs
from echox.encoders.base import ENCODERS
from echox.encoders.whisper import WhisperConfig, WhisperEncoder
from echox.errors import PluginError
from echox.signals import Batch, Features, Loss, Units, Waveform
from echox.tasks.base import TASKS
from echox.tasks.text_units import TextUnitsTask, TextUnitsTaskConfig
from echox.testing import check, offline_config


@dataclass(kw_only=True, slots=True)
class LeakyEarConfig(WhisperConfig):
    weights: str = "random"


class LeakyEar(WhisperEncoder):
    """Hears its padding."""

    def forward(self, wave: Waveform) -> Features:
        everything = torch.full_like(wave.lengths, wave.samples.shape[1])
        heard = super().forward(Waveform(wave.samples.nan_to_num(0.5), everything, wave.rate_hz))
        return Features(heard.values, super().forward(wave).lengths, heard.rate_hz)


@dataclass(kw_only=True, slots=True)
class SeerConfig(HubBackboneConfig):
    weights: str = "random"


class Seer(HubBackbone):
    """Sees the future."""

    def forward(self, embeddings, mask, cache=None, use_cache=False):
        return super().forward(embeddings + embeddings.mean(1, keepdim=True), mask, cache, use_cache)


@dataclass(kw_only=True, slots=True)
class MumblerConfig(KMeansCodecConfig):
    folder: str = "random"


class Mumbler(KMeansCodec):
    """Says something else each time, and spells two units alike."""

    def decode(self, units: Units) -> Waveform:
        said = super().decode(units)
        return Waveform((said.samples + 0.1 * torch.rand_like(said.samples)).clamp(-1, 1), said.lengths, said.rate_hz)

    def words(self, units: list[int]) -> list[int]:
        return [unit // 2 for unit in super().words(units)]


@dataclass(kw_only=True, slots=True)
class AverageConfig(CriterionConfig):
    """A mean where a sum is asked for."""


class Average(Criterion):
    def __init__(self, config: AverageConfig) -> None:
        super().__init__()

    def forward(self, outputs: UnitOutputs, batch: Batch) -> Loss:
        return Loss(torch.nn.functional.cross_entropy(outputs.unit_head(outputs.unit_states.float()), outputs.unit_labels), batch.count)


@dataclass(kw_only=True, slots=True)
class ForgetfulConfig(TextUnitsTaskConfig):
    aligner_steps: int = 1


class Forgetful(TextUnitsTask):
    """Leaves a trained weight out of its checkpoints, and draws random numbers in collate."""

    def learned(self, model):
        return dict(list(super().learned(model).items())[:-1])

    def collate(self, examples):
        torch.rand(1)
        return super().collate(examples)


@pytest.mark.parametrize(
    ("registry", "config_type", "implementation", "rules"),
    [
        (ENCODERS, LeakyEarConfig, LeakyEar, ["padding_and_neighbours_do_not_matter"]),
        (BACKBONES, SeerConfig, Seer, ["nothing_sees_the_future", "padding_does_not_matter", "a_cache_changes_nothing"]),
        (CODECS, MumblerConfig, Mumbler, ["the_same_units_sound_the_same", "words_are_another_spelling_of_units"]),
        (CRITERIA, AverageConfig, Average, ["twice_the_batch_is_twice_the_loss", "nothing_to_learn_costs_nothing"]),
        (TASKS, ForgetfulConfig, Forgetful, ["a_checkpoint_holds_what_was_trained", "collating_is_repeatable"]),
    ],
)
def test_a_broken_part_is_found_out(house, registry, config_type, implementation, rules):
    registry.register("broken", config_type)(implementation)
    with pytest.raises(AssertionError) as found:
        check(offline_config(config_type))
    for rule in rules:
        assert f"{rule}: " in str(found.value)


def test_a_config_that_nobody_registered_is_refused(house):
    with pytest.raises(PluginError, match="AverageConfig is not the config of any registered part"):
        check(AverageConfig())
