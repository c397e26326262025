"""What watches over a module's points: it acts on that module alone, keeps nothing alive and bears threads."""

import copy
import gc
import pickle
import sys
import threading
import weakref

import pytest
import torch
from torch import nn

from jpmhc import manifolds as m
from jpmhc import optim
from jpmhc.manifolds import parameter as inside


def point(scale=1.0):
    return m.Parameter(scale * torch.eye(4, 2), m.Stiefel())


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = point()


def with_parameters_of_its_own(original):
    twin = copy.copy(original)
    twin._parameters = {"weight": point(-1.0)}
    return twin


def replica(original):
    twin = original._replicate_for_data_parallel()
    twin._parameters["weight"] = point(-1.0)
    return twin


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def many_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("shallow", [with_parameters_of_its_own, replica])
def test_a_shallow_copy_is_converted_and_its_original_is_not(shallow):
    original = Holder()
    twin = shallow(original)
    twin.double()
    assert (original.weight.dtype, twin.weight.dtype) == (torch.float32, torch.float64)
    original.to("meta").to_empty(device="cpu")
    twin.to("meta").to_empty(device="cpu")
    assert all(isinstance(module.weight, m.Parameter) for module in (original, twin))


def test_a_shallow_copy_outlives_its_original():
    twin = with_parameters_of_its_own(Holder())
    gc.collect()
    twin.to("meta").to_empty(device="cpu")
    assert isinstance(twin.weight, m.Parameter)
    twin._parameters["weight"] = nn.Parameter(torch.eye(4, 2))
    assert m.lost_parameters(twin) == ["weight"]
    with pytest.raises(TypeError, match=r"was Holder\.weight"):
        optim.RiemannianSGD(twin.parameters())


def test_what_is_lost_or_dropped_in_a_shallow_copy_is_not_in_its_original():
    original = Holder()
    twin = with_parameters_of_its_own(original)
    twin._parameters["weight"] = nn.Parameter(torch.eye(4, 2))
    assert (m.lost_parameters(original), m.lost_parameters(twin)) == ([], ["weight"])
    del twin.weight
    twin.weight = nn.Parameter(torch.ones(3))
    original.weight = nn.Parameter(torch.eye(4, 2))
    assert type(twin.weight) is nn.Parameter
    assert isinstance(original.weight, m.Parameter)


def test_a_module_is_freed_with_its_last_name(without_collector):
    module = Holder()
    module.double()
    module.load_state_dict(module.state_dict())
    m.lost_parameters(module)
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), with_parameters_of_its_own(module)]
    twins[2].float()
    alive = [weakref.ref(value) for held in (module, *twins) for value in (held, held.weight)]
    del module, twins
    assert [reference() for reference in alive if reference() is not None] == []


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


class Copying(Holder):
    """Makes its copies anew, attribute by attribute."""

    def __deepcopy__(self, memo):
        twin = type(self).__new__(type(self))
        nn.Module.__init__(twin)
        for name, value in vars(self).items():
            vars(twin)[name] = copy.deepcopy(value, memo)
        return twin


@pytest.mark.parametrize("path", [copy.deepcopy, through_pickle])
def test_an_optimiser_finds_what_was_lost_in_a_copy(path):
    twin = path(Holder())
    twin._parameters["weight"] = nn.Parameter(torch.eye(4, 2))
    with pytest.raises(TypeError, match=r"was Holder\.weight"):
        optim.RiemannianSGD(twin.parameters())


def test_a_module_may_copy_itself_in_its_own_way():
    original = Copying()
    twin = copy.deepcopy(original)
    twin.to("meta").to_empty(device="cpu")
    assert isinstance(twin.weight, m.Parameter)
    assert original.weight.device.type == "cpu"


def as_saved_before(module):
    """Give the module the attribute with which earlier versions watched over it, and which is in their files."""
    vars(module)["_apply"] = vars(module).pop(inside._PLACE)
    return module


@pytest.mark.parametrize("path", [copy.deepcopy, through_pickle])
def test_a_module_from_an_earlier_file_is_watched_over(path):
    for use in (lambda module: module.double(), lambda module: module.to("meta").to_empty(device="cpu")):
        module = path(as_saved_before(Holder()))
        use(module)
        assert isinstance(module.weight, m.Parameter)
        assert "_apply" not in vars(module)
    module = path(as_saved_before(Holder()))
    module.weight = nn.Parameter(torch.eye(4, 2))
    assert isinstance(module.weight, m.Parameter)
    module = path(as_saved_before(Holder()))
    module._parameters["weight"] = nn.Parameter(torch.eye(4, 2))
    assert m.lost_parameters(module) == ["weight"]
    with pytest.raises(TypeError, match=r"was Holder\.weight"):
        optim.RiemannianSGD(module.parameters())


def test_a_shallow_copy_of_a_module_from_an_earlier_file_never_converts_the_other():
    module = through_pickle(as_saved_before(Holder()))
    twin = with_parameters_of_its_own(module)
    module.double()
    with pytest.raises(RuntimeError, match="shallow copy"):
        twin.half()
    assert module.weight.dtype == torch.float64


def test_threads_make_modules_while_others_make_optimisers(many_switches):
    kept = [Holder() for _ in range(2000)]
    errors = []

    def work(optimise):
        for _ in range(40):
            holder = Holder()
            try:
                if optimise:
                    optim.RiemannianAdam(holder.parameters())
            except RuntimeError as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(index % 2 == 1,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(kept) == 2000


class Keepers(weakref.WeakSet):
    """Goes on only after it has let something happen, as a switch of threads or a collection may."""

    def __init__(self, happen):
        super().__init__()
        self.happen = happen

    def __iter__(self):
        for index, keeper in enumerate(super().__iter__()):
            if index == 0:
                self.happen()
            yield keeper


def test_a_thread_that_makes_a_module_waits_while_all_are_looked_through(monkeypatch):
    def happen():
        thread.start()
        thread.join(0.1)

    made = []
    thread = threading.Thread(target=lambda: made.append(Holder()))
    monkeypatch.setattr(inside, "_KEEPERS", Keepers(happen))
    kept = [Holder() for _ in range(3)]
    inside.replacements()
    thread.join()
    assert len(kept + made) == 4
