"""Scores rows of the breast cancer data: {"data": [[30 numbers], ...]}."""

import json
import math
import os

model = None


def init():
    global model
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.json")) as f:
        model = json.load(f)


def probability(row):
    if len(row) != len(model["weights"]):
        raise ValueError(f"a row needs {len(model['weights'])} numbers, this one has {len(row)}")
    z = model["bias"]
    for value, mean, std, weight in zip(row, model["mean"], model["std"], model["weights"]):
        z += weight * (value - mean) / std
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def run(data):
    out = []
    for row in json.loads(data)["data"]:
        p = probability(row)
        out.append({"class": model["classes"][int(p >= 0.5)], "benign": round(p, 6)})
    return out
