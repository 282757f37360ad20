"""Networks of words."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.corpus.family import Graph, Tokens, family, only


@family((2, 6, 16))
def llama_block() -> nn.Module:
    class Rms(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def forward(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = net.embed(x)
        y = net.norm1(x)
        q, k, v = (f(y).view(b, n, -1, 4).transpose(1, 2) for f in (net.q, net.k, net.v))
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        x = x + net.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = net.norm2(x)
        return net.head(net.norm3(x + net.down(F.silu(net.gate(y)) * net.up(y))))

    return Graph(
        forward, embed=nn.Linear(16, 12), norm1=Rms(12), q=nn.Linear(12, 16), k=nn.Linear(12, 8), v=nn.Linear(12, 8),
        o=nn.Linear(16, 12), norm2=Rms(12), gate=nn.Linear(12, 20), up=nn.Linear(12, 20), down=nn.Linear(20, 12),
        norm3=Rms(12), head=nn.Linear(12, 7),
    )  # fmt: skip


@family((2, 9, 8), locked=0.3, why="the width of the state crosses the channels")
def selective_state_space() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y, gate = net.inner(x).chunk(2, -1)
        y = F.silu(net.conv(y.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, read, write = net.parts(y).split([3, 4, 4], -1)
        step = F.softplus(net.step(step))
        decay = -torch.exp(net.decay.weight)
        state = x.new_zeros(x.shape[0], y.shape[-1], 4)
        out = []
        for t in range(x.shape[1]):
            state = (
                torch.exp(step[:, t, :, None] * decay) * state + (step * y)[:, t, :, None] * write[:, t, None]
            )
            out.append((state * read[:, t, None]).sum(-1))
        return net.out(torch.stack(out, 1) * F.silu(gate))

    return Graph(
        forward, inner=nn.Linear(8, 24), conv=nn.Conv1d(12, 12, 3, padding=2, groups=12), parts=nn.Linear(12, 11),
        step=nn.Linear(3, 12), decay=nn.Linear(4, 12, bias=False), out=nn.Linear(12, 8),
    )  # fmt: skip


WORDS = Tokens((2, 7))
ENCODER = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 16,
}  # fmt: skip
DECODER = {**ENCODER, "num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0, "use_cache": False}
"""Sizes of most networks of transformers; decoders share a key and a value among several heads."""


@family(WORDS)
def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return only(BertForSequenceClassification(BertConfig(**ENCODER, num_labels=3)), "logits")


@family(WORDS)
def roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaForTokenClassification

    return only(
        RobertaForTokenClassification(RobertaConfig(**{**ENCODER, "pad_token_id": 1}, num_labels=3)), "logits"
    )


@family(WORDS)
def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForQuestionAnswering

    config = DistilBertConfig(
        vocab_size=20, dim=16, n_layers=2, n_heads=4, hidden_dim=24, max_position_embeddings=16
    )
    return only(DistilBertForQuestionAnswering(config), "start_logits")


@family(WORDS)
def albert() -> nn.Module:
    """All layers are one; the embedding is narrower than they are."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig(**ENCODER, embedding_size=8, num_labels=3)
    return only(AlbertForSequenceClassification(config), "logits")


@family(WORDS)
def electra() -> nn.Module:
    from transformers import ElectraConfig, ElectraForPreTraining

    return only(ElectraForPreTraining(ElectraConfig(**ENCODER, embedding_size=8)), "logits")


@family(WORDS)
def mpnet() -> nn.Module:
    """Relative positions in buckets."""
    from transformers import MPNetConfig, MPNetModel

    return only(MPNetModel(MPNetConfig(**ENCODER)), "pooler_output")


@family(WORDS, long=True)
def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=4, n_inner=24, n_positions=16, use_cache=False
    )
    return only(GPT2LMHeadModel(config), "logits")


@family(WORDS)
def gpt_neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return only(GPTNeoXForCausalLM(GPTNeoXConfig(**ENCODER, use_cache=False)), "logits")


@family(WORDS, long=True)
def opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=24,
        max_position_embeddings=16,
        word_embed_proj_dim=8,
        use_cache=False,
    )
    return only(OPTForCausalLM(config), "logits")


@family(WORDS)
def bloom() -> nn.Module:
    """Biases by distance, q, k and v of a head beside each other."""
    from transformers import BloomConfig, BloomForCausalLM

    return only(
        BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=2, n_head=4, use_cache=False)),
        "logits",
    )


@family(WORDS)
def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return only(LlamaForCausalLM(LlamaConfig(**DECODER)), "logits")


@family(WORDS)
def mistral() -> nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    return only(MistralForCausalLM(MistralConfig(**DECODER, sliding_window=4)), "logits")


@family(WORDS)
def qwen3() -> nn.Module:
    """Queries and keys are normed head by head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return only(Qwen3ForCausalLM(Qwen3Config(**DECODER)), "logits")


@family(WORDS)
def gemma2() -> nn.Module:
    """Norms on both sides, a scale of one more, scores with a soft cap, the table twice."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return only(Gemma2ForCausalLM(Gemma2Config(**DECODER, query_pre_attn_scalar=4)), "logits")


@family(WORDS)
def phi3() -> nn.Module:
    """q, k and v in one weight of unequal parts; gate and value likewise."""
    from transformers import Phi3Config, Phi3ForCausalLM

    settings = {k: v for k, v in DECODER.items() if k != "head_dim"}
    return only(Phi3ForCausalLM(Phi3Config(**settings)), "logits")


@family(WORDS, long=True)
def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=20, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8, use_cache=False,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    return Graph(lambda net, x: net.model(input_ids=x, decoder_input_ids=x).logits, model=model)


@family(WORDS)
def bart() -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=20,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=16,
        use_cache=False,
    )
    model = BartForConditionalGeneration(config)
    return Graph(lambda net, x: net.model(input_ids=x, decoder_input_ids=x).logits, model=model)


@family((2, 9, 8))
def rwkv() -> nn.Module:
    """Time mixing: a channel decays by itself; what came before is shifted by one."""

    class Mixing(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(width), nn.Parameter(torch.rand(3, width))
            self.decay, self.first = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
            self.key, self.value, self.gate, self.out = (
                nn.Linear(width, width, bias=False) for _ in range(4)
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            before = F.pad(y, (0, 0, 1, -1))
            k, v, r = (
                layer(y * mix + before * (1 - mix))
                for layer, mix in zip((self.key, self.value, self.gate), self.mix.unbind(0), strict=True)
            )
            state, weight, out = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0]), []
            for t in range(x.shape[1]):
                now = torch.exp(k[:, t])
                bonus = now * torch.exp(self.first)
                out.append((state + bonus * v[:, t]) / (weight + bonus))
                fade = torch.exp(-torch.exp(self.decay))
                state, weight = fade * state + now * v[:, t], fade * weight + now
            return x + self.out(r.sigmoid() * torch.stack(out, 1))

    class Feed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.key, self.value = nn.LayerNorm(width), nn.Linear(width, 20), nn.Linear(20, width)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.value(F.relu(self.key(self.norm(x))).square())

    return nn.Sequential(
        nn.Linear(8, 12), Mixing(12), Feed(12), Mixing(12), nn.LayerNorm(12), nn.Linear(12, 6)
    )


@family(Tokens((2, 7)))
def text_convolutions() -> nn.Module:
    def forward(net: Any, words: Tensor) -> Tensor:
        x = net.table(words).transpose(1, 2)
        return net.head(torch.cat([F.relu(layer(x)).amax(2) for layer in net.layers], 1))

    layers = nn.ModuleList(nn.Conv1d(10, 6, k) for k in (2, 3, 4))
    return Graph(forward, table=nn.Embedding(20, 10), layers=layers, head=nn.Linear(18, 3))


@family(Tokens((2, 7)), Tokens((2, 5)))
def translation_with_attention() -> nn.Module:
    """Two recurrent networks, the second of which looks at all states of the first."""

    def forward(net: Any, source: Tensor, target: Tensor) -> Tensor:
        seen, state = net.encoder(net.source(source))
        said, _ = net.decoder(net.target(target), state)
        scores = (net.query(said) @ net.key(seen).transpose(1, 2)).softmax(-1)
        return net.head(torch.cat([said, scores @ seen], -1).tanh())

    return Graph(
        forward, source=nn.Embedding(20, 8), target=nn.Embedding(20, 8), encoder=nn.GRU(8, 12, batch_first=True),
        decoder=nn.GRU(8, 12, batch_first=True), query=nn.Linear(12, 10), key=nn.Linear(12, 10), head=nn.Linear(24, 20),
    )  # fmt: skip


@family(Tokens((2, 7)))
def mixture_of_experts() -> nn.Module:
    """Every expert answers; a gate weighs the answers."""

    class Experts(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.gate = nn.Linear(width, 3)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(width, 20), nn.ReLU(), nn.Linear(20, width)) for _ in range(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            weights = self.gate(x).softmax(-1)
            return sum((weights[..., i, None] * e(x) for i, e in enumerate(self.experts)), x)

    return nn.Sequential(nn.Embedding(20, 12), Experts(12), nn.LayerNorm(12), nn.Linear(12, 20))
