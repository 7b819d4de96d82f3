#!/usr/bin/env python3
"""Trains the model of this example and writes it as ONNX: shapes.onnx. Needs nothing but Python; the same every time.

The model tells four shapes apart, drawn on 8x8 cells: 64 numbers -> 16 (ReLU) -> 4 (softmax). The drawings that it learns
from are made here, at every place and size that fits, with noise.
"""
import math
import random
import struct
from pathlib import Path

SIDE, HIDDEN = 8, 16
CLASSES = ["circle", "cross", "square", "triangle"]
rng = random.Random(1)


def draw(kind, size, top, left):
    """The cells of one shape that is `size` cells high and wide."""
    cells = set()
    last = size - 1
    for y in range(size):
        for x in range(size):
            edge = x in (0, last) or y in (0, last)
            if kind == "square":
                on = edge
            elif kind == "cross":
                on = x in (last // 2, size // 2) or y in (last // 2, size // 2)
            elif kind == "circle":
                on = abs(math.hypot(x - last / 2, y - last / 2) - last / 2) < 0.5
            else:
                left_leg, right_leg = round((last - y) / 2), last - round((last - y) / 2)
                on = x in (left_leg, right_leg) or y == last
            if on:
                cells.add((top + y) * SIDE + left + x)
    return cells


def sample():
    kind = rng.randrange(len(CLASSES))
    size = rng.randint(5, SIDE)
    cells = draw(CLASSES[kind], size, rng.randint(0, SIDE - size), rng.randint(0, SIDE - size))
    for _ in range(rng.randint(0, 3)):
        cells ^= {rng.randrange(SIDE * SIDE)}
    return sorted(cells), kind


def forward(weights, cells):
    w1, b1, w2, b2 = weights
    hidden = [max(0.0, b1[j] + sum(w1[i][j] for i in cells)) for j in range(HIDDEN)]
    scores = [b2[k] + sum(hidden[j] * w2[j][k] for j in range(HIDDEN)) for k in range(len(CLASSES))]
    top = max(scores)
    powers = [math.exp(s - top) for s in scores]
    return hidden, [p / sum(powers) for p in powers]


def train(steps=24000):
    w1 = [[rng.gauss(0, 0.15) for _ in range(HIDDEN)] for _ in range(SIDE * SIDE)]
    w2 = [[rng.gauss(0, 0.3) for _ in CLASSES] for _ in range(HIDDEN)]
    b1, b2 = [0.0] * HIDDEN, [0.0] * len(CLASSES)
    weights = (w1, b1, w2, b2)
    for step in range(steps):
        cells, kind = sample()
        rate = 0.05 * (1 - step / steps)
        hidden, probabilities = forward(weights, cells)
        wrong = [p - (k == kind) for k, p in enumerate(probabilities)]
        back = [sum(w2[j][k] * wrong[k] for k in range(len(CLASSES))) if hidden[j] > 0 else 0.0 for j in range(HIDDEN)]
        for k, error in enumerate(wrong):
            b2[k] -= rate * error
            for j in range(HIDDEN):
                w2[j][k] -= rate * error * hidden[j]
        for j, error in enumerate(back):
            b1[j] -= rate * error
            for i in cells:
                w1[i][j] -= rate * error
    return weights


# ONNX is a protobuf: a field is its number and wire type, then a varint or a length and bytes.
def varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out + bytes([n]))


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, dims, numbers):
    raw = struct.pack(f"<{len(numbers)}f", *numbers)
    return b"".join(field(1, d) for d in dims) + field(2, 1) + field(8, name) + field(9, raw)


def value(name, width):
    batch, columns = field(2, "batch"), field(1, width)
    shape = field(1, batch) + field(1, columns)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))


def node(kind, inputs, output, attribute=b""):
    return b"".join(field(1, i) for i in inputs) + field(2, output) + field(3, output) + field(4, kind) + attribute


def onnx(weights):
    w1, b1, w2, b2 = weights
    flat = lambda rows: [x for row in rows for x in row]
    axis = field(5, field(1, "axis") + field(3, 1) + field(20, 2))
    graph = b"".join(field(1, n) for n in [
        node("Gemm", ["cells", "w1", "b1"], "sums"),
        node("Relu", ["sums"], "hidden"),
        node("Gemm", ["hidden", "w2", "b2"], "scores"),
        node("Softmax", ["scores"], "probabilities", axis),
    ])
    graph += field(2, "shapes")
    graph += b"".join(field(5, t) for t in [
        tensor("w1", [SIDE * SIDE, HIDDEN], flat(w1)), tensor("b1", [HIDDEN], b1),
        tensor("w2", [HIDDEN, len(CLASSES)], flat(w2)), tensor("b2", [len(CLASSES)], b2),
    ])
    graph += field(11, value("cells", SIDE * SIDE)) + field(12, value("probabilities", len(CLASSES)))
    return field(1, 8) + field(2, "coracle-example") + field(7, graph) + field(8, field(1, "") + field(2, 13))


def main():
    weights = train()
    tests = [sample() for _ in range(2000)]
    right = sum(max(range(len(CLASSES)), key=forward(weights, c)[1].__getitem__) == k for c, k in tests)
    path = Path(__file__).with_name("shapes.onnx")
    path.write_bytes(onnx(weights))
    print(f"{path.name}: {path.stat().st_size} bytes, {right / len(tests):.1%} of {len(tests)} new drawings recognised")


main()
