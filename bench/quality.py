#!/usr/bin/env python3
"""What each quantization method costs on the reference model: the table of docs/quality.md.

Quantizes MODEL with every row of ROWS, then measures KL to the float model and top-1 agreement over the first 4 windows
of WikiText-2's test text, perplexity over the first 20, and KL on GSM8K's questions read as text, with
`nibble eval --exact`. The rows that look at the end loss share one pass of its statistics (--statistics), which is in
the CPU seconds of the first of them. Prints the table as Markdown and writes what was measured to WORK/ROW.json; a row that has that
file is not measured again.

usage: bench/quality.py --model smollm2-135m-instruct-q8_0.gguf --data DATA --work FOLDER [--only ROW …] [--jobs 1]
       DATA holds wikitext2/{train,test}.txt and eval/gsm8k_test.jsonl
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import NamedTuple


class Row(NamedTuple):
    name: str
    flags: str  # of `nibble quantize`
    mark: float | None = None  # KL on WikiText-2 that it must not exceed
    eval_flags: str = ""

    def reads_end_loss(self):
        return "--guided" in self.flags or "squeezellm" in self.flags


ROWS = [
    Row("fp8", "--method fp8", 0.0146),
    Row("fp8-dynamic", "--method fp8", 0.0245, "--activations fp8"),
    Row("rtn-8bit-sym", "--method rtn --bits 8"),
    Row("gptq-8bit-sym", "--method gptq --bits 8", 0.0009),
    Row("rtn-asym", "--method rtn --asym"),
    Row("rtn-sym", "--method rtn --sym"),
    Row("gptq-asym", "--method gptq --asym", 0.10),
    Row("gptq-sym", "--method gptq --sym", 0.12),
    Row("gptq-asym-plain", "--method gptq --asym --drift-correction 0", 0.10),
    Row("gptq-sym-plain", "--method gptq --sym --drift-correction 0", 0.12),
    Row("awq-asym", "--method awq", 0.13),
    Row("awq-gptq-asym", "--method awq --rounding gptq", 0.082),
    Row("awq-gptq-drift-asym", "--method awq --rounding gptq --drift-correction 0.5"),
    Row("guided-asym", "--method gptq --guided --asym", 0.068),
    Row("guided-sym", "--method gptq --guided --sym", 0.078),
    Row("squeezellm-dense", "--method squeezellm --bits 4 --sparsity 0", 0.155),
    Row("squeezellm-sparse", "--method squeezellm --bits 4 --sparsity 0.45%", 0.094),
    Row("lnq-dense", "--method squeezellm --guided --bits 4 --sparsity 0", 0.088),
    Row("lnq-sparse", "--method squeezellm --guided --bits 4 --sparsity 0.45%", 0.059),
    Row("rtn-3bit-asym", "--method rtn --asym --bits 3"),
    Row("gptq-3bit-asym", "--method gptq --asym --bits 3", 0.42),
    Row("guided-3bit-asym", "--method gptq --guided --asym --bits 3", 0.30),
    Row("squeezellm-3bit-dense", "--method squeezellm --bits 3 --sparsity 0", 0.80),
    Row("squeezellm-3bit-sparse", "--method squeezellm --bits 3 --sparsity 0.45%", 0.45),
    Row("lnq-3bit-dense", "--method squeezellm --guided --bits 3 --sparsity 0", 0.36),
    Row("lnq-3bit-sparse", "--method squeezellm --guided --bits 3 --sparsity 0.45%", 0.265),
    Row("guided-2bit-asym", "--method gptq --guided --asym --bits 2", 1.6),
]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nibble", default="build/release/bin/nibble")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="GGUF file or Hugging Face folder")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--jobs", type=int, default=1, help="rows at the same time")
    parser.add_argument("--threads", type=int, default=0, help="of each; 0: all")
    parser.add_argument("--remove", action="store_true", help="the checkpoint of a measured row")
    parser.add_argument("--only", nargs="*", default=[row.name for row in ROWS])
    return parser.parse_args()


def run(command):
    """Seconds of CPU (user and system) and of wall clock."""
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {log.strip().splitlines()[-1:]}")
    return {"cpu_s": round(usage.ru_utime + usage.ru_stime, 1), "wall_s": round(time.monotonic() - start, 1)}


def import_model(arguments):
    """The float model in FP16, whatever it came as."""
    if arguments.model.is_dir():
        return arguments.model
    folder = arguments.work / "float"
    if not (folder / "config.json").exists():
        run([arguments.nibble, "import", arguments.model, "--output", folder])
    return folder


def questions(arguments):
    """GSM8K's questions as one text."""
    text = arguments.work / "gsm8k.txt"
    rows = (arguments.data / "eval" / "gsm8k_test.jsonl").read_text(encoding="utf-8").split("\n")
    text.write_text("\n\n".join(json.loads(row)["question"] for row in rows if row), encoding="utf-8")
    return text


def quantize(arguments, model, row, folder):
    command = [arguments.nibble, "quantize", model, "--output", folder, "--threads", arguments.threads]
    command += row.flags.split()
    if "fp8" not in row.flags and "squeezellm" not in row.flags:
        command += ["--group-size", arguments.group_size]
    if "rtn" not in row.flags and "fp8" not in row.flags:
        command += ["--calibration", arguments.data / "wikitext2" / "train.txt", "--samples", arguments.samples,
                    "--seq-len", arguments.seq_len]
    if row.reads_end_loss():
        command += ["--statistics", arguments.work / "statistics"]
    return run(command)


def evaluate(arguments, model, folder, row, tasks, text, windows):
    """Metrics of the quantized model, by name."""
    report = arguments.work / f"{row.name}.eval"
    command = [arguments.nibble, "eval", folder, "--tasks", tasks, "--text", text, "--windows", windows, "--exact",
               "--json", report, "--threads", arguments.threads, *row.eval_flags.split()]
    if "kl" in tasks:
        command += ["--baseline", model]
    run(command)
    models = json.loads(report.read_text())["models"]
    report.unlink()
    return models[-1]["metrics"] if len(models) == 1 else next(
        entry["metrics"] for entry in models if pathlib.Path(entry["name"]).name == folder.name)


def ensure_quantized(arguments, model, row, folder):
    """The seconds that it took, now or earlier."""
    timing = arguments.work / f"{row.name}.seconds"
    if not timing.exists():
        shutil.rmtree(folder, ignore_errors=True)
        timing.write_text(json.dumps(quantize(arguments, model, row, folder)))
    return json.loads(timing.read_text())


def measure(arguments, model, row, gsm8k):
    """Everything about one row, remembered."""
    result = arguments.work / f"{row.name}.json"
    if result.exists():
        return json.loads(result.read_text())
    folder = arguments.work / row.name
    seconds = ensure_quantized(arguments, model, row, folder)
    wiki = arguments.data / "wikitext2" / "test.txt"
    near = evaluate(arguments, model, folder, row, "ppl,kl", wiki, 4)
    far = evaluate(arguments, model, folder, row, "ppl", wiki, 20)
    other = evaluate(arguments, model, folder, row, "kl", gsm8k, 4)
    measured = {
        "flags": row.flags, "kl": near["kl"]["value"], "kl_error": near["kl"]["standard_error"],
        "top1": near["top1"]["value"], "ppl_4": near["ppl"]["value"], "ppl_20": far["ppl"]["value"],
        "kl_gsm8k": other["kl"]["value"], "kl_gsm8k_error": other["kl"]["standard_error"], **seconds,
        "bits": json.loads((folder / "nibble_report.json").read_text())["bits_per_weight"]}
    result.write_text(json.dumps(measured, indent=2) + "\n")
    print(f"{row.name}: {measured}", file=sys.stderr, flush=True)
    if arguments.remove:
        shutil.rmtree(folder)
    return measured


def table_line(row, measured):
    if measured is None:
        return f"| `{row.flags}` | not measured | | | | | | |"
    flags = " ".join(filter(None, [row.flags, row.eval_flags]))
    mark = "" if row.mark is None else f"{row.mark:g}"
    return (f"| `{flags}` | {measured['bits']:.2f} | {measured['kl']:.4f} ± {measured['kl_error']:.4f} | {mark} "
            f"| {100 * measured['top1']:.1f} % | {measured['ppl_20']:.2f} | {measured['kl_gsm8k']:.4f} "
            f"| {measured['cpu_s']:.0f} |")


def main():
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = import_model(arguments)
    gsm8k = questions(arguments)
    rows = [row for row in ROWS if row.name in arguments.only]
    results = {}
    failed = False
    # Alone: the others find its statistics.
    first = next((row for row in rows if row.reads_end_loss() and not (arguments.work / f"{row.name}.json").exists()), None)
    if first is not None:
        ensure_quantized(arguments, model, first, arguments.work / first.name)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(measure, arguments, model, row, gsm8k): row for row in rows}
        for future in concurrent.futures.as_completed(futures):
            row = futures[future]
            try:
                results[row.name] = future.result()
            except (RuntimeError, OSError, KeyError, StopIteration) as error:
                failed = True
                print(f"{row.name}: {error}", file=sys.stderr, flush=True)
    print("| flags | bits a weight | KL WikiText-2 | mark | top-1 | perplexity | KL GSM8K | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(table_line(row, results.get(row.name)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
