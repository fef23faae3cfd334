"""A healthy file is never called damaged: what the system refuses, or a plugin that lacks, has its own remedy."""

import errno

import numpy as np
import pytest

from lar_core import cli
from lar_core.data.dataset import Stats
from lar_core.data.hub import load_manifest
from lar_core.data.phrases import Phrase, Place, phrases
from lar_core.measure.film import Film
from lar_core.model.train import _load_trainer
from lar_core.run.errors import LarError, cause, unreadable
from lar_core.run.files import build_once


@pytest.mark.parametrize("words", [
    "file signature not found", "truncated file: eof = 96", "inflate() failed", "Parquet magic bytes not found in footer",
    "Error while deserializing header: HeaderTooLarge", "broken data stream when reading image file",
    "Could not load meta information\n  --enable-libcodec2\nError opening input files: Invalid data found",
    "Corrupt snappy compressed data"])
def test_content_that_was_read_and_is_wrong_is_damaged(words):
    error = unreadable("x.bin", OSError(words), "get it again")
    assert "x.bin cannot be read, the file is damaged" in str(error) and str(error).endswith("get it again.")


@pytest.mark.parametrize(("error", "words"), [
    (BlockingIOError(errno.EAGAIN, "truncated? no: unable to lock file"), "another program holds a lock"),
    (OSError("required filter 'lz4' is not registered"), "pip install hdf5plugin"),
    (OSError("can't open directory (/usr/local/hdf5/lib/plugin). Please verify its existence"), "pip install hdf5plugin"),
    (OSError(errno.EROFS, "Read-only file system"), "read-only"),
    (OSError(errno.ESTALE, "Stale file handle"), "mounted anew"),
    (OSError(errno.ENETDOWN, "Network is down"), "Network is down"),
    (RuntimeError("something that nobody has seen"), "does not say that its content is wrong"),
])
def test_anything_else_is_not(error, words):
    said = str(unreadable("x.bin", error, "get it again"))
    assert words in said and "damaged" not in said


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EAGAIN, errno.ENOTCONN])
@pytest.mark.parametrize("reader", ["stats", "manifest", "picture", "phrases", "trainer", "film"])
def test_every_reader_passes_on_what_the_system_refuses(tmp_path, monkeypatch, reader, number):
    def refuse(*_, **__):
        raise OSError(number, "refused", "that.file")
    for name in ("builtins.open", "io.open", "pathlib.Path.open", "pathlib.Path.read_text", "PIL.Image.open", "torch.load",
                 "imageio.v2.mimread"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    read = {"stats": lambda: Stats.load(tmp_path / "s.json"), "manifest": lambda: load_manifest(tmp_path / "m.yaml"),
            "picture": lambda: Phrase(tmp_path / "p.png", "a bowl", Place()).picture(),
            "phrases": lambda: list(phrases("visual_genome", tmp_path)),
            "trainer": lambda: _load_trainer(tmp_path / "step" / "trainer.pt"),
            "film": lambda: Film.load(tmp_path / "a.mp4")}
    with pytest.raises(LarError, match="could not be read, because") as error:
        read[reader]()
    monkeypatch.undo()
    assert "damaged" not in str(error.value) and "delete" not in str(error.value)
    assert cause(OSError(number, "refused")) in str(error.value)


def test_damaged_films_and_checkpoints_still_are(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video" * 50), np.savez(tmp_path / "a.npz", actions=np.zeros(3))
    with pytest.raises(LarError, match="damaged.*roll out again"):
        Film.load(tmp_path / "a.mp4")
    (tmp_path / "trainer.pt").write_bytes(b"PK\3\4 and then nothing")
    with pytest.raises(LarError, match="damaged.*go on from the one before"):
        _load_trainer(tmp_path / "trainer.pt")


@pytest.mark.parametrize(("number", "words"), [(errno.EROFS, "read-only"), (errno.EACCES, "permission"),
                                               (errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota")])
def test_a_cache_that_cannot_be_written_says_why_and_names_another_place(tmp_path, monkeypatch, number, words):
    def refuse(*_, **__):
        raise OSError(number, "refused")
    for name in ("tempfile.mkdtemp", "pathlib.Path.rename"):
        with monkeypatch.context() as patch, pytest.raises(LarError, match=f"{words}.*XDG_CACHE_HOME"):
            patch.setattr(name, refuse)
            build_once(tmp_path / "pack", lambda folder: None)


@pytest.mark.parametrize(("number", "words"), [(errno.EACCES, "no permission"), (errno.EMFILE, "ulimit -n")])
def test_the_command_line_names_the_remedy_of_the_error_at_hand(monkeypatch, capsys, number, words):
    def fail(_):
        raise OSError(number, "refused", "that.file")
    monkeypatch.setitem(cli.COMMANDS, "report", fail)
    assert cli.main(["report"]) == 2
    said = capsys.readouterr().err
    assert "refused: that.file" in said and words in said and "Free the disk" not in said
