"""Whose token, and may it read: every refusal names the three steps, and no token is ever printed."""

from __future__ import annotations

import os
import sys
import time
import types

import pytest
from hub_stand_in import TOKEN

from lar_core import access


@pytest.fixture
def secrets(monkeypatch, hub):
    """What Colab's secrets hold; the weights are on the stand-in hub, gated."""
    held, package = {}, types.ModuleType("google.colab")
    package.userdata = types.SimpleNamespace(get=lambda name: held[name])
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setattr(access, "on_colab", lambda: True)
    monkeypatch.setattr(access, "getpass", lambda _: (_ for _ in ()).throw(EOFError()))
    hub.add(access.WEIGHTS, {"config.json": b"{}"}, gated=True)
    return held


def names_the_three_steps(said: str) -> bool:
    return all(f"  {number}. " in said for number in (1, 2, 3)) and f"huggingface.co/{access.WEIGHTS}" in said


def test_a_token_comes_from_colab_first_and_is_never_printed(capsys, monkeypatch, secrets):
    secrets["HF_TOKEN"] = f" {TOKEN}\n"
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    assert access.sign_in() and os.environ["HF_TOKEN"] == TOKEN
    assert capsys.readouterr().out == ""


def test_without_a_token_the_three_steps_are_named(capsys, secrets):
    assert not access.sign_in()
    assert names_the_three_steps(capsys.readouterr().out)


def test_a_token_whose_owner_has_not_accepted_the_licence_is_told_so(capsys, monkeypatch, secrets):
    monkeypatch.setenv("HF_TOKEN", "hf_without_a_licence")
    assert not access.sign_in()
    said = capsys.readouterr().out
    assert "may not read" in said and names_the_three_steps(said) and "hf_without" not in said


def test_without_a_network_a_token_is_believed(monkeypatch, secrets):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(access, "get_hf_file_metadata", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    assert access.sign_in()


def test_a_question_that_nobody_answers_gives_up(monkeypatch, hub):
    monkeypatch.setattr(access, "getpass", lambda _: time.sleep(30))
    began = time.perf_counter()
    assert not access.sign_in(patience=0.3)
    assert time.perf_counter() - began < 5
