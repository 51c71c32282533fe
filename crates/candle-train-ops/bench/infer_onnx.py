"""Times the inference of examples/step_bench.rs in onnxruntime, which folds the
batch normalisation and chooses its own layout.

usage: infer_onnx.py [threads] [steps] [batch]
"""

import resource
import sys
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
nodes, weights = [], []


def add(op, inputs, output, **attributes):
    nodes.append(helper.make_node(op, inputs, [output], **attributes))
    return output


def weight(name, values):
    weights.append(numpy_helper.from_array(values.astype(np.float32), name))
    return name


def conv_norm(x, name, i, o, kernel, stride):
    bound = (6 / (i * kernel * kernel)) ** 0.5
    w = weight(f"{name}.weight", rng.uniform(-bound, bound, (o, i, kernel, kernel)))
    pads = [kernel // 2] * 4
    y = add("Conv", [x, w], f"{name}.conv", kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
    statistics = [np.ones(o), np.zeros(o), np.zeros(o), np.ones(o)]
    names = [weight(f"{name}.norm{index}", values) for index, values in enumerate(statistics)]
    return add("BatchNormalization", [y, *names], f"{name}.norm", epsilon=1e-5)


def resnet18(batch):
    x = add("Relu", [conv_norm("image", "stem", 1, 64, 7, 2)], "stem.relu")
    x = add("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    i = 64
    blocks = [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]
    for index, (o, stride) in enumerate(blocks):
        name = f"block{index}"
        y = add("Relu", [conv_norm(x, f"{name}.first", i, o, 3, stride)], f"{name}.relu")
        y = conv_norm(y, f"{name}.second", o, o, 3, 1)
        shortcut = x if stride == 1 else conv_norm(x, f"{name}.shortcut", i, o, 1, stride)
        x = add("Relu", [add("Add", [y, shortcut], f"{name}.sum")], f"{name}.out")
        i = o
    x = add("Flatten", [add("GlobalAveragePool", [x], "mean")], "flat")
    head = [weight("head.weight", rng.uniform(-0.1, 0.1, (3, 512))), weight("head.bias", np.zeros(3))]
    add("Gemm", [x, *head], "logits", transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 224, 224])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])
    graph = helper.make_graph(nodes, "resnet18", [image], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main():
    threads, steps, batch = (int(arg) for arg in (sys.argv[1:] + ["1", "5", "16"][len(sys.argv) - 1 :]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    model = resnet18(batch).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    image = rng.standard_normal((batch, 1, 224, 224)).astype(np.float32)
    best_wall = best_cpu = float("inf")
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        session.run(None, {"image": image})
        best_wall = min(best_wall, time.perf_counter() - wall)
        best_cpu = min(best_cpu, time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"onnxruntime {onnxruntime.__version__} infer batch {batch} threads {threads}: "
        f"wall {best_wall * 1e3:.0f} ms, cpu {best_cpu * 1e3:.0f} ms, peak {peak:.0f} MiB"
    )


main()
