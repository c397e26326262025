"""The contract as users run it: every registered mixer passes, and a broken one is caught at its fault."""

import pytest
import torch

from jpmhc import layers

SIZES = [(str(info), 4 if info.supports(4) else info.streams[0]) for info in layers.mixers()]
SIZES += [("cayley", 1), ("sinkhorn", 5), ("cayley-mean", 2), ("identity", 1)]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(("mixer", "streams"), SIZES)
def test_every_registered_mixer_passes(mixer, streams):
    report = layers.check_mixer(mixer, streams, compile=False)
    assert report.ok, str(report)


def test_a_mixer_from_outside_passes_the_whole_contract():
    @layers.register_mixer("tests-circulant", set="circulant rotations of two streams", coefficients="1", exact=True)
    class Turn(layers.Mixer):
        n_coefficients = 1

        def forward(self, raw):
            raw = self._coefficients(raw)
            c, s = raw.cos(), raw.sin()
            return torch.stack([torch.cat([c, -s], -1), torch.cat([s, c], -1)], -2)

        def start(self):
            return torch.zeros(1, dtype=torch.float64)

        def residual(self, matrix):
            return (matrix.mT @ matrix - torch.eye(2, dtype=matrix.dtype)).abs().amax((-2, -1))

    report = layers.check_mixer("tests-circulant", 2)
    assert report.ok, str(report)
    assert "compiled whole" in str(report)


class Broken(layers.Free):
    """All matrices; sub-classes break one law each."""


class Overflowing(Broken):
    def forward(self, raw):
        matrix = super().forward(raw)
        return torch.eye(self.streams, dtype=matrix.dtype) + matrix.exp() - matrix.exp()


class Detached(Broken):
    def forward(self, raw):
        matrix = super().forward(raw)
        return matrix.detach() + 0 * matrix


class Lopsided(Broken):
    def start(self):
        return 2 * super().start()


class Claiming(Broken):
    def residual(self, matrix):
        return (matrix.sum(-1) - 1).abs().amax(-1)


class Blind(Claiming):
    def residual(self, matrix):
        return 1e-3 * super().residual(matrix)


class Pooling(Broken):
    def forward(self, raw):
        matrix = super().forward(raw)
        return matrix - matrix.mean(0, keepdim=True) if matrix.ndim > 2 else matrix


class Careless(Broken):
    def _coefficients(self, raw):
        return raw[..., : self.n_coefficients].to(torch.float64)


@pytest.mark.parametrize(
    ("mixer", "law"),
    [
        (Overflowing, "values not finite, raw numbers to 1e4"),
        (Detached, "derivative against differences (relative)"),
        (Lopsided, "rows of the start off a sum of one"),
        (Lopsided, "start of a network against the plain one"),
        (Claiming, "constraint, raw numbers of size 1"),
        (Blind, "residual of a matrix that is 0.25 off"),
        (Pooling, "batch against one by one"),
        (Careless, "raw numbers of a wrong count are refused"),
        (Careless, "float32 matrices (..., n, n) of raw numbers (...)"),
    ],
)
def test_a_broken_law_is_named(mixer, law):
    report = layers.check_mixer(mixer(3), exact=True, compile=False)
    assert law in report.failed, str(report)


class Numpy(Broken):
    def forward(self, raw):
        return torch.from_numpy(super().forward(raw).detach().numpy())


class Deciding(Broken):
    def forward(self, raw):
        matrix = super().forward(raw)
        return matrix.clamp(-1, 1) if matrix.abs().max() > 1e6 else matrix


class Interrupted(Broken):
    def forward(self, raw):
        torch._dynamo.graph_break()
        return super().forward(raw)


class Lumped(Broken):
    def residual(self, matrix):
        return super().residual(matrix).max()


class Unstarted(Broken):
    start = layers.Mixer.start


class Unmeasured(Broken):
    residual = layers.Mixer.residual


class Overlong(Broken):
    def start(self):
        return torch.cat([super().start(), torch.zeros(1)])


@pytest.mark.parametrize(
    ("mixer", "law", "fault"),
    [
        (Numpy, "derivatives can be measured", "does not require grad"),
        (Deciding, "vmap can be measured", "data-dependent control flow"),
        (Lumped, "one residual a matrix", ""),
        (Unstarted, "start can be measured", "NotImplementedError: Unstarted.start is not defined"),
        (Unmeasured, "constraint can be measured", "NotImplementedError: Unmeasured.residual is not defined"),
        (Overlong, "start can be measured", "ValueError: raw: expected shape"),
    ],
)
def test_a_mixer_that_raises_breaks_the_law_and_the_others_are_measured(mixer, law, fault):
    report = layers.check_mixer(mixer(3), exact=True, compile=False)
    assert law in report.failed, str(report)
    assert fault in report[law].fault
    assert report["raw numbers of a wrong count are refused"].ok
    assert len(report.failed) < len(report.laws)


def test_a_mixer_that_breaks_a_graph_is_named():
    report = layers.check_mixer(Interrupted(3))
    assert report.failed == ["compilation can be measured"], str(report)
    assert "Unsupported" in report["compilation can be measured"].fault


@pytest.mark.parametrize(
    "result",
    [
        lambda matrix: None,
        lambda matrix: (matrix,),
        lambda matrix: matrix[..., :1, :],
        lambda matrix: matrix[..., 0],
        lambda matrix: matrix.flatten(-2),
        lambda matrix: torch.eye(3),
        lambda matrix: torch.cat([matrix, matrix[..., :1]], -1),
    ],
)
def test_after_a_wrong_shape_nothing_else_is_measured(result):
    class Shapeless(Broken):
        def forward(self, raw):
            return result(super().forward(raw))

    report = layers.check_mixer(Shapeless(3), compile=False)
    assert report.failed == [law.name for law in report.laws] == ["float32 matrices (..., n, n) of raw numbers (...)"]
    assert "got" in report.laws[0].fault


def test_a_result_of_half_precision_is_named_and_the_rest_is_measured():
    class Half(Broken):
        def forward(self, raw):
            return super().forward(raw).bfloat16()

    report = layers.check_mixer(Half(3), compile=False)
    assert "float32 matrices (..., n, n) of raw numbers (...)" in report.failed
    assert len(report.laws) > 10


def test_a_saddle_is_caught():
    class Stuck(layers.Free):
        n_coefficients = 1

        def __init__(self, streams):
            super().__init__(streams)
            self.n_coefficients = 1

        def forward(self, raw):  # a chart with a slope of zero at its start
            eye = torch.eye(self.streams, dtype=raw.dtype)
            return eye * (1 + 0 * self._coefficients(raw).unsqueeze(-1).pow(3)).to(
                torch.float32 if raw.dtype.itemsize < 4 else raw.dtype
            )

        def start(self):
            return torch.zeros(1, dtype=torch.float64)

    report = layers.check_mixer(Stuck(3), compile=False)
    assert "largest gradient of the mixer in 40 steps" in report.failed, str(report)
