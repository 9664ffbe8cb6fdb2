"""Which tokens are pooled and trained on, for tokenizers of four families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gritkit.errors import InputError, UnsupportedModelError
from gritkit.prompts import E5, FORMATS, GRIT, INSTRUCT_QUERY, PLAIN, PromptFormat, chat_template
from gritkit.tokens import Tokens, check_text, sequence
from tests.models import tokenizer as byte_level

REAL = {"llama2": "llama2-32k", "neox": "gpt-neox-olmo-50k", "dolma2": "dolma2-100k"}
KINDS = ("bytes", "bytes_without_bos", "bytes_with_eos", *REAL, "llama2_first")
INSTRUCTION = "Given a question, find what answers it"
TEXTS = [
    "cat",
    "two words",
    " leading space",
    "Zażółć gęślą jaźń; 中文 test",
    "🦊👩‍👩‍👧 emoji",
    "e\u0301 combined",
    "x = 1\n\ty",
]


def without_bos() -> PreTrainedTokenizerFast:
    backend = byte_level().backend_tokenizer
    state = json.loads(backend.to_str()) | {"post_processor": None}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="</s>")


def with_eos() -> PreTrainedTokenizerFast:
    backend = byte_level().backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def spaced_first(plain: Any) -> PreTrainedTokenizerFast:
    """Llama's vocabulary as current transformers sets it up: a space before the first word of the row only."""
    state = json.loads(plain.backend_tokenizer.to_str()) | {"normalizer": None}
    backend = Tokenizer.from_str(json.dumps(state))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizer_of(request: pytest.FixtureRequest) -> Any:
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            if kind in REAL:
                shared: Path = request.getfixturevalue("shared")
                made[kind] = AutoTokenizer.from_pretrained(shared / "tokenizers" / REAL[kind])
            elif kind == "llama2_first":
                made[kind] = spaced_first(get("llama2"))
            else:
                made[kind] = {
                    "bytes": byte_level,
                    "bytes_without_bos": without_bos,
                    "bytes_with_eos": with_eos,
                }[kind]()
        return made[kind]

    return get


@pytest.fixture(scope="module")
def tokens_of(tokenizer_of: Any) -> Any:
    made: dict[tuple[str, str], Tokens] = {}

    def get(kind: str, form: PromptFormat) -> Tokens:
        if (kind, form.name) not in made:  # a large vocabulary takes a while
            made[kind, form.name] = Tokens(tokenizer_of(kind), form)
        return made[kind, form.name]

    return get


def embedded(tokens: Tokens, text: str, role: Any = "query", instruction: str | None = None, **rest: Any) -> Any:
    return tokens.to_embed(
        [text], role, instruction, rest.pop("max_length", 512), truncate=rest.pop("truncate", False)
    )[0]


# -- what is pooled --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "role", "instruction"),
    [
        (name, role, instruction)
        for name in FORMATS
        for role in ("query", "passage")
        for instruction in (None, INSTRUCTION)
        if not instruction or getattr(FORMATS[name], f"{role}_instructed") is not None
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_pooled_tokens(
    tokenizer_of, tokens_of, kind: str, preset: str, instruction: str | None, role: Any
) -> None:
    """The ids are the tokenizer's own for prefix + text; pooled is what the original code's count leaves."""
    tokenizer, form = tokenizer_of(kind), FORMATS[preset]
    tokens = tokens_of(kind, form)
    prefix = form.embed_prefix(role, instruction)
    ends = [tokenizer.eos_token_id] if form.append_eos or kind == "bytes_with_eos" else []
    for text in TEXTS:
        got = embedded(tokens, text, role, instruction)
        whole = tokenizer(prefix + text).input_ids
        if form.append_eos and kind != "bytes_with_eos":
            whole = whole + ends
        assert got.ids.tolist() == whole
        assert not got.loss_mask.any()
        alone = tokenizer(prefix).input_ids[: -1 if kind == "bytes_with_eos" else None]
        if whole[: len(alone)] == alone:  # no merge crosses the border
            assert got.pool_mask.tolist() == [False] * len(alone) + [True] * (len(whole) - len(alone)), text
        if ends:
            assert got.ids[-1] == tokenizer.eos_token_id
            assert got.pool_mask[-1]


@pytest.mark.parametrize("form", [E5, INSTRUCT_QUERY], ids=lambda form: form.name)
@pytest.mark.parametrize("kind", KINDS)
def test_a_word_keeps_the_space_that_merged_into_it(tokenizer_of, tokens_of, kind: str, form: PromptFormat) -> None:
    tokenizer = tokenizer_of(kind)
    instruction = INSTRUCTION if form is INSTRUCT_QUERY else None
    got = embedded(tokens_of(kind, form), "cat", "query", instruction)
    pooled = [int(i) for i, on in zip(got.ids, got.pool_mask, strict=True) if on]
    assert tokenizer.decode(pooled, skip_special_tokens=True).strip() == "cat"


def test_merges_that_join_format_and_text_belong_to_the_format(tokenizer_of, tokens_of) -> None:
    got = embedded(tokens_of("dolma2", GRIT), "\n\nfox", "query", None)
    pieces = tokenizer_of("dolma2").convert_ids_to_tokens(got.ids.tolist())
    assert pieces[-2:] == [">ĊĊĊ", "fox"]
    assert got.pool_mask.tolist() == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_a_text_stay_text(tokenizer_of, tokens_of, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    tokens = tokens_of(kind, PLAIN)
    for special in tokenizer.all_special_tokens:
        text = f"one {special} two {special}"
        inner = [int(i) for i in embedded(tokens, text).ids][len(tokens.bos_ids) :]
        inner = inner[: len(inner) - (kind == "bytes_with_eos")]
        assert not set(inner) & set(tokenizer.all_special_ids)
        assert tokens.backend.decode(inner, skip_special_tokens=False).strip() == text
        assert not set(tokens.encode(text)) & set(tokenizer.all_special_ids)
        assert tokens.raw_prompt(text) == [*tokens.bos_ids, *tokens.encode(text)]


def test_truncation_keeps_the_end_token_and_its_pooling(tokens_of) -> None:
    for kind, form in (("bytes", INSTRUCT_QUERY), ("bytes_with_eos", GRIT)):
        tokens = tokens_of(kind, form)
        whole = embedded(tokens, "a long text " * 20)
        cut = embedded(tokens, "a long text " * 20, max_length=30, truncate=True)
        assert len(cut) == 30
        assert cut.ids.tolist() == [*whole.ids[:29], whole.ids[-1]]
        assert cut.pool_mask[-1]
        with pytest.raises(InputError, match=rf"text 0 is {len(whole)} tokens long and max_length is 30"):
            embedded(tokens, "a long text " * 20, max_length=30)


def test_an_end_token_is_not_added_twice(tokens_of) -> None:
    assert embedded(tokens_of("bytes_with_eos", INSTRUCT_QUERY), "a").ids.tolist().count(1) == 1


@pytest.mark.parametrize("form", [GRIT, INSTRUCT_QUERY], ids=lambda form: form.name)
def test_an_instruction_that_fills_it_all_is_refused(tokens_of, form: PromptFormat) -> None:
    tokens = tokens_of("bytes", form)
    length = len(tokens.bos_ids) + len(tokens.encode(form.embed_prefix("query", INSTRUCTION))) + form.append_eos
    one = embedded(tokens, "!", instruction=INSTRUCTION, max_length=length + 1, truncate=True)
    assert one.pool_mask.sum() == 1 + form.append_eos
    for short in (length, length - 5, 2, 1):
        with pytest.raises(InputError, match="no token left beside its prompt"):
            embedded(tokens, "!", instruction=INSTRUCTION, max_length=short, truncate=True)


def test_errors_name_the_text() -> None:
    tokens = Tokens(byte_level(), GRIT)
    for texts, said in (
        (["a", " \n"], "text 11 is empty"),
        (["a", "b\ud800"], "text 11 has a lone surrogate at character 1"),
        (["a", 5], "text 11 is int, not text: 5"),
        (["a", None], "text 11 is NoneType, not text"),
        (["a", "b" * 99], "text 11 is "),
    ):
        with pytest.raises(InputError, match=said):
            tokens.to_embed(texts, "query", None, 20, truncate=False, first=10)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="role='document' is neither"):
        tokens.to_embed(["a"], "document", None, 20, truncate=False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="instruction has a lone surrogate"):
        tokens.to_embed(["a"], "query", "\udfff", 20, truncate=False)


@pytest.mark.parametrize("form", [GRIT, PLAIN], ids=lambda form: form.name)
def test_ids_of_a_text_are_embedded_as_the_text(form: PromptFormat) -> None:
    tokens = Tokens(byte_level(), form)
    texts = ["the quick brown fox", "a", "naïve café"]
    ids = [tokens.encode(text) for text in texts]
    for instruction, limit, truncate in ((None, 64, False), ("find it", 64, False), ("find it", 40, True)):
        expected = tokens.to_embed(texts, "query", instruction, limit, truncate=truncate)
        given = tokens.ids_to_embed(ids, "query", instruction, limit, truncate=truncate)
        for one, other in zip(given, expected, strict=True):
            assert one.ids.tolist() == other.ids.tolist()
            assert one.pool_mask.tolist() == other.pool_mask.tolist()


def test_ids_that_cannot_be_embedded_are_named() -> None:
    tokens = Tokens(byte_level(), PLAIN)
    with pytest.raises(InputError, match="text 1 is empty"):
        tokens.ids_to_embed([[5], []], "query", None, 20, truncate=False)
    with pytest.raises(InputError, match=r"text 1 is .* max_length is 20"):
        tokens.ids_to_embed([[5], [5] * 30], "query", None, 20, truncate=False)


@settings(deadline=None, max_examples=100)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    name=st.sampled_from(sorted(FORMATS)),
    data=st.data(),
)
def test_any_text_has_a_pooled_token_or_an_error(tokens_of, text: str, name: str, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    tokens = tokens_of(kind, FORMATS[name])
    instruction = None if name == "e5" else data.draw(st.sampled_from([None, "e\u0301 🦊", "do: "]))
    try:
        got = embedded(tokens, text, "query", instruction)
    except InputError as error:
        assert not text.strip() or "no token left" in str(error)  # noqa: PT017
        return
    assert text.strip()
    prefix = tokens.format.embed_prefix("query", instruction)
    assert got.pool_mask.any()
    assert (np.diff(got.pool_mask.astype(int)) >= 0).all(), "pooled tokens are one run up to the end"
    kept = got.ids[~got.pool_mask].tolist()[len(tokens.bos_ids) :]
    shown = tokens.backend.decode(kept, skip_special_tokens=False).strip()
    assert prefix.strip() in shown or "\N{REPLACEMENT CHARACTER}" in shown or tokens.backend.normalizer is not None


# -- chats -----------------------------------------------------------------------------------------------------------

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Hello, wörld?\n"},
    {"role": "assistant", "content": " Yes. \n"},
    {"role": "user", "content": "- and 中文?"},
    {"role": "assistant", "content": "🦊"},
    {"role": "user", "content": "last"},
]


def reference_string(tokenizer: Any, turns: list[dict[str, str]], *, bos: bool) -> str:
    """What the original code tokenizes as one string, special tokens spelled out."""
    system = turns[0]["content"] + "\n\n" if turns[0]["role"] == "system" else ""
    rest = turns[bool(system) :]
    text = tokenizer.bos_token if bos else ""
    for number, (user, answer) in enumerate(zip(rest[::2], [*rest[1::2], None], strict=False)):
        text += "\n" * bool(number) + f"<|user|>\n{'' if number else system}{user['content']}\n<|assistant|>\n"
        if answer is not None:
            text += answer["content"].strip() + tokenizer.eos_token
    return text


@pytest.mark.parametrize("turns", [TURNS, TURNS[1:], TURNS[1:2], TURNS[:4]], ids=["system", "three", "one", "two"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bytes_with_eos"])
def test_chat_ids_are_those_of_the_whole_string(
    tokenizer_of, tokens_of, kind: str, turns: list[dict[str, str]]
) -> None:
    tokenizer = tokenizer_of(kind)
    tokens = tokens_of(kind, GRIT)
    whole = tokenizer(reference_string(tokenizer, turns, bos=bool(tokens.bos_ids)), add_special_tokens=False).input_ids
    assert tokens.chat_prompt(turns) == whole
    template = chat_template(GRIT, with_bos=bool(tokens.bos_ids))
    rendered = tokenizer.apply_chat_template(
        turns, chat_template=template, add_generation_prompt=True, return_dict=False
    )
    assert rendered == whole


@pytest.mark.parametrize("kind", KINDS)
def test_trained_tokens_are_the_answers_and_their_ends(tokenizer_of, tokens_of, kind: str) -> None:
    """Nothing else, and no drift in later turns (the original code's third answer lost its end)."""
    tokenizer = tokenizer_of(kind)
    tokens = tokens_of(kind, GRIT)
    answers = ["one.", "two 🦊 three!", "Four, five.", "\u4e2d\u6587"]
    messages = [
        message
        for answer in answers
        for message in ({"role": "user", "content": "what?\n"}, {"role": "assistant", "content": answer})
    ]
    example = tokens.chat_example(messages)
    assert not example.pool_mask.any()
    runs: list[list[int]] = []
    before = False
    for token, on in zip(example.ids.tolist(), example.loss_mask.tolist(), strict=True):
        if on:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = on
    assert [run[-1] for run in runs] == [tokenizer.eos_token_id] * 4
    assert [tokens.backend.decode(run[:-1]) for run in runs] == answers
    prompt = tokens.chat_prompt(messages[:-1])
    assert example.ids.tolist()[: len(prompt)] == prompt, "what is trained on is what is generated from"
    assert not example.loss_mask[len(prompt) - 1]
    assert example.loss_mask[len(prompt) :].all()


@pytest.mark.parametrize("kind", ["bytes", "bytes_without_bos", "llama2", "llama2_first", "neox", "dolma2"])
def test_special_tokens_in_messages_stay_text(tokenizer_of, tokens_of, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    eos = tokenizer.eos_token
    messages = [
        {"role": "user", "content": f"end{eos}\n<|assistant|>\nno"},
        {"role": "assistant", "content": f"{eos}{eos}"},
        {"role": "user", "content": f"\ue000 {eos}"},
    ]
    example = tokens_of(kind, GRIT).chat_prompt(messages)
    assert example.count(tokenizer.eos_token_id) == 1
    fresh = tokens_of(kind, PLAIN)
    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = chat_template(GRIT, with_bos=bool(fresh.bos_ids))
        assert fresh.chat_prompt(messages) == example, "a checkpoint's own template is as safe"
        tokenizer.chat_template = (
            "{% for m in messages %}{{ eos_token + m['role'] + ':' + m['content'] }}{% endfor %}{{ eos_token }}"
        )
        ids = fresh.chat_prompt(messages)
        assert ids.count(tokenizer.eos_token_id) == 4
        shown = fresh.backend.decode(ids, skip_special_tokens=False)
        assert shown.replace(" ", "") == tokenizer.apply_chat_template(messages, tokenize=False).replace(" ", "")
    finally:
        tokenizer.chat_template = kept


def test_a_template_s_own_stripping_special_tokens_survive_shielding() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["rstrip"] = token["content"] == "<|end|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<|end|>\n' }}{% endfor %}go"
    tokens = Tokens(tokenizer, PLAIN)
    plain = tokens.chat_prompt([{"role": "user", "content": "hi"}])
    shielded = tokens.chat_prompt([{"role": "user", "content": "hi</s>"}])
    assert shielded[-3:] == plain[-3:]
    assert 1 not in shielded


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "non-empty list"),
        ("hello", "non-empty list"),
        ([{"role": "user"}], "message 0 lacks 'role' or 'content'"),
        (["hello"], "message 0 lacks"),
        ([{"role": "tool", "content": "x"}], "message 0 needs a role of system, user or assistant"),
        ([{"role": "user", "content": None}], "message 0 needs a role"),
        ([{"role": "user", "content": ["x"]}], "message 0 needs a role"),
        ([{"role": "assistant", "content": "x"}], "message 0 has role 'assistant' out of turn"),
        ([{"role": "user", "content": "x"}] * 2, "message 1 has role 'user' out of turn"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "x"}], "message 1 has role 'system' out of"),
        ([{"role": "system", "content": "x"}], "at least one user message"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "the last message is the assis"),
        ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
    ],
)
def test_malformed_messages(messages: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Tokens(byte_level(), GRIT).chat_prompt(messages)


def test_examples_without_an_answer_or_a_format() -> None:
    with pytest.raises(InputError, match="there is no answer to train on"):
        Tokens(byte_level(), GRIT).chat_example(TURNS)
    with pytest.raises(InputError, match="needs a prompt format with turns, not 'plain'"):
        Tokens(byte_level(), PLAIN).chat_example(TURNS[:3])
    without_end = byte_level()
    without_end.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token to end a turn"):
        Tokens(without_end, GRIT).chat_example(TURNS[:3])


def test_templates_of_checkpoints() -> None:
    tokenizer = byte_level()
    user = [{"role": "user", "content": "hi"}]
    with pytest.raises(InputError, match="no chat template: use complete"):
        Tokens(tokenizer, PLAIN).chat_prompt(user)
    tokenizer.chat_template = "{{ raise_exception('only odd turns') }}"
    with pytest.raises(InputError, match="chat template refuses these messages: only odd turns"):
        Tokens(tokenizer, PLAIN).chat_prompt(user)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    tokens = Tokens(tokenizer, PLAIN)
    assert tokens.chat_prompt(user) == tokenizer("[hi]").input_ids
    assert tokens.question_prompt("hi") == tokenizer("[hi]", add_special_tokens=False).input_ids, "no second beginning"


def test_a_question_with_a_conversation_before_it() -> None:
    tokens = Tokens(byte_level(), GRIT)
    earlier = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "who </s>?"},
        {"role": "assistant", "content": " the fox "},
    ]
    ids = tokens.question_prompt("why {question}?", earlier)
    asked = tokens.question_prompt("why {question}?")
    assert ids[-len(asked) :] == asked
    chat = tokens.chat_prompt(earlier[:2])[len(tokens.bos_ids) :]
    turn = [*tokens.encode("\n"), *chat, *tokens.encode("the fox"), tokens.eos_id]
    assert ids[: -len(asked)] == turn
    assert ids.count(tokens.eos_id) == 1
    assert tokens.question_prompt("x", []) == tokens.question_prompt("x")
    only_system = tokens.question_prompt("why?", earlier[:1])
    assert only_system == tokens.question_prompt("Be brief.\n\nwhy?")
    for wrong, said in ((earlier[1:2], "out of turn"), (earlier[2:], "out of turn"), ([{"role": "x"}], "lacks")):
        with pytest.raises(InputError, match=said):
            tokens.question_prompt("why?", wrong)
    with pytest.raises(InputError, match="no chat format"):
        Tokens(byte_level(), PLAIN).question_prompt("why?", earlier)
    templated = byte_level()
    templated.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    expected = templated("[a][b][why?]", add_special_tokens=False).input_ids
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert Tokens(templated, PLAIN).question_prompt("why?", turns) == expected


def test_text_examples() -> None:
    example = Tokens(byte_level(), GRIT).text_example("hi </s>")
    assert example.ids.tolist()[0] == 0
    assert example.ids.tolist().count(1) == 1
    assert example.loss_mask.tolist() == [False] + [True] * (len(example) - 1)
    example = Tokens(without_bos(), GRIT).text_example("hi")
    assert example.loss_mask.tolist() == [False] + [True] * (len(example) - 1)


# -- scoring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_targets_of_a_score_are_the_query(tokens_of, kind: str, preset: str) -> None:
    tokens = tokens_of(kind, FORMATS[preset])
    for query in ("cat", "two words?", "中"):
        (got,) = tokens.to_score(query, ["a document"], 512, truncate=False)
        targets = [int(i) for i, on in zip(got.ids, got.loss_mask, strict=True) if on]
        assert tokens.backend.decode(targets).strip() == query
        assert got.loss_mask[-1]
        assert tokens.format.score.split("{document}")[1].strip() in tokens.backend.decode(got.ids.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_cut_to_score(tokens_of, kind: str) -> None:
    tokens = tokens_of(kind, GRIT)
    document = "wörds 中文 of a long, long document " * 30
    (whole,) = tokens.to_score("cat?", [document], 10_000, truncate=True)
    limit = len(whole) // 2
    (cut,) = tokens.to_score("cat?", [document], limit, truncate=True)
    assert limit - 24 <= len(cut) <= limit
    assert cut.loss_mask.sum() == whole.loss_mask.sum()
    tail = int(whole.loss_mask.sum()) + 3
    assert cut.ids.tolist()[-tail:] == whole.ids.tolist()[-tail:]
    with pytest.raises(InputError, match=f"document 0 and the query are {len(whole)} tokens long"):
        tokens.to_score("cat?", [document], limit, truncate=False)
    with pytest.raises(InputError, match="without a document and the context is 10: shorten the query"):
        tokens.to_score("cat?", [document], 10, truncate=True)


def test_what_cannot_be_scored() -> None:
    tokens = Tokens(byte_level(), GRIT)
    for query, documents, said in (
        (" ", ["a"], "the query is empty"),
        ("a", ["a", ""], "document 1 is empty"),
        ("a", [7], "document 0 is int"),
        ("\ud800", ["a"], "query has a lone surrogate"),
    ):
        with pytest.raises(InputError, match=said):
            tokens.to_score(query, documents, 100, truncate=False)  # type: ignore[arg-type]


# -- the rest --------------------------------------------------------------------------------------------------------


def test_the_tokenizer_given_is_left_alone() -> None:
    tokenizer = byte_level()
    tokenizer("a", truncation=True, max_length=2)  # leaves truncation switched on in the backend
    before = tokenizer.backend_tokenizer.to_str()
    tokens = Tokens(tokenizer, GRIT)
    assert len(embedded(tokens, "many words are here " * 5)) > 30
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer("</s>", add_special_tokens=False).input_ids == [1]


def test_tokenizers_without_a_fast_backend_are_refused() -> None:
    class Slow:
        pass

    with pytest.raises(UnsupportedModelError, match="Slow has no fast backend"):
        Tokens(Slow(), GRIT)  # type: ignore[arg-type]


def test_masks_are_copies() -> None:
    mask = np.array([True, False])
    one = sequence([1, 2], pool=mask, loss=True)
    mask[:] = False
    assert one.pool_mask.tolist() == [True, False]
    assert one.loss_mask.tolist() == [True, True]
    assert len(one) == 2
    assert check_text("é", "x") == "é"


def test_answer_examples_continue_the_question_prompt() -> None:
    tokens = Tokens(byte_level(), GRIT)
    example = tokens.answer_example("who </s>?", "the fox", 512)
    prompt = tokens.question_prompt("who </s>?")
    assert example.ids[: len(prompt)].tolist() == prompt
    assert not example.loss_mask[: len(prompt)].any()
    assert example.loss_mask[len(prompt) :].all()
    assert example.ids[-1] == tokens.eos_id
    assert tokens.backend.decode(example.ids[len(prompt) : -1].tolist()) == "the fox"
    assert not example.pool_mask.any()
    cut = tokens.answer_example("who </s>?", "the fox " * 50, len(prompt) + 3)
    assert len(cut) == len(prompt) + 3
    assert cut.ids[-1] == tokens.eos_id
    assert cut.loss_mask.sum() == 3
    with pytest.raises(InputError, match="nothing of the answer is within 5 tokens"):
        tokens.answer_example("who?", "the fox", 5)
    without_end = byte_level()
    without_end.eos_token = None
    with pytest.raises(InputError, match="no end-of-text"):
        Tokens(without_end, GRIT).answer_example("who?", "the fox", 99)
