"""Dry runs: sizes against those of the published models, and every missing file by name."""

import sys

import pytest
import torch

from echox.backbones.base import BACKBONES
from echox.core.packages import DISTILLMOS, GGUF, HIBARI, JIWER, ONNXRUNTIME, TENSORBOARD
from echox.pipeline import dry_run
from echox.pipeline import run as pipeline_run
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import load_recipe
from echox.tasks.align.task import AlignmentTask
from echox_cli import train

STAGES = ("align", "s2t", "t2c", "echo")
# Parameters in millions. Adapter and T2C as the shapes of the release give them; the denoising
# adapter and LoRA likewise; the language models as the hub counts them.
PUBLISHED = {
    "echo_3b": {
        "language model": 3_212_749_824,
        "projector": 7.9,
        "alignment encoder": 75.5,
        "look-back": 37.8,
        "CTC head": 394,
        "body": 25.2,
        "projection": 1.6,
        "heads over text and units": 69.8,
        "denoising adapter": 50,
    },
    "echo_8b": {
        "language model": 8_030_261_248,
        "projector": 10.5,
        "alignment encoder": 134.3,
        "look-back": 67.1,
        "CTC head": 525,
        "body": 56.6,
        "projection": 3.2,
        "heads over text and units": 104.6,
        "denoising adapter": 117,
        "LoRA": 27,
    },
}
TEXT_VOCABULARY = 128_257


@pytest.fixture
def away(workspace, monkeypatch):
    """A machine without any weights, which may not use the network."""

    def refuse(*_):
        raise AssertionError("a dry run asked the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.delenv("ECHOX_ASSETS", raising=False)
    monkeypatch.delenv("ECHOX_DATA", raising=False)
    monkeypatch.setenv("ECHOX_CACHE", str(workspace / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workspace / "hub"))
    return workspace


def sizes_of(name, *overrides):
    discover()
    return {size.stage: size for size in dry_run.stage_sizes(load_recipe(name, overrides))}


def millions(figure):
    """A figure in millions of weights, as exact as its digits (some were rounded twice)."""
    return pytest.approx(figure * 1e6, abs=0.06e6 if isinstance(figure, float) else 0.6e6)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_sizes_agree_with_the_published_models(away, recipe):
    sizes, published = sizes_of(recipe), PUBLISHED[recipe]
    s2t, t2c, echo = (sizes[stage] for stage in ("s2t", "t2c", "echo"))
    assert s2t.part("language model").frozen == published["language model"]
    for name in ("projector", "alignment encoder", "look-back", "CTC head"):
        assert s2t.part(f"adapter: {name}").trained == millions(published[name]), name
    for name in ("body", "projection"):
        assert t2c.part(f"unit decoder: {name}").trained == millions(published[name]), name
    assert echo.part("denoising adapter").trained == millions(published["denoising adapter"])
    if "LoRA" in published:
        assert s2t.part("language model").trained == millions(published["LoRA"])


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_output_head_has_the_unit_rows_of_the_published_one(away, recipe):
    head = sizes_of(recipe, "stage=t2c")["t2c"].part("unit decoder: output head").trained
    width = load_recipe(recipe).plan("t2c").task.decoder.width
    assert head == (8000 + 3) * width  # 8,000 words, BEGIN, END and NEXT
    assert head + TEXT_VOCABULARY * width == millions(
        PUBLISHED[recipe]["heads over text and units"]
    )


@pytest.mark.parametrize(
    ("name", "figures", "language", "lora"),
    # Language models with a row for the audio placeholder and a head of their own; LoRA of rank 64
    # on queries and keys.
    [
        ("EchoX-3B", PUBLISHED["echo_3b"], 3_606_758_400, 18_350_080),
        ("EchoX-8B", PUBLISHED["echo_8b"], 8_030_269_440, 27_262_976),
    ],
)
def test_the_published_form_has_the_published_sizes(away, name, figures, language, lora):
    sizes = sizes_of(
        "release_finetune",
        f"checkpoint=random:{name}",
        "encoder.weights=random:openai/whisper-large-v3",
    )
    assert list(sizes) == ["s2t", "t2c", "echo"]
    for stage in ("s2t", "echo"):
        model = sizes[stage].part("language model")
        assert (model.frozen, model.trained) == (language, lora)
        for part in ("projector", "alignment encoder", "look-back"):
            assert sizes[stage].part(f"adapter: {part}").trained == millions(figures[part]), part
        assert sizes[stage].part("adapter: CTC head").frozen == millions(figures["CTC head"])
    for stage in ("t2c", "echo"):
        for part, figure in (
            ("body", "body"),
            ("projection", "projection"),
            ("output head", "heads over text and units"),
        ):
            assert sizes[stage].part(f"unit translator: {part}").trained == millions(
                figures[figure]
            ), part
    assert sizes["echo"].part("unit translator: denoising adapter").trained == millions(
        figures["denoising adapter"]
    )
    assert sizes["t2c"].part(
        "unit translator: text rows"
    ).trained == 0 and "language model" not in [part.name for part in sizes["t2c"].parts]
    for size in sizes.values():
        assert "other" not in [part.name for part in size.parts]
        assert all(tensor.is_meta for tensor in size.outline.model.state_dict().values())


def test_missing_files_of_a_published_folder_are_named(away, capsys):
    assert (
        train.main(["recipe=release_finetune", "dry_run=true", "only=[t2c]", "checkpoint=EchoX-9B"])
        == 2
    )
    assert "EchoX-9B (published folder)" in capsys.readouterr().out
    assert (
        train.main(
            [
                "recipe=release_finetune",
                "dry_run=true",
                "only=[t2c]",
                "checkpoint=random:EchoX-9B",
            ]
        )
        == 2
    )
    assert (
        "no published model named 'EchoX-9B'; did you mean 'EchoX-8B'?" in capsys.readouterr().err
    )


@pytest.mark.parametrize("recipe", ["echo_tiny", "echo_mini", "echo_3b"])
def test_every_weight_belongs_to_a_named_part(away, recipe):
    for size in sizes_of(recipe).values():
        assert "other" not in [part.name for part in size.parts]
        weights = sum(parameter.numel() for parameter in size.outline.model.parameters())
        assert sum(part.trained + part.frozen for part in size.parts) == weights
        assert all(tensor.is_meta for tensor in size.outline.model.state_dict().values())


def test_memory_is_what_the_weights_and_adamw_take(away):
    s2t = sizes_of("echo_3b", "stage=s2t")["s2t"]
    trained, model = sum(part.trained for part in s2t.parts), s2t.part("language model")
    assert (
        model.weight_bytes == 2 * model.frozen + 4 * model.trained
    )  # frozen bfloat16, LoRA float32
    one, eight = s2t.memory(1), s2t.memory(8)
    assert (one["gradients"], one["optimiser"], one["gradient buckets"]) == (
        4 * trained,
        8 * trained,
        0,
    )
    assert sum(eight.values()) - sum(one.values()) == eight["gradient buckets"] == 4 * trained
    assert one["tables"] >= 4 * 128_256 * 3072  # the adapter's float32 copy of the embeddings


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_training_fits_80_gb_gpus(away, recipe):
    assert all(sum(size.memory(8).values()) < 80e9 for size in sizes_of(recipe).values())


def test_tokens_per_step(away):
    s2t = sizes_of("echo_3b", "stage=s2t", "s2t.train.batch_cost=1000", "s2t.train.accumulation=2")[
        "s2t"
    ]
    assert (
        s2t.cost == 1000 and "tokens per step at most: 2,000 on 1 GPU, 16,000 on 8 GPUs" in s2t.step
    )
    by_examples = sizes_of(
        "echo_3b", "stage=align", "align.train.batch_size=4", "align.train.batch_cost=null"
    )["align"]
    assert by_examples.cost == 4 * 30 * 50


def test_all_missing_files_are_named_at_once(away, capsys):
    assert train.main(["recipe=echo_3b", "dry_run=true"]) == 2
    printed = capsys.readouterr()
    missing = printed.out.partition("\nmissing:\n")[2].split("\n")
    assert {line.strip() for line in missing if line.strip()} == {
        "meta-llama/Llama-3.2-3B-Instruct (weights)",
        "openai/whisper-large-v3 (weights)",
        *(
            f"data/{name}/{name}.json (manifest)"
            for name in (
                "librispeech",
                "mls",
                "sharechatx",
                "magpie",
                "audioqa",
                "speechinstruct",
                "hh_rlhf",
            )
        ),
    }
    assert printed.err == (
        "echox-train: 9 files are missing for echo_3b, listed above; "
        "put them there, or set the fields that name them\n"
    )
    assert all(f"\n{stage}: " in printed.out for stage in STAGES)


def test_a_folder_that_lacks_a_shard_is_not_enough(away, write):
    write(
        "llama/config.json",
        '{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 24, "vocab_size": 99}',
    )
    write(
        "llama/model.safetensors.index.json",
        '{"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}',
    )
    write("llama/model-00001.safetensors", "")
    discover()
    recipe = load_recipe("echo_3b", ["stage=t2c", "backbone.weights=llama"])
    assert "llama/model-00002.safetensors" in dry_run.missing_files(recipe)
    assert "llama/model-00001.safetensors" not in dry_run.missing_files(recipe)


def test_a_local_config_decides_the_shape(away, write):
    write(
        "llama/config.json",
        '{"model_type": "llama", "hidden_size": 96, "num_attention_heads": 24, "vocab_size": 99, '
        '"num_hidden_layers": 2}',
    )
    model = sizes_of("echo_3b", "stage=s2t", "backbone.weights=llama")["s2t"].outline.model
    assert (model.backbone.hidden_size, model.backbone.vocab_size) == (96, 99)


def test_a_single_stage_needs_its_parents(away):
    discover()
    missing = dry_run.missing_files(load_recipe("echo_tiny", ["stage=echo"]))
    assert missing == [
        f"runs/echo_tiny/{parent}/final (checkpoint of an earlier stage)"
        for parent in ("s2t", "t2c")
    ]


@pytest.mark.parametrize("recipe", ["echo_tiny", "echo_mini"])
def test_a_recipe_that_makes_its_data_has_no_missing_file(away, capsys, recipe):
    assert train.main([f"recipe={recipe}", "dry_run=true"]) == 0
    text = capsys.readouterr().out
    assert (
        text.endswith("nothing is missing\n")
        and f"made by the run: the corpus runs/cache/corpora/{recipe.removeprefix('echo_')}" in text
    )
    assert not (away / "runs").exists() and not (away / "cache").exists()


def test_a_codec_without_recordings_is_missing(away):
    discover()
    assert (
        "runs/echo_mini/codec (the codec, and codec_speech names no recordings to fit it to)"
        in dry_run.missing_files(load_recipe("echo_mini", ["codec_speech=[]"]))
    )


def test_missing_files_are_named_for_an_unknown_model_too(away, capsys):
    assert train.main(["recipe=echo_3b", "dry_run=true", "backbone.weights=org/unheard-of"]) == 2
    printed = capsys.readouterr()
    assert "sizes cannot be told: the shape of 'org/unheard-of' is not known" in printed.out
    assert (
        "org/unheard-of (weights)" in printed.out and "data/mls/mls.json (manifest)" in printed.out
    )
    assert printed.err.count("\n") == 1


def test_an_encoder_that_computes_with_values_is_outlined(away):
    # torchaudio looks at the filters of a mel spectrogram, which have no values on that device.
    random_state = torch.get_rng_state()
    for recipe, stages in (("turn_taking", ["turn_taking"]), ("echo_tiny", [*STAGES])):
        sizes = sizes_of(recipe, "encoder=mel")
        assert list(sizes) == stages
        first = sizes[stages[0]]
        assert first.part("encoder").table_bytes == 4 * (201 * 80 + 400)  # filters and window
        assert all(tensor.is_meta for tensor in first.outline.model.state_dict().values())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_stage_without_an_outline_is_estimated_by_its_parts(away, monkeypatch, capsys):
    backbone = sizes_of("echo_tiny")["s2t"].part("language model")
    monkeypatch.delattr(AlignmentTask, "outline")
    assert train.main(["recipe=echo_tiny", "dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert "AlignmentTask has no outline: an estimate by its pretrained parts" in printed
    assert "only an estimate is known of stage 'align' before it" in printed
    sizes = sizes_of("echo_tiny")
    assert list(sizes) == [*STAGES]
    assert [part.name for part in sizes["align"].parts] == ["encoder", "backbone"]
    assert sizes["align"].part("backbone").frozen == backbone.frozen > 0
    assert sizes["align"].memory(1)["activations (estimate)"] == 0


def test_a_dry_run_trains_nothing(away, monkeypatch):
    monkeypatch.setattr(pipeline_run, "run_step", lambda *_: pytest.fail("a dry run did something"))
    discover()
    pipeline_run.run_recipe(load_recipe("echo_tiny", ["dry_run=true"]))


@pytest.mark.parametrize(
    ("modules", "settings", "sentence"),
    [
        (["hibari"], [], "hibari-tts (the demo's voices) is not installed"),
        (["gguf"], [], "gguf (reading quantised weights) is not installed"),
        (
            ["onnxruntime", "jiwer"],
            [],
            "onnxruntime (the demo's voices) and jiwer (word error rates) are not installed",
        ),
        (["distillmos"], [], "distillmos (how natural speech sounds) is not installed"),
        (
            ["tensorboard"],
            ["t2c.train.tensorboard=true"],
            "tensorboard (train.tensorboard=true) is not installed",
        ),
    ],
)
@pytest.mark.parametrize("dry", ["dry_run=false", "dry_run=true"])
def test_a_missing_package_is_named_before_any_work(
    away, monkeypatch, capsys, dry, modules, settings, sentence
):
    monkeypatch.setattr(pipeline_run, "run_step", lambda *_: pytest.fail("work was done before"))
    monkeypatch.setattr(
        pipeline_run, "in_own_process", lambda *_, **__: pytest.fail("work was done before")
    )
    monkeypatch.setattr(pipeline_run, "join", lambda: pytest.fail("work was done before"))
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    assert train.main(["recipe=echo_mini", dry, *settings]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "-m pip install 'echox[" in error and error.count("\n") == 1


def test_a_package_is_needed_only_where_it_is_used(away, monkeypatch):
    for package in (HIBARI, ONNXRUNTIME, GGUF, JIWER, DISTILLMOS, TENSORBOARD):
        monkeypatch.setitem(sys.modules, package.module, None)
    monkeypatch.setattr(dry_run, "is_built", lambda folder, fingerprint: True)
    discover()
    assert list(
        dry_run.needed_packages(
            load_recipe("echo_mini", ["backbone.weights=random", "report.mos_rows=0"])
        )
    ) == [JIWER]
    assert not list(
        dry_run.needed_packages(
            load_recipe("echo_mini", ["refit=runs/x", "backbone.weights=random"])
        )
    )


def test_true_shapes_without_weights_compute(away, write):
    write(
        "llama/config.json",
        '{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, '
        '"num_attention_heads": 4, "vocab_size": 300, "num_hidden_layers": 2}',
    )
    discover()
    config = load_recipe("echo_3b", ["backbone.weights=random:llama"]).backbone
    first, second = BACKBONES.build(config), BACKBONES.build(config)
    assert (first.hidden_size, first.vocab_size, len(first.token_texts())) == (32, 300, 300)
    assert torch.equal(first.head_rows(), second.head_rows()) and not first.head_rows().is_meta
    states = first(
        first.embed(torch.tensor([first.tokenize("Hi.")])), torch.ones(1, 3, dtype=torch.bool)
    ).hidden
    assert states.shape == (1, 3, 32) and bool(states.isfinite().all())
