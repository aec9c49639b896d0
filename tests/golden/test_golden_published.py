"""The published EchoX against values computed by the authors' own code, for any set of golden vectors of the layout its README describes.

    ECHOX_GOLDEN=/path/to/a/set pytest tests/golden

Names, counts and sizes come from the set's files. Where a set is absent, the tests are skipped and say so.
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
from echox.criteria.base import CRITERIA
from echox.criteria.published import capped_weight
from echox.data.audio import load_audio
from echox.encoders.base import ENCODERS
from echox.models.segmenting import RELEASE_RULE, segments
from echox.models.published import teaching
from echox.models.published.causal import causal_mask
from echox.models.published.folder import build, read_release
from echox.models.published.names import their_name
from echox.models.published.tokens import PROMPT_TOKENS
from echox.plugins import discover
from echox.signals import Batch, Features, Waveform

FOLDER = Path(os.environ.get("ECHOX_GOLDEN") or Path(__file__).parents[2] / "../shared/golden/A").resolve()
RATE_HZ, WINDOW_SAMPLES = 16_000, 480_000
CLOSE = 1e-4  # of an array's largest magnitude
GRADIENT = 1e-3  # relative, of a gradient's norm
STEPS = 40  # of int16

pytestmark = pytest.mark.skipif(
    not (FOLDER / "golden" / "golden.npz").is_file(), reason=f"no golden vectors in {FOLDER}; set ECHOX_GOLDEN to a folder that has them"
)


class GoldenSet:
    """One set: its values, and what echox computes in their place, each by name."""

    def __init__(self, folder):
        discover()
        self.folder = folder
        self.golden, self.losses, self.vocoder = (
            dict(np.load(folder / "golden" / f"{name}.npz")) for name in ("golden", "losses", "vocoder")
        )
        self.expected = self.json("expected")
        self.release = read_release(folder / "checkpoint")
        self.model = build(self.release)
        self.whisper = ENCODERS.build(
            ENCODERS.parse({"name": "whisper", "weights": str(folder / self.release.config["audio_tower"]), "pad_to_window": True})
        )
        self.clips = {path.name: load_audio(path, RATE_HZ) for path in sorted((folder / "inputs").glob("*.wav"))}

    def json(self, name):
        return json.loads((self.folder / "golden" / f"{name}.json").read_text("utf-8"))

    def windowed(self, clips):
        samples = torch.stack([torch.nn.functional.pad(clip[:WINDOW_SAMPLES], (0, max(0, WINDOW_SAMPLES - len(clip)))) for clip in clips])
        return Waveform(samples, torch.full((len(clips),), WINDOW_SAMPLES), RATE_HZ)

    def log_mel(self, clips):
        return self.whisper._log_mel(self.windowed(clips))[0].numpy()

    @cached_property
    def conversation(self):
        (only,) = json.loads((self.folder / "inputs" / "conversation.json").read_text("utf-8"))
        return only["conversations"]

    @cached_property
    def batch_features(self):
        """Encoder features of the clips that `batch_features` were computed from, in its order."""
        mels = {name: self.log_mel([clip])[0] for name, clip in self.clips.items()}
        names = [min(mels, key=lambda name: np.abs(mels[name] - wanted).max()) for wanted in self.losses["batch_features"]]
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
def answered(golden):
    """Every array of golden.npz, computed."""
    with torch.no_grad():
        return dict(answer_arrays(golden))


@pytest.fixture(scope="module")
def taught(golden):
    """Every array of losses.npz, computed, and the gradient norms of its four losses."""
    arrays, norms = {}, {}
    for name, values, loss in (s2t(golden), pretrain(golden), finetune(golden), chunked(golden)):
        arrays |= values
        norms[name] = gradient_norms(golden.model, loss)
    arrays |= golden.computed_losses
    return arrays, norms


def turns_of(conversation):
    return [Turn(item["from"], item["value"], "audio" in item) for item in conversation]


def close(computed, wanted):
    """Compare as the set's README says: integers exactly, the rest relative to the largest magnitude."""
    computed = np.asarray(computed.detach() if isinstance(computed, torch.Tensor) else computed)
    assert computed.shape == wanted.shape
    if wanted.dtype.kind in "iub":
        np.testing.assert_array_equal(computed, wanted)
    elif wanted.size:
        assert np.isfinite(computed).all()
        worst = np.abs(computed - wanted).max() / max(np.abs(wanted).max(), 1e-30)
        assert worst <= CLOSE, f"off by {worst:.1e} of the largest magnitude"


def answer_arrays(golden):
    model, tokens = golden.model, golden.model.tokens
    ids = tokens.prompt(turns_of(golden.conversation), PROMPT_TOKENS)
    yield "input_ids", np.array(ids)
    clips = [load_audio(golden.folder / item["audio"], RATE_HZ) for item in golden.conversation if "audio" in item]
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
            yield from ((f"audio{number}_{name}", values[number]) for name, values in parts.items())
            yield f"audio{number}_shrunk", speech.vectors[number, :length]
        yield "shrink_lengths", speech.lengths
    prompt = model.prompt([ids], speech, torch.zeros(len(clips), dtype=torch.int64))
    expanded = model.expand(torch.tensor([ids]), speech, torch.zeros(len(clips), dtype=torch.int64))
    yield "prefill_inputs_embeds", prompt.embeddings[0]
    yield "prefill_expanded_ids", expanded.ids[0]
    yield "prefill_attention_mask", prompt.visible[0]
    states = model.language.body(
        inputs_embeds=prompt.embeddings,
        attention_mask=causal_mask(prompt.visible, prompt.embeddings.shape[1], torch.float32),
        use_cache=False,
        output_hidden_states=True,
    )
    yield "prefill_hidden_states", torch.cat(states.hidden_states)

    said = model.answer(prompt, golden.expected["max_new_tokens"])
    count = int(said.lengths[0])
    yield "gen_tokens", said.ids[0, :count]
    yield "gen_ended_by_eot", said.ended[0]
    yield "gen_hidden", said.hidden[0, :count]
    yield from top5("gen", model.language.logits(said.hidden[0]))
    scores = model.trigger_scores(said.hidden[0, :count])
    yield "gen_similarity", scores
    cuts = list(segments(scores.tolist(), RELEASE_RULE))
    yield "segments", np.array([[cut.start, cut.end] for cut in cuts]).reshape(-1, 2)
    for number, cut in enumerate(cuts):
        yield from segment_arrays(golden, f"seg{number}", said.hidden[:, cut.start : cut.end])


def segment_arrays(golden, name, hidden):
    model = golden.model
    lengths = torch.tensor([hidden.shape[1]])
    vectors = model.translator.denoise(hidden)
    prompt = model.segment_prompt(vectors, lengths)
    spoken = model.speak(hidden, lengths)
    yield f"{name}_aligned", vectors[0]
    yield f"{name}_t2c_inputs_embeds", prompt.embeddings[0]
    yield f"{name}_t2c_prompt_hidden", model.translator(prompt.embeddings, prompt.visible)[0]
    yield f"{name}_unit_token_ids", spoken.ids[0]
    yield f"{name}_unit_hidden", spoken.hidden[0]
    yield from top5(f"{name}_unit", model.translator.logits(spoken.hidden[0]))
    units = model.tokens.units(spoken.ids[0].tolist())
    yield f"{name}_units", np.array(units, dtype=np.int64)
    yield f"{name}_wav_int16", (vocoder(golden, "main").sound(torch.tensor(units)).numpy() * 32767).astype(np.int16)


def top5(name, logits):
    best = logits.topk(5)
    return (f"{name}_top5_ids", best.indices), (f"{name}_top5_logits", best.values)


def features_of(golden, index):
    """Clips of a batch [B, turns] in its order, and the row each belongs to."""
    B, turns = index.shape
    all_features, chosen = golden.batch_features, index.reshape(-1)
    return Features(all_features.values[chosen], all_features.lengths[chosen], all_features.rate_hz), torch.arange(B).repeat_interleave(
        turns
    )


def teach(golden, name, audio, **more):
    features, rows = features_of(golden, golden.loss(f"{audio}_audio_index"))
    return teaching.teach_text(golden.model, golden.loss(f"{name}_input_ids"), golden.loss(f"{name}_labels"), features, rows, **more)


def loss_of(criterion, outputs, targets):
    """The loss per target by a criterion of echox, and its parts as means."""
    found = CRITERIA.build(CRITERIA.parse(criterion))(outputs, Batch(("golden",), targets))
    return found.total / targets, {name: total / count for name, (total, count) in found.parts.items()}


def s2t(golden):
    targets = golden.loss("s2t_asr_targets").flatten(0, 1)
    taught = teach(golden, "s2t", "s2t")
    masked = teach(golden, "s2t", "s2t", hide_turn_ends=True)
    outputs, masked_outputs = (teaching.text_outputs(golden.model, passed, targets) for passed in (taught, masked))
    (loss, parts), (masked_loss, masked_parts) = (loss_of({"name": "s2t"}, heard, len(heard.text_labels)) for heard in (outputs, masked_outputs))
    return "s2t", {
        "s2t_adapter_out": taught.speech.frames,
        "s2t_hidden": taught.hidden,
        "s2t_shrink_lengths": taught.speech.lengths.reshape(golden.losses["s2t_audio_index"].shape),
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
    outputs = teaching.pretrain_outputs(golden.model.translator, ids, golden.loss("t2c_pretrain_labels"), visible)
    loss, _ = loss_of({"name": "t2c"}, outputs, len(outputs.unit_labels))
    return "t2c_pretrain", {"t2c_pretrain_attention_mask": visible, "loss_t2c_pretrain": loss}, loss


def finetune(golden):
    ids = golden.loss("finetune_t2c_input_ids")
    targets = golden.loss("finetune_asr_targets").flatten(0, 1)
    taught = teach(golden, "finetune", "s2t")
    visible = ids != golden.model.tokens.end_id
    outputs = teaching.joint_outputs(
        golden.model, taught, targets, golden.loss("finetune_labels"), ids, golden.loss("finetune_t2c_labels"), visible
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


def chunked(golden):
    ids, labels = golden.loss("kd_input_ids"), golden.loss("kd_labels")
    taught = teach(golden, "kd", "kd")
    shifts = golden.loss("kd_assistant_after_audio_shifts")
    chunks = teaching.chunked(golden.model, taught, ids, labels, golden.loss("kd_sub_lengths"), shifts, golden.loss("kd_unit_targets"))
    loss, parts = loss_of({"name": "published_echo", "text_weight": 0.0}, teaching.chunk_outputs(golden.model, taught, chunks), 1)
    placeholder = (ids == golden.model.tokens.audio_id).long().argmax(1)
    return "finetune_kd", {
        "kd_assistant_after_audio_shifts": (labels != teaching.IGNORE).long().argmax(1) - placeholder - 1,
        "kd_t2c_inputs_embeds": golden.model.translator.adapter(chunks.rows),
        "kd_t2c_attention_mask": chunks.visible,
        "loss_kd_total": loss,
        "loss_kd_unit_ce": parts["units"],
        "loss_kd_cosine": parts["denoising"],
        "loss_kd_cosine_weight": capped_weight(parts["units"], parts["denoising"]),
    }, loss  # fmt: skip


def gradient_norms(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    norms = {their_name(name): float(weight.grad.norm()) for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return norms


def vocoder(golden, kind):
    folder = golden.folder / {"main": "checkpoint", "second": "vocoder_2"}[kind]
    return CODECS.build(CODECS.parse({"name": "unit_hifigan", "folder": str(folder)}))


GIVEN = (
    "s2t_input_ids", "s2t_labels", "s2t_asr_targets", "s2t_audio_index", "t2c_pretrain_input_ids", "t2c_pretrain_labels", "finetune_input_ids",
    "finetune_labels", "finetune_t2c_input_ids", "finetune_t2c_labels", "finetune_asr_targets", "kd_input_ids", "kd_labels", "kd_sub_lengths",
    "kd_unit_targets", "kd_audio_index",
)  # fmt: skip


def names(file, given=()):
    path = FOLDER / "golden" / f"{file}.npz"
    return sorted(set(np.load(path).files) - set(given)) if path.is_file() else []


def rows(file):
    path = FOLDER / "golden" / f"{file}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else []


@pytest.mark.parametrize("name", names("golden"))
def test_what_an_answer_is_made_of(golden, answered, name):
    wanted = golden.golden[name]
    if name.endswith("_wav_int16"):
        assert answered[name].shape == wanted.shape
        assert np.abs(answered[name].astype(int) - wanted.astype(int)).max(initial=0) <= STEPS
    elif name.endswith("_top5_ids"):
        np.testing.assert_array_equal(answered[name][:, 0], wanted[:, 0])
    else:
        close(answered[name], wanted)


def test_nothing_is_said_beyond_the_set(golden, answered):
    assert set(answered) == set(golden.golden)


def released(text, golden):
    """Text as the release's tokenizer tidies it, which takes blanks from before full stops."""
    return golden.model.tokens.tokenizer.clean_up_tokenization(text)


def texts_of(tokens, golden):
    """An answer's text, and what the release streams: token by token, which breaks characters that span tokens."""
    yield golden.model.tokens.text(tokens)
    yield "".join(released(golden.model.tokens.text([token]), golden) for token in tokens)


def test_the_text_and_the_segments(golden, answered):
    tokens = answered["gen_tokens"].tolist()
    assert released(golden.expected["text"], golden) in {released(text, golden) for text in texts_of(tokens, golden)}
    assert len(tokens) == golden.expected["tokens_generated"]
    found = [
        {"start": start, "end": end, "units": answered[f"seg{number}_units"].tolist(), "samples": len(answered[f"seg{number}_wav_int16"])}
        for number, (start, end) in enumerate(answered["segments"].tolist())
    ]
    assert found == golden.expected["segments"]


@pytest.mark.parametrize("name", names("losses", GIVEN))
def test_losses_and_their_inputs(golden, taught, name):
    close(taught[0][name], golden.losses[name])


@pytest.mark.parametrize("kind", ["s2t", "t2c_pretrain", "finetune", "finetune_kd"])
def test_gradients(golden, taught, kind):
    wanted = golden.expected["gradient_norms"][kind]
    for name, norm in wanted.items():
        assert taught[1][kind][name] == pytest.approx(norm, rel=GRADIENT, abs=1e-7), name
    unexpected = {name: norm for name, norm in taught[1][kind].items() if name not in wanted and norm > 1e-7}
    assert not unexpected


def test_the_losses_of_expected_json(golden, taught):
    for name, value in golden.expected["losses"].items():
        assert float(taught[0][f"loss_{name}"]) == pytest.approx(value, rel=CLOSE), name


@pytest.mark.parametrize("case", rows("prompt_cases"), ids=lambda case: case["description"])
def test_prompts(golden, case):
    tokens = golden.model.tokens
    ids = tokens.prompt(turns_of(case["conversations"]), PROMPT_TOKENS)
    assert ids == case["input_ids"]
    assert [at for at, token in enumerate(ids) if token == tokens.end_id] == case["masked_positions"]


def turns_in(tokens, ids):
    """The conversation that a row of ids holds, system message and answers too."""
    begin, end = "<|begin_of_text|>", "<|eot_id|>"
    for piece in tokens.tokenizer.decode(ids).split("<|start_header_id|>")[1:]:
        role, _, content = piece.removeprefix(begin).partition("<|end_header_id|>")
        content = content.partition(end)[0].removeprefix(f"{begin}\n")
        yield Turn(role, content.removeprefix("<audio_patch>").removeprefix(begin), content.startswith("<audio_patch>"))


@pytest.mark.parametrize("name", ["s2t_input_ids", "finetune_input_ids", "kd_input_ids"])
def test_conversations_to_learn_from(golden, name):
    """What the training tasks make of a conversation is what the set was trained on, but for the padding."""
    tokens = golden.model.tokens
    for row in golden.losses[name].tolist():
        ids, labels = tokens.lesson(list(turns_in(tokens, row)))
        assert ids == row[: len(ids)] and set(row[len(ids) :]) <= {tokens.end_id}
        assert [label for label in labels if label != teaching.IGNORE][-1] == tokens.end_id


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
    """The units behind a run of the vocoder: given, or as the set's README describes the two special ones."""
    if run == f"{kind}_nodur":
        return torch.from_numpy(values[f"{kind}0_codes"][:10])
    return torch.tensor([3, -1, 700, -1, 12]) if run == f"{kind}_neg" else torch.from_numpy(values[f"{run}_codes"])


@pytest.mark.parametrize("run", [name.removesuffix("_wav") for name in names("vocoder") if name.endswith("_wav")])
def test_vocoders(golden, run):
    values = golden.vocoder
    kind = "second" if run.startswith("second") else "main"
    codec = vocoder(golden, kind)
    units = units_of_run(values, run, kind)
    if f"{run}_log_dur" in values:
        with torch.no_grad():
            logs, frames = codec.net.durations(units)
        close(logs, values[f"{run}_log_dur"])
        close(frames, values[f"{run}_dur"])
    durations = not run.endswith("nodur")
    # Of several speakers the one without durations is speaker 7.
    close(codec.sound(units, None if durations else 7, durations=durations), values[f"{run}_wav"])
