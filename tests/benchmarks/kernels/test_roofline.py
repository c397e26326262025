from benchmarks.kernels import roofline


def test_every_kernel_stands_beside_its_floor(monkeypatch):
    monkeypatch.setattr(roofline, "MATRICES", {"cpu": (16 * 16, 4, 4)})
    monkeypatch.setattr(roofline, "TOKENS", {"cpu": 16 * 16})
    monkeypatch.setattr(roofline, "WIDTHS", {"cpu": (8,)})
    rows = roofline.measure("cpu", True, "reference")["rows"]
    assert {row["kernel"] for row in rows} >= {"cayley_forward", "quaternion_adjoint", "boundary_backward"}
    for row in rows:
        assert row["body"] == "reference"
        assert row["reached"] == row["floor_ms"] / row["ms"]
    cayley = next(row for row in rows if row["kernel"] == "cayley_forward")
    assert cayley["mib"] == 2 * 16 * 4 * 4 * 4 / 2**20
    tokens, n, d, m = 16, 4, 8, 24
    wanted = 2 * tokens * n * d + 2 * tokens * d  # x, x', y and u
    wanted += m * n * d + n + 1 + tokens * (n * n + n) + tokens * (m + n + 1)  # parameters, coefficients, what is kept
    boundary = next(row for row in rows if row["kernel"] == "boundary_forward")
    assert boundary["mib"] == 4 * wanted / 2**20
