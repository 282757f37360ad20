"""Attention of torch and of torchvision: heads' widths, embedding and MLP are cut, and equal the masked network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.cost import cost, locked_macs
from prunefront.pruners.saved import load_network, save_network
from prunefront.pruners.scoring import score
from prunefront.pruners.shrink import shrink
from prunefront.pruners.trace.tracer import trace
from prunefront.pruners.units.attention import CutAttention, spell, spelled
from tests.nets import randomise
from tests.pruners.plans import keeping

WIDTH = 16


class Alone(nn.Module):
    """Attention with all that it can be told, between two linear layers and without a norm."""

    def __init__(self, *, kind: str = "self", mask: str = "", **options: Any) -> None:
        super().__init__()
        self.kind, self.mask = kind, mask
        self.enter, self.other = nn.Linear(5, WIDTH), nn.Linear(5, options.get("kdim", WIDTH))
        self.attend = nn.MultiheadAttention(WIDTH, 4, **options)
        self.leave = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, kv = self.enter(x), self.other(x)
        given: dict[str, Any] = {"need_weights": self.mask == "weights"}
        batch, length = (x.shape[0], x.shape[1]) if self.attend.batch_first else (x.shape[1], x.shape[0])
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        if self.mask == "padding":
            given["key_padding_mask"] = torch.arange(length).expand(batch, -1) > 3
        elif self.mask == "causal":
            given |= {"attn_mask": causal, "is_causal": True}
        elif self.mask == "both":
            added = torch.zeros(batch * 4, length, length, dtype=x.dtype).masked_fill(causal, -1e4)
            padding = torch.zeros(batch, length, dtype=x.dtype).masked_fill(
                torch.arange(length) > 3, -torch.inf
            )
            given |= {"attn_mask": added, "key_padding_mask": padding}
        if self.kind == "self":
            kv = q
        elif self.kind == "values":
            return self.leave(self.attend(q, kv, kv + q, **given)[0])
        y, weights = self.attend(q, kv, kv, **given)
        assert (weights is None) == (self.mask != "weights")
        return self.leave(y if weights is None else y + weights.sum())


ALONE = {
    "self": lambda: Alone(batch_first=True),
    "sequence first": lambda: Alone(),
    "no bias": lambda: Alone(bias=False, batch_first=True),
    "weights": lambda: Alone(mask="weights", batch_first=True),
    "padding": lambda: Alone(mask="padding", batch_first=True),
    "causal": lambda: Alone(mask="causal"),
    "both masks": lambda: Alone(mask="both", batch_first=True),
    "cross": lambda: Alone(kind="cross", mask="weights"),
    "values of their own": lambda: Alone(kind="values", batch_first=True),
    "other width": lambda: Alone(kind="cross", kdim=6, vdim=6, batch_first=True),
    "more keys": lambda: Alone(mask="padding", add_bias_kv=True, add_zero_attn=True, batch_first=True),
}


class EncoderBlock(nn.Module):
    """The block of torchvision's vision transformer."""

    def __init__(self, heads: int, width: int, inner: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Dropout(0.1), nn.Linear(inner, width), nn.Dropout(0.1)
        )

    def forward(self, input: Tensor) -> Tensor:
        torch._assert(input.dim() == 3, f"Expected three dimensions, got {input.shape}")
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.dropout(x) + input
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """The form of torchvision's: `hidden_dim` is what the patches are reshaped by."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dim, self.patch_size, self.image_size = WIDTH, 4, 16
        self.conv_proj = nn.Conv2d(3, WIDTH, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embedding = nn.Parameter(torch.randn(1, 17, WIDTH))
        self.layers = nn.Sequential(EncoderBlock(4, WIDTH, 24), EncoderBlock(4, WIDTH, 24))
        self.ln, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.conv_proj(x).reshape(n, self.hidden_dim, 16).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1) + self.pos_embedding
        return self.head(self.ln(self.layers(x))[:, 0])


class Encoder(nn.Module):
    """A padded batch through torch's own encoder, which has a fast path of its own in eval mode."""

    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 24, batch_first=True, norm_first=norm_first)
        self.embed = nn.Embedding(11, WIDTH, padding_idx=0)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, words: Tensor) -> Tensor:
        x = self.body(self.embed(words), src_key_padding_mask=words == 0)
        return self.head(x[:, 0])


class Both(nn.Module):
    """Encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 5)
        self.body = nn.Transformer(WIDTH, 4, 1, 1, 24, batch_first=True)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        ahead = nn.Transformer.generate_square_subsequent_mask(words.shape[1])
        return self.head(self.body(x, x.flip(1), tgt_mask=ahead, tgt_is_causal=True))


def words() -> Tensor:
    return torch.tensor([[3, 4, 5, 6, 1], [7, 2, 9, 0, 0]])


WHOLE: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "VisionTransformer": lambda: (VisionTransformer(), torch.randn(2, 3, 16, 16)),
    "Encoder": lambda: (Encoder(), words()),
    "EncoderNormFirst": lambda: (Encoder(norm_first=True), words()),
    "Both": lambda: (Both(), words()),
}


def made(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


def uneven(graph: ChannelGraph, share: float = 0.6) -> list[list[int]]:
    """Other units of each group, and of other groups of the same width other numbers of them."""
    kept = []
    for number, g in enumerate(graph.groups):
        units = torch.randperm(g.units, generator=torch.Generator().manual_seed(number)).tolist()
        kept.append(sorted(units[: max(1, int(g.units * share) - number % 2)]))
    return kept


@pytest.mark.parametrize("name", ALONE)
def test_attention_alone(name: str, tmp_path: Path) -> None:
    model = randomise(made(ALONE[name])).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    true = model.train()(x)
    with spelled(model):
        torch.testing.assert_close(model(x), true)  # the same network
        assert isinstance(model.attend, CutAttention)
    assert type(model.attend) is nn.MultiheadAttention
    assert "scale" not in vars(model.attend)
    graph = trace(model, x)
    assert {g.units for g in graph.groups if g.name in ("attend", "attend:2")} == {WIDTH // 4}
    assert not graph.inexact
    assert not [f for f in graph.frozen if f.name != "leave" and f.name != "other"]
    plan = keeping(graph, uneven(graph))
    cut = surgery.apply(model, graph, plan)
    masked = surgery.mask(model, graph, plan)
    torch.testing.assert_close(cut(x), masked(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cut.eval()(x), masked(x), rtol=1e-9, atol=1e-9)
    again = surgery.reduced_graph(graph, plan)
    twice = surgery.apply(
        cut, again, keeping(again, [range(1, max(2, g.units)) if g.units > 1 else [0] for g in again.groups])
    )
    assert twice(x).shape == true.shape
    save_network(cut.float(), graph, plan, tmp_path)
    loaded = load_network(made(ALONE[name]), tmp_path)
    torch.testing.assert_close(loaded(x.float()), cut(x.float()), rtol=0, atol=0)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks(name: str, tmp_path: Path) -> None:
    model, x = made(WHOLE[name])
    randomise(model)
    graph = trace(model, x)
    assert sum(locked_macs(graph)) == 0
    attention = [g for g in graph.groups if "attn" in g.name or "attention" in g.name]
    assert len(attention) == 2 * sum(isinstance(m, nn.MultiheadAttention) for m in model.modules())
    assert any(g.units == WIDTH for g in graph.groups)  # the embedding
    exact = keeping(
        graph,
        [
            range(g.units) if g.name in graph.inexact else k
            for g, k in zip(graph.groups, uneven(graph), strict=True)
        ],
    )
    double = model.double()
    inputs = x.double() if x.is_floating_point() else x
    for network in (surgery.mask(double, graph, exact), surgery.apply(double, graph, exact)):
        spell(network)  # torch's fused operator gives zeros at padded places
        torch.testing.assert_close(
            network(inputs), surgery.apply(double, graph, exact)(inputs), rtol=1e-9, atol=1e-9
        )
    plan = keeping(graph, uneven(graph))
    cut = surgery.apply(model, graph, plan).float().eval()
    assert cost(graph, plan).macs < cost(graph).macs
    with torch.no_grad():
        made_without = cut(x)
    torch.testing.assert_close(cut(x), made_without)  # no other path without gradients
    save_network(cut, graph, plan, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_network(made(WHOLE[name])[0], tmp_path)(x), made_without)
    program = torch.export.export(cut, (x,))
    torch.testing.assert_close(program.module()(x), made_without)
    cut.train()(x).sum().backward()
    assert all(p.grad is not None for n, p in cut.named_parameters() if "out_proj" in n)


def test_criteria_see_the_products_within_attention() -> None:
    model, x = made(WHOLE["VisionTransformer"])
    graph = trace(model, x)
    batches = [(x, torch.tensor([1, 3])), (x + 0.1, torch.tensor([0, 4]))]
    wanted = ["l1", "taylor", "activation"]
    scores = score(model, graph, wanted, batches=batches)
    inner = {g.name for g in graph.groups if "attention" in g.name}
    assert len(inner) == 4
    for name in ("l1", "taylor"):
        assert inner <= set(scores[name]), name
    assert {n for n in inner if n.endswith(":2")} <= set(scores["activation"])
    small = shrink(model, batches, kept_macs=0.6, criterion="l1")
    assert small.kept_macs <= 0.6
    assert small.model(x).shape == (2, 5)


@pytest.mark.filterwarnings("ignore")
def test_gpt2_with_its_packed_projection_and_cache(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    def network() -> nn.Module:
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            n_embd=16, n_layer=1, n_head=4, vocab_size=11, n_positions=8, bos_token_id=1, eos_token_id=2
        )
        made: nn.Module = transformers.GPT2Model(config)
        return made.eval()

    model, x = network(), words()
    graph = trace(model, x)
    assert {g.name: g.units for g in graph.groups} == {"h.0.attn.c_attn": 4, "h.0.mlp.c_fc": 64}  # heads, MLP
    assert not graph.inexact
    assert any("DynamicCache" in note for note in graph.notes)
    plan = keeping(graph, [[0, 2, 3], range(0, 64, 3)])
    double = network().double()
    cut, masked = (make(double, graph, plan)(x) for make in (surgery.apply, surgery.mask))
    torch.testing.assert_close(cut.last_hidden_state, masked.last_hidden_state, rtol=1e-10, atol=1e-10)
    assert cut.past_key_values.layers[0].keys.shape[1] == 3
    small = surgery.apply(model, graph, plan)
    save_network(small, graph, plan, tmp_path)
    assert torch.equal(load_network(network(), tmp_path)(x).last_hidden_state, small(x).last_hidden_state)
