"""Models of the sizes that people run, as files whose weights are holes: headers of megabytes, data of none.

Written without a tokenizer: llama.cpp takes the size of the vocabulary from the header instead.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ggufmaker import padded, text, value

F32, F16, Q8_0, Q4_K = 0, 1, 8, 12
BLOCKS = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34), Q4_K: (256, 144)}  # elements, bytes

Tensors = Iterable[tuple[str, tuple[int, ...]]]


class Giant(NamedTuple):
    """A model's header; matrices are of the type `kind`, the rest is F32."""

    metadata: dict[str, Any]
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    kind: int = Q8_0

    def write(self, path: Path) -> Path:
        infos, end = [], 0
        for name, shape in self.tensors:
            kind = self.kind if len(shape) > 1 and not name.endswith(EXACT) else F32
            infos.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, end))
            end += -(-_bytes(shape, kind) // 32) * 32
        head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(self.metadata))
        head += b"".join(text(key) + value(item) for key, item in self.metadata.items())
        with path.open("wb") as file:
            file.write(padded(head + b"".join(infos), 32))
            file.truncate(file.tell() + end)
        return path


EXACT = ("bias", "norm.weight", "ffn_gate_inp.weight", "ssm_a", "ssm_d", "conv1d.weight", "conv.weight")


def _bytes(shape: tuple[int, ...], kind: int) -> int:
    elements, size = BLOCKS[kind]
    for length in shape:
        size *= length
    return size // elements


def giant(architecture: str, tensors: Tensors, kind: int = Q8_0, **keys: Any) -> Giant:
    """`keys` are those of the architecture, with _ for the dot where it begins with a group's name."""
    keys.setdefault("context_length", 131072)
    metadata = {"general.architecture": architecture, "tokenizer.ggml.model": "none"}
    metadata |= {f"{architecture}.{_dotted(key)}": item for key, item in keys.items()}
    return Giant(metadata, tuple(tensors), kind)


def _dotted(key: str) -> str:
    for group in ("attention", "rope", "ssm", "shortconv", "wkv"):
        if key.startswith(f"{group}_"):
            return f"{group}.{key[len(group) + 1 :]}"
    return key


def dense(
    architecture: str,
    layers: int,
    width: int,
    heads: int,
    kv: int,
    head: int,
    ff: int,
    vocabulary: int,
    *,
    tied: bool = False,
    extra: tuple[tuple[str, tuple[int, ...]], ...] = (),
    experts: tuple[int, int, int] | None = None,
    kind: int = Q8_0,
    **keys: Any,
) -> Giant:
    """A transformer; `extra` are further tensors of each block, `experts` how many, used, and their width."""
    feed: tuple[tuple[str, tuple[int, ...]], ...]
    if experts:
        count, used, wide = experts
        keys |= {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": wide}
        feed = (
            ("ffn_gate_inp.weight", (width, count)),
            ("ffn_gate_exps.weight", (width, wide, count)),
            ("ffn_up_exps.weight", (width, wide, count)),
            ("ffn_down_exps.weight", (wide, width, count)),
        )
    else:
        feed = (
            ("ffn_gate.weight", (width, ff)),
            ("ffn_up.weight", (width, ff)),
            ("ffn_down.weight", (ff, width)),
        )
    block = (
        ("attn_norm.weight", (width,)),
        ("attn_q.weight", (width, heads * head)),
        ("attn_k.weight", (width, kv * head)),
        ("attn_v.weight", (width, kv * head)),
        ("attn_output.weight", (heads * head, width)),
        ("ffn_norm.weight", (width,)),
        *feed,
        *extra,
    )
    return giant(
        architecture,
        _whole(layers, width, vocabulary, tied, lambda _: block),
        kind,
        block_count=layers,
        embedding_length=width,
        feed_forward_length=ff,
        vocab_size=vocabulary,
        attention_head_count=heads,
        attention_head_count_kv=kv,
        attention_key_length=head,
        attention_value_length=head,
        attention_layer_norm_rms_epsilon=1e-6,
        rope_dimension_count=head,
        **keys,
    )


def _whole(
    layers: int, width: int, vocabulary: int, tied: bool, block: Any
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (width, vocabulary)
    yield "output_norm.weight", (width,)
    if not tied:
        yield "output.weight", (width, vocabulary)
    for number in range(layers):
        for name, shape in block(number):
            yield f"blk.{number}.{name}", shape


def norms(width: int, *names: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((f"{name}.weight", (width,)) for name in names)


def mamba(layers: int, width: int, vocabulary: int) -> Giant:
    inner, state, rank = 2 * width, 16, width // 16
    block = (
        ("attn_norm.weight", (width,)),
        ("ssm_in.weight", (width, 2 * inner)),
        ("ssm_conv1d.weight", (4, inner)),
        ("ssm_conv1d.bias", (inner,)),
        ("ssm_x.weight", (inner, rank + 2 * state)),
        ("ssm_dt.weight", (rank, inner)),
        ("ssm_dt.bias", (inner,)),
        ("ssm_a", (state, inner)),
        ("ssm_d", (inner,)),
        ("ssm_out.weight", (inner, width)),
    )
    return giant(
        "mamba",
        _whole(layers, width, vocabulary, True, lambda _: block),
        block_count=layers,
        embedding_length=width,
        feed_forward_length=0,
        attention_head_count=0,
        vocab_size=vocabulary,
        ssm_conv_kernel=4,
        ssm_inner_size=inner,
        ssm_state_size=state,
        ssm_time_step_rank=rank,
        attention_layer_norm_rms_epsilon=1e-5,
    )


def lfm2(layers: str, width: int, heads: int, kv: int, ff: int, vocabulary: int) -> Giant:
    """`layers` has an a for each one with attention, a c for each one with a short convolution."""
    head = width // heads

    def block(number: int) -> Tensors:
        yield from norms(width, "attn_norm", "ffn_norm")
        yield from (
            ("ffn_gate.weight", (width, ff)),
            ("ffn_up.weight", (width, ff)),
            ("ffn_down.weight", (ff, width)),
        )
        if layers[number] == "c":
            yield "shortconv.in_proj.weight", (width, 3 * width)
            yield "shortconv.conv.weight", (3, width)
            yield "shortconv.out_proj.weight", (width, width)
            return
        yield from norms(head, "attn_q_norm", "attn_k_norm")
        yield "attn_q.weight", (width, width)
        yield "attn_k.weight", (width, kv * head)
        yield "attn_v.weight", (width, kv * head)
        yield "attn_output.weight", (width, width)

    tensors = [
        (name.replace("output_norm", "token_embd_norm"), shape)
        for name, shape in _whole(len(layers), width, vocabulary, True, block)
    ]
    return giant(
        "lfm2",
        tensors,
        block_count=len(layers),
        embedding_length=width,
        feed_forward_length=ff,
        vocab_size=vocabulary,
        attention_head_count=heads,
        attention_head_count_kv=[kv if letter == "a" else 0 for letter in layers],
        attention_layer_norm_rms_epsilon=1e-5,
        shortconv_l_cache=3,
    )


def deepseek2(layers: int, width: int, heads: int, vocabulary: int) -> Giant:
    """With multi-head latent attention, as DeepSeek-V2-Lite has it: one dense layer, then experts."""
    rank, rope, nope, wide, count = 512, 64, 128, 1408, 64

    def block(number: int) -> Tensors:
        yield from norms(width, "attn_norm", "ffn_norm")
        yield from norms(rank, "attn_kv_a_norm")
        yield "attn_q.weight", (width, heads * (nope + rope))
        yield "attn_kv_a_mqa.weight", (width, rank + rope)
        yield "attn_k_b.weight", (nope, rank, heads)
        yield "attn_v_b.weight", (rank, nope, heads)
        yield "attn_output.weight", (heads * nope, width)
        if number == 0:
            yield from (("ffn_gate.weight", (width, 10944)), ("ffn_up.weight", (width, 10944)))
            yield "ffn_down.weight", (10944, width)
            return
        yield "ffn_gate_inp.weight", (width, count)
        for name, shape in (("gate", (width, wide)), ("up", (width, wide)), ("down", (wide, width))):
            yield f"ffn_{name}_exps.weight", (*shape, count)
            yield f"ffn_{name}_shexp.weight", tuple(2 * n if n == wide else n for n in shape)

    return giant(
        "deepseek2",
        _whole(layers, width, vocabulary, False, block),
        block_count=layers,
        embedding_length=width,
        feed_forward_length=10944,
        vocab_size=vocabulary,
        attention_head_count=heads,
        attention_head_count_kv=1,
        attention_key_length=rank + rope,
        attention_value_length=rank,
        attention_key_length_mla=nope + rope,
        attention_value_length_mla=nope,
        attention_kv_lora_rank=rank,
        attention_layer_norm_rms_epsilon=1e-6,
        rope_dimension_count=rope,
        leading_dense_block_count=1,
        expert_count=count,
        expert_used_count=6,
        expert_shared_count=2,
        expert_feed_forward_length=wide,
        expert_weights_scale=1.0,
    )


def falcon_h1(layers: int, width: int, heads: int, kv: int, head: int, ff: int, vocabulary: int) -> Giant:
    """Each block has attention and a recurrent part side by side."""
    inner, state, groups, ssm_heads = 2 * width, 256, 1, 2 * width // 64
    block = (
        *norms(width, "attn_norm"),
        ("ffn_norm", (width,)),
        ("ssm_in.weight", (width, 2 * inner + 2 * groups * state + ssm_heads)),
        ("ssm_conv1d.weight", (4, inner + 2 * groups * state)),
        ("ssm_conv1d.bias", (inner + 2 * groups * state,)),
        ("ssm_dt.bias", (ssm_heads,)),
        ("ssm_a", (1, ssm_heads)),
        ("ssm_d", (1, ssm_heads)),
        ("ssm_norm.weight", (inner // groups, groups)),
        ("ssm_out.weight", (inner, width)),
        ("attn_q.weight", (width, heads * head)),
        ("attn_k.weight", (width, kv * head)),
        ("attn_v.weight", (width, kv * head)),
        ("attn_output.weight", (heads * head, width)),
        ("ffn_gate.weight", (width, ff)),
        ("ffn_up.weight", (width, ff)),
        ("ffn_down.weight", (ff, width)),
    )
    return giant(
        "falcon-h1",
        _whole(layers, width, vocabulary, False, lambda _: block),
        block_count=layers,
        embedding_length=width,
        feed_forward_length=ff,
        vocab_size=vocabulary,
        attention_head_count=heads,
        attention_head_count_kv=kv,
        attention_key_length=head,
        attention_value_length=head,
        attention_layer_norm_rms_epsilon=1e-5,
        rope_dimension_count=head,
        ssm_conv_kernel=4,
        ssm_inner_size=inner,
        ssm_state_size=state,
        ssm_group_count=groups,
        ssm_time_step_rank=ssm_heads,
    )


def gpt_oss(layers: int, width: int, heads: int, kv: int, wide: int, experts: int, vocabulary: int) -> Giant:
    extra = (
        *norms(width, "post_attention_norm"),
        ("attn_q.bias", (heads * 64,)),
        ("attn_k.bias", (kv * 64,)),
        ("attn_v.bias", (kv * 64,)),
        ("attn_output.bias", (width,)),
        ("attn_sinks.weight", (heads,)),
        ("ffn_gate_inp.bias", (experts,)),
        ("ffn_gate_exps.bias", (wide, experts)),
        ("ffn_up_exps.bias", (wide, experts)),
        ("ffn_down_exps.bias", (width, experts)),
    )
    model = dense(
        "gpt-oss", layers, width, heads, kv, 64, wide, vocabulary,
        experts=(experts, 4, wide), extra=extra, attention_sliding_window=128,
    )  # fmt: skip
    return model._replace(tensors=tuple(pair for pair in model.tensors if "ffn_norm" not in pair[0]))


def phi3(layers: int, width: int, heads: int, ff: int, vocabulary: int) -> Giant:
    """Queries, keys and values are one matrix, and so are the two of the feed-forward part."""
    block = (
        *norms(width, "attn_norm", "ffn_norm"),
        ("attn_qkv.weight", (width, 3 * width)),
        ("attn_output.weight", (width, width)),
        ("ffn_up.weight", (width, 2 * ff)),
        ("ffn_down.weight", (ff, width)),
    )
    return giant(
        "phi3",
        _whole(layers, width, vocabulary, False, lambda _: block),
        block_count=layers,
        embedding_length=width,
        feed_forward_length=ff,
        vocab_size=vocabulary,
        attention_head_count=heads,
        attention_head_count_kv=heads,
        attention_layer_norm_rms_epsilon=1e-5,
        attention_sliding_window=2047,
        rope_dimension_count=width // heads,
    )


def deci(kv: str, width: int, heads: int, head: int, ff: int, vocabulary: int) -> Giant:
    """Pruned, so that each block has its own number of key heads; one without attention has a 0."""
    counts = [int(digit) for digit in kv]

    def block(number: int) -> Tensors:
        if count := counts[number]:
            yield from norms(width, "attn_norm")
            yield "attn_q.weight", (width, heads * head)
            yield "attn_k.weight", (width, count * head)
            yield "attn_v.weight", (width, count * head)
            yield "attn_output.weight", (heads * head, width)
        yield from norms(width, "ffn_norm")
        yield from (("ffn_gate.weight", (width, ff)), ("ffn_up.weight", (width, ff)))
        yield "ffn_down.weight", (ff, width)

    return giant(
        "deci",
        _whole(len(kv), width, vocabulary, False, block),
        block_count=len(kv),
        embedding_length=width,
        feed_forward_length=[ff] * len(kv),
        vocab_size=vocabulary,
        attention_head_count=[heads if count else 0 for count in counts],
        attention_head_count_kv=counts,
        attention_key_length=head,
        attention_value_length=head,
        attention_layer_norm_rms_epsilon=1e-5,
        rope_dimension_count=head,
    )


def gemma4(layers: int, shared: int, width: int, heads: int, ff: int, vocabulary: int) -> Giant:
    """Windows in four of five blocks, with heads of half the size; the last ones use the cache of others."""
    small, large, each = 256, 512, 256

    def block(number: int) -> Tensors:
        head = large if number % 5 == 4 else small
        yield from norms(width, "attn_norm", "ffn_norm", *_POST, "post_norm")
        yield from norms(head, "attn_q_norm", "attn_k_norm")
        yield "attn_q.weight", (width, heads * head)
        yield "attn_k.weight", (width, head)
        yield "attn_v.weight", (width, head)
        yield "attn_output.weight", (heads * head, width)
        yield from (("ffn_gate.weight", (width, ff)), ("ffn_up.weight", (width, ff)))
        yield "ffn_down.weight", (ff, width)
        yield "inp_gate.weight", (width, each)
        yield "proj.weight", (each, width)

    whole = _whole(layers, width, vocabulary, True, block)
    beside = (
        ("rope_freqs.weight", (large // 2,)),
        ("per_layer_token_embd.weight", (each * layers, vocabulary)),
        ("per_layer_model_proj.weight", (width, each * layers)),
        ("per_layer_proj_norm.weight", (each,)),
    )
    return giant(
        "gemma4",
        (*whole, *beside),
        block_count=layers,
        embedding_length=width,
        embedding_length_per_layer_input=each,
        feed_forward_length=ff,
        vocab_size=vocabulary,
        attention_head_count=heads,
        attention_head_count_kv=1,
        attention_key_length=large,
        attention_value_length=large,
        attention_key_length_swa=small,
        attention_value_length_swa=small,
        attention_shared_kv_layers=shared,
        attention_sliding_window=512,
        attention_sliding_window_pattern=[number % 5 != 4 for number in range(layers)],
        attention_layer_norm_rms_epsilon=1e-6,
        rope_dimension_count=large,
        rope_dimension_count_swa=small,
    )


_POST = ("post_attention_norm", "post_ffw_norm")

GIANTS = {
    "llama 2 7B, dense": dense("llama", 32, 4096, 32, 32, 128, 11008, 32000, kind=Q4_K),
    "llama 3.1 8B, grouped queries": dense("llama", 32, 4096, 32, 8, 128, 14336, 128256, kind=Q4_K),
    "llama 3.2 1B, tied": dense("llama", 16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "qwen3 0.6B, big vocabulary": dense(
        "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, tied=True, extra=norms(128, "attn_q_norm", "attn_k_norm")
    ),
    "qwen2.5 7B": dense(
        "qwen2", 28, 3584, 28, 4, 128, 18944, 152064,
        extra=(("attn_q.bias", (3584,)), ("attn_k.bias", (512,)), ("attn_v.bias", (512,))), kind=Q4_K,
    ),
    "qwen3 30B-A3B, experts": dense(
        "qwen3moe", 48, 2048, 32, 4, 128, 6144, 151936, experts=(128, 8, 768),
        extra=norms(128, "attn_q_norm", "attn_k_norm"), kind=Q4_K,
    ),
    "mixtral 8x7B, experts": dense(
        "llama", 32, 4096, 32, 8, 128, 14336, 32000, experts=(8, 2, 14336), kind=Q4_K
    ),
    "gemma 2 2B, sliding window": dense(
        "gemma2", 26, 2304, 8, 4, 256, 9216, 256000, tied=True, extra=norms(2304, *_POST),
        context_length=8192, attention_sliding_window=4096, attn_logit_softcapping=50.0,
    ),
    "gemma 3 12B, sliding window": dense(
        "gemma3", 48, 3840, 16, 8, 256, 15360, 262208, tied=True,
        extra=(*norms(3840, *_POST), *norms(256, "attn_q_norm", "attn_k_norm")),
        attention_sliding_window=1024, kind=Q4_K,
    ),
    "gemma 3 1B, sliding window": dense(
        "gemma3", 26, 1152, 4, 1, 256, 6912, 262144, tied=True,
        extra=(*norms(1152, *_POST), *norms(256, "attn_q_norm", "attn_k_norm")), attention_sliding_window=512,
    ),
    "gpt-oss 20B, experts, sliding window": gpt_oss(24, 2880, 64, 8, 2880, 32, 201088),
    "phi 3 mini": phi3(32, 3072, 32, 8192, 32064),
    "falcon-h1 1.5B, hybrid": falcon_h1(24, 2048, 8, 2, 128, 4096, 65537),
    "deci 8B, each block its own": deci("8" * 4 + "4" * 8 + "0" * 4 + "1" * 16, 4096, 32, 128, 14336, 128256),
    "gemma 4 E2B, shared cache": gemma4(35, 20, 1536, 8, 6144, 262144),
    "mamba 2.8B, recurrent": mamba(64, 2560, 50280),
    "lfm2 1.2B, hybrid": lfm2("ccaccaccacacacac", 2048, 32, 8, 8192, 65536),
    "deepseek 2 lite, latent attention": deepseek2(27, 2048, 16, 102400),
}  # fmt: skip
