import json

import pytest
from click.testing import CliRunner

from pocketfit.api.memory import memory_over_sizes
from pocketfit.cli.main import main
from pocketfit.measurement import memory
from tests.measurement.test_memory import dynamic


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(memory.footprint, "__kwdefaults__", {**memory.footprint.__kwdefaults__, "processes": 1})
    monkeypatch.setattr(memory.over_sizes, "__kwdefaults__", {**memory.over_sizes.__kwdefaults__, "processes": 1})


def test_one_row_a_size(tmp_path):
    found = memory_over_sizes(dynamic(tmp_path), [(3, 16, 16), (3, 16, 64)])
    assert [row.size for row in found.rows] == [(3, 16, 16), (3, 16, 64)]
    assert all(set(row.measurements) == {"cold_start_ms", *memory.MEMORIES} for row in found.rows)


def test_the_command_line_prints_a_table_and_json(tmp_path):
    path = str(dynamic(tmp_path))
    shown = CliRunner().invoke(main, ["measure", path, "--sizes", "3x16x16,3x16x64"])
    assert shown.exit_code == 0 and "3x16x64" in shown.output and "activations" in shown.output
    told = CliRunner().invoke(main, ["measure", path, "--sizes", "3x16x16", "--json"])
    assert json.loads(told.stdout)["sizes"][0]["size"] == [3, 16, 16]


@pytest.mark.parametrize("sizes", ["3x", "a", "0x3", ""])
def test_sizes_that_are_none_are_refused(tmp_path, sizes):
    answered = CliRunner().invoke(main, ["measure", str(dynamic(tmp_path)), "--sizes", sizes])
    assert answered.exit_code == 2 and "3x48x160" in answered.output


def test_a_size_that_does_not_fit_is_a_sentence(tmp_path):
    answered = CliRunner().invoke(main, ["measure", str(dynamic(tmp_path)), "--sizes", "1x16x16"])
    assert answered.exit_code != 0 and "does not fit" in answered.output
