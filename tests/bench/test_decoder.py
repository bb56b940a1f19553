# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from bench import bench_decoder

from aapt_fast.profiling.decoders import DECODERS, Layer, decoder_layers, layer_rows, table_of


@pytest.mark.parametrize("name", DECODERS)
def test_the_program_with_a_narrow_decoder(name, monkeypatch, tmp_path, capsys):
    out = tmp_path / "document.json"
    monkeypatch.setattr("sys.argv", ["bench_decoder.py", "--tiny", "--decoder", name, "--out", str(out)])
    bench_decoder.main()
    document = json.loads(out.read_text())
    (entry,) = document["results"]
    assert entry["name"] == f"decoder/{name}/64x48/float32/torch" and entry["p50_ms"] > 0 and entry["tflops"] > 0
    assert sum(row["share"] for row in document["layers"][f"{name}/64x48"]) == pytest.approx(1)
    assert "sum" in capsys.readouterr().out


def test_rows_hold_all_the_work():
    layers = decoder_layers(DECODERS["light"], 52, 92)
    rows = layer_rows(layers, matmul=790e12, copy=3e12)
    assert sum(row["gflop"] for row in rows) == pytest.approx(sum(layer.flops for layer in layers) / 1e9)
    assert sum(row["count"] for row in rows) == len(layers) > len(rows)
    assert len(table_of(rows)) == len(rows) + 2


def test_a_row_by_hand():
    layer = Layer(64, 3, (3, 3, 3), (4, 416, 736))
    (row,) = layer_rows([layer, layer], matmul=790e12, copy=3e12)
    assert row["limit"] == "bytes" and row["count"] == 2 and row["share"] == 1
    assert row["ceiling_ms"] == pytest.approx(1e3 * 2 * layer.elements * 2 / 3e12)


def test_a_size_with_a_part_of_a_cell_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench_decoder.py", "--layers", "--decoder", "wan2.2", "--size", "72x48"])
    with pytest.raises(ValueError, match="--size: expected multiples of 16 pixels, got 72x48"):
        bench_decoder.main()
