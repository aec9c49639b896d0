"""Echo: speech from the language model's own hidden states, with labels that S2T and T2C make themselves."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from echox import checkpoint
from echox.codecs.base import CODECS
from echox.config import neutral, to_plain
from echox.criteria.base import EchoOutputs
from echox.errors import ConfigError
from echox.models.denoising import DenoisingAdapter, DenoisingConfig
from echox.models.echo import EchoModel, teacher_of
from echox.models.footprint import BYTES_PER_CHANNEL, SCORE_BYTES, layer_bytes
from echox.models.frozen import halve_frozen
from echox.models.segmenting import SegmentsConfig, cut
from echox.models.speech_llm import IGNORE
from echox.models.unit_loop.text_speech import decoder_loop
from echox.number_format import name_of
from echox.signals import Batch
from echox.tasks.base import TASKS, Examples, Outline, StageContext, Task, TaskConfig, View
from echox.tasks.cached_labels import CachedLabels
from echox.tasks.echo_start import joined_stages
from echox.tasks.pseudo_labels import EchoBatch, LabelSource, OnlineLabels, OnlineLabelsConfig, PseudoLabels, make_labels
from echox.tasks.recorded_answers import RecordedAnswers, RecordedAnswersConfig
from echox.tasks.speech_text import (
    ANSWER_SHARE,
    ASSUMED,
    Conversation,
    SpeechTextBatch,
    SpeechTextTask,
    SpeechTextTaskConfig,
    clips_of,
    freeze_adapter,
    learned_speech_llm,
    longest_conversation,
    padding_of,
    speech_llm_activations,
    speech_llm_parts,
    teacher_forced,
)
from echox.tasks.spoken import SpokenDataConfig, unit_distance
from echox.tasks.text_units import voice_parts
from echox.tasks.views import text_tracks, word_track

WORDS_PER_TOKEN = 4.57  # of EchoX's unit language (its table 5)


@dataclass(kw_only=True, slots=True)
class EchoTaskConfig(TaskConfig):
    """Echo training on spoken conversations; no recorded answer is needed."""

    data: SpokenDataConfig = field(default_factory=SpokenDataConfig)
    """Spoken conversations with written answers."""
    denoiser: DenoisingConfig = field(default_factory=DenoisingConfig)
    """Shape of the denoising adapter."""
    segments: SegmentsConfig | None = None
    """Cut answers and speak each segment by itself, in training and afterwards, as streaming does; null speaks them whole."""
    online: OnlineLabelsConfig | None = None
    """Make pseudo-labels at every step from the states as they are then; null makes them once, before training."""
    recorded: RecordedAnswersConfig | None = None
    """Learn some training answers as they were recorded, from their own text (their manifests need 'units'); null learns pseudo-labels alone."""
    labels: str | None = None
    """Folder of pseudo-labels that `echox-prepare labels` wrote, refused where they are stale; null keeps them in `cache_dir`."""
    label_batch: int = neutral(16)
    """Conversations labelled at once."""
    rows: int | None = None
    """Training conversations drawn from the manifests; null takes all."""
    train_speech_llm: bool = True
    """Train LoRA and the speech adapter too, as the paper does; off, the S2T model stays as it is and only its voice is trained."""
    train_alignment: bool = True
    """Let the adapter's alignment encoder and CTC head learn too, where the speech adapter is trained."""
    train_look_back: bool = True
    """Let the adapter's look-back learn, where the speech adapter is trained."""
    speech_llm_lr_scale: float = 0.1
    """Learning rate of LoRA and the speech adapter as a multiple of the stage's."""
    voice_lr_scale: float = 0.2
    """Learning rate of the unit decoder as a multiple of the stage's; it comes trained, the denoising adapter starts from nothing."""
    scored_rows: int = neutral(64)
    """Validation rows that are spoken and compared with their pseudo-labels."""

    def __post_init__(self) -> None:
        if self.online is not None and self.labels is not None:
            raise ConfigError(f"online labels are made at every step, and labels={self.labels} names cached ones; set one of the two to null")
        if self.online is not None and self.recorded is not None:
            raise ConfigError("recorded answers stand beside cached pseudo-labels, and online makes them at every step; set one of the two to null")


@TASKS.register("echo", EchoTaskConfig)
class EchoTask(Task):
    """Stage III: the unit decoder, begun as T2C, learns to speak hidden states; LoRA goes on learning text.

    Training starts where the cascade "greedy text, then T2C" stands: the denoising adapter says the likeliest token's own text vector
    plus a correction of zero (`denoiser.candidates`). Pseudo-labels are what the decoder says anyway, so there is little to learn from
    them but the states, and much to lose: at a rate above that at which T2C's schedule ended, a few dozen steps of Adam undo its
    annealing. Hence the decoder's own rate (`voice_lr_scale`), to be set below T2C's last; the authors' runs had 3 % of T2C's peak (3e-5
    to 1e-3, by their names).
    Source: EchoX (arXiv:2509.09174), Echo training; labels are of `echox.tasks.pseudo_labels`.
    """

    parents = ("s2t", "t2c")

    def __init__(self, config: EchoTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.speech_text = SpeechTextTask(SpeechTextTaskConfig(data=config.data), context)
        self.recorded: RecordedAnswers | None = None

    def build(self) -> EchoModel:
        self.codec = CODECS.build(self.context.parts.codec)
        speech_text, text_units = (checkpoint.load(self.context.parents[stage]) for stage in self.parents)
        model = joined_stages(
            self.context.parts, speech_text, text_units, self.codec, self.config.denoiser, self.config.segments, with_teacher=self.config.online is not None
        )
        self.codecs = {"in use": self.codec.fingerprint(), "of the T2C checkpoint": text_units.meta["lineage"]["data"]["codec"]}
        if self.context.bf16:
            halve_frozen(model.speech_llm.backbone)
        if not self.config.train_speech_llm:
            model.speech_llm.requires_grad_(False)
        freeze_adapter(model.speech_llm.adapter, self.config)
        self.speech_text.read(model.speech_llm)
        self._draw_rows()
        self.labels = self._label_source(model)
        return model

    def _label_source(self, model: EchoModel) -> LabelSource:
        if self.config.online is not None:
            return OnlineLabels(self.config.online)
        makers = {f"{stage} checkpoint": checkpoint.fingerprint(self.context.parents[stage]) for stage in self.parents}
        makers |= {name: part.fingerprint() for name, part in (("encoder", model.speech_llm.encoder), ("language model", model.speech_llm.backbone))}
        makers |= {"codec": self.codec.fingerprint(), "segments": json.dumps(to_plain(self.config.segments), sort_keys=True)}
        makers["number format"] = name_of(self.context.bf16)
        folder = Path(self.config.labels) if self.config.labels else self.context.cache_dir / "pseudo_labels"
        return CachedLabels(folder, makers, self._labeller, batch_size=self.config.label_batch, filled_before=self.config.labels is not None)

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        speech_llm, voice = parents["s2t"].model, parents["t2c"].model
        backbone, decoder = speech_llm.backbone, voice.decoder
        with torch.device("meta"):
            denoiser = DenoisingAdapter(self.config.denoiser, backbone.hidden_size)
            model = EchoModel(speech_llm, denoiser, voice, self.config.segments, teacher_of(voice) if self.config.online else None)
        if self.context.bf16:
            halve_frozen(backbone)
        if not self.config.train_speech_llm:
            speech_llm.requires_grad_(False)
        freeze_adapter(speech_llm.adapter, self.config)
        heard = speech_llm_activations(speech_llm, 0) if self.config.train_speech_llm else {}
        spoken = ANSWER_SHARE * (1 + WORDS_PER_TOKEN) * layer_bytes(decoder.body, decoder.config.width)
        # Next-token scores at the answer are taken a second time, where the denoising adapter starts from them.
        denoised = ANSWER_SHARE * (SCORE_BYTES * backbone.vocab_size if self.config.denoiser.candidates and heard else 0)
        denoised += ANSWER_SHARE * BYTES_PER_CHANNEL * backbone.hidden_size
        teacher = {"T2C teacher": ["teacher"]} if model.teacher is not None else {}
        return Outline(
            model=model,
            parts={**speech_llm_parts("speech_llm."), "denoising adapter": ["denoiser"], **voice_parts("voice."), **teacher},
            cost_unit="tokens",
            longest_cost=longest_conversation(self.config.data, speech_llm.encoder.frame_rate_hz),
            activations={**heard, "denoising adapter": denoised, "unit decoder": spoken},
            notes=[ASSUMED, f"activations: {WORDS_PER_TOKEN} unit-language words to a text token"],
        )

    def _draw_rows(self) -> None:
        rows = self.speech_text.splits["train"]
        if self.config.rows is not None and self.config.rows < len(rows):
            chosen = random.Random(self.context.seed).sample(range(len(rows)), self.config.rows)
            self.speech_text.splits["train"] = [rows[index] for index in sorted(chosen)]

    def learned(self, model: EchoModel) -> dict[str, Tensor]:
        tensors = {f"speech_llm.{name}": tensor for name, tensor in learned_speech_llm(model.speech_llm).items()}
        tensors |= {f"denoiser.{name}": tensor for name, tensor in model.denoiser.state_dict().items()}
        return tensors | {f"voice.{name}": tensor for name, tensor in model.voice.state_dict().items()}

    def parameter_groups(self, model: EchoModel) -> list[dict]:
        groups = [("denoiser", model.denoiser, 1.0), ("voice", model.voice, self.config.voice_lr_scale), ("speech_llm", model.speech_llm, self.config.speech_llm_lr_scale)]
        trained = [(name, [p for p in module.parameters() if p.requires_grad], scale) for name, module, scale in groups]
        return [{"name": name, "params": params, "lr_scale": scale} for name, params, scale in trained if params]

    def prepare(self, model: EchoModel) -> None:
        self.read(model)
        model.eval()
        self.labels.prepare(model, self.conversations.values())
        if self.config.recorded is not None:
            self.recorded = self._recorded(model)

    def _recorded(self, model: EchoModel) -> RecordedAnswers:
        text_units = checkpoint.load(self.context.parents["t2c"]).meta["recipe"]["t2c"]["task"]
        return RecordedAnswers(
            self.config.recorded,
            self.config.data,
            TASKS.parse(text_units),
            self.context,
            model.voice,
            model.speech_llm.backbone,
            self.codec,
            in_segments=self.config.segments is not None,
        )

    def read(self, model: EchoModel) -> None:
        """Conversations with the features of their clips, without labels."""
        self.speech_text.prepare(model.speech_llm)
        self.conversations = {split: self.speech_text.examples(split) for split in ("train", "valid")}

    def write_labels(self, model: EchoModel) -> Path:
        if not isinstance(self.labels, CachedLabels):
            raise ConfigError("echo.task.online makes labels at every step, so there is nothing to write; set echo.task.online=null")
        self.read(model)
        self.labels.write(model.eval(), [row for split in self.conversations.values() for row in split])
        return self.labels.folder

    def _labeller(self, model: EchoModel) -> Callable[[Sequence[Conversation]], PseudoLabels]:
        """Labels conversations by the models as they are: before the first step, the trained decoder is T2C itself."""
        device = next(model.parameters()).device
        precision = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=self.context.bf16)
        with precision():
            targets_of = functools.partial(model.voice.targets, loop=decoder_loop(model.voice.decoder))

        @torch.no_grad()
        def label(rows: Sequence[Conversation]) -> PseudoLabels:
            batch = self.speech_text.collate(rows).to(device)
            with precision():
                _, states = teacher_forced(model.speech_llm, batch)
                return make_labels(model, targets_of, *answer_states(states, batch))

        return label

    def examples(self, split: str) -> Examples:
        labelled = self.labels.examples(self.conversations[split])
        return self.recorded.among(labelled) if self.recorded is not None and split == "train" else labelled

    def collate(self, examples: Sequence) -> EchoBatch:
        return self.labels.batch(examples, self.speech_text.collate)

    def forward(self, model: EchoModel, batch: EchoBatch) -> EchoOutputs:
        conversation = batch.conversation
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_speech_llm):
            _, states = teacher_forced(model.speech_llm, conversation)
            hidden, lengths = answer_states(states, conversation)
            labels = conversation.labels != IGNORE
            text_logits = model.speech_llm.backbone.logits(states[labels])
            answer_logits = model.speech_llm.backbone.logits(hidden)
        taught = self.labels.labels(model, batch, hidden.detach(), lengths)
        denoised = model.denoise(hidden, answer_logits)
        states = model.voice.decoder(*cut(denoised, taught.spans), taught.targets)
        unit_states, unit_labels = model.voice.decoder.labelled(states, taught.targets)
        real = torch.arange(denoised.shape[1], device=denoised.device)[None] < lengths[:, None]
        return EchoOutputs(
            unit_states=unit_states,
            unit_labels=unit_labels,
            unit_head=model.voice.decoder.head,
            denoised=denoised[real],
            text_vectors=model.voice.rows(taught.text[:, : denoised.shape[1]])[real].detach(),
            text_logits=text_logits,
            text_labels=conversation.labels[labels],
            unit_weights=None if taught.weights is None else model.voice.decoder.labelled(taught.weights[:, None, None].expand(*states.shape[:2], 1), taught.targets)[0][:, 0],
        )

    def score(self, model: EchoModel, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        errors = units = rows = 0
        for batch in batches():
            if rows >= self.config.scored_rows:
                break
            _, states = teacher_forced(model.speech_llm, batch.conversation)
            hidden, lengths = answer_states(states, batch.conversation)
            taught = self.labels.labels(model, batch, hidden, lengths)
            wanted: list[list[int]] = [[] for _ in batch.row_ids]
            for row, target in zip(taught.spans.rows.tolist(), taught.targets.tolist()):
                wanted[row] += model.voice.decoder.words_in(target)
            for words, target in zip(model.speak_spans(hidden, taught.spans), wanted):
                reference = self.codec.units_of(target)
                errors += unit_distance(self.codec.units_of(words), reference, self.codec.codebooks)
                units += len(reference)
            rows += len(wanted)
        return {"unit_error": errors / max(1, units)}

    def view(self, model: EchoModel, batch: EchoBatch) -> View:
        conversation, decoder = batch.conversation, model.voice.decoder
        texts = text_tracks(conversation.ids, conversation.labels, conversation.shared, model.speech_llm.backbone)
        spoken = [word_track(row, targets, decoder, self.codec.units_of(decoder.words_in(targets.tolist())), "") for row, targets in batch.said()]
        return View(
            tracks=[*texts, *spoken],
            heard=clips_of(model.speech_llm, conversation),
            padding=padding_of(conversation),
            unit_count=self.codec.vocab_size,
            codecs=self.codecs | self.labels.codecs(),
            notes=[*self._notes(spoken=bool(spoken))],
        )

    def _notes(self, *, spoken: bool) -> Iterator[str]:
        if not spoken:
            yield "units are made at every step from what the model then says, so they are not shown; those that are cached are"
        if self.recorded is not None:
            weight = self.config.recorded.weight
            yield f"{len(self.recorded.spoken)} of {len(self.conversations['train'])} training answers are learned as they were recorded, a unit with weight {weight:g}"

    def data_fingerprints(self) -> dict[str, str]:
        return self.speech_text.data_fingerprints() | {"codec": self.codec.fingerprint()}


def answer_states(states: Tensor, batch: SpeechTextBatch) -> tuple[Tensor, Tensor]:
    """States that predict the answer's tokens, the end token left out: states [B, N, H] -> hidden [B, S, H], lengths [B]."""
    is_label = batch.labels != IGNORE
    lengths = is_label.sum(1) - 1
    S = max(1, int(lengths.max()))
    first = batch.prompt_lengths - 1
    at = (first[:, None] + torch.arange(S, device=states.device)).clamp(max=states.shape[1] - 1)
    return states.gather(1, at[..., None].expand(-1, -1, states.shape[2])), lengths
