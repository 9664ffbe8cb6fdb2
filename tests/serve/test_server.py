"""What every answer has; what signals do is in test_command, what draining does in test_admission."""

from __future__ import annotations

from tests.serve.serving import serving


def test_answers_say_nothing_of_the_software_below() -> None:
    with serving(None) as running, running.client() as client:
        headers = client.get("/health").headers
    assert "server" not in headers
    assert headers["x-content-type-options"] == "nosniff"
