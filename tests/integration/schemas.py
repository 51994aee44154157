"""The columns of the benchmarks' data sets on the hub, in the order and with the types that their cards give."""

from __future__ import annotations

from datasets import Features, Image, List, Value

TEXT = Value("string")


def texts(*names: str) -> dict[str, Value]:
    return dict.fromkeys(names, TEXT)


_STEPS = List({"objectId": TEXT, "value": TEXT})

VQAV2 = Features(
    {
        **texts("question_type", "multiple_choice_answer"),
        "answers": List({"answer": TEXT, "answer_confidence": TEXT, "answer_id": Value("int64")}),
        "image_id": Value("int64"),
        "answer_type": TEXT,
        "question_id": Value("int64"),
        "question": TEXT,
        "image": Image(),
    }
)
OK_VQA = Features(
    {"question_id": TEXT, "image": Image(), "question": TEXT, "answers": List(TEXT)}
    | texts("question_type", "answer_type")
)
TEXTVQA = Features(
    {
        "image_id": TEXT,
        "question_id": Value("int32"),
        "question": TEXT,
        "question_tokens": List(TEXT),
        "image": Image(),
        "image_width": Value("int32"),
        "image_height": Value("int32"),
        **texts("flickr_original_url", "flickr_300k_url"),
        "answers": List(TEXT),
        "image_classes": List(TEXT),
        "set_name": TEXT,
        "ocr_tokens": List(TEXT),
    }
)
VIZWIZ = Features({"question_id": TEXT, "image": Image(), "question": TEXT, "answers": List(TEXT), "category": TEXT})
GQA_INSTRUCTIONS = Features(
    {
        **texts("id", "imageId", "question", "answer", "fullAnswer"),
        "isBalanced": Value("bool"),
        "groups": texts("global", "local"),
        **texts("entailed", "equivalent"),
        "types": texts("structural", "semantic", "detailed"),
        "annotations": {"question": _STEPS, "answer": _STEPS, "fullAnswer": _STEPS},
        "semantic": List({"operation": TEXT, "argument": TEXT, "dependencies": List(Value("int32"))}),
        "semanticStr": TEXT,
    }
)
GQA_IMAGES = Features({"id": TEXT, "image": Image()})
AI2D = Features({"question": TEXT, "options": List(TEXT), "answer": TEXT, "image": Image()})
SCIENCEQA = Features(
    {"image": Image(), "question": TEXT, "choices": List(TEXT), "answer": Value("int8")}
    | texts("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
)
POPE = Features(texts("id", "question_id", "question", "answer", "image_source") | {"image": Image(), "category": TEXT})
MMMU = Features(
    texts("id", "question", "options", "explanation")
    | {f"image_{n}": Image() for n in range(1, 8)}
    | texts("img_type", "answer", "topic_difficulty", "question_type", "subfield")
)
MMBENCH = Features(
    {"index": Value("int64")}
    | texts("question", "hint", "answer", "A", "B", "C", "D", "category")
    | {"image": Image()}
    | texts("source", "L2-category", "comment", "split")
)
VQA_RAD = Features({"image": Image(), "question": TEXT, "answer": TEXT})
