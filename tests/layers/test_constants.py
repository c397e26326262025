"""What a layer is made with, and no training moves, is there and exact wherever and however the layer is put."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from jpmhc import layers

MIXERS = [str(info) for info in layers.mixers()]
GATES = ["softmax", "sigmoid", "tanh"]


def layer(mixer="cayley", **options):
    """A layer away from its start."""
    torch.manual_seed(0)
    hc = layers.HyperConnection(8, nn.Linear(8, 8), mixer=mixer, layer_index=1, **options)
    with torch.no_grad():
        for parameter in hc.parameters(recurse=False):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return hc


def streams(*batch):
    return torch.randn(*(batch or (5,)), 4, 8, generator=torch.Generator().manual_seed(1))


FORMS = [*({"mixer": mixer} for mixer in MIXERS), *({"gate": gate} for gate in GATES), {"projection": "published"}]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))


def filled_with_garbage(model):
    """Put other tensors in the place of every buffer, as libraries do that make a model without data."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if name in module._non_persistent_buffers_set:
                module._buffers[name] = torch.full_like(buffer, 77)
    return model


@forms
def test_a_layer_has_no_buffer_that_its_state_dict_lacks(form):
    hc = layer(**form)
    kept = set(hc.state_dict())
    assert {name for name, _ in hc.named_buffers()} <= kept


@forms
def test_a_layer_made_without_data_needs_nothing_but_its_state_dict(form):
    given = layer(**form)
    with torch.device("meta"):
        made = layer(**form)
    filled_with_garbage(made)
    for name, tensor in given.state_dict().items():
        owner, _, last = name.rpartition(".")
        module = made.get_submodule(owner)
        if last in module._buffers:
            module._buffers[last] = tensor
        elif isinstance(module._parameters[last], nn.Parameter):
            module._parameters[last] = nn.Parameter(tensor)
    assert torch.equal(made(streams()), given(streams()))


@forms
def test_a_layer_moves_through_a_place_without_data(form):
    given = layer(**form)
    state, expected = given.state_dict(), given(streams())
    moved = copy.deepcopy(given).to("meta").to_empty(device="cpu")
    moved.load_state_dict(state)
    assert torch.equal(moved(streams()), expected)


@forms
def test_constants_are_not_rounded_with_the_buffers(form):
    hc = layer(**form)
    expected = hc(streams())
    for buffer in hc.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.bfloat16()
    assert torch.equal(hc(streams()), expected)


@forms
def test_constants_go_with_copies_and_pickles_and_into_shared_memory(form):
    hc = layer(**form)
    expected = hc(streams())
    for twin in (copy.deepcopy(hc), pickle.loads(pickle.dumps(hc)), copy.deepcopy(hc).share_memory()):
        assert torch.equal(twin(streams()), expected)


@forms
def test_constants_are_used_where_the_streams_are(form):
    hc = layer(**form)
    expected = hc(streams())
    for module in hc.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"))
    assert hc(streams().to("meta")).is_meta
    back = layer(**form)
    for module, given in zip(hc.modules(), back.modules(), strict=True):
        module._parameters.update(given._parameters)
    assert torch.equal(hc(streams()), expected)


@forms
def test_constants_are_made_where_parameters_are_by_default(form):
    torch.set_default_device("meta")
    try:
        hc = layer(**form)
    finally:
        torch.set_default_device(None)
    hc.to_empty(device="cpu").load_state_dict(layer(**form).state_dict())
    assert torch.equal(hc(streams()), layer(**form)(streams()))


@forms
def test_layers_of_one_form_are_stacked_and_run_under_vmap(form):
    made = [layer(**form) for _ in range(3)]
    with torch.no_grad():
        for number, hc in enumerate(made):
            hc.static.add_(0.1 * number)
    state = torch.func.stack_module_state(made)
    base = copy.deepcopy(made[0]).to("meta")
    base.mixer = copy.deepcopy(made[0].mixer)
    x = streams(3, 5)
    out = torch.func.vmap(lambda own, x: torch.func.functional_call(base, own, (x,)))(state, x)
    torch.testing.assert_close(out, torch.stack([hc(part) for hc, part in zip(made, x, strict=True)]))


@forms
def test_a_layer_is_compiled_once_and_exported_both_ways(form):
    torch._dynamo.reset()
    hc = layer(**form)
    compiled = torch.compile(hc, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            torch.testing.assert_close(compiled(streams()), hc(streams()), rtol=1e-5, atol=1e-5)
    for strict in (True, False):
        exported = torch.export.export(hc, (streams(),), strict=strict).module()
        torch.testing.assert_close(exported(streams()), hc(streams()))


# The start of the other two is found by a search among numbers.
@pytest.mark.parametrize("form", [form for form in FORMS if form.get("mixer") not in ("orthostochastic", "manifold")])
def test_a_layer_runs_where_nothing_is_computed(form):
    with FakeTensorMode():
        hc = layers.HyperConnection(8, nn.Linear(8, 8), **form)
        assert hc(torch.randn(5, 4, 8)).shape == (5, 4, 8)


@pytest.mark.parametrize("within", [torch.inference_mode, torch.no_grad])
def test_a_layer_trains_after_a_first_run_without_gradients(within):
    for mixer in MIXERS:
        hc = layer(mixer)
        fresh = layer(mixer)
        with within():
            hc(streams())
        for trained in (hc, fresh):
            trained(streams()).square().sum().backward()
        for found, expected in zip(hc.parameters(), fresh.parameters(), strict=True):
            assert torch.equal(found.grad, expected.grad)


WRAPPED = """
import sys
import torch, torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from jpmhc import layers

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
for info in layers.mixers():
    if str(info) in ("identity", "manifold"):
        continue
    torch.manual_seed(0)
    plain = torch.nn.Sequential(layers.HyperConnection(8, torch.nn.Linear(8, 8), mixer=str(info)))
    x = torch.randn(9, 4, 8)
    expected = plain(x)
    wrapped = FullyShardedDataParallel(
        plain,
        device_id=torch.device("cpu"),
        use_orig_params=True,
        mixed_precision=MixedPrecision(param_dtype=torch.float32, buffer_dtype=torch.bfloat16),
    )
    torch.testing.assert_close(wrapped(x), expected, rtol=0, atol=1e-6)
dist.destroy_process_group()
"""


def test_sharding_that_rounds_buffers_rounds_no_constant(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", WRAPPED, str(tmp_path / "store")]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]


# --- a model of Transformers that somebody wrote around layers --------------------------------------------


def around_layers(options):
    """A class of models whose layers are ours, and a configuration of it."""
    transformers = pytest.importorskip("transformers")

    class Configuration(transformers.PretrainedConfig):
        model_type = "of-ones-own"

    class Model(transformers.PreTrainedModel):
        config_class = Configuration

        def __init__(self, config):
            super().__init__(config)
            made = (layers.HyperConnection(8, nn.Linear(8, 8), layer_index=i, **options) for i in range(2))
            self.layers = layers.HyperStack(made)
            self.head = layers.StreamHead(8, 4)
            self.post_init()

        def forward(self, x):
            return self.head(self.layers(layers.expand_streams(x, 4)))

    return Model, Configuration()


@forms
def test_a_transformers_model_of_ones_own_comes_back_from_its_files(form, tmp_path):
    torch.manual_seed(0)
    kind, configuration = around_layers(form)
    model = kind(configuration).eval()
    with torch.no_grad():
        for parameter in layers.mixing_parameters(model):
            if not hasattr(parameter, "manifold"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    # Memory that is handed out again holds something.
    held = [torch.full((size,), 12345678901) for size in (4, 6, 8, 12, 16, 24, 64) for _ in range(50)]
    del held
    back = kind.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 5, 8)
    assert torch.equal(back(x), model(x))
    kind(configuration).load_state_dict(back.state_dict())


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_layer_with_numbers_runs_on_tensors_without(mixer):
    hc = layer(mixer)
    with FakeTensorMode() as mode:
        held = {name: mode.from_tensor(value) for name, value in (*hc.named_parameters(), *hc.named_buffers())}
        assert torch.func.functional_call(hc, held, (torch.randn(2, 4, 8),)).shape == (2, 4, 8)
    assert hc(streams()).isfinite().all()
