from __future__ import annotations

import dataclasses
import math

import pytest

from gritkit.errors import InputError
from gritkit_serve.settings import Settings

LIMITS = [one.name for one in dataclasses.fields(Settings) if isinstance(one.default, (int, float))
          and not isinstance(one.default, bool)]  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_that_lets_nothing_through_is_refused(name: str) -> None:
    for value in (0, -1, math.nan):
        with pytest.raises(InputError, match=f"{name}={value} must be above 0"):
            Settings(**{name: value})


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel", "tab\t"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="API key") as raised:
        Settings(api_keys=("good-key-of-somebody", key))
    assert not key or key not in str(raised.value)


def test_the_times_fit_each_other() -> None:
    settings = Settings()
    assert settings.drain_seconds < 30  # what supervisors wait for before they kill
    assert settings.keep_alive_seconds > 60  # what load balancers keep a connection for
    assert settings.max_connections < 1024  # open files that a process may have
    assert settings.max_body_bytes <= settings.max_buffered_bytes
