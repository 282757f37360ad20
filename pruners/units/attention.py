"""nn.MultiheadAttention whose heads can have another width than the embedding has: what a cut makes of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CutAttention(nn.MultiheadAttention):
    """Computes what nn.MultiheadAttention does, and takes every width from its weights, with the same names.

    q and k may have another width than v, and both another one than the embedding. scale: of the products of q and k,
    that of the dense heads. It is the same in eval and in training mode: torch's fused operator knows one width alone.
    """

    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the result, and the weights of attention or None. Shapes as for nn.MultiheadAttention."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        first = self.batch_first or not batched
        q, k, v = self._projected(query, key, value)
        if not batched:
            q, k, v = q[None], k[None], v[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        more = 0
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], 1)
            more += 1
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            more += 1
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # type: ignore[no-untyped-call]
        mask = self._mask(attn_mask, key_padding_mask, more, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            heads = weights @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        result = F.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return result[0], None if weights is None else weights[0]
        return result if first else result.transpose(0, 1), weights

    def widths(self) -> tuple[int, int]:
        """Returns the width of q, which is that of k, and the width of v, each of all heads together."""
        values = self.out_proj.weight.shape[1]
        packed: Tensor | None = self.in_proj_weight
        if packed is None:
            return self.q_proj_weight.shape[0], values
        return (packed.shape[0] - values) // 2, values

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed: Tensor | None = self.in_proj_weight
        bias: Tensor | None = self.in_proj_bias
        if packed is not None and query is key and key is value:
            return self._parts(F.linear(query, packed, bias), -1)
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if packed is None
            else self._parts(packed, 0)
        )
        biases = (None, None, None) if bias is None else self._parts(bias, 0)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def _parts(self, packed: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the parts of q, k and v. v is split off first: it may be of another width."""
        keys, values = self.widths()
        both, v = torch.split(packed, [2 * keys, values], axis)
        q, k = both.chunk(2, axis)
        return q, k, v

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, more: int, q: Tensor
    ) -> Tensor | None:
        """Returns what is added to the scores. more: keys that are appended, and never masked."""
        found = None
        if attn_mask is not None:
            found = _added(attn_mask, q)
            found = found if found.dim() == 2 else found.unflatten(0, (-1, self.num_heads))  # type: ignore[no-untyped-call]
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q)[:, None, None]
            found = padding if found is None else found + padding
        return found if found is None or not more else F.pad(found, (0, more))


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Returns a mask as numbers to add. Of truth values, True leaves a key out."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def spell(model: nn.Module) -> None:
    """Lets every nn.MultiheadAttention of a network compute as `CutAttention`, *in place*; no tensor changes."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = CutAttention
            vars(module)["scale"] = module.head_dim**-0.5
            module._qkv_same_embed_dim = False  # keeps the layers around it from torch's fused operator too
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


@contextmanager
def spelled(model: nn.Module) -> Iterator[None]:
    """Does as `spell` for a while. So the operators within attention can be seen."""
    plain = [m for m in model.modules() if type(m) is nn.MultiheadAttention]
    packed = [m._qkv_same_embed_dim for m in plain]
    encoders = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder)]
    nested = [m.use_nested_tensor for m in encoders]
    try:
        spell(model)
        yield
    finally:
        for module, same in zip(plain, packed, strict=True):
            module.__class__ = nn.MultiheadAttention
            module._qkv_same_embed_dim = same
            del vars(module)["scale"]
        for encoder, before in zip(encoders, nested, strict=True):
            encoder.use_nested_tensor = before


def fit_widths(model: nn.Module) -> None:
    """Sets the widths that attention keeps to those of its weights, *in place*; a cut one makes `spell` all of them."""
    found = [m for m in model.modules() if type(m) in (nn.MultiheadAttention, CutAttention)]
    if any(map(_changed, found)):
        spell(model)
    for module in found:
        if isinstance(module, CutAttention):
            packed: Tensor | None = module.in_proj_weight
            module.embed_dim = module.out_proj.weight.shape[0]
            module.head_dim = module.widths()[0] // module.num_heads
            module.kdim = module.embed_dim if packed is not None else module.k_proj_weight.shape[1]
            module.vdim = module.embed_dim if packed is not None else module.v_proj_weight.shape[1]
    for module in model.modules():
        if isinstance(module, nn.Transformer):
            width = next(
                (m.embed_dim for m in module.modules() if isinstance(m, CutAttention)), module.d_model
            )
            module.d_model = width


def _changed(module: nn.Module) -> bool:
    """Says whether weights of attention have other sizes than it keeps."""
    assert isinstance(module, nn.MultiheadAttention)
    rows = module.out_proj.weight.shape
    packed: Tensor | None = module.in_proj_weight
    if packed is not None:
        wide = tuple(packed.shape) != (3 * module.embed_dim, module.embed_dim)
    else:
        q, k, v = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
        shapes = [tuple(x.shape) for x in (q, k, v)]
        wide = shapes != [(module.embed_dim, n) for n in (module.embed_dim, module.kdim, module.vdim)]
    return wide or tuple(rows) != (module.embed_dim, module.embed_dim)
