"""The comparison with stock transformers, on few tokens; the figures themselves are no test."""

from __future__ import annotations

import json

import pytest

from specdecodes.benchmark import stock


@pytest.mark.slow
def test_both_comparisons_are_printed_and_written(tmp_path, capsys):
    path = tmp_path / "stock.json"
    assert stock.main(["--prefill-tokens", "70", "--new-tokens", "4", "--repeat", "2", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["prefill", "plain"]
    found = json.loads(path.read_text())
    assert found["prefill"]["stock_chunk"] in stock.STOCK_CHUNKS and found["prefill"]["parameters"] > 45e6
    assert found["prefill"]["ratio"] > 1, "a chunk scan that pads nothing must win on 70 tokens"
    assert found["command"].startswith("python -m specdecodes.benchmark.stock --prefill-tokens 70")


def test_bad_input_is_one_line(capsys):
    assert stock.main(["--repeat", "0"]) == 2
    assert capsys.readouterr().err == f"{stock.PROG}: --repeat: expected at least 1, got 0\n"
