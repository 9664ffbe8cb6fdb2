from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

pytest.importorskip("fastapi")

from gritkit.generation.params import SamplingParams
from gritkit.rag import Hit
from gritkit.rag.answering import Found, Question
from gritkit.rag.store import Row
from gritkit_serve.errors import HttpError
from gritkit_serve.placement import Placement, conversation_of, ranked

NAMES = ("replica-0", "replica-1", "replica-2")
KEYS = [f"block {number}" for number in range(3000)]


def question(key: str) -> Question:
    """One whose best passage has this block; what comes after it does not decide."""
    rows = [
        Row(
            document="d", number=number, count=2, text="t", metadata="{}", tags=(), digest="", token_ids=(1,),
            block_key=block, fingerprint="", vector=None,
        )
        for number, block in enumerate((key, "another"))
    ]  # fmt: skip
    return Question("q", [Found(Hit("d", "t", 1.0, {}), row) for row in rows], [], SamplingParams(), 0.1)


def placed(own: str, key: str, names: tuple[str, ...] = NAMES, **given: Any) -> tuple[Placement, list[Any]]:
    moves: list[Any] = []
    return Placement(own, names, move=lambda *where: moves.append(where), **given), moves


def test_keys_are_spread_evenly_and_stay_where_they_are() -> None:
    owners = {key: ranked(key, NAMES)[0] for key in KEYS}
    assert all(800 < count < 1200 for count in Counter(owners.values()).values())
    assert owners == {key: ranked(key, reversed(NAMES))[0] for key in KEYS}
    fewer = {key: ranked(key, NAMES[:2])[0] for key in KEYS}
    assert all(fewer[key] == owner for key, owner in owners.items() if owner != NAMES[2])
    orphans = Counter(fewer[key] for key, owner in owners.items() if owner == NAMES[2])
    assert min(orphans.values()) > 300  # of a third of them: those of a lost one are everybody's


def test_a_request_goes_to_the_owner_of_its_best_passage_once() -> None:
    for key in KEYS[:30]:
        asked = question(key)
        for own in NAMES:
            place, moves = placed(own, key)
            if ranked(key, NAMES)[0] == own:
                place.settle(asked)
                assert place.stay()
                assert moves == []
                continue
            for _ in range(2):  # a search that is done again is still another's
                with pytest.raises(HttpError) as raised:
                    place.settle(asked)
                assert raised.value.status == 421
            assert moves == [(ranked(key, NAMES)[0], asked)]
            assert not place.stay()


def test_what_was_said_found_or_has_no_key_values_stays() -> None:
    key = next(key for key in KEYS if ranked(key, NAMES)[0] != NAMES[0])
    late, moves = placed(NAMES[0], key)
    assert late.stay()
    late.settle(question(key))
    here, more = placed(NAMES[0], key, (), found=question(key))
    here.settle(question(key))
    uncached, most = placed(NAMES[0], "")
    uncached.settle(question(""))
    assert moves + more + most == []
    assert late.stay()
    assert here.stay()
    assert uncached.stay()


def test_turns_of_a_chat_are_known_by_how_it_began() -> None:
    system, user = {"role": "system", "content": 'be "short"'}, {"role": "user", "content": [{"text": "hi, [you]"}]}
    answer, more = {"role": "assistant", "content": "hello"}, {"role": "user", "content": "and?"}
    first = conversation_of(json.dumps({"model": "m", "messages": [system, user]}).encode())
    assert first is not None
    assert first == conversation_of(json.dumps({"messages": [system, user, answer, more], "stream": True}).encode())
    others = ([user], [system, more], [user, answer, more])
    assert len({conversation_of(json.dumps({"messages": one}).encode()) for one in others} | {first}) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\xfe", b"[]", b'{"messages": []}', b'{"messages": [1, 2]}', b'{"messages": [{"role": "system"}]}',
        b'{"messages": [{"role": "us', b'{"messages": ' + b"[" * 100_000, b'{"prompt": "\\"messages\\": [x"}',
        b'{"messages": [' + b'{"role": "system"},' * 9 + b'{"role": "user"}]}',
    ],
)  # fmt: skip
def test_what_is_no_chat_at_a_glance_goes_anywhere(body: bytes) -> None:
    assert conversation_of(body) is None
