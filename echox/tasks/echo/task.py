"""Echo: speech from the language model's hidden states, trained on S2T's and T2C's own labels."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.backbones.base import Backbone
from echox.codecs.base import CODECS, Codec
from echox.core import checkpoint
from echox.core.checkpoint import Checkpoint
from echox.core.config import to_plain
from echox.core.errors import ConfigError
from echox.core.number_format import name_of
from echox.core.signals import valid_mask
from echox.core.sources import code_of
from echox.criteria.base import EchoOutputs
from echox.models.denoising import Candidates, DenoisingAdapter, T2CModel
from echox.models.echo import EchoModel, teacher_of
from echox.models.footprint import BYTES_PER_CHANNEL, layer_bytes
from echox.models.frozen import halve_frozen
from echox.models.segmenting import cut
from echox.models.speech_llm import IGNORE, SpeechLLM
from echox.models.unit_decoder import UnitDecoder
from echox.models.unit_generation import unit_decode_engine
from echox.tasks.base import TASKS, AuditBatch, Examples, Outline, StageContext, Task, Use
from echox.tasks.conversations import UnitPair, unit_error
from echox.tasks.echo.cached_labels import CachedLabels, Labeller
from echox.tasks.echo.config import EchoTaskConfig
from echox.tasks.echo.pseudo_labels import (
    EchoBatch,
    LabelSource,
    OnlineLabels,
    PseudoLabels,
    make_labels,
)
from echox.tasks.echo.recorded_answers import RecordedAnswers
from echox.tasks.echo.start import join_stages
from echox.tasks.recorded import recorded_config
from echox.tasks.restored import empty_speech_llm, filled, required_codec
from echox.tasks.s2t.data import Conversation, SpeechTextBatch, clips_of, padding_of
from echox.tasks.s2t.estimates import (
    ANSWER_SHARE,
    SHARES_NOTE,
    longest_conversation,
    speech_llm_activations,
    speech_llm_parts,
)
from echox.tasks.s2t.task import (
    SpeechTextTask,
    SpeechTextTaskConfig,
    freeze_adapter,
    speech_llm_state_dict,
    teacher_forced,
)
from echox.tasks.t2c.task import (
    UNIT_TOKENS_PER_TEXT_TOKEN,
    TextUnitsTaskConfig,
    t2c_model_of,
    t2c_parts,
)
from echox.tasks.views import text_targets, unit_targets


@TASKS.register("echo", EchoTaskConfig)
class EchoTask(Task[EchoModel, EchoBatch]):
    """Stage III: the unit decoder of T2C learns from hidden states; LoRA goes on learning text.

    Training starts where the cascade "greedy text, then T2C" stands: the denoising adapter gives
    the likeliest token's own text vector plus a correction of zero (`denoiser.candidates`).
    Pseudo-labels are what the decoder generates anyway, so there is little to learn from them but
    the states, and much to lose: at a rate above that at which T2C's schedule ended, a few dozen
    steps of Adam undo its annealing. Hence the decoder's own rate (`voice_lr_scale`), to be set
    below T2C's last; the authors' runs had 3 % of T2C's peak (3e-5 to 1e-3, by their names).

    Source: EchoX (arXiv:2509.09174), Echo training; labels are of
    `echox.tasks.echo.pseudo_labels`.
    """

    parents = ("s2t", "t2c")
    use = Use.answer_aloud

    def __init__(self, config: EchoTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.speech_text = SpeechTextTask(SpeechTextTaskConfig(data=config.data), context)
        self.recorded: RecordedAnswers | None = None  # after `prepare`

    @classmethod
    def restore(
        cls,
        checkpoint: Checkpoint,
        *,
        backbone: Backbone | None = None,
        codec: Codec | None = None,
    ) -> EchoModel:
        task = recorded_config(checkpoint, EchoTaskConfig)
        units = recorded_config(checkpoint, TextUnitsTaskConfig, "t2c")
        codec = required_codec(checkpoint, codec)
        speech_llm = empty_speech_llm(checkpoint, ("s2t",), "speech_llm.", backbone)
        denoiser = DenoisingAdapter(task.denoiser, speech_llm.backbone.hidden_size)
        t2c = t2c_model_of(units, speech_llm.backbone, codec)
        return filled(EchoModel(speech_llm, denoiser, t2c, task.segments), checkpoint)

    def build(self) -> EchoModel:
        """Join S2T and T2C, and read the manifests.

        Raises:
            CheckpointError: a parent's checkpoint is missing, damaged or does not fit.
            ConfigError: the trigger of segments is not one token.
            ManifestError: no training row has an answer.
        """
        self.codec = CODECS.build(self.context.parts.codec)
        speech_text, text_units = (
            checkpoint.load(self.context.parents[stage]) for stage in self.parents
        )
        model = join_stages(
            self.context.parts,
            speech_text,
            text_units,
            self.codec,
            self.config.denoiser,
            self.config.segments,
            with_teacher=self.config.online is not None,
        )
        # Compared by an audit.
        self.codecs = {
            "in use": self.codec.fingerprint(),
            "of the T2C checkpoint": text_units.meta["lineage"]["data"]["codec"],
        }
        self._freeze(model.speech_llm)
        self.speech_text.read(model.speech_llm)
        # Before labels are asked for, so that rows which are not drawn get none.
        self._sample_rows()
        self.labels = self._label_source(model)
        return model

    def _freeze(self, speech_llm: SpeechLLM) -> None:
        """Freeze what the config does not train."""
        # Before LoRA is frozen, which stays float32 whether it is trained or not.
        if self.context.bf16:
            halve_frozen(speech_llm.backbone)
        if not self.config.train_speech_llm:
            speech_llm.requires_grad_(False)
        # It stays as S2T left it, and its features are cached.
        speech_llm.encoder.requires_grad_(False)
        freeze_adapter(speech_llm.adapter, self.config)

    def _label_source(self, model: EchoModel) -> LabelSource:
        if self.config.online is not None:
            return OnlineLabels(self.config.online)
        folder = self.config.labels
        return CachedLabels(
            Path(folder) if folder else self.context.cache_dir / "pseudo_labels",
            self._label_makers(model),
            self._labeller,
            batch_size=self.config.label_batch,
            # A named folder may be shared between runs, so training only reads it.
            filled_before=folder is not None,
            code=code_of(model.speech_llm.encoder, model.speech_llm.backbone, self.codec),
        )

    def _label_makers(self, model: EchoModel) -> dict[str, str]:
        """All that pseudo-labels depend on besides their conversation, by name."""
        # The names appear in errors, and are part of the cache's fingerprint.
        makers = {
            f"{stage} checkpoint": checkpoint.fingerprint(self.context.parents[stage])
            for stage in self.parents
        }
        return makers | {
            "encoder": model.speech_llm.encoder.fingerprint(),
            "language model": model.speech_llm.backbone.fingerprint(),
            "codec": self.codec.fingerprint(),
            "segments": json.dumps(to_plain(self.config.segments), sort_keys=True),
            "number format": name_of(self.context.bf16),
        }

    @classmethod
    def cannot_train_encoder_reason(cls, config: EchoTaskConfig) -> str | None:
        return None  # it is that of S2T

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        speech_llm = parents["s2t"].module("", SpeechLLM)
        t2c = parents["t2c"].module("", T2CModel)
        # Parents are outlined before and joined here, as `build` joins their checkpoints.
        with torch.device("meta"):
            denoiser = DenoisingAdapter(self.config.denoiser, speech_llm.backbone.hidden_size)
            teacher = teacher_of(t2c) if self.config.online else None
            model = EchoModel(speech_llm, denoiser, t2c, self.config.segments, teacher)
        self._freeze(speech_llm)
        return Outline(
            model=model,
            parts={
                **speech_llm_parts("speech_llm."),
                "denoising adapter": ["denoiser"],
                **t2c_parts("voice."),
                **({} if teacher is None else {"T2C teacher": ["teacher"]}),
            },
            cost_unit="tokens",
            longest_cost=longest_conversation(self.config.data, speech_llm.encoder.frame_rate_hz),
            activations=self._activations(speech_llm, t2c.decoder),
            notes=[
                SHARES_NOTE,
                f"activations: {UNIT_TOKENS_PER_TEXT_TOKEN} unit-language words to a text token",
            ],
        )

    def _activations(self, speech_llm: SpeechLLM, decoder: UnitDecoder) -> dict[str, float]:
        """Estimated bytes kept from forward to backward per token of a conversation, by part."""
        backbone = speech_llm.backbone
        # No CTC loss, hence no bytes for its scores.
        text = speech_llm_activations(speech_llm, 0) if self.config.train_speech_llm else {}
        denoised = ANSWER_SHARE * BYTES_PER_CHANNEL * backbone.hidden_size
        positions = 1 + UNIT_TOKENS_PER_TEXT_TOKEN  # the text token and its units
        units = ANSWER_SHARE * positions * layer_bytes(decoder.body, decoder.config.width)
        return {**text, "denoising adapter": denoised, "unit decoder": units}

    def _sample_rows(self) -> None:
        rows = self.speech_text.splits["train"]
        if self.config.rows is not None and self.config.rows < len(rows):
            chosen = random.Random(self.context.seed).sample(range(len(rows)), self.config.rows)
            # In the order of the manifests.
            self.speech_text.splits["train"] = [rows[index] for index in sorted(chosen)]

    def trained_state_dict(self, model: EchoModel) -> dict[str, Tensor]:
        # `voice` is the unit decoder with its text rows.
        parts = {
            "speech_llm": speech_llm_state_dict(model.speech_llm),
            "denoiser": model.denoiser.state_dict(),
            "voice": model.voice.state_dict(),
        }
        return {
            f"{part}.{name}": tensor
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }

    def parameter_groups(self, model: EchoModel) -> list[dict]:
        groups = [
            ("denoiser", model.denoiser, 1.0),
            ("voice", model.voice, self.config.voice_lr_scale),
            ("speech_llm", model.speech_llm, self.config.speech_llm_lr_scale),
        ]
        # A group without trained parameters is left out below.
        trained = [
            (name, [p for p in module.parameters() if p.requires_grad], scale)
            for name, module, scale in groups
        ]
        return [
            {"name": name, "params": params, "lr_scale": scale}
            for name, params, scale in trained
            if params
        ]

    def prepare(self, model: EchoModel) -> None:
        """Cache features and pseudo-labels, and read the recorded answers.

        Raises:
            CheckpointError: labels in the folder that the config names are stale or missing.
            ManifestError: no recorded answer is drawn, or its units are of another codec.
            SignalError: no clip can be decoded.
            AssetError: a cache cannot be written.
        """
        self.read(model)
        # Without dropout: labels must be what inference would generate.
        model.eval()
        self.labels.prepare(model, self.conversations.values())
        if self.config.recorded is not None:
            self.recorded = self._recorded_answers(model)

    def _recorded_answers(self, model: EchoModel) -> RecordedAnswers:
        text_units = checkpoint.load(self.context.parents["t2c"])
        return RecordedAnswers(
            self.config.recorded,
            self.config.data,
            recorded_config(text_units, TextUnitsTaskConfig),
            self.context,
            model.voice,
            model.speech_llm.backbone,
            self.codec,
            in_segments=self.config.segments is not None,
        )

    def read(self, model: EchoModel) -> None:
        """Cache the features of all clips, and read the conversations without labels.

        Raises:
            SignalError: no clip can be decoded; or one cannot, and broken ones are refused.
        """
        self.speech_text.prepare(model.speech_llm)
        self.conversations = {
            split: self.speech_text.examples(split) for split in ("train", "valid")
        }

    def write_labels(self, model: EchoModel) -> Path:
        """Compute the pseudo-labels of all conversations and write them to the label folder.

        Raises:
            ConfigError: labels are computed online.
            AssetError: the folder cannot be written.
        """
        if not isinstance(self.labels, CachedLabels):
            raise ConfigError(
                "echo.task.online makes labels at every step, so there is nothing to write; "
                "set echo.task.online=null"
            )
        self.read(model)
        conversations = [row for split in self.conversations.values() for row in split.rows]
        self.labels.write(model.eval(), conversations)
        return self.labels.folder

    def _labeller(self, model: EchoModel) -> Labeller:
        """Function that labels conversations by the models as they are.

        Before the first step, the decoder that is trained is T2C itself.
        """
        # Where the trainer has moved the model by now.
        device = next(model.parameters()).device
        autocast = functools.partial(
            torch.autocast, device.type, torch.bfloat16, enabled=self.context.bf16
        )
        # Under autocast, from which the engine takes the dtype of its weights.
        with autocast():
            engine = unit_decode_engine(model.voice.decoder)
            targets_of = functools.partial(model.voice.targets, engine=engine)

        @torch.no_grad()
        def label(conversations: Sequence[Conversation]) -> PseudoLabels:
            batch = self.speech_text.collate_clips(conversations).to(device)
            with autocast():
                _, states = teacher_forced(model.speech_llm, batch)
                hidden, lengths = answer_states(states, batch)
                text = model.speech_llm.backbone.logits(hidden).argmax(-1)  # [B, S]
                return make_labels(model, targets_of, hidden, lengths, text)

        return label

    def examples(self, split: str) -> Examples[Any]:
        labelled = self.labels.examples(self.conversations[split])
        # Validation keeps pseudo-labels, so that its losses are those of runs without recordings.
        if self.recorded is None or split != "train":
            return labelled
        return self.recorded.replace_labels(labelled)

    def collate(self, examples: Sequence[Any]) -> EchoBatch:
        """Pad conversations and their cached labels to one batch of ids [B, N].

        Raises:
            SignalError: a clip that augmentation changes cannot be read.
        """
        return self.labels.batch(examples, self.speech_text.collate_clips)

    def forward(self, model: EchoModel, batch: EchoBatch) -> EchoOutputs:
        """States [N, C] of the unit decoder at its targets, and text logits [L, V] of S2T.

        Raises:
            SignalError: a conversation takes more positions than the language model has.
        """
        conversation, decoder = batch.conversation, model.voice.decoder
        is_target = conversation.labels != IGNORE
        # Where S2T is frozen, nothing of it is kept for the backward pass.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_speech_llm):
            _, states = teacher_forced(model.speech_llm, conversation)
            hidden, lengths = answer_states(states, conversation)
            # Once for the text loss, the candidates and the labels: the head is a large matrix.
            text_logits = model.speech_llm.backbone.logits(states[is_target])  # [L, V]
            candidates = model.denoiser.candidates(text_logits)
        text = _by_answer(text_logits.detach().argmax(-1), lengths)  # [B, S]
        # No gradient flows into labels.
        labels = self.labels.labels(model, batch, hidden.detach(), lengths, text)
        denoised = model.denoise(hidden, _candidates_by_answer(candidates, lengths))  # [B, S, H]
        unit_hidden = decoder(*cut(denoised, labels.spans), labels.targets)  # [G, U, C]
        unit_states, unit_labels = decoder.labelled(unit_hidden, labels.targets)
        is_real = valid_mask(lengths, denoised.shape[1])
        text_vectors = model.voice.rows(labels.text[:, : denoised.shape[1]])
        return EchoOutputs(
            unit_states=unit_states,
            unit_labels=unit_labels,
            unit_head=decoder.head,
            denoised=denoised[is_real],
            # The adapter is drawn towards the text rows, not these towards it.
            text_vectors=text_vectors[is_real].detach(),
            text_logits=text_logits,
            text_labels=conversation.labels[is_target],
            unit_weights=_unit_weights(decoder, labels, unit_hidden),
        )

    def score(
        self, model: EchoModel, batches: Callable[[], Iterable[EchoBatch]]
    ) -> dict[str, float]:
        """Unit error rate against the pseudo-labels, over `scored_rows` validation rows."""

        def pairs(batch: EchoBatch) -> Iterator[UnitPair]:
            _, states = teacher_forced(model.speech_llm, batch.conversation)
            hidden, lengths = answer_states(states, batch.conversation)
            text = model.speech_llm.backbone.logits(hidden).argmax(-1)  # [B, S]
            labels = self.labels.labels(model, batch, hidden, lengths, text)
            # Whole answers are compared: units of their segments, joined.
            targets: list[list[int]] = [[] for _ in batch.row_ids]
            for row, target in zip(labels.spans.rows.tolist(), labels.targets.tolist()):
                targets[row] += model.voice.decoder.unit_tokens_in(target)
            generated = model.speak_spans(hidden, labels.spans, text=text)
            return zip(map(self.codec.units_of, generated), map(self.codec.units_of, targets))

        return unit_error(batches(), pairs, self.config.scored_rows, self.codec.codebooks)

    def audit_batch(self, model: EchoModel, batch: EchoBatch) -> AuditBatch:
        conversation, decoder = batch.conversation, model.voice.decoder
        texts = text_targets(
            conversation.ids, conversation.labels, conversation.shared, model.speech_llm.backbone
        )
        segments = [
            unit_targets(row, targets, decoder, self._units_in(targets, decoder), "")
            for row, targets in batch.segment_targets()
        ]
        return AuditBatch(
            tracks=[*texts, *segments],
            ctc_targets=clips_of(model.speech_llm, conversation),
            padding=padding_of(conversation),
            unit_count=self.codec.vocab_size,
            codecs=self.codecs | self.labels.codecs(),
            notes=[*self._notes(has_units=bool(segments))],
        )

    def _units_in(self, targets: Tensor, decoder: UnitDecoder) -> list[int]:
        return self.codec.units_of(decoder.unit_tokens_in(targets.tolist()))

    def _notes(self, *, has_units: bool) -> Iterator[str]:
        if not has_units:
            yield (
                "units are made at every step from what the model then says, so they are not "
                "shown; those that are cached are"
            )
        if self.recorded is not None:
            count, rows = len(self.recorded.utterances), len(self.conversations["train"])
            yield (
                f"{count} of {rows} training answers are learned as they were recorded, "
                f"a unit with weight {self.config.recorded.weight:g}"
            )

    def data_fingerprints(self) -> dict[str, str]:
        return self.speech_text.data_fingerprints() | {"codec": self.codec.fingerprint()}


def _unit_weights(decoder: UnitDecoder, labels: PseudoLabels, hidden: Tensor) -> Tensor | None:
    """Weights [N] of the N unit targets; None where all weigh alike.

    Args:
        hidden: [G, U, C] states of the unit decoder, for its shape.
    """
    if labels.weights is None:
        return None
    weights = labels.weights[:, None, None].expand(*hidden.shape[:2], 1)
    # `labelled` picks the same positions of the weights as it does of the states.
    return decoder.labelled(weights, labels.targets)[0][:, 0]


def answer_states(states: Tensor, batch: SpeechTextBatch) -> tuple[Tensor, Tensor]:
    """States that predict the answers' tokens, without the end token.

    Args:
        states: [B, N, H] hidden state at every id of the batch.
        batch: B conversations.

    Returns:
        hidden [B, S, H] and lengths [B].
    """
    is_target = batch.labels != IGNORE
    lengths = is_target.sum(1) - 1
    S = max(1, int(lengths.max()))
    first = batch.prompt_lengths - 1  # the prompt's last position predicts the first token
    # Clamped, because rows shorter than the longest answer may end before it.
    at = (first[:, None] + torch.arange(S, device=states.device)).clamp(max=states.shape[1] - 1)
    return states.gather(1, at[..., None].expand(-1, -1, states.shape[2])), lengths


def _by_answer(values: Tensor, lengths: Tensor) -> Tensor:
    """Values at the targets of B answers, one answer after the other, as rows without the end.

    Args:
        values: [L, ...] at each answer's tokens and its end token.
        lengths: [B] tokens of each answer, without the end token.

    Returns:
        [B, S, ...] of the longest answer's S tokens, at least 1; what lies behind an answer is
        of no use.
    """
    rows = pad_sequence(values.split((lengths + 1).tolist()), batch_first=True)
    return rows[:, : max(1, rows.shape[1] - 1)]


def _candidates_by_answer(candidates: Candidates | None, lengths: Tensor) -> Candidates | None:
    """Candidates at L targets as candidates of B answers' S tokens; as `_by_answer`."""
    if candidates is None:
        return None
    weights = candidates.weights
    return Candidates(
        _by_answer(candidates.ids, lengths),
        None if weights is None else _by_answer(weights, lengths),
    )
