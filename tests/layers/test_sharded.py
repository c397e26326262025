"""Layers sharded by FSDP2 beside whole base points: the training of one process, and checkpoints in shards."""

import socket
import subprocess
import sys

import torch

WORKER = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from jpmhc import layers, manifolds, optim

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
# Adam makes 1e-5 of a gradient's round-off in float32, on one processor more than on another.
torch.set_default_dtype(torch.float64)
POINTS = [manifolds.SpecialOrthogonal(), manifolds.SpecialOrthogonal(), manifolds.Birkhoff(), manifolds.Grassmann()]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        mixers = ["cayley", "sinkhorn", "quaternion", "identity", "grassmann"]
        mixers += [layers.Manifold(4, manifold, tangent=True) for manifold in POINTS]
        self.expand = layers.StreamEmbedding(8, 4)
        self.layers = nn.ModuleList(
            layers.HyperConnection(8, nn.Linear(8, 8), mixer=mixer, layer_index=i) for i, mixer in enumerate(mixers)
        )
        self.head = layers.StreamHead(8, 4)

    def forward(self, x):
        x = self.expand(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def build(seed=0):
    torch.manual_seed(seed)
    return Model()


def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, ignored_params=manifolds.unsharded_parameters(layer))
    return fully_shard(model, mesh=mesh, ignored_params=manifolds.unsharded_parameters(model))


def optimiser_of(model):
    # A step of Adam has the size of lr even where a gradient is round-off alone, whose sign sums in other orders flip;
    # eps above the round-off takes those steps out.
    return optim.RiemannianAdam(optim.parameter_groups(model, lr=1e-2, weight_decay=0.1), eps=1e-4)


def step(model, optimiser, x, target, alone=False):
    optimiser.zero_grad()
    loss = (model(x) - target).square().mean()
    loss.backward()
    if not alone:  # base points are whole on every process: their gradients are averaged here
        whole = manifolds.unsharded_parameters(model)
        for parameter in model.parameters():  # in one order on all processes, which a set has not
            if parameter in whole:
                dist.all_reduce(parameter.grad)
                parameter.grad /= 2
    optimiser.step()
    return loss.detach()


def gathered(model):
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach().clone() for p in model.parameters()]


torch.manual_seed(1)
x, target = torch.randn(2, 6, 8)
if rank == 0:
    model = build()
    optimiser = optimiser_of(model)
    losses = [step(model, optimiser, x, target, alone=True) for _ in range(5)]
    torch.save([torch.stack(losses), [p.detach() for p in model.parameters()]], folder + "/plain")
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
mine = slice(3 * rank, 3 * rank + 3)
model = shard(build())
optimiser = optimiser_of(model)
losses = []
for _ in range(5):
    loss = step(model, optimiser, x[mine], target[mine])
    dist.all_reduce(loss)
    losses.append(loss / 2)
trained = gathered(model)
for layer in model.layers[-len(POINTS):]:
    base = layer.mixer.base
    assert isinstance(base, manifolds.Parameter) and layer.mixer.manifold.point_error(base.detach()).max() < 1e-5
assert sum(isinstance(p, DTensor) for p in model.parameters()) == len(list(model.parameters())) - len(POINTS)

# The checkpoint goes into a model of other numbers and goes on training as if nothing had happened.
states = get_state_dict(model, optimiser)
dcp.save(dict(zip(("model", "optimiser"), states)), checkpoint_id=folder + "/sharded")
other = shard(build(seed=7))
fresh = optimiser_of(other)
loaded = dict(zip(("model", "optimiser"), get_state_dict(other, fresh)))
dcp.load(loaded, checkpoint_id=folder + "/sharded")
set_state_dict(other, fresh, model_state_dict=loaded["model"], optim_state_dict=loaded["optimiser"])
loaded = gathered(other)
for pair in ((model, optimiser), (other, fresh)):
    step(*pair, x[mine], target[mine])
torch.save([torch.stack(losses), trained, loaded, gathered(model), gathered(other)], folder + f"/process-{rank}")
dist.destroy_process_group()
"""


CHAINS = """
import sys
from functools import partial
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from jpmhc import layers, manifolds

dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
mesh = init_device_mesh("cpu", (2,))


def shard(module):
    return fully_shard(module, mesh=mesh, ignored_params=manifolds.unsharded_parameters(module))


def chain(kind):
    torch.manual_seed(0)
    mixers = ["cayley", "sinkhorn", "manifold"]
    return kind(layers.HyperConnection(8, nn.Linear(8, 8), mixer=m, layer_index=i) for i, m in enumerate(mixers))


def converted():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = layers.convert(nn.TransformerEncoder(block, 2, enable_nested_tensor=False), mixer="manifold")
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, layers.HyperConnection):
                layer.static.normal_()
    return model


def agree(make, pieces):
    plain, sharded = make(), make()
    for piece in pieces(sharded):
        shard(piece)
    shard(sharded)
    x = torch.randn(3, 4, 8, requires_grad=True)
    out, expected = sharded(x), plain(x)
    torch.testing.assert_close(out, expected)
    found, truth = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (out, expected))
    torch.testing.assert_close(found, truth)


def refused(call):
    try:
        call()
    except RuntimeError as error:
        assert str(error).startswith("parameters: expected whole ones, got shards; FSDP2"), error
    else:
        raise AssertionError("shards were taken for whole parameters")


def one_by_one(chain):
    return chain.connections


def as_one(chain):
    return ()


agree(partial(chain, layers.HyperStack), one_by_one)
agree(partial(chain, layers.HyperStack), as_one)
agree(partial(chain, layers.SinglePass), as_one)
agree(converted, lambda model: model.layers)
refused(lambda: agree(partial(chain, layers.SinglePass), one_by_one))
refused(lambda: shard(chain(layers.HyperStack).connections[0]).read(torch.randn(3, 4, 8)))
refused(lambda: shard(layers.HyperConnection(8, dynamic=False)).read(torch.randn(3, 4, 8)))

# Tokens in shards.
tokens = distribute_tensor(torch.ones(6, 4, 8), mesh, [Shard(0)])
layer = chain(layers.HyperStack)
try:
    layer(tokens)
except TypeError as error:
    assert "got a DTensor with (Shard(dim=0),)" in str(error), error
else:
    raise AssertionError("a DTensor was taken for a tensor")
torch.testing.assert_close(layer(tokens.to_local()), layer(torch.ones(3, 4, 8)))

# Made without numbers, sharded, and only then given its start.
with torch.device("meta"):
    late = layers.HyperConnection(8, torch.tanh, mixer="sinkhorn", layer_index=1)
shard(late).to_empty(device="cpu")
late.reset_parameters()
x = torch.randn(3, 4, 8)
torch.testing.assert_close(late(x), layers.HyperConnection(8, torch.tanh, mixer="sinkhorn", layer_index=1)(x))
for recipe in layers.recipes():
    with torch.device("meta"):
        late = layers.HyperConnection.from_recipe(str(recipe), 8, torch.tanh)
    shard(late).to_empty(device="cpu")
    late.reset_parameters()
    static = getattr(late.static, "full_tensor", lambda late=late: late.static)()
    torch.testing.assert_close(static, layers.HyperConnection.from_recipe(str(recipe), 8, torch.tanh).static)
dist.destroy_process_group()
"""


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def assert_both_end_well(worker, *arguments):
    port = str(free_port())
    # Groups that FSDP holds have threads of gloo, which may end the process by an abort when Python takes itself apart.
    command = [sys.executable, "-W", "ignore", "-c", f"{worker}\nimport os\nos._exit(0)\n"]
    processes = [subprocess.Popen([*command, str(rank), port, *arguments], stderr=subprocess.PIPE) for rank in (0, 1)]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error.decode()[-3000:]


def test_chains_run_on_shards_or_say_what_to_shard():
    assert_both_end_well(CHAINS)


def test_one_optimiser_of_shards_and_base_points_trains_like_one_process_and_comes_back(tmp_path):
    assert_both_end_well(WORKER, str(tmp_path))
    losses, trained = torch.load(tmp_path / "plain", weights_only=True)
    for rank in (0, 1):
        sharded = torch.load(tmp_path / f"process-{rank}", weights_only=True)
        torch.testing.assert_close(sharded[0], losses, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(sharded[1], trained, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(sharded[2], sharded[1], rtol=0, atol=0)
        torch.testing.assert_close(sharded[4], sharded[3], rtol=0, atol=0)
