"""What every verb of `ehrnet` shares: what goes wrong is one sentence and an exit code."""

from __future__ import annotations

from ehrnet_ros.cli import main, variants


def test_memory_that_is_not_there_is_one_sentence(monkeypatch, capsys) -> None:
    def run(args):
        raise MemoryError

    monkeypatch.setattr(variants, "run", run)
    assert main(["variants"]) == 2
    assert capsys.readouterr().err.startswith("ehrnet: there is not enough memory")
