"""Trains a logistic regression on the breast cancer data with the standard library.

    python train.py [--epochs N] [--rate R] [--l2 L]

Every fifth row is kept back for the test; the rest is standardised and fitted by
full-batch gradient descent. Writes model/model.json, and samples/one.json with a
row of the test set. The same arguments give the same file, bit for bit.
"""

import argparse
import csv
import json
import math
import pathlib

HERE = pathlib.Path(__file__).parent


def load():
    with open(HERE / "data" / "breast_cancer.csv", newline="") as f:
        rows = list(csv.reader(f))
    classes = rows[0][2:]
    data = [([float(v) for v in r[:-1]], int(r[-1])) for r in rows[1:]]
    train = [d for i, d in enumerate(data) if i % 5]
    test = [d for i, d in enumerate(data) if i % 5 == 0]
    return classes, train, test


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def fit(train, epochs, rate, l2):
    n, width = len(train), len(train[0][0])
    mean = [math.fsum(x[j] for x, _ in train) / n for j in range(width)]
    std = [math.sqrt(math.fsum((x[j] - mean[j]) ** 2 for x, _ in train) / n) or 1.0 for j in range(width)]
    scaled = [([(x[j] - mean[j]) / std[j] for j in range(width)], y) for x, y in train]
    weights, bias = [0.0] * width, 0.0
    for _ in range(epochs):
        grad, grad_bias = [0.0] * width, 0.0
        for x, y in scaled:
            miss = sigmoid(bias + sum(w * v for w, v in zip(weights, x))) - y
            grad_bias += miss
            for j, v in enumerate(x):
                grad[j] += miss * v
        weights = [w - rate * (g / n + l2 * w) for w, g in zip(weights, grad)]
        bias -= rate * grad_bias / n
    return mean, std, weights, bias


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--epochs", type=int, default=60)
    args.add_argument("--rate", type=float, default=0.5)
    args.add_argument("--l2", type=float, default=0.001)
    a = args.parse_args()
    classes, train, test = load()
    mean, std, weights, bias = fit(train, a.epochs, a.rate, a.l2)

    def right(rows):
        hits = 0
        for x, y in rows:
            z = bias + sum(w * (v - m) / s for w, v, m, s in zip(weights, x, mean, std))
            hits += (z >= 0) == (y == 1)
        return hits / len(rows)

    model = {"classes": classes, "mean": mean, "std": std, "weights": weights, "bias": bias, "epochs": a.epochs}
    (HERE / "model").mkdir(exist_ok=True)
    (HERE / "model" / "model.json").write_text(json.dumps(model, indent=1) + "\n")
    (HERE / "samples").mkdir(exist_ok=True)
    (HERE / "samples" / "one.json").write_text(json.dumps({"data": [test[0][0]]}) + "\n")
    print(f"{a.epochs} epochs: {right(train):.4f} right on the training rows, {right(test):.4f} on the test rows")


if __name__ == "__main__":
    main()
