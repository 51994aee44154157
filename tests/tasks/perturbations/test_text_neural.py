"""Methods that need a model, on tiny random models of the official architectures saved as files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    FSMTConfig,
    FSMTForConditionalGeneration,
    FSMTTokenizer,
    GenerationConfig,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from lmms_eval_stability.tasks.perturbations.entries import MissingResourceError
from lmms_eval_stability.tasks.perturbations.text import (
    METHODS,
    Resources,
    UnreadableResourceError,
    available_levels,
    describe_resources,
    missing_resources,
    neural,
    perturb_text,
    precompute,
)
from lmms_eval_stability.tasks.perturbations.text.neural import MODELS, rewrite

QUESTIONS = ["What color is the cat?", "Is it?", "Which kind of furniture is in front of the television?"]
STYLES = [method for method in MODELS if method != "back_trans"]
REPOSITORIES = sorted({repository for rewriter in MODELS.values() for repository in rewriter.models})


def save_t5(folder: Path, seed: int) -> None:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyzACFIPTW?:,.", "▁the", "▁is", "at", "or"]
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    T5Tokenizer(tokenizer_object=backend, extra_ids=0).save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(vocab_size=len(pieces), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)


def save_fsmt(folder: Path, seed: int) -> None:
    letters = "abcdefghijklmnopqrstuvwxyzACFIPTW?:,."
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True)
    for name in ("vocab-src.json", "vocab-tgt.json"):
        (folder / name).write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("t h 5\ni s</w> 4\n", encoding="utf-8")
    languages = ["en", "de"] if "en-de" in folder.name else ["de", "en"]
    FSMTTokenizer(
        langs=languages,
        src_vocab_file=str(folder / "vocab-src.json"),
        tgt_vocab_file=str(folder / "vocab-tgt.json"),
        merges_file=str(folder / "merges.txt"),
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    model = FSMTForConditionalGeneration(
        FSMTConfig(
            langs=languages,
            src_vocab_size=len(vocabulary),
            tgt_vocab_size=len(vocabulary),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=1024,
            init_std=0.5,
        )
    )
    model.generation_config = GenerationConfig(
        num_beams=5, max_length=24, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2
    )
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models under the names of the official ones."""
    root = tmp_path_factory.mktemp("models")
    for seed, repository in enumerate(REPOSITORIES):
        (save_fsmt if "wmt19" in repository else save_t5)(root / repository, seed)
    return root


@pytest.fixture(autouse=True)
def _short_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models never end a sentence: let them write less."""
    monkeypatch.setattr(neural, "_TOKENS", 48)


def perturbed(text: str, method: str, resources: Resources, *, seed: int = 0, quirks: bool = False) -> str:
    return perturb_text(text, method, 1, seed=seed, official_quirks=quirks, resources=resources)


def test_the_official_models() -> None:
    assert REPOSITORIES == [
        "facebook/wmt19-de-en",
        "facebook/wmt19-en-de",
        "prithivida/active_to_passive_styletransfer",
        "prithivida/formal_to_informal_styletransfer",
        "prithivida/informal_to_formal_styletransfer",
        "prithivida/passive_to_active_styletransfer",
    ]
    assert set(MODELS) == {name for name, method in METHODS.items() if method.needs == ("model",)}


@pytest.mark.parametrize("method", list(MODELS))
def test_a_model_in_the_folder_is_run_and_always_says_the_same(folder: Path, method: str) -> None:
    resources = Resources(models=folder)
    torch.manual_seed(1)
    first = [perturbed(question, method, resources) for question in QUESTIONS]
    torch.manual_seed(2)
    assert [perturbed(question, method, resources, seed=9) for question in QUESTIONS] == first
    assert any(output != question for output, question in zip(first, QUESTIONS, strict=True))
    assert len(set(first)) > 1, "the output depends on the question"
    assert not any(token in output for output in first for token in ("<pad>", "</s>", "<s>"))


@pytest.mark.parametrize("method", list(MODELS))
def test_a_batch_says_what_its_questions_say_alone(folder: Path, method: str) -> None:
    resources = Resources(models=folder)
    assert rewrite(method, QUESTIONS, resources) == [rewrite(method, [q], resources)[0] for q in QUESTIONS]


def test_styles_are_asked_for_with_their_prefix_and_have_models_of_their_own(folder: Path) -> None:
    resources = Resources(models=folder)
    assert [MODELS[method].prefix for method in STYLES] == [
        "transfer Active to Passive: ",
        "transfer Casual to Formal: ",
        "transfer Formal to Casual: ",
        "transfer Passive to Active: ",
    ]
    assert len({perturbed(QUESTIONS[0], method, resources) for method in STYLES}) == len(STYLES)


def test_official_styles_end_after_32_tokens(folder: Path) -> None:
    resources = Resources(models=folder)
    long = " ".join(QUESTIONS * 4)
    tokenizer = T5Tokenizer.from_pretrained(folder / MODELS["to_formal"].models[0])

    def most_tokens(*, quirks: bool) -> int:
        outputs = [perturbed(long, method, resources, quirks=quirks) for method in STYLES]
        return max(len(tokenizer(output)["input_ids"]) for output in outputs)

    assert most_tokens(quirks=True) <= 33 < 44 <= most_tokens(quirks=False)


def test_2000_words_do_not_exceed_the_positions_of_the_translation_models(folder: Path) -> None:
    assert isinstance(perturbed("cat " * 2000, "back_trans", Resources(models=folder)), str)


def test_an_absent_model_is_named_with_the_command_that_gets_it(folder: Path, tmp_path: Path) -> None:
    resources = Resources(models=tmp_path)
    with pytest.raises(MissingResourceError) as caught:
        perturbed(QUESTIONS[0], "back_trans", resources)
    for repository in ("facebook/wmt19-en-de", "facebook/wmt19-de-en"):
        assert f"hf download {repository} --local-dir {tmp_path / repository}" in str(caught.value)
    assert "pip install 'lmms-eval-stability[neural]'" in str(caught.value)
    assert "hf download facebook/wmt19-en-de`" in missing_resources(Resources())["back_trans"]
    assert not {level.method for level in available_levels(resources)} & set(MODELS)
    assert {level.method for level in available_levels(Resources(models=folder))} >= set(MODELS)


def test_models_that_may_not_be_run_are_not(folder: Path) -> None:
    resources = Resources(models=folder, allow_models=False)
    with pytest.raises(MissingResourceError, match=r"to_formal needs prithivida/informal_to_formal.*ALLOW_MODELS"):
        perturbed(QUESTIONS[0], "to_formal", resources)
    assert not {level.method for level in available_levels(resources)} & set(MODELS)


def test_a_broken_model_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "prithivida" / "active_to_passive_styletransfer"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text('{"model_type": "t5"}', encoding="utf-8")
    with pytest.raises(MissingResourceError, match="prithivida/active_to_passive_styletransfer cannot be loaded"):
        perturbed(QUESTIONS[0], "to_passive", Resources(models=tmp_path))


# --- outputs made beforehand -------------------------------------------------------------------------------------


def test_a_precomputed_table_gives_what_the_models_give_without_them(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "outputs.jsonl"
    models = Resources(models=folder)
    assert precompute(QUESTIONS, table, resources=models, batch_size=2) == len(QUESTIONS) * len(MODELS)
    from_table = Resources(precomputed=table, allow_models=False)
    for method in MODELS:
        for question in QUESTIONS:
            assert perturbed(question, method, from_table) == perturbed(question, method, models)
    assert {level.method for level in available_levels(from_table)} >= set(MODELS)
    assert describe_resources(from_table)["models"] == {}
    assert set(describe_resources(models)["models"]) == set(REPOSITORIES)
    assert len(describe_resources(from_table)["precomputed"]) == 64


def test_precomputing_goes_on_where_it_was_interrupted(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "outputs.jsonl"
    models = Resources(models=folder)
    assert precompute(QUESTIONS[:1], table, methods=["to_formal"], resources=models) == 1
    before = table.read_text(encoding="utf-8")
    assert precompute([*QUESTIONS, *QUESTIONS], table, methods=["to_formal"], resources=models) == len(QUESTIONS) - 1
    assert table.read_text(encoding="utf-8").startswith(before)
    assert precompute(QUESTIONS, table, methods=["to_formal"], resources=models) == 0


def test_an_input_that_the_table_lacks_is_an_error_not_a_call_of_the_model(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "outputs.jsonl"
    table.write_text('{"method": "to_formal", "input": "Is it?", "output": "Is it so?"}\n\n', encoding="utf-8")
    resources = Resources(precomputed=table, models=folder)
    assert perturbed("Is it?", "to_formal", resources) == "Is it so?"
    with pytest.raises(MissingResourceError, match="none for the input 'What'"):
        perturbed("What", "to_formal", resources)
    assert perturbed("What", "to_casual", resources) == perturbed("What", "to_casual", Resources(models=folder))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: not an object"),
        ('["to_formal", "a", "b"]', "line 2: not an object"),
        ('{"method": "to_formal", "input": "a"}', "line 2: not an object"),
        ('{"method": "ocr", "input": "a", "output": "b"}', "line 2: method must be one of to_passive"),
        ('{"method": "to_formal", "input": "a", "output": null}', "line 2: method must be one of"),
        ('{"method": "to_formal", "input": "a", "output": "c"}', "line 2: a second output of to_formal for 'a'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    table = tmp_path / "outputs.jsonl"
    table.write_text('{"method": "to_formal", "input": "a", "output": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(UnreadableResourceError, match=reason):
        perturbed("a", "to_formal", Resources(precomputed=table))
