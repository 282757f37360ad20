"""Networks of sound."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.corpus.family import Graph, Residual, family, only


@family((2, 12, 10))
def conformer_block() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        x = x + 0.5 * net.feed(x)
        y = F.glu(net.expand(net.norm(x).transpose(1, 2)), 1)
        x = x + net.reduce(F.silu(net.batch(net.depthwise(y)))).transpose(1, 2)
        return net.head(x)

    return Graph(
        forward, embed=nn.Linear(10, 12),
        feed=nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 24), nn.SiLU(), nn.Linear(24, 12)),
        norm=nn.LayerNorm(12), expand=nn.Conv1d(12, 16, 1), depthwise=nn.Conv1d(8, 8, 3, padding=1, groups=8),
        batch=nn.BatchNorm1d(8), reduce=nn.Conv1d(8, 12, 1), head=nn.Linear(12, 4),
    )  # fmt: skip


@family((2, 1, 128))
def wavenet() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x, skips = net.stem(x), []
        for gated, out in zip(net.gated, net.out, strict=True):
            filtered, gate = gated(x).chunk(2, 1)
            y = filtered.tanh() * gate.sigmoid()
            x = x + out(y)
            skips.append(net.skip(y))
        return net.head(F.relu(torch.stack(skips).sum(0)))

    return Graph(
        forward, stem=nn.Conv1d(1, 8, 1), gated=nn.ModuleList(nn.Conv1d(8, 16, 3, padding=1) for _ in range(2)),
        out=nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(2)), skip=nn.Conv1d(8, 6, 1), head=nn.Conv1d(6, 4, 1),
    )  # fmt: skip


@family((2, 8, 24), locked=0.2, why="q is divided into a free number of heads, k into a fixed one", long=True)
def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=20,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=12,
        max_target_positions=8,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )

    def forward(net: Any, x: Tensor) -> Tensor:
        words = torch.arange(5, device=x.device).expand(len(x), -1)
        return net.model(input_features=x, decoder_input_ids=words).logits

    return Graph(forward, model=WhisperForConditionalGeneration(config))


WAVES = {
    "vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24,
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2,
}  # fmt: skip


@family((2, 400), locked=0.3, why="what training masks by chance is replaced by one vector of fixed width")
def wav2vec2() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    return only(Wav2Vec2ForCTC(Wav2Vec2Config(**WAVES)), "logits")


@family((2, 400), locked=0.3, why="what training masks by chance is replaced by one vector of fixed width")
def hubert() -> nn.Module:
    from transformers import HubertConfig, HubertForSequenceClassification

    config = HubertConfig(
        **WAVES, feat_extract_norm="layer", do_stable_layer_norm=True, num_labels=3, classifier_proj_size=12
    )
    return only(HubertForSequenceClassification(config), "logits")


@family((2, 24, 16))
def spectrogram_transformer() -> nn.Module:
    from transformers import ASTConfig, ASTForAudioClassification

    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=24,
        num_mel_bins=16,
        num_labels=3,
    )
    return only(ASTForAudioClassification(config), "logits")


@family((2, 8, 40))
def deep_speech() -> nn.Module:
    """Convolutions over a spectrogram, batch norms between recurrent layers both ways."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x[:, None])
        y = y.flatten(1, 2).transpose(1, 2)
        for norm, layer in zip(net.norms, net.layers, strict=True):
            y = layer(norm(y.transpose(1, 2)).transpose(1, 2))[0]
            forth, back = y.chunk(2, -1)
            y = forth + back
        return net.head(y).log_softmax(-1)

    return Graph(
        forward,
        conv=nn.Sequential(nn.Conv2d(1, 6, 3, (2, 2), 1), nn.BatchNorm2d(6), nn.Hardtanh(0, 20)),
        norms=nn.ModuleList([nn.BatchNorm1d(24), nn.BatchNorm1d(10)]),
        layers=nn.ModuleList(nn.GRU(n, 10, bidirectional=True, batch_first=True) for n in (24, 10)),
        head=nn.Linear(10, 9),
    )


@family((2, 8, 40), locked=0.1, why="the first depthwise convolution works on the input")
def keyword_spotting() -> nn.Module:
    """Separable convolutions along time (QuartzNet, MatchboxNet)."""

    def block(cin: int, cout: int) -> nn.Module:
        body = nn.Sequential(
            nn.Conv1d(cin, cin, 5, padding=2, groups=cin), nn.Conv1d(cin, cout, 1), nn.BatchNorm1d(cout)
        )
        return Residual(body, nn.Sequential(nn.Conv1d(cin, cout, 1), nn.BatchNorm1d(cout)), nn.ReLU())

    return nn.Sequential(block(8, 12), block(12, 16), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4))


@family((2, 8, 30))
def speaker_embedding() -> nn.Module:
    """Time-delay layers, mean and spread over time, an embedding of unit length (x-vectors)."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.frames(x)
        return F.normalize(net.embed(torch.cat([y.mean(2), (y.var(2) + 1e-5).sqrt()], 1)))

    frames = nn.Sequential(
        nn.Conv1d(8, 12, 5),
        nn.ReLU(),
        nn.BatchNorm1d(12),
        nn.Conv1d(12, 16, 3, dilation=2),
        nn.ReLU(),
        nn.BatchNorm1d(16),
    )
    return Graph(forward, frames=frames, embed=nn.Linear(32, 10))


@family((2, 1, 256))
def source_separation() -> nn.Module:
    """Encoder, masks by dilated separable blocks, decoder (Conv-TasNet)."""

    def block(dilation: int) -> nn.Module:
        depthwise = nn.Conv1d(16, 16, 3, padding=dilation, dilation=dilation, groups=16)
        return Residual(
            nn.Sequential(nn.Conv1d(10, 16, 1), nn.PReLU(), nn.GroupNorm(1, 16), depthwise, nn.PReLU(),
                          nn.GroupNorm(1, 16), nn.Conv1d(16, 10, 1))
        )  # fmt: skip

    def forward(net: Any, x: Tensor) -> Tensor:
        y = F.relu(net.encoder(x))
        masks = net.masks(net.blocks(net.narrow(net.norm(y)))).sigmoid().unflatten(1, (2, -1))
        return torch.stack([net.decoder(y * mask) for mask in masks.unbind(1)], 1)

    return Graph(
        forward, encoder=nn.Conv1d(1, 12, 16, 8), norm=nn.GroupNorm(1, 12), narrow=nn.Conv1d(12, 10, 1),
        blocks=nn.Sequential(block(1), block(2)), masks=nn.Conv1d(10, 24, 1), decoder=nn.ConvTranspose1d(12, 1, 16, 8),
    )  # fmt: skip


@family((2, 10, 12))
def vocoder() -> nn.Module:
    """Transposed convolutions with weight norm, several kernels side by side whose mean goes on (HiFi-GAN)."""
    normed = parametrizations.weight_norm

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.first(x)
        for up, kernels in zip(net.ups, net.kernels, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            x = sum(kernel(F.leaky_relu(x, 0.1)) for kernel in kernels) / len(kernels) + x
        return net.last(F.leaky_relu(x)).tanh()

    ups = [normed(nn.ConvTranspose1d(12, 8, 4, 2, 1)), normed(nn.ConvTranspose1d(8, 6, 4, 2, 1))]
    kernels = [nn.ModuleList(normed(nn.Conv1d(w, w, k, padding=k // 2)) for k in (3, 5)) for w in (8, 6)]
    return Graph(
        forward, first=normed(nn.Conv1d(10, 12, 7, padding=3)), ups=nn.ModuleList(ups), kernels=nn.ModuleList(kernels),
        last=normed(nn.Conv1d(6, 1, 7, padding=3)),
    )  # fmt: skip
