"""Which dimension of residual vectors holds the features: models with tokens last are refused, others are not."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from jpmhc.layers.convert import convert

D, T = 8, 6


class TokensLast(nn.Module):
    """Vectors (B, d, T), each token by itself, with weights that fix the number of tokens too."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.factor = nn.LayerNorm(D), nn.Linear(D, D), nn.Parameter(torch.randn(T))

    def branch(self, x):
        return self.linear(self.norm(x.transpose(1, 2))).transpose(1, 2)

    def forward(self, x):
        return x + self.branch(x) * self.factor


class Functional(TokensLast):
    def branch(self, x):
        y = functional.layer_norm(x.permute(0, 2, 1).contiguous(), (D,))
        return functional.linear(y, self.linear.weight).permute(0, 2, 1)


class Folded(TokensLast):
    def branch(self, x):
        y = x.sin().mul(2).movedim(1, 2).reshape(-1, D)
        return self.linear(y).reshape(-1, T, D).mT


class Product(TokensLast):
    def branch(self, x):
        return self.linear.weight @ x


class Einstein(TokensLast):
    def branch(self, x):
        return torch.einsum("bdt,de->bet", x, self.linear.weight)


class Convolved(TokensLast):
    def __init__(self):
        super().__init__()
        self.linear = nn.Conv1d(D, D, 1)

    def branch(self, x):
        return self.linear(x)


class Padded(Convolved):
    """Causal, as people pad by hand."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Conv1d(D, D, 3)

    def branch(self, x):
        return self.linear(functional.pad(x.sin(), (2, 0)))


class Tensordot(TokensLast):
    def branch(self, x):
        return torch.tensordot(x, self.linear.weight, dims=([1], [1])).mT


class Joined(TokensLast):
    def branch(self, x):
        return self.linear(torch.cat([x[:, :4], x[:, 4:]], 1).mT).mT


class Shifted(TokensLast):
    """A token sees the one before it, behind a vector of zeros."""

    def branch(self, x):
        return self.linear(torch.cat([torch.zeros(x.shape[0], D, 1), x[..., :-1]], -1).mT).mT


class Stacked(TokensLast):
    def branch(self, x):
        return self.linear(torch.stack([torch.zeros_like(x), x])[1].mT).mT


class WholeNorm(Convolved):
    """A norm over channels and time is no word on either."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm([D, T])

    def branch(self, x):
        return self.linear(self.norm(x))


class Conflict(nn.Module):
    """A linear layer over time beside a convolution over the channels, and no norm."""

    def __init__(self):
        super().__init__()
        self.tokens, self.channels = nn.Linear(T, T), nn.Conv1d(D, D, 1)

    def forward(self, x):
        x = x + self.tokens(x)
        return x + self.channels(x)


class WrittenNorm(nn.Module):
    def norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def __init__(self):
        super().__init__()
        self.tokens, self.channels = nn.Linear(T, T), nn.Linear(D, D)

    def forward(self, x):
        x = x + self.tokens(self.norm(x.mT).mT)
        return x + self.channels(self.norm(x.mT)).mT


class WrittenLayerNorm(WrittenNorm):
    def norm(self, x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()


class Normalized(WrittenNorm):
    def norm(self, x):
        return functional.normalize(x, dim=-1)


class TransposedMixer(nn.Module):
    """Contracts over the last dimension as well, which is time: only the norms tell."""

    def __init__(self):
        super().__init__()
        self.norm, self.tokens, self.channels = nn.LayerNorm(D), nn.Linear(T, T), nn.Linear(D, D)

    def forward(self, x):
        x = x + self.tokens(self.norm(x.mT).mT)
        return x + self.channels(self.norm(x.mT)).mT


class Network(nn.Module):
    def __init__(self, block, transposed):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.transposed = nn.ModuleList([block() for _ in range(2)]), transposed

    def forward(self, x):
        x = x.mT if self.transposed else x
        for block in self.blocks:
            x = block(x)
        return x.mT if self.transposed else x


@pytest.mark.parametrize(
    ("block", "reader"),
    [
        (TokensLast, "LayerNorm"),
        (Functional, "layer_norm"),
        (Folded, "Linear"),
        (Product, "matmul"),
        (Einstein, "einsum"),
        (Convolved, "Conv1d"),
        (Padded, "Conv1d"),
        (Tensordot, "tensordot"),
        (Joined, "Linear"),
        (Shifted, "Linear"),
        (Stacked, "Linear"),
        (WholeNorm, "Conv1d"),
        (Conflict, "Conv1d"),
        (WrittenNorm, "mul"),
        (WrittenLayerNorm, "div"),
        (Normalized, "normalize"),
        (TransposedMixer, "LayerNorm"),
    ],
)
def test_tokens_in_the_last_dimension_are_refused_where_their_number_is_fixed(block, reader):
    x = torch.randn(2, T, D)
    Network(block, True)(x)
    said = rf"blocks\.0: channels must come last, not before as in vectors of shape \(2, 8, 6\): {reader} reads them"
    with pytest.raises(ValueError, match=said):
        convert(Network(block, True), example=x)


class Mixer(nn.Module):
    """Vectors (B, T, d), of which one branch takes the transpose."""

    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.norm1, self.norm2, self.tokens, self.channels = norm(D), norm(D), nn.Linear(T, T), nn.Linear(D, D)

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).mT).mT
        return x + self.channels(self.norm2(x))


class Affine(nn.Module):
    """What ResMLP has in the place of a norm."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return torch.addcmul(self.bias, self.weight, x)


class ResMLP(Mixer):
    def __init__(self):
        super().__init__(Affine)


class PostNormMixer(Mixer):
    def forward(self, x):
        x = self.norm1(x + self.tokens(x.mT).mT)
        return self.norm2(x + self.channels(x))


class BareMixer(Mixer):
    def forward(self, x):
        x = x + self.tokens(x.mT).mT
        return x + self.channels(x)


class ConvolvingMixer(Mixer):
    """Tokens are the channels of a convolution, as in the shortest writings of the model."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Conv1d(T, T, 1)

    def forward(self, x):
        x = x + self.tokens(self.norm1(x))
        return x + self.channels(self.norm2(x))


class HandWritten(Mixer):
    """The norm of Llama, and a token before the first one of a mixer over tokens."""

    def norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(self, x):
        x = x + self.tokens(functional.pad(self.norm(x)[:, :-1], (0, 0, 1, 0)).mT).mT
        return x + self.channels(self.norm(x))


class Whole(Mixer):
    """A norm over tokens and features, beside a linear layer over either."""

    def __init__(self):
        super().__init__(lambda width: nn.LayerNorm([T, width]))


class Gated(Mixer):
    """Squeeze and excitation: the mean over tokens is no reader of them."""

    def forward(self, x):
        return x + x.sin() * self.channels(x.mean(1, keepdim=True)).sigmoid()


class Heads(Mixer):
    """A small matrix for any number of heads."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.channels(self.head(x.unflatten(-1, (-1, 4))).flatten(-2))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(D, D, batch_first=True)

    def forward(self, x):
        return x + self.lstm(x)[0]


class TimeFirst(nn.Module):
    """Vectors (T, B, d) to the layers of torch."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2)

    def forward(self, x):
        return x + self.attention(x, x, x)[0]


@pytest.mark.parametrize(
    "block",
    [Mixer, ResMLP, PostNormMixer, BareMixer, ConvolvingMixer, HandWritten, Whole, Gated, Heads, Recurrent, TimeFirst],
)
def test_features_in_the_last_dimension_are_no_obstacle_whatever_else_the_branches_mix(block):
    model, x = Network(block, False).eval(), torch.randn(2, T, D)
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected)


def test_a_block_that_mixes_tokens_alone_is_judged_by_its_chain():
    class Tokens(Mixer):
        def forward(self, x):
            return x + self.tokens(x.mT).mT

    class Channels(Mixer):
        def forward(self, x):
            return x + self.channels(x)

    model, x = nn.Sequential(Tokens(), Channels(), Tokens(), Channels()), torch.randn(2, T, D)
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected)
    with pytest.raises(ValueError, match=r"0: channels must come last.*\(2, 6, 8\)"):
        convert(nn.Sequential(Tokens(), Tokens()), example=x)


def test_a_block_without_weights_on_its_vectors_is_judged_by_the_sizes_that_it_takes():
    class Shift(nn.Module):
        def __init__(self, size=1):
            super().__init__()
            # A module of its own, so that a list of blocks is one.
            self.factor, self.inner = nn.Parameter(torch.ones(size)), nn.Identity()

        def forward(self, x):
            return x + self.factor * self.inner(x).cumsum(1)

    x = torch.randn(2, T, D)
    with pytest.raises(ValueError, match=r"takes another size of the last dimension; it reads at .*cumsum"):
        convert(nn.Sequential(Shift(), Shift()), example=x)
    assert convert(nn.Sequential(Shift(D), Shift(D)), example=x)[0].hyper_connections[0].dim == D


def test_a_function_mode_of_the_search_is_gone_after_it():
    for block, transposed in ((TokensLast, True), (Mixer, False)):
        try:
            convert(Network(block, transposed), example=torch.randn(2, T, D))
        except ValueError:
            assert transposed
        assert torch.overrides._get_current_function_mode() is None
