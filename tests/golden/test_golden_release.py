"""The released EchoX against values computed by the authors' own code.

    ECHOX_GOLDEN=/path/to/a/set pytest tests/golden

Any set of golden vectors of the layout that its README describes is read: names, counts and sizes
come from its files. Where a set is absent, the tests are skipped and say so.
"""

import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

from echox.backbones.base import Turn
from echox.codecs.base import CODECS
from echox.core.signals import Batch, Features, Waveform
from echox.criteria.base import CRITERIA, EchoOutputs
from echox.criteria.denoising import capped_weight
from echox.data.audio import load_audio
from echox.decoding import DecodeEngine
from echox.decoding.greedy_text import decode_steps, gathered
from echox.encoders.base import ENCODERS
from echox.models.release import train_forward
from echox.models.release.causal import causal_mask
from echox.models.release.echo import MAX_UNIT_TOKENS, ReleaseEcho
from echox.models.release.folder import build, read_release
from echox.models.release.model import ReleaseSpeechLLM
from echox.models.release.names import their_name
from echox.models.release.tokens import PROMPT_TOKENS
from echox.models.release.unit_decoding import TranslatorSteps, greedy_requests
from echox.models.segmenting import RELEASE_RULE, Cutter, SegmentsConfig, segments, whole
from echox.models.speech_llm import IGNORE
from echox.pipeline.plugins import discover

FOLDER = Path(
    os.environ.get("ECHOX_GOLDEN") or Path(__file__).parents[2] / "../shared/golden/A"
).resolve()
RATE_HZ, WINDOW_SAMPLES = 16_000, 480_000
CLOSE = 1e-4  # of an array's largest magnitude
GRADIENT = 1e-3  # relative, of a gradient's norm
STEPS = 40  # of int16

pytestmark = pytest.mark.skipif(
    not (FOLDER / "golden" / "golden.npz").is_file(),
    reason=f"no golden vectors in {FOLDER}; set ECHOX_GOLDEN to a folder that has them",
)


class GoldenSet:
    """One set: its values, and what echox computes in their place, each by name."""

    def __init__(self, folder):
        discover()
        self.folder = folder
        self.golden, self.losses, self.vocoder = (
            dict(np.load(folder / "golden" / f"{name}.npz"))
            for name in ("golden", "losses", "vocoder")
        )
        self.expected = self.json("expected")
        self.release = read_release(folder / "checkpoint")
        self.model = build(self.release)
        self.whisper = ENCODERS.build(
            ENCODERS.parse(
                {
                    "name": "whisper",
                    "weights": str(folder / self.release.config["audio_tower"]),
                    "pad_to_window": True,
                }
            )
        )
        self.clips = {
            path.name: load_audio(path, RATE_HZ)
            for path in sorted((folder / "inputs").glob("*.wav"))
        }

    def json(self, name):
        return json.loads((self.folder / "golden" / f"{name}.json").read_text("utf-8"))

    def windowed(self, clips):
        samples = torch.stack(
            [
                torch.nn.functional.pad(
                    clip[:WINDOW_SAMPLES], (0, max(0, WINDOW_SAMPLES - len(clip)))
                )
                for clip in clips
            ]
        )
        return Waveform(samples, torch.full((len(clips),), WINDOW_SAMPLES), RATE_HZ)

    def log_mel(self, clips):
        return self.whisper._log_mel(self.windowed(clips))[0].numpy()

    @cached_property
    def conversation(self):
        (row,) = json.loads((self.folder / "inputs" / "conversation.json").read_text("utf-8"))
        return row["conversations"]

    @cached_property
    def batch_features(self):
        """Encoder features of the clips that `batch_features` were computed from, in its order."""
        mels = {name: self.log_mel([clip])[0] for name, clip in self.clips.items()}
        names = [
            min(mels, key=lambda name: np.abs(mels[name] - expected).max())
            for expected in self.losses["batch_features"]
        ]
        self.computed_losses = {"batch_features": np.stack([mels[name] for name in names])}
        with torch.no_grad():
            return self.whisper(self.windowed([self.clips[name] for name in names]))

    def loss(self, name):
        return torch.from_numpy(self.losses[name])


@pytest.fixture(scope="module")
def golden():
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 2))
    yield GoldenSet(FOLDER)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def answer(golden):
    """Every array of golden.npz, computed."""
    with torch.no_grad():
        return dict(answer_arrays(golden))


@pytest.fixture(scope="module")
def trained(golden):
    """Every array of losses.npz, computed, and the gradient norms of its four losses."""
    arrays, norms = {}, {}
    branches = (s2t(golden), pretrain(golden), finetune(golden), finetune_kd(golden))
    for name, values, loss in branches:
        arrays |= values
        norms[name] = gradient_norms(golden.model, loss)
    arrays |= golden.computed_losses
    return arrays, norms


def turns_of(conversation):
    return [Turn(item["from"], item["value"], "audio" in item) for item in conversation]


def assert_close(computed, expected):
    """Compare integers exactly, the rest relative to the largest magnitude, as the set says."""
    computed = np.asarray(computed.detach() if isinstance(computed, torch.Tensor) else computed)
    assert computed.shape == expected.shape
    if expected.dtype.kind in "iub":
        np.testing.assert_array_equal(computed, expected)
    elif expected.size:
        assert np.isfinite(computed).all()
        worst = np.abs(computed - expected).max() / max(np.abs(expected).max(), 1e-30)
        assert worst <= CLOSE, f"off by {worst:.1e} of the largest magnitude"


def answer_arrays(golden):
    model, tokens = golden.model, golden.model.tokens
    ids = tokens.prompt(turns_of(golden.conversation), PROMPT_TOKENS)
    yield "input_ids", np.array(ids)
    clips = [
        load_audio(golden.folder / item["audio"], RATE_HZ)
        for item in golden.conversation
        if "audio" in item
    ]
    speech = None
    if clips:
        wave = golden.windowed(clips)
        features = golden.whisper(wave)
        projected, lengths = model.adapter.project(features)
        mixed = model.adapter.mix(projected, lengths)
        speech = model.adapter(features)
        parts = {
            "features": golden.log_mel(clips),
            "encoder_out": features.values,
            "proj_out": projected,
            "tf_out": mixed,
            "adapter_out": speech.frames,
            "ctc_argmax": speech.tokens,
            "ctc_top2": model.adapter.ctc_head(speech.frames).topk(2).values,
            "shrink_mask": speech.kept,
        }
        for number, length in enumerate(speech.lengths.tolist()):
            for name, values in parts.items():
                yield f"audio{number}_{name}", values[number]
            yield f"audio{number}_shrunk", speech.vectors[number, :length]
        yield "shrink_lengths", speech.lengths
    clip_rows = torch.zeros(len(clips), dtype=torch.int64)
    speech_llm = ReleaseSpeechLLM(golden.whisper, model)
    prompt = speech_llm.prompt(torch.tensor([ids]), speech, clip_rows)
    _, repeated = model.expand(torch.tensor([ids]), speech, clip_rows)
    yield "prefill_inputs_embeds", prompt.embeddings[0]
    yield "prefill_expanded_ids", repeated[0]
    yield "prefill_attention_mask", prompt.mask[0]
    states = model.language.body(
        inputs_embeds=prompt.embeddings,
        attention_mask=causal_mask(prompt.mask, prompt.embeddings.shape[1], torch.float32),
        use_cache=False,
        output_hidden_states=True,
    )
    yield "prefill_hidden_states", torch.cat(states.hidden_states)

    yield from text_arrays(golden, prompt)


def text_arrays(golden, prompt):
    model, limit = golden.model, golden.expected["max_new_tokens"]
    end_id = model.language.end_id
    # The set holds the step of the end token too.
    ids, states = zip(
        *decode_steps(model.language, prompt.embeddings, prompt.mask, [end_id], limit)
    )
    hidden = torch.stack(states, 1)
    text = gathered(zip(ids, states), end_id, end_id)
    count = int(text.lengths[0])
    yield "gen_tokens", text.ids[0, :count]
    yield "gen_ended_by_eot", text.ended[0]
    yield "gen_hidden", hidden[0, :count]
    yield from top5("gen", model.language.logits(hidden[0]))
    cutter = Cutter(SegmentsConfig(rule=RELEASE_RULE), model.language)
    yield "gen_similarity", cutter.scores(hidden[0, :count])
    spans = cutter.spans(hidden, text.lengths)
    cuts = torch.stack([spans.starts, spans.ends], 1)
    yield "segments", cuts
    for number, (start, end) in enumerate(cuts.tolist()):
        yield from segment_arrays(golden, f"seg{number}", hidden[:, start:end])


def segment_arrays(golden, name, hidden):
    model = golden.model
    lengths = torch.tensor([hidden.shape[1]])
    vectors = model.translator.denoise(hidden)
    prompt = model.segment_prompt(vectors, lengths)
    end_id = model.tokens.end_id
    engine = DecodeEngine(
        TranslatorSteps(model.translator, end_id),
        slots=1,
        capacity=prompt.embeddings.shape[1] + MAX_UNIT_TOKENS,
        keep_states=True,
    )
    # The set holds the step of the end token too.
    (completion,) = engine.run(greedy_requests(prompt, end_id, MAX_UNIT_TOKENS))
    ids = completion.tokens[:, 0]
    yield f"{name}_aligned", vectors[0]
    yield f"{name}_t2c_inputs_embeds", prompt.embeddings[0]
    yield f"{name}_t2c_prompt_hidden", model.translator(prompt.embeddings, prompt.visible).hidden[0]
    yield f"{name}_unit_token_ids", ids
    yield f"{name}_unit_hidden", completion.states
    yield from top5(f"{name}_unit", model.translator.logits(completion.states))
    units = model.tokens.units(ids.tolist())
    echo = ReleaseEcho(ReleaseSpeechLLM(golden.whisper, model))
    assert echo.speak_segments(hidden, whole(lengths)) == [units]
    yield f"{name}_units", np.array(units, dtype=np.int64)
    samples = vocoder(golden, "main").sound(torch.tensor(units)).numpy()
    yield f"{name}_wav_int16", (samples * 32767).astype(np.int16)


def top5(name, logits):
    best = logits.topk(5)
    return (f"{name}_top5_ids", best.indices), (f"{name}_top5_logits", best.values)


def features_of(golden, index):
    """Features of the clips of a batch [B, turns] in its order, and the row of each clip."""
    B, turns = index.shape
    clips, chosen = golden.batch_features, index.reshape(-1)
    features = Features(clips.values[chosen], clips.lengths[chosen], clips.rate_hz)
    return features, torch.arange(B).repeat_interleave(turns)


def text_pass_of(golden, name, audio, **options):
    features, rows = features_of(golden, golden.loss(f"{audio}_audio_index"))
    return train_forward.forward_text(
        golden.model,
        golden.loss(f"{name}_input_ids"),
        golden.loss(f"{name}_labels"),
        features,
        rows,
        **options,
    )


def loss_of(criterion, outputs, targets):
    """The loss per target by a criterion of echox, and its parts as means."""
    loss = CRITERIA.build(CRITERIA.parse(criterion))(outputs, Batch(("golden",), targets))
    means = {name: total / count for name, (total, count) in loss.parts.items()}
    return loss.total / targets, means


def s2t(golden):
    targets = golden.loss("s2t_asr_targets").flatten(0, 1)
    plain = text_pass_of(golden, "s2t", "s2t")
    masked = text_pass_of(golden, "s2t", "s2t", hide_turn_ends=True)
    plain_outputs, masked_outputs = (
        train_forward.text_outputs(golden.model, text_pass, targets)
        for text_pass in (plain, masked)
    )
    (loss, parts), (masked_loss, masked_parts) = (
        loss_of({"name": "s2t"}, outputs, len(outputs.text_labels))
        for outputs in (plain_outputs, masked_outputs)
    )
    return "s2t", {
        "s2t_adapter_out": plain.speech.frames,
        "s2t_hidden": plain.hidden,
        "s2t_shrink_lengths": plain.speech.lengths.reshape(golden.losses["s2t_audio_index"].shape),
        "s2t_hidden_masked": masked.hidden,
        "s2t_mask": masked.visible,
        "loss_s2t_total": loss,
        "loss_s2t_ctc": parts["ctc"],
        "loss_s2t_lm": parts["text"],
        "loss_s2t_total_masked": masked_loss,
        "loss_s2t_lm_masked": masked_parts["text"],
    }, loss  # fmt: skip


def pretrain(golden):
    ids = golden.loss("t2c_pretrain_input_ids")
    visible = ids != golden.model.tokens.end_id
    outputs = train_forward.pretrain_outputs(
        golden.model.translator, ids, golden.loss("t2c_pretrain_labels"), visible
    )
    loss, _ = loss_of({"name": "t2c"}, outputs, len(outputs.unit_labels))
    return "t2c_pretrain", {"t2c_pretrain_attention_mask": visible, "loss_t2c_pretrain": loss}, loss


def finetune(golden):
    ids = golden.loss("finetune_t2c_input_ids")
    targets = golden.loss("finetune_asr_targets").flatten(0, 1)
    text_pass = text_pass_of(golden, "finetune", "s2t")
    visible = ids != golden.model.tokens.end_id
    outputs = train_forward.joint_outputs(
        golden.model,
        text_pass,
        targets,
        golden.loss("finetune_labels"),
        ids,
        golden.loss("finetune_t2c_labels"),
        visible,
    )
    total, parts = loss_of({"name": "published_joint"}, outputs, 1)
    return "finetune", {
        "loss_finetune_total": total,
        "loss_finetune_unit_ce": parts["units"],
        "loss_finetune_cosine": parts["denoising"],
        "loss_finetune_ctc": parts["ctc"],
        "loss_finetune_cosine_weight": capped_weight(parts["units"], parts["denoising"]),
        "loss_finetune_s2t": parts["text"] + 0.3 * parts["ctc"],
    }, total  # fmt: skip


def finetune_kd(golden):
    ids, labels = golden.loss("kd_input_ids"), golden.loss("kd_labels")
    text_pass = text_pass_of(golden, "kd", "kd")
    samples = kd_samples(golden, text_pass, ids, labels)
    translator = golden.model.translator
    embeddings, visible = translator.adapter(samples["rows"]), samples["visible"]
    units = train_forward.states_and_targets(
        translator(embeddings, visible).hidden, samples["labels"]
    )
    states, text_labels = train_forward.states_and_targets(text_pass.hidden, text_pass.labels)
    outputs = EchoOutputs(
        *units,
        translator.head,
        samples["text"].flatten(0, 1),
        samples["targets"].flatten(0, 1),
        golden.model.language.logits(states),
        text_labels,
        sample_lengths=torch.full(samples["text"].shape[:1], samples["text"].shape[1]),
    )
    loss, parts = loss_of({"name": "published_echo", "text_weight": 0.0}, outputs, 1)
    placeholder = (ids == golden.model.tokens.audio_id).long().argmax(1)
    return "finetune_kd", {
        "kd_assistant_after_audio_shifts": (labels != IGNORE).long().argmax(1) - placeholder - 1,
        "kd_t2c_inputs_embeds": embeddings,
        "kd_t2c_attention_mask": visible,
        "loss_kd_total": loss,
        "loss_kd_unit_ce": parts["units"],
        "loss_kd_cosine": parts["denoising"],
        "loss_kd_cosine_weight": capped_weight(parts["units"], parts["denoising"]),
    }, loss  # fmt: skip


def kd_samples(golden, text_pass, ids, labels):
    """Chunks of answers in the layout of the release's finetune_kd, which echox trains without.

    Each is a text padded to the width of the longest, then its units. echox lays segments out as
    inference does, without the padding between (`train_forward.segment_outputs`).
    """
    tokens, translator = golden.model.tokens, golden.model.translator
    lengths, units = golden.loss("kd_sub_lengths"), golden.loss("kd_unit_targets")
    opening = tokens.before_text(golden.model.compatibility)
    width = max(0, int(lengths.max())) + len(opening) + 1
    denoised = translator.denoise(text_pass.hidden)
    first_audio = (ids == tokens.audio_id).long().argmax(1)
    # The placeholder's last vector stands just before what follows it.
    begins = text_pass.positions.gather(1, first_audio[:, None] + 1)[:, 0] - 1
    begins = (begins + golden.loss("kd_assistant_after_audio_shifts")).tolist()
    samples = []
    for row, sizes in enumerate(lengths.tolist()):
        answer, start = labels[row][labels[row] != IGNORE], 0
        # Nothing exists from a row's first -1 on.
        existing = sizes.index(-1) if -1 in sizes else len(sizes)
        for number, size in enumerate(sizes):
            text, targets = denoised.new_zeros(2, 0, denoised.shape[2])
            if number < existing:
                # A first chunk leaves out the last id of the opening.
                frame = torch.tensor(opening[: len(opening) - (number == 0)])
                at = slice(begins[row] + start, begins[row] + start + size)
                end = translator.rows(torch.tensor([tokens.end_id]))
                # The ids that open a text train their rows.
                trained = translator.text_rows(frame)
                text = torch.cat([trained, denoised[row, at], end])
                tokens_of_text = answer[start : start + size]
                targets = torch.cat([trained.detach(), translator.rows(tokens_of_text), end])
                start += size
            samples.append(kd_sample(golden, text, targets, width, units[row, number]))
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def kd_sample(golden, text, targets, width, units):
    """One text [S, H] with its units [T], padded with the end id, which is hidden."""
    translator, end_id = golden.model.translator, golden.model.tokens.end_id
    padding = translator.rows(torch.full((width - len(text),), end_id))
    text, targets = torch.cat([text, padding]), torch.cat([targets, padding])
    # The release pads units with the end id too, so the end of each chunk is hidden like padding.
    ids = units.masked_fill(units == IGNORE, end_id)
    is_text = torch.arange(width) < width - len(padding)
    return {
        "rows": torch.cat([text, translator.rows(ids)]),
        "text": text,
        "targets": targets,
        "visible": torch.cat([is_text, ids != end_id]),
        "labels": torch.cat([units.new_full((width,), IGNORE), units]),
    }


def gradient_norms(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    norms = {
        their_name(name): float(weight.grad.norm())
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return norms


def vocoder(golden, kind):
    folder = golden.folder / {"main": "checkpoint", "second": "vocoder_2"}[kind]
    return CODECS.build(CODECS.parse({"name": "unit_hifigan", "folder": str(folder)}))


INPUTS = (
    "s2t_input_ids", "s2t_labels", "s2t_asr_targets", "s2t_audio_index",
    "t2c_pretrain_input_ids", "t2c_pretrain_labels",
    "finetune_input_ids", "finetune_labels", "finetune_t2c_input_ids", "finetune_t2c_labels",
    "finetune_asr_targets",
    "kd_input_ids", "kd_labels", "kd_sub_lengths", "kd_unit_targets", "kd_audio_index",
)  # fmt: skip


def names(file, inputs=()):
    path = FOLDER / "golden" / f"{file}.npz"
    return sorted(set(np.load(path).files) - set(inputs)) if path.is_file() else []


def rows(file):
    path = FOLDER / "golden" / f"{file}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else []


@pytest.mark.parametrize("name", names("golden"))
def test_arrays_of_an_answer(golden, answer, name):
    computed, expected = answer[name], golden.golden[name]
    if name.endswith("_wav_int16"):
        assert computed.shape == expected.shape
        assert np.abs(computed.astype(int) - expected.astype(int)).max(initial=0) <= STEPS
    elif name.endswith("_top5_ids"):
        np.testing.assert_array_equal(computed[:, 0], expected[:, 0])
    else:
        assert_close(computed, expected)


def test_an_answer_has_the_arrays_of_the_set(golden, answer):
    assert set(answer) == set(golden.golden)


def clean_up(text, golden):
    """Text as the release's tokenizer tidies it, which takes blanks from before full stops."""
    return golden.model.tokens.tokenizer.clean_up_tokenization(text)


def texts_of(tokens, golden):
    """An answer's text, whole and as the release streams it.

    Streaming decodes token by token, which breaks characters that span tokens.
    """
    yield golden.model.tokens.text(tokens)
    yield "".join(clean_up(golden.model.tokens.text([token]), golden) for token in tokens)


def test_the_text_and_the_segments(golden, answer):
    tokens = answer["gen_tokens"].tolist()
    assert clean_up(golden.expected["text"], golden) in {
        clean_up(text, golden) for text in texts_of(tokens, golden)
    }
    assert len(tokens) == golden.expected["tokens_generated"]
    computed = [
        {
            "start": start,
            "end": end,
            "units": answer[f"seg{number}_units"].tolist(),
            "samples": len(answer[f"seg{number}_wav_int16"]),
        }
        for number, (start, end) in enumerate(answer["segments"].tolist())
    ]
    assert computed == golden.expected["segments"]


@pytest.mark.parametrize("name", names("losses", INPUTS))
def test_losses_and_intermediate_arrays(golden, trained, name):
    assert_close(trained[0][name], golden.losses[name])


@pytest.mark.parametrize("kind", ["s2t", "t2c_pretrain", "finetune", "finetune_kd"])
def test_gradients(golden, trained, kind):
    expected = golden.expected["gradient_norms"][kind]
    computed = trained[1][kind]
    for name, norm in expected.items():
        assert computed[name] == pytest.approx(norm, rel=GRADIENT, abs=1e-7), name
    unexpected = {
        name: norm for name, norm in computed.items() if name not in expected and norm > 1e-7
    }
    assert not unexpected


def test_the_losses_of_expected_json(golden, trained):
    for name, value in golden.expected["losses"].items():
        assert float(trained[0][f"loss_{name}"]) == pytest.approx(value, rel=CLOSE), name


@pytest.mark.parametrize("case", rows("prompt_cases"), ids=lambda case: case["description"])
def test_prompts(golden, case):
    tokens = golden.model.tokens
    ids = tokens.prompt(turns_of(case["conversations"]), PROMPT_TOKENS)
    assert ids == case["input_ids"]
    assert [at for at, token in enumerate(ids) if token == tokens.end_id] == case[
        "masked_positions"
    ]


def turns_in(tokens, ids):
    """The conversation that a row of ids holds, system message and answers too."""
    begin, end = "<|begin_of_text|>", "<|eot_id|>"
    for piece in tokens.tokenizer.decode(ids).split("<|start_header_id|>")[1:]:
        role, _, content = piece.removeprefix(begin).partition("<|end_header_id|>")
        content = content.partition(end)[0].removeprefix(f"{begin}\n")
        yield Turn(
            role,
            content.removeprefix("<audio_patch>").removeprefix(begin),
            content.startswith("<audio_patch>"),
        )


@pytest.mark.parametrize("name", ["s2t_input_ids", "finetune_input_ids", "kd_input_ids"])
def test_training_examples(golden, name):
    """Training examples of a conversation are those of the set, but for the padding."""
    tokens = golden.model.tokens
    for row in golden.losses[name].tolist():
        ids, labels = tokens.example(list(turns_in(tokens, row)))
        assert ids == row[: len(ids)] and set(row[len(ids) :]) <= {tokens.end_id}
        assert [label for label in labels if label != IGNORE][-1] == tokens.end_id


@pytest.mark.parametrize("case", rows("segmentation_cases"), ids=lambda case: case["description"])
def test_segmentation(case):
    cuts = list(segments(case["scores"], RELEASE_RULE))
    assert [[cut.start, cut.end] for cut in cuts] == case["segments"]
    assert [cut.known for cut in cuts] == case["emitted_after_token"]


@pytest.mark.parametrize("case", rows("unit_decoding_cases"), ids=lambda case: case["description"])
def test_unit_decoding(golden, case):
    tokens = golden.model.tokens
    assert tokens.tokenizer.convert_ids_to_tokens(case["ids"]) == case["tokens"]
    assert tokens.units(case["ids"]) == case["units"]


def units_of_run(values, run, kind):
    """Units of a run of the vocoder.

    They are in the set, or, of two special runs, as its README describes them.
    """
    if run == f"{kind}_nodur":
        return torch.from_numpy(values[f"{kind}0_codes"][:10])
    return (
        torch.tensor([3, -1, 700, -1, 12])
        if run == f"{kind}_neg"
        else torch.from_numpy(values[f"{run}_codes"])
    )


@pytest.mark.parametrize(
    "run", [name.removesuffix("_wav") for name in names("vocoder") if name.endswith("_wav")]
)
def test_vocoders(golden, run):
    values = golden.vocoder
    kind = "second" if run.startswith("second") else "main"
    codec = vocoder(golden, kind)
    units = units_of_run(values, run, kind)
    if f"{run}_log_dur" in values:
        with torch.no_grad():
            logs, frames = codec.net.durations(units)
        assert_close(logs, values[f"{run}_log_dur"])
        assert_close(frames, values[f"{run}_dur"])
    durations = not run.endswith("nodur")
    # Of several speakers the one without durations is speaker 7.
    samples = codec.sound(units, None if durations else 7, durations=durations)
    assert_close(samples, values[f"{run}_wav"])
