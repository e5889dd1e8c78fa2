"""PyTorch's side of the comparison: set up, then run and print one line of JSON per run.

The same measurements, the same definitions and the same lines as `crates/model/benches/common/mod.rs`. Run by
`compare_model.py` in the environment that it makes; `--step` runs once per line read from standard input.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import resource
import sys
import time
from pathlib import Path

import torch

CONFIG = Path(__file__).parent.parent / "tests/golden/reference/ltx-2.3-22b-manifest.json"
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


def resident(line):
    for found in Path("/proc/self/status").read_text().splitlines():
        if found.startswith(line + ":"):
            return int(found.split()[1]) * 1024
    raise RuntimeError(f"no {line}")


def processor_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Program:
    """A measuring program that has not made its weights yet."""

    def __init__(self, name, arguments):
        self.name, self.arguments = name, arguments
        # Touch the libraries' code first: it is neither weights nor activations.
        x = torch.randn(64, 64, requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]).sum().backward()
        torch.nn.functional.conv3d(torch.randn(1, 8, 4, 8, 8), torch.randn(8, 8, 3, 3, 3))
        self.base_bytes = resident("VmRSS")

    def measure(self, weight_bytes, run):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        say(ready=self.name, weight_bytes=weight_bytes)
        number = 0
        while sys.stdin.readline() if self.arguments.step else number < self.arguments.repeats:
            start, processor = time.perf_counter(), processor_seconds()
            result = run()
            wall, processor = time.perf_counter() - start, processor_seconds() - processor
            if not math.isfinite(result):
                raise RuntimeError(f"{self.name}: the result is {result}")
            peak = resident("VmHWM")
            say(
                program=self.name,
                seconds=round(wall, 4),
                processor_seconds=round(processor, 2),
                above_weights_bytes=max(0, peak - self.base_bytes - weight_bytes),
                peak_bytes=peak,
            )
            number += 1


def say(**fields):
    print(json.dumps(fields), flush=True)


def size(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def random_weights(module, dtype=torch.float32):
    """The distribution of kiln's `random_values`, for a module built on the meta device."""
    module = module.to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in list(module.named_parameters()) + list(module.named_buffers()):
            last, fan_in = name.rsplit(".", 1)[-1], math.prod(tensor.shape[1:])
            if last.startswith("std") or (last == "weight" and tensor.dim() == 1):
                tensor.normal_(1.0, 0.1)
            elif last == "bias" or "scale_shift_table" in last or tensor.dim() <= 1:
                tensor.normal_(0.0, 0.1)
            else:
                tensor.normal_(0.0, 1.0 / math.sqrt(max(1, fan_in)))
    return module.requires_grad_(False)


class LoraLinear(torch.nn.Module):
    """base(x) + B(A(x)), as the peft library writes it."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.lora_A = torch.nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.lora_B = torch.nn.Parameter(torch.randn(base.out_features, rank) / math.sqrt(rank))

    def forward(self, x):
        low = torch.nn.functional.linear(x, self.lora_A)
        return self.base(x) + torch.nn.functional.linear(low, self.lora_B)


def adapt(block, rank):
    for path, module in list(block.named_modules()):
        if isinstance(module, torch.nn.Linear) and path.endswith(ADAPTED):
            parent, _, child = path.rpartition(".")
            setattr(block.get_submodule(parent), child, LoraLinear(module, rank))


def stream_args(heads, head_dim, cross_head_dim, tokens, text, per_token):
    """Inputs of one stream as `TransformerArgsPreprocessor` would hand them over."""
    from ltx_core.model.transformer.transformer_args import TransformerArgs

    width, noise = heads * head_dim, torch.randn
    # One timestep for all tokens, or (as the reference's trainer and pipelines do) one per token.
    steps = tokens if per_token else 1

    def modulation(rows):
        return (0.1 * noise(1, 1, rows * width)).repeat(1, steps, 1)

    def rope(head_dim):
        angle = noise(1, heads, tokens, head_dim // 2)
        return angle.cos(), angle.sin()

    return TransformerArgs(
        x=noise(1, tokens, width).requires_grad_(),
        context=noise(1, text, width),
        context_mask=None,
        timesteps=modulation(9),
        embedded_timestep=None,
        positional_embeddings=rope(head_dim),
        cross_positional_embeddings=rope(cross_head_dim),
        cross_scale_shift_timestep=modulation(4),
        cross_gate_timestep=0.1 * noise(1, 1, width),
        enabled=True,
        prompt_timestep=0.1 * noise(1, 1, 2 * width),
    )


def block(arguments):
    from ltx_core.model.transformer.rope import LTXRopeType
    from ltx_core.model.transformer.transformer import BasicAVTransformerBlock, TransformerConfig

    program = Program("block", arguments)
    config = json.loads(CONFIG.read_text())["config"]
    if arguments.save:
        small = dict(
            num_layers=1, num_attention_heads=4, attention_head_dim=16, cross_attention_dim=64,
            audio_num_attention_heads=4, audio_attention_head_dim=8, audio_cross_attention_dim=32,
        )
        config["transformer"].update(small)
        arguments.tokens, arguments.audio_tokens, arguments.text_tokens, arguments.rank = 24, 10, 12, 4
    t = config["transformer"]
    heads, head_dim, audio_head_dim = t["num_attention_heads"], t["attention_head_dim"], t["audio_attention_head_dim"]
    assert t["audio_num_attention_heads"] == heads

    def sizes(d):
        return TransformerConfig(
            dim=heads * d, heads=heads, d_head=d, context_dim=heads * d,
            apply_gated_attention=True, cross_attention_adaln=True,
        )  # fmt: skip

    with torch.device("meta"):
        module = BasicAVTransformerBlock(
            0, video=sizes(head_dim), audio=sizes(audio_head_dim), rope_type=LTXRopeType.SPLIT, norm_eps=t["norm_eps"]
        )
    module = random_weights(module)
    frozen = {f"model.diffusion_model.transformer_blocks.0.{n}": p for n, p in module.named_parameters()}
    adapt(module, arguments.rank)
    adapters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    each = arguments.timesteps == "each"
    video = stream_args(heads, head_dim, audio_head_dim, arguments.tokens, arguments.text_tokens, each)
    audio = stream_args(heads, audio_head_dim, audio_head_dim, arguments.audio_tokens, arguments.text_tokens, each)
    above = [torch.randn_like(s.x) for s in (video, audio)]
    wanted = [video.x, audio.x, *adapters.values()]

    def run():
        out = module(video, audio)
        gradients = torch.autograd.grad([out[0].x, out[1].x], wanted, above)
        return gradients[0].square().mean().item()

    if arguments.save:
        save_block(arguments.save, config, frozen, adapters, module, (video, audio), above, wanted)
        return
    program.measure(size(module.parameters()), run)


def save_block(path, config, frozen, adapters, module, streams, above, wanted):
    """Weights, inputs, outputs and gradients, named as `crates/model/benches/block.rs --check` reads them."""
    from safetensors.torch import save_file

    out = module(*streams)
    gradients = torch.autograd.grad([out[0].x, out[1].x], wanted, above)
    tensors = dict(frozen)
    for name, own, result, pull, gradient in zip(("video", "audio"), streams, out, above, gradients):
        width = own.x.shape[-1]
        rows = dict(
            x=own.x, above=pull, output=result.x, gradient=gradient, context=own.context,
            modulation=own.timesteps.reshape(1, 9, width), prompt=own.prompt_timestep.reshape(1, 2, width),
            cross_scale_shift=own.cross_scale_shift_timestep.reshape(1, 4, width), cross_gate=own.cross_gate_timestep,
        )
        for prefix, tables in (("", own.positional_embeddings), ("cross_", own.cross_positional_embeddings)):
            for kind, table in zip(("cos", "sin"), tables):
                rows[prefix + kind] = table.transpose(1, 2).flatten(2)
        tensors.update({f"{name}.{key}": value for key, value in rows.items()})
    for (name, factor), gradient in zip(adapters.items(), gradients[2:]):
        key = f"diffusion_model.transformer_blocks.0.{name}.weight"
        tensors[key], tensors[f"gradient.{key}"] = factor, gradient
    tensors = {key: value.detach().contiguous() for key, value in tensors.items()}
    save_file(tensors, path, metadata={"config": json.dumps(config), "model_version": "2.3"})
    say(saved=str(path), tensors=len(tensors))


def encoder(arguments):
    from ltx_core.model.video_vae import VideoEncoderConfigurator

    program = Program("encoder", arguments)
    config = json.loads(CONFIG.read_text())["config"]
    with torch.device("meta"):
        module = VideoEncoderConfigurator.from_config(config)
    module = random_weights(module).eval()
    pixels = torch.randn(1, 3, arguments.frames, arguments.pixels, arguments.pixels)

    @torch.no_grad()
    def run():
        return module(pixels).square().mean().item()

    program.measure(size(list(module.parameters()) + list(module.buffers())), run)


def gemma(arguments):
    from transformers import Gemma3TextConfig
    from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer, Gemma3RotaryEmbedding

    program = Program("gemma_layer", arguments)
    config = Gemma3TextConfig(
        hidden_size=3840, intermediate_size=15360, num_attention_heads=16, num_key_value_heads=8, head_dim=256,
        num_hidden_layers=48, sliding_window=1024, query_pre_attn_scalar=256,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        module = Gemma3DecoderLayer(config, 0)
    module = random_weights(module).eval()
    x = 60 * torch.randn(1, arguments.tokens, config.hidden_size)
    positions = torch.arange(arguments.tokens)[None]
    tables = Gemma3RotaryEmbedding(config)(x, positions, config.layer_types[0])
    # The window is not smaller than the caption: plain causal attention, for which SDPA needs no mask.
    assert arguments.tokens <= config.sliding_window

    @torch.no_grad()
    def run():
        y = module(x, position_embeddings=tables, attention_mask=None, position_ids=positions)
        y = y[0] if isinstance(y, tuple) else y
        return y.square().mean().item()

    program.measure(size(module.parameters()), run)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=["block", "encoder", "gemma"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--audio-tokens", type=int, default=50)
    parser.add_argument("--text-tokens", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--pixels", type=int, default=256, help="height and width")
    parser.add_argument("--timesteps", choices=["one", "each"], default="one", help="for all tokens, or per token")
    parser.add_argument("--save", type=Path, help="block: write a small problem and its solution instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    {"block": block, "encoder": encoder, "gemma": gemma}[arguments.program](arguments)


main()
