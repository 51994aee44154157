"""The exact prompt of the demo model, and its tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lmms_eval_stability.demo.questions import DIRECTIONS
from lmms_eval_stability.demo.scenes import COLORS, OBJECT_COUNTS, SHAPES

INSTRUCTION = "\nAnswer the question using a single word or phrase."
"""What the task's `post_prompt` appends to every question, as GQA, VQAv2 and TextVQA do for LLaVA."""

PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
VOCABULARY_SIZE = 432

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] != 'assistant' %}{{ content['text'] + ' ' }}"
    "{% else %}{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""llava-1.5-hf's template: pictures first, then text."""

ANSWERS: tuple[str, ...] = (*COLORS, *SHAPES, *map(str, OBJECT_COUNTS), "yes", "no")


def prompt_text(question: str) -> str:
    """Return what `CHAT_TEMPLATE` makes of one picture and one question (tested for equality)."""
    return f"USER: {IMAGE}\n{question}{INSTRUCTION} ASSISTANT:"


def answer_text(answer: str) -> str:
    """Return the answer as the model generates it, right after `ASSISTANT:`."""
    return f" {answer}"


def _corpus() -> Iterator[str]:
    for color, shape in itertools.product(COLORS, SHAPES):
        yield f"Is there a {color} {shape}?"
        yield f"What color is the {shape}?"
        yield f"What shape is the {color} object?"
        for where, what in itertools.product(DIRECTIONS, ("color", "shape")):
            yield f"What {what} is the object {where} the {color} {shape}?"
        yield "How many objects are there?"
        yield "USER: ASSISTANT:"
        yield from (f"ASSISTANT: {answer}" for answer in ANSWERS)


def build_tokenizer() -> Tokenizer:
    """Train a byte-level BPE on the questions; every word of a question or an answer becomes one token.

    The instruction is the same in every prompt, so it is one vocabulary entry instead of eleven: it would otherwise
    make up half of the text that training has to process.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - 1,
        special_tokens=[PAD, BOS, EOS, UNK, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(INSTRUCTION, special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer
