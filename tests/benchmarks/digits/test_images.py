import pytest
import torch

from benchmarks import residuals, trainer
from benchmarks.digits.cli import problems
from benchmarks.digits.images import Digits, images

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def data():
    return images()


def test_all_images_are_there_once(data):
    (x, classes), (held_out, wanted) = data.train, data.held_out
    assert len(x) + len(held_out) == 1797
    assert len(held_out) == 1797 // 4
    assert x.min() == -1
    assert x.max() == 1
    assert set(classes.tolist()) == set(wanted.tolist()) == set(range(10))
    from sklearn.datasets import load_digits

    truth = load_digits()
    brightness = torch.cat([x, held_out]).flatten(1).sum(1).sort().values
    expected = torch.tensor(truth.data / 8 - 1).sum(1).float().sort().values
    assert torch.allclose(brightness, expected, atol=1e-3)


def test_the_split_is_the_same_every_time(data):
    again = images()
    assert again.sha256 == data.sha256
    assert torch.equal(again.held_out[1], data.held_out[1])


def test_scores_are_counted_against_the_held_out_classes(data):
    task = problems("quick")[0]
    wanted = data.held_out[1]
    right = 100 * torch.nn.functional.one_hot(wanted, 10).float()
    wrong = right.roll(1, dims=1)
    scores = task.evaluate(lambda _: torch.stack([right, wrong]))
    assert [s["accuracy"] for s in scores] == [1.0, 0.0]
    assert scores[0]["cross_entropy"] < 1e-6


def test_baselines_need_no_training(data):
    references = problems("quick")[1].references
    assert 0.05 < references["most_frequent"] < 0.15
    assert references["nearest_image"] > 0.95


def test_a_short_training_beats_guessing(data):
    task = problems("quick")[0]
    schedule = trainer.Schedule(40, 32, lr=1e-2, warmup=2)
    task = Digits(task.name, task.images, task.model, schedule)
    (run,) = trainer.train(task, residuals.parse("cayley"), [0])
    assert run["scores"]["accuracy"] > 2 * task.references["most_frequent"]
