import pytest

from benchmarks.rotations.claims import claims


def result(scores, measure="mse", references=None):
    """A result with one task and three seeds from {arm: scores}."""
    ((task, arms),) = scores.items()
    return {
        "seeds": [1, 2, 3],
        "arms": list(arms),
        "tasks": {task: {"measure": measure, "references": references or {}}},
        "runs": [
            {"task": task, "arm": arm, "seed": seed, "scores": {measure: value}}
            for arm, values in arms.items()
            for seed, value in zip([1, 2, 3], values, strict=True)
        ],
    }


@pytest.mark.parametrize(
    ("rival", "verdict"),
    [((5.0, 5.1, 4.9), "confirmed"), ((1.0, 1.1, 0.9), "not confirmed"), ((1.0, 3.0, 5.0), "open")],
)
def test_several_times_is_judged_by_the_whole_interval(rival, verdict):
    (claim,) = claims(result({"near-pi": {"mhc": rival, "cayley": (1.0, 1.0, 1.0)}}))
    assert claim["verdict"] == verdict
    assert float(claim["published"]) == pytest.approx(9.64e-3 / 6.54e-6, rel=0.01)


def test_one_good_seed_of_one_rotation_refutes_that_none_can():
    references = {"rotations": 1.0}
    arms = {"cayley": (0.5, 0.99, 0.5), "quaternion": (0.1, 0.1, 0.1), "reflection": (0.99, 0.99, 0.94)}
    rotations, reflection = claims(result({"reflection": arms}, "alignment", references))
    assert rotations["verdict"] == "not confirmed"
    assert "cayley" in rotations["ours"]
    assert reflection["verdict"] == "not confirmed"
    arms = {"cayley": (0.5, 0.51, 0.5), "reflection": (0.99, 0.99, 0.96)}
    found = claims(result({"householder": arms}, "alignment", references))
    assert [claim["verdict"] for claim in found] == ["confirmed", "confirmed"]
    arms = {"cayley": (0.5, 0.51, 0.5), "reflection": (0.7, 0.7, 0.7)}
    found = claims(result({"householder": arms}, "alignment", references))
    assert [claim["verdict"] for claim in found] == ["open: no mixer can", "not confirmed"]


def test_that_the_plain_residual_learns_says_nothing_of_mixers():
    arms = {"plain": (0.99, 0.99, 0.99), "cayley": (0.5, 0.51, 0.5), "sinkhorn": (0.7, 0.7, 0.7)}
    (claim,) = claims(result({"reflection": arms}, "alignment", {"rotations": 1.0}))
    assert claim["verdict"] == "open: no mixer can"


def test_a_rotation_with_arguments_is_a_rotation():
    arms = {"cayley:step=0.1": (0.5, 0.99, 0.5), "reflection": (0.99, 0.99, 0.98)}
    rotations, _ = claims(result({"reflection": arms}, "alignment", {"rotations": 1.0}))
    assert rotations["verdict"] == "not confirmed"
    assert "cayley:step=0.1" in rotations["ours"]


def test_without_the_arms_there_is_no_claim():
    assert claims(result({"near-pi": {"cayley": (1.0, 1.0, 1.0)}})) == []
