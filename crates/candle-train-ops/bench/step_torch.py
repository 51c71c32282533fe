"""Times what examples/step_bench.rs does in PyTorch, channels last.

usage: step_torch.py [train|infer][-cuda][-bf16][-compiled] [threads] [steps] [batch]

bf16 is autocast: weights and optimiser stay f32. On a GPU a "step" is the median over
groups of ten, with cuDNN's benchmark mode and the fused optimiser; `compiled` is
torch.compile. The share of the convolutions is that of PyTorch's profiler.
"""

import resource
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv_norm(i, o, kernel, stride):
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(o)
    )


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.first = conv_norm(i, o, 3, stride)
        self.second = conv_norm(o, o, 3, 1)
        self.shortcut = conv_norm(i, o, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, x):
        y = F.relu(self.first(x), inplace=True)
        return F.relu(self.second(y) + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(1, 64, 7, 2)
        blocks, i = [], 64
        for o, stride in [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]:
            blocks.append(Block(i, o, stride))
            i = o
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x), inplace=True), 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))


def on_gpu(step, mode, batch, groups):
    def group():
        start = time.perf_counter()
        for _ in range(10):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 100

    for _ in range(3):
        group()
    wall = sorted(group() for _ in range(groups))[groups // 2]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        group()
    convolutions = everything = 0.0
    for event in profile.key_averages():
        everything += event.self_device_time_total
        name = event.key.lower()
        if any(word in name for word in ("conv", "xmma", "cutlass", "dgrad", "wgrad", "implicit")):
            convolutions += event.self_device_time_total
    print(
        f"PyTorch {torch.__version__} {mode} batch {batch}: wall {wall:.3f} ms, kernels {everything / 1e4:.3f} ms, "
        f"of these convolutions {convolutions / 1e4:.3f} ms, "
        f"peak {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU"
    )


def main():
    mode = sys.argv[1] if len(sys.argv) > 1 else "train"
    threads, steps, batch = (int(arg) for arg in (sys.argv[2:] + ["1", "5", "16"][len(sys.argv) - 2 :]))
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    device = "cuda" if "-cuda" in mode else "cpu"
    net = ResNet18().to(device, memory_format=torch.channels_last)
    x = torch.randn(batch, 1, 224, 224).to(device, memory_format=torch.channels_last)
    label = (torch.arange(batch) % 3).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=device == "cuda")
    autocast = torch.autocast(device, torch.bfloat16, enabled="-bf16" in mode)

    def train():
        with autocast:
            loss = F.cross_entropy(net(x), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    @torch.inference_mode()
    def infer():
        with autocast:
            net(x)

    net.train(mode.startswith("train"))
    step = train if mode.startswith("train") else infer
    if mode.endswith("-compiled"):
        net = torch.compile(net)
    if device == "cuda":
        on_gpu(step, mode, batch, steps)
        return
    best_wall = best_cpu = float("inf")
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        best_wall = min(best_wall, time.perf_counter() - wall)
        best_cpu = min(best_cpu, time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"PyTorch {torch.__version__} {mode} batch {batch} threads {threads}: wall {best_wall * 1e3:.0f} ms, "
        f"cpu {best_cpu * 1e3:.0f} ms, peak {peak:.0f} MiB"
    )


main()
