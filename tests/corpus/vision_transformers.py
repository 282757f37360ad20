"""Networks of patches: transformers, mixers, and those between."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.corpus.family import IMAGE, Graph, Residual, Tokens, classifier, family, only
from tests.nets import conv_bn


@family((2, 3, 16, 16))
def vision_transformer() -> nn.Module:
    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads, self.scale = heads, (width // heads) ** -0.5
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
            x = x + self.proj(y.transpose(1, 2).reshape(b, n, -1))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([net.token.weight[None].expand(x.shape[0], -1, -1), x], 1) + net.place.weight
        return net.head(net.norm(net.blocks(x))[:, 0])

    return Graph(
        forward, patch=nn.Conv2d(3, 16, 4, 4), token=nn.Linear(16, 1, bias=False), place=nn.Linear(16, 17, bias=False),
        blocks=nn.Sequential(Block(16, 4), Block(16, 4)), norm=nn.LayerNorm(16), head=nn.Linear(16, 5),
    )  # fmt: skip


@family((2, 16, 10), locked=0.3, why="mixing of tokens lies across the channels")
def mlp_mixer() -> nn.Module:
    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.tokens = (
                nn.LayerNorm(12),
                nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16)),
            )
            self.channels = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(x)

    return Graph(
        lambda net, x: net.head(net.mix(net.embed(x)).mean(1)),
        embed=nn.Linear(10, 12),
        mix=Mix(),
        head=nn.Linear(12, 3),
    )


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
"""Sizes of most networks of transformers."""
PIXELS = {"image_size": 16, "patch_size": 4}


@family((2, 3, 16, 16))
def deit() -> nn.Module:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    return only(DeiTForImageClassificationWithTeacher(DeiTConfig(**SMALL, **PIXELS, num_labels=5)), "logits")


@family((2, 3, 16, 16), long=True)
def beit() -> nn.Module:
    from transformers import BeitConfig, BeitForImageClassification

    config = BeitConfig(
        **SMALL, **PIXELS, num_labels=5, use_relative_position_bias=True, layer_scale_init_value=0.5
    )
    return only(BeitForImageClassification(config), "logits")


@family((2, 3, 16, 16))
def dinov2() -> nn.Module:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    sizes = {**SMALL, "mlp_ratio": 2}
    sizes.pop("intermediate_size")
    return only(
        Dinov2ForImageClassification(Dinov2Config(**sizes, **PIXELS, use_swiglu_ffn=True, num_labels=5)),
        "logits",
    )


@family(IMAGE, long=True)
def swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=2,
        mlp_ratio=2.0,
        num_labels=5,
    )
    return only(SwinForImageClassification(config), "logits")


@family(IMAGE, long=True)
def swin_v2() -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    config = Swinv2Config(
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2],
        num_heads=[2],
        window_size=4,
        mlp_ratio=2.0,
        num_labels=5,
    )
    return only(Swinv2ForImageClassification(config), "logits")


@family(
    IMAGE,
    locked=0.75,
    why="its attention takes three widths for one another, which is not followed yet",
    long=True,
)
def pvt_v2() -> nn.Module:
    from transformers import PvtV2Config, PvtV2ForImageClassification

    config = PvtV2Config(
        image_size=32,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_attention_heads=[2, 4],
        sr_ratios=[2, 1],
        mlp_ratios=[2, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_encoder_blocks=2,
        num_labels=5,
    )
    return only(PvtV2ForImageClassification(config), "logits")


@family(IMAGE, long=True)
def segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_attention_heads=[2, 4], sr_ratios=[2, 1], mlp_ratios=[2, 2],
        patch_sizes=[7, 3], strides=[4, 2], num_encoder_blocks=2, decoder_hidden_size=12, num_labels=4,
    )  # fmt: skip
    return only(SegformerForSemanticSegmentation(config), "logits")


@family((2, 3, 32, 32), long=True)
def hiera() -> nn.Module:
    from transformers import HieraConfig, HieraForImageClassification

    config = HieraConfig(
        image_size=[32, 32], embed_dim=8, depths=[1, 2], num_heads=[1, 2], query_stride=[2, 2], num_query_pool=1,
        masked_unit_size=[4, 4], masked_unit_attention=[True, False], mlp_ratio=2.0, num_labels=5,
    )  # fmt: skip
    return only(HieraForImageClassification(config), "logits")


@family(IMAGE, long=True)
def mobilevit() -> nn.Module:
    from transformers import MobileViTConfig, MobileViTForImageClassification

    config = MobileViTConfig(
        image_size=32, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 12, 16, 16, 16, 24], num_attention_heads=2,
        mlp_ratio=2.0, expand_ratio=2.0, num_labels=5,
    )  # fmt: skip
    return only(MobileViTForImageClassification(config), "logits")


@family((2, 3, 32, 32), long=True)
def levit() -> nn.Module:
    from transformers import LevitConfig, LevitForImageClassification

    config = LevitConfig(
        image_size=32,
        hidden_sizes=[16, 24],
        num_attention_heads=[2, 3],
        depths=[1, 1],
        key_dim=[4, 4],
        mlp_ratio=[2, 2],
        attention_ratio=[2, 2],
        down_ops=[["Subsample", 4, 4, 4, 2, 2]],
        num_labels=5,
    )
    return only(LevitForImageClassification(config), "logits")


@family((2, 3, 16, 16), Tokens((2, 6)))
def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    tower = {**SMALL, "projection_dim": 12}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 19},
        vision_config={**tower, **PIXELS}, projection_dim=12,
    )  # fmt: skip
    return Graph(
        lambda net, images, words: net.model(input_ids=words, pixel_values=images).logits_per_image,
        model=CLIPModel(config),
    )


@family(IMAGE)
def detr() -> nn.Module:
    """Convolutional features, encoder and decoder of nn.Transformer, learned queries, two heads."""

    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.places = nn.Parameter(torch.randn(5, 16)), nn.Parameter(torch.randn(16, 16))

    def forward(net: Any, x: Tensor) -> dict[str, Tensor]:
        x = net.project(net.body(x)).flatten(2).transpose(1, 2)
        y = net.transformer(x + net.held.places, net.held.queries.expand(len(x), -1, -1))
        return {"kinds": net.kinds(y), "boxes": net.boxes(y).sigmoid()}

    layers = nn.Transformer(16, 2, 1, 1, 24, 0.1, batch_first=True)
    return Graph(
        forward, body=conv_bn(3, 8, 3, 8), project=nn.Conv2d(8, 16, 1), transformer=layers, held=Queries(),
        kinds=nn.Linear(16, 4), boxes=nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)),
    )  # fmt: skip


class Feed(nn.Sequential):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


@family(
    (2, 3, 16, 16),
    long=True,
    locked=0.7,
    why="heads are mixed, and their width is read off the embedding: not followed yet",
)
def cait() -> nn.Module:
    """Heads that talk to each other, a scale a layer, and a class token that looks at the patches late."""

    class Talking(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.num_heads, self.scale = heads, (width // heads) ** -0.5
            self.norm, self.qkv, self.proj = (
                nn.LayerNorm(width),
                nn.Linear(width, 3 * width),
                nn.Linear(width, width),
            )
            self.before, self.after = nn.Linear(heads, heads), nn.Linear(heads, heads)
            self.gamma = nn.Parameter(0.5 * torch.ones(width))

        def forward(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, c // self.num_heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            scores = self.before((q * self.scale @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
            scores = self.after(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return x + self.gamma * self.proj((scores @ v).transpose(1, 2).reshape(b, n, c))

    class Late(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.num_heads, self.norm = heads, nn.LayerNorm(width)
            self.token = nn.Parameter(torch.randn(1, 1, width))
            self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            token = self.token.expand(b, -1, -1)
            u = self.norm(torch.cat([token, x], 1))
            q = self.q(u[:, :1]).reshape(b, 1, self.num_heads, c // self.num_heads).transpose(1, 2)
            k, v = (
                f(u).reshape(b, n + 1, self.num_heads, c // self.num_heads).transpose(1, 2)
                for f in (self.k, self.v)
            )
            y = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).reshape(b, 1, c)
            return (token + self.proj(y))[:, 0]

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.late(net.blocks(net.patch(x).flatten(2).transpose(1, 2))))

    blocks = nn.Sequential(Talking(16, 4), Residual(Feed(16, 24)), Talking(16, 4))
    return Graph(
        forward, patch=nn.Conv2d(3, 16, 4, 4), blocks=blocks, late=Late(16, 4), head=nn.Linear(16, 5)
    )


@family(
    (2, 3, 16, 16),
    locked=0.85,
    why="the width of a head is read off the embedding, and heads cross channels: not followed yet",
)
def xcit() -> nn.Module:
    """Attention over channels instead of patches: features of unit length, a temperature a head."""

    class Cross(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.num_heads, self.norm = heads, nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            qkv = (
                self.qkv(self.norm(x))
                .reshape(b, n, 3, self.num_heads, c // self.num_heads)
                .permute(2, 0, 3, 4, 1)
            )
            q, k, v = F.normalize(qkv[0], dim=-1), F.normalize(qkv[1], dim=-1), qkv[2]
            y = (q @ k.mT * self.temperature).softmax(-1) @ v
            return x + self.proj(y.permute(0, 3, 1, 2).reshape(b, n, c))

    class Local(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.norm2 = nn.LayerNorm(width), nn.BatchNorm2d(width)
            self.one = nn.Conv2d(width, width, 3, padding=1, groups=width)
            self.two = nn.Conv2d(width, width, 3, padding=1, groups=width)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x).transpose(1, 2).unflatten(2, (4, 4))
            return x + self.two(self.norm2(F.gelu(self.one(y)))).flatten(2).transpose(1, 2)

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.norm(net.blocks(net.patch(x).flatten(2).transpose(1, 2))).mean(1))

    blocks = nn.Sequential(Cross(16, 4), Local(16), Residual(Feed(16, 24)), Cross(16, 4))
    return Graph(
        forward, patch=nn.Conv2d(3, 16, 4, 4), blocks=blocks, norm=nn.LayerNorm(16), head=nn.Linear(16, 5)
    )


@family(IMAGE)
def poolformer() -> nn.Module:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
            self.scale = nn.Parameter(0.5 * torch.ones(width))
            self.up, self.down = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm1(x)
            x = x + self.scale[:, None, None] * (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y)
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    return nn.Sequential(
        nn.Conv2d(3, 12, 7, 4, 2), Block(12), nn.Conv2d(12, 16, 3, 2, 1), Block(16), classifier(16)
    )


@family((2, 3, 16, 16), locked=0.25, why="a gate that mixes patches lies across the channels")
def gmlp() -> nn.Module:
    class Gate(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(16, width)
            self.inner, self.places = nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            u, v = F.gelu(self.up(self.norm(x))).chunk(2, -1)
            return x + self.down(u * self.places(self.inner(v).transpose(1, 2)).transpose(1, 2))

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.blocks(net.patch(x).flatten(2).transpose(1, 2)).mean(1))

    return Graph(
        forward, patch=nn.Conv2d(3, 12, 4, 4), blocks=nn.Sequential(Gate(12), Gate(12)), head=nn.Linear(12, 5)
    )
