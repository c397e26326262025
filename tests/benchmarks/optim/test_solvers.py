import json

from benchmarks.optim import solvers


def test_rows_hold_what_every_solver_needed(monkeypatch):
    monkeypatch.setattr(solvers, "SIZE", 20)
    rows = json.loads(json.dumps(solvers.run(quick=True)))["rows"]
    assert [row["name"] for row in rows][:3] == list(solvers.SOLVERS)
    assert {row["name"].split()[0] for row in rows} == {"jpmhc", "geoopt", "geotorch", "pymanopt"}
    assert all(row["gap"] < solvers.GAP for row in rows)
    assert all(row["closure_calls"] >= row["iterations"] > 0 for row in rows)
