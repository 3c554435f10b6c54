#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Trains the byte-level transformer that samples/generate runs, on the CPU. README.md beside it has the commands.

    apt-get install python3-torch libopenblas0-pthread jargon-text
    ./train.py --text /usr/share/doc/jargon-text/jargon.txt.gz --heads-kv 1 --out model.safetensors

Of the text every 20th block of 8 KiB is held out: it is never trained on, and the losses are over all of it.
"""
import argparse
import gzip
import json
import math
import os
import struct
import time

import torch
import torch.nn.functional as F
from torch import nn

BLOCK, HELD_OUT_EVERY, HELD_OUT_FILE = 8192, 20, 4


def read_text(path):
    data = (gzip.open if path.endswith(".gz") else open)(path, "rb").read()
    blocks = [data[i:i + BLOCK] for i in range(0, len(data), BLOCK)]
    held_out = blocks[HELD_OUT_EVERY - 1::HELD_OUT_EVERY]
    train = b"".join(b for i, b in enumerate(blocks) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1)
    return train, held_out


def rotation(length, head_dim, theta):
    frequencies = theta ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    angles = torch.outer(torch.arange(length).double(), frequencies)
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):  # [batch, heads, tokens, head_dim], element i turns with element i + head_dim / 2
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.heads_q, self.heads_kv, self.head_dim = o.heads_q, o.heads_kv, o.head_dim
        self.q = nn.Linear(o.width, o.heads_q * o.head_dim, bias=False)
        self.k = nn.Linear(o.width, o.heads_kv * o.head_dim, bias=False)
        self.v = nn.Linear(o.width, o.heads_kv * o.head_dim, bias=False)
        self.o = nn.Linear(o.heads_q * o.head_dim, o.width, bias=False)

    def forward(self, x, cos, sin, mask):
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads_q, self.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, tokens, self.heads_kv, self.head_dim).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.heads_kv, self.head_dim).transpose(1, 2)
        # Query head h reads KV head h / (heads_q / heads_kv): the heads of a group are rows of one matrix.
        group = self.heads_q // self.heads_kv
        q = rotate(q, cos, sin).reshape(batch * self.heads_kv, group * tokens, self.head_dim) * self.head_dim ** -0.5
        k, v = rotate(k, cos, sin).flatten(0, 1), v.flatten(0, 1)
        # One by one: batched products are slow where torch was built without MKL, and so the weights stay in cache.
        out = []
        for i in range(batch * self.heads_kv):
            scores = (q[i] @ k[i].T).view(group, tokens, tokens) + mask
            out.append(scores.softmax(-1).view(group * tokens, tokens) @ v[i])
        out = torch.stack(out).view(batch, self.heads_q, tokens, self.head_dim).transpose(1, 2)
        return self.o(out.reshape(batch, tokens, -1))


class Mlp(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.gate = nn.Linear(o.width, o.mlp_width, bias=False)
        self.up = nn.Linear(o.width, o.mlp_width, bias=False)
        self.down = nn.Linear(o.mlp_width, o.width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.attention_norm, self.attention = RmsNorm(o.width, o.eps), Attention(o)
        self.mlp_norm, self.mlp = RmsNorm(o.width, o.eps), Mlp(o)

    def forward(self, x, cos, sin, mask):
        x = x + self.attention(self.attention_norm(x), cos, sin, mask)
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.embedding = nn.Embedding(256, o.width)  # its rows are the output projection too
        self.layers = nn.ModuleList(Layer(o) for _ in range(o.layers))
        self.norm = RmsNorm(o.width, o.eps)
        cos, sin = rotation(o.context, o.head_dim, o.theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        mask = torch.full((o.context, o.context), -math.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith((".o.weight", ".down.weight"))
                nn.init.normal_(weight, std=0.04 / (math.sqrt(2 * o.layers) if last else 1))

    def forward(self, tokens):
        length = tokens.shape[1]
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length], self.mask[:length, :length])
        return F.linear(self.norm(x), self.embedding.weight)


def loss_of(model, batch):
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model, held_out, context):
    """Mean over windows of context + 1 bytes of the held-out blocks."""
    windows = [torch.tensor(list(b[i:i + context + 1])) for b in held_out
               for i in range(0, len(b) - context, context)]
    losses = [loss_of(model, torch.stack(windows[i:i + 16])) * len(windows[i:i + 16])
              for i in range(0, len(windows), 16)]
    return float(sum(losses)) / len(windows)


def save(path, model, metadata):
    """One safetensors file: u64 size of the header, the header (JSON), the tensors in f16."""
    header, parts, offset = {"__metadata__": {k: str(v) for k, v in metadata.items()}}, [], 0
    for name, weight in model.named_parameters():
        data = weight.detach().half().contiguous().numpy().astype("<f2").tobytes()
        header[name] = {"dtype": "F16", "shape": list(weight.shape), "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".tmp", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(parts))
    os.replace(path + ".tmp", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--held-out", help="write a held-out block here, for --perplexity")
    parser.add_argument("--heads-q", type=int, default=8)
    parser.add_argument("--heads-kv", type=int, default=1)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--mlp-width", type=int, default=432)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--theta", type=float, default=10000.0)
    parser.add_argument("--eps", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)

    train, held_out = read_text(o.text)
    if o.held_out:
        with open(o.held_out, "wb") as f:
            f.write(held_out[HELD_OUT_FILE])
    data = torch.frombuffer(bytearray(train), dtype=torch.uint8)
    model = Model(o)
    count = sum(w.numel() for w in model.parameters())
    print(f"{len(train)} bytes to train on, {sum(map(len, held_out))} held out, {count} parameters", flush=True)
    matrices = [w for w in model.parameters() if w.dim() == 2]
    others = [w for w in model.parameters() if w.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}],
                                  lr=o.rate, betas=(0.9, 0.95))

    metadata = {"format": "vkmqa-generate", "num_heads_q": o.heads_q, "num_heads_kv": o.heads_kv,
                "rope_theta": o.theta, "rms_eps": o.eps, "context": o.context, "parameters": count,
                "text": os.path.basename(o.text), "seed": o.seed, "steps": o.steps,
                "tokens": o.steps * o.batch * o.context,
                "command": "train.py " + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in vars(o).items()
                                                  if k not in ("text", "out", "held_out"))}
    # The batches do not depend on the model: the same seed draws the same ones for any number of heads.
    draw = torch.Generator().manual_seed(o.seed)
    began, mean = time.time(), None
    for step in range(o.steps):
        warm = min(1, (step + 1) / 100)
        rate = o.rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / o.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(data) - o.context, (o.batch,), generator=draw)
        batch = torch.stack([data[s:s + o.context + 1] for s in starts]).long()
        loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 25 == 0:
            print(f"step {step + 1} loss {mean:.4f} {(time.time() - began) / (step + 1):.3f} s/step", flush=True)
        if (step + 1) % 200 == 0 and step + 1 < o.steps:
            save(o.out + ".checkpoint", model, dict(metadata, steps_done=step + 1))
    with torch.no_grad():  # the losses of what is saved
        for weight in model.parameters():
            weight.copy_(weight.half().float())
    metadata["train_loss"] = f"{mean:.4f}"
    metadata["held_out_loss"] = f"{held_out_loss(model, held_out, o.context):.4f}"
    save(o.out, model, metadata)
    print(f"{o.out}: held-out loss {metadata['held_out_loss']} nats per byte, {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
