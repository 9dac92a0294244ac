#!/usr/bin/env python3
"""nibble's exact weighted k-means beside scikit-learn's, as the SqueezeLLM reference calls it: k-means++ once, at most
50 iterations, one row after another. One thread each, CPU time, the same rows, in one run.

usage: bench/kmeans.py [--rows N] [--json FILE --machine TEXT]     needs numpy and scikit-learn
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time
import warnings

import numpy
import sklearn
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

# inputs of a row: hidden and intermediate sizes of SmolLM2-135M, Llama-2-7B and Llama-2-70B
SIZES = [576, 1536, 4096, 11008, 28672]


def make_rows(size, rows, seed):
    """Weights as f16 holds them and a sensitivity that varies as a Fisher diagonal does, by column above all."""
    random = numpy.random.default_rng(seed)
    values = (random.standard_t(5, (rows, size)) * 0.03).astype(numpy.float16).astype(numpy.float32)
    columns = numpy.exp(random.normal(0, 1.5, size))
    weights = (columns * random.exponential(1, (rows, size)) * 1e-6).astype(numpy.float32)
    return values, weights


def run_nibble(binary, values, weights, centers):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        values.tofile(folder / "values")
        weights.tofile(folder / "weights")
        command = [binary, folder / "values", folder / "weights", values.shape[0], centers, 1, folder / "centers"]
        seconds = min(float(subprocess.run([str(word) for word in command], check=True, capture_output=True,
                                           text=True).stdout) for _ in range(3))
        return numpy.fromfile(folder / "centers", numpy.float32).reshape(-1, centers), seconds


def run_sklearn(values, weights, centers):
    found = numpy.empty((values.shape[0], centers), numpy.float32)
    start = time.process_time()
    for row in range(values.shape[0]):
        fit = KMeans(n_clusters=centers, random_state=0, n_init=1, max_iter=50).fit(
            values[row].reshape(-1, 1), sample_weight=weights[row])
        found[row] = fit.cluster_centers_.reshape(-1)
    return found, time.process_time() - start


def errors(values, weights, centers):
    distance = numpy.abs(values[:, :, None].astype(numpy.float64) - centers[:, None, :]).min(axis=2)
    return (weights * distance**2).sum(axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nibble-kmeans", default="build/release/bin/nibble_kmeans")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--json", type=pathlib.Path, help="write the record there too")
    parser.add_argument("--machine", default="", help="its description in the record")
    arguments = parser.parse_args()
    records = []
    warnings.filterwarnings("ignore")  # fewer distinct points than clusters, no convergence
    print("| inputs | centers | nibble ms a row | scikit-learn ms a row | times faster | error, scikit-learn = 1 "
          "| largest of a row |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        values, weights = make_rows(size, arguments.rows, seed=size)
        for centers in (16, 8):
            ours, our_seconds = run_nibble(arguments.nibble_kmeans, values, weights, centers)
            with threadpool_limits(1):
                theirs, their_seconds = run_sklearn(values, weights, centers)
            ratio = errors(values, weights, ours) / errors(values, weights, theirs)
            print(f"| {size} | {centers} | {1000 * our_seconds / arguments.rows:.3f} "
                  f"| {1000 * their_seconds / arguments.rows:.1f} | {their_seconds / our_seconds:.0f} "
                  f"| {ratio.mean():.3f} | {ratio.max():.6f} |")
            records.append({
                "shape": f"row of {size}", "method": f"k-means, {centers} centers", "phase": "quantize",
                "value": round(1000 * our_seconds / arguments.rows, 4), "unit": "CPU ms a row", "ceiling": None,
                "ratio": round(their_seconds / our_seconds, 1), "error_ratio": round(float(ratio.mean()), 4),
                "peer": {"name": f"scikit-learn {sklearn.__version__}",
                         "value": round(1000 * their_seconds / arguments.rows, 3)}})
    if arguments.json:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        record = {"machine": arguments.machine, "command": f"bench/kmeans.py --rows {arguments.rows}", "commit": commit,
                  "threads": 1, "limits": {}, "rows": records}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
