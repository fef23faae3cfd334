"""Whose token, and may it read: every refusal is told apart from the others, and no token is ever printed."""

from __future__ import annotations

import json
import os
import sys
import time
import types

import huggingface_hub.utils._auth as hub_auth
import pytest
from hub_stand_in import TOKEN

from lar_core import notebook as access
from lar_core.data.hub import download, entry

FINE_GRAINED = "Please enable access to public gated repositories in your fine-grained token settings"


@pytest.fixture
def weights(monkeypatch, hub):
    """The weights are on the stand-in hub, gated; nobody is there to type a token in."""
    monkeypatch.setattr(access, "getpass", lambda _: (_ for _ in ()).throw(EOFError()))
    hub.add(access.WEIGHTS, {"config.json": b"{}"}, gated=True)
    return hub


def names_the_three_steps(said: str) -> bool:
    return all(f"  {number}. " in said for number in (1, 2, 3)) and f"huggingface.co/{access.WEIGHTS}" in said


def told(capsys, monkeypatch, token: str) -> str:
    """What is said of a token that may not read; it is never part of it, and nothing else is printed."""
    monkeypatch.setenv("HF_TOKEN", token)
    assert not access.sign_in()
    said = "".join(capsys.readouterr())
    assert token not in said
    return said


def test_a_token_that_may_read_is_taken_without_a_word(capsys, monkeypatch, weights):
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    assert access.sign_in() and capsys.readouterr().out == ""
    assert "GET /api/models/google/paligemma-3b-pt-224/auth-check" in weights.log


def test_a_token_of_colabs_secrets_is_found_by_the_hubs_library(monkeypatch, weights):
    package, errors = types.ModuleType("google.colab"), types.ModuleType("google.colab.errors")
    package.userdata = types.SimpleNamespace(get=lambda name: {"HF_TOKEN": TOKEN}[name], NotebookAccessError=OSError,
                                             SecretNotFoundError=KeyError)
    errors.Error = RuntimeError
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setitem(sys.modules, "google.colab.errors", errors)
    monkeypatch.setattr(hub_auth, "is_google_colab", lambda: True)
    monkeypatch.setattr(hub_auth, "_IS_GOOGLE_COLAB_CHECKED", False)
    monkeypatch.setattr(hub_auth, "_GOOGLE_COLAB_SECRET", None)
    assert access.sign_in() and "HF_TOKEN" not in os.environ


def test_a_token_that_is_typed_in_stays_in_this_process(monkeypatch, weights, tmp_path):
    monkeypatch.setattr(access, "getpass", lambda _: f"{TOKEN} ")
    assert access.sign_in() and os.environ["HF_TOKEN"] == TOKEN
    assert not any(TOKEN in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())


def test_a_mistyped_token_is_forgotten_so_that_another_one_is_asked_for(capsys, monkeypatch, weights):
    typed = iter(["hf_mistyped", TOKEN])
    monkeypatch.setattr(access, "getpass", lambda _: next(typed))
    assert not access.sign_in() and "HF_TOKEN" not in os.environ
    assert "mistyped" in capsys.readouterr().out
    assert access.sign_in() and os.environ["HF_TOKEN"] == TOKEN


def test_without_a_token_the_three_steps_are_named(capsys, weights):
    assert not access.sign_in()
    assert names_the_three_steps(capsys.readouterr().out)


@pytest.mark.parametrize("valid, right, words", [
    (False, None, "invalid, expired or mistyped"),
    (True, ("GatedRepo", "you are not in the authorized list"), "has not accepted the licence"),
    (True, (None, FINE_GRAINED), "lacks the right"),
    (True, ("GatedRepo", FINE_GRAINED), "lacks the right"),
    (True, (None, "Your organisation allows no personal tokens"), "lacks the right"),
])
def test_refusals_are_told_apart_and_the_hubs_words_passed_on(capsys, monkeypatch, weights, valid, right, words):
    if valid:
        weights.valid.add("hf_ofSomebodyElse")
        weights.rights["hf_ofSomebodyElse"] = right
    said = told(capsys, monkeypatch, "hf_ofSomebodyElse")
    assert words in said and (right[1] if right else "Invalid credentials") in said
    others = {"invalid, expired or mistyped", "has not accepted the licence", "lacks the right"} - {words}
    assert not any(other in said for other in others)


def test_a_hub_that_is_down_is_no_fault_of_the_token(capsys, monkeypatch, weights):
    weights.valid.add("hf_ofSomebodyElse")
    monkeypatch.setattr("hub_stand_in._Handler._auth_check", lambda self, _: self._fail(503, None, "under maintenance"))
    assert "try again later" in told(capsys, monkeypatch, "hf_ofSomebodyElse")


@pytest.mark.parametrize("token", ["hf_half and half", "hf_\u2026", "hf_two\nlines in one"])
def test_what_cannot_be_a_token_is_not_sent(capsys, monkeypatch, weights, token):
    assert "copy it once more" in told(capsys, monkeypatch, token)
    assert not weights.log


@pytest.mark.parametrize("fault", ["offline", "no network"])
def test_without_a_network_no_token_is_believed(capsys, monkeypatch, weights, fault):
    if fault == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert not access.sign_in()
    assert "could not be asked" in capsys.readouterr().out


@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_are_here_need_no_token_and_no_network_but_all_of_them_must_be(monkeypatch, weights, whole):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, "model-1.safetensors": b"1"}
    commit = entry("paligemma-3b-pt-224").revision
    listed = files | ({"model-2.safetensors": b"2"} if whole else {}) | {"tokenizer.model": b"t"}
    weights.add(access.WEIGHTS, listed, commit=commit, gated=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("lar_core.data.hub._sha256", lambda *_: None)
    download("paligemma-3b-pt-224")
    monkeypatch.delenv("HF_TOKEN")
    weights.log.clear()
    assert access.sign_in() == whole and not weights.log


def test_a_question_that_nobody_answers_gives_up(monkeypatch, hub):
    monkeypatch.setattr(access, "getpass", lambda _: time.sleep(30))
    began = time.perf_counter()
    assert not access.sign_in(patience=0.3)
    assert time.perf_counter() - began < 5


def test_secrets_that_do_not_answer_are_given_up_too(monkeypatch, hub):
    monkeypatch.setattr(access, "get_token", lambda: time.sleep(30))
    monkeypatch.setattr(access, "getpass", lambda _: "")
    began = time.perf_counter()
    assert not access.sign_in(patience=0.3)
    assert time.perf_counter() - began < 5
