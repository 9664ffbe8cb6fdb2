"""Against the harness's own class for transformers models, on the same folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit_eval.generation.adapter import HarnessModel
from gritkit_eval.generation.texts import Texts
from tests.models import CONTEXT, TEXTS, grit_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's and its libraries'

LONG = "documents are read once and answered from many times " * 80
CONTEXTS = [
    "", " ", "a", "the quick brown fox ", "the quick\n\n", "<s>the fox", "</s>the", "naïve café, 東京 🦊", *TEXTS, LONG,
]  # fmt: skip
CONTINUATIONS = [
    " jumps",
    "a",
    " over the lazy dog",
    "\nlines",
    "東京",
    "<s>fox",
    " attention sees what the plan shows it",
]


@pytest.fixture(scope="module", params=["llama", "mistral_window"])
def both(request: Any, tmp_path_factory: Any) -> tuple[HarnessModel, HFLM]:
    folder = tmp_path_factory.mktemp(request.param)
    grit_model(request.param, prompt_format="grit").save_pretrained(folder)
    theirs = HFLM(pretrained=str(folder), device="cpu", batch_size=3, dtype="float32")
    return HarnessModel(GritModel.from_pretrained(folder)), theirs


def instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def test_pairs_are_encoded_alike(both: tuple[HarnessModel, HFLM]) -> None:
    ours, theirs = both
    texts = Texts(ours.tokenizer)
    for context in CONTEXTS:
        assert ours.tok_encode(context) == theirs.tok_encode(context)
        for continuation in CONTINUATIONS if context.strip() else ():
            want = theirs._encode_pair(context, continuation)
            assert ours._encode_pair(context, continuation) == want
            assert texts.pair(context, continuation) == want


def test_log_likelihoods_are_the_same(both: tuple[HarnessModel, HFLM]) -> None:
    ours, theirs = both
    arguments = [(one, two) for one in CONTEXTS if one != " " for two in CONTINUATIONS]
    requests = instances("loglikelihood", arguments)
    results = ours.loglikelihood(requests, disable_tqdm=True)
    for got, want, pair in zip(results, theirs.loglikelihood(requests, disable_tqdm=True), arguments, strict=True):
        assert got[0] == pytest.approx(want[0], abs=1e-4), pair
        assert got[1] == want[1], pair


def test_what_is_greedy_is_said_to_be(both: tuple[HarnessModel, HFLM]) -> None:
    ours, theirs = both
    prompt = TEXTS[0]
    likely = ours.model.complete(prompt, max_new_tokens=2).text
    requests = instances("loglikelihood", [(prompt, likely)])
    assert (
        ours.loglikelihood(requests, disable_tqdm=True)[0][1] == theirs.loglikelihood(requests, disable_tqdm=True)[0][1]
    )


def test_whole_texts_have_the_same_likelihood(both: tuple[HarnessModel, HFLM]) -> None:
    ours, theirs = both
    requests = instances("loglikelihood_rolling", [(text,) for text in (*TEXTS, LONG, LONG * 3)])
    results = ours.loglikelihood_rolling(requests, disable_tqdm=True)
    for got, want in zip(results, theirs.loglikelihood_rolling(requests, disable_tqdm=True), strict=True):
        assert got == pytest.approx(want, abs=2e-3, rel=1e-6)


def test_answers_are_the_same_texts(both: tuple[HarnessModel, HFLM]) -> None:
    ours, theirs = both
    written = "".join(ours.model.complete(text, max_new_tokens=24).text for text in TEXTS)
    stop = next(iter(re.findall("[a-z]{2}", written)))
    arguments: list[tuple[Any, ...]] = []
    for text in (*TEXTS, LONG, "<s>the fox"):
        arguments += [
            (text, {"until": [], "max_gen_toks": 12, "do_sample": False}),
            (text, {"until": [stop, "e"], "max_gen_toks": 24, "do_sample": False, "temperature": 0.0}),
            (text, {"until": "\n", "max_new_tokens": 5}),
        ]
    requests = instances("generate_until", arguments)
    got = ours.generate_until(requests, disable_tqdm=True)
    assert any(len(got[index]) > len(got[index + 1]) for index in range(0, len(got), 3))  # some were stopped
    # One at a time: in a batch the harness pads, which moves the rounding of a random model's near-ties.
    want = [theirs.generate_until([one], disable_tqdm=True)[0] for one in requests]
    assert got == want


def test_chats_are_written_alike(both: tuple[HarnessModel, HFLM]) -> None:
    ours, theirs = both
    history = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What do beavers build?"},
        {"role": "assistant", "content": "Dams"},
    ]
    assert ours.apply_chat_template(history[:2]) == theirs.apply_chat_template(history[:2])
    assert ours.apply_chat_template(history, False) == theirs.apply_chat_template(history, False)
    assert ours.chat_template(True) == theirs.chat_template(True)


def test_options_that_mean_nothing_here_are_refused(both: tuple[HarnessModel, HFLM]) -> None:
    ours, _ = both
    with pytest.raises(InputError, match="num_beams"):
        ours.generate_until(instances("generate_until", [("a", {"until": [], "num_beams": 4})]))
    with pytest.raises(InputError, match=f"{CONTEXT} new tokens leave no room"):
        ours.generate_until(instances("generate_until", [("a", {"until": [], "max_gen_toks": CONTEXT})]))


def test_sampling_repeats_with_its_seed(both: tuple[HarnessModel, HFLM]) -> None:
    ours, _ = both
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5}
    requests = instances("generate_until", [(TEXTS[0], options), (TEXTS[0], options)])
    first = ours.generate_until(requests, disable_tqdm=True)
    assert first == ours.generate_until(requests, disable_tqdm=True)
    assert first[0] != first[1]


def test_a_checkpoint_without_a_template_says_so(tmp_path: Path) -> None:
    grit_model("llama", prompt_format="plain").save_pretrained(tmp_path / "m")
    ours = HarnessModel(GritModel.from_pretrained(tmp_path / "m"))
    with pytest.raises(InputError, match="no chat template"):
        ours.apply_chat_template([{"role": "user", "content": "a"}])
