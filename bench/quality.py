#!/usr/bin/env python3
"""What each quantization method costs on the reference model: the table of docs/quality.md.

Quantizes MODEL with every row of ROWS, then measures KL to the float model, perplexity and top-1 agreement with
`nibble eval --exact` on WikiText-2's test text and, read as text, on the questions of GSM8K. Prints the table as
Markdown. What is already in the work folder is not made again.

usage: bench/quality.py --model smollm2-135m-instruct-q8_0.gguf --data DATA --work FOLDER [--only ROW …]
       DATA holds wikitext2/{train,test}.txt and eval/gsm8k_test.jsonl
"""

import argparse
import json
import pathlib
import resource
import subprocess
import time

# name, flags of `nibble quantize`
ROWS = [
    ("rtn-asym", "--method rtn --asym"),
    ("rtn-sym", "--method rtn --sym"),
    ("gptq-asym", "--method gptq --asym"),
    ("gptq-sym", "--method gptq --sym"),
    ("gptq-asym-desc-act", "--method gptq --asym --desc-act"),
    ("gptq-asym-self", "--method gptq --asym --calibration self"),
    ("awq-asym", "--method awq"),
    ("awq-asym-gptq", "--method awq --rounding gptq"),
    ("awq-asym-self", "--method awq --calibration self"),
    ("rtn-asym-3bit", "--method rtn --asym --bits 3"),
    ("gptq-asym-3bit", "--method gptq --asym --bits 3"),
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
    parser.add_argument("--windows", type=int, default=4, help="of 2048 tokens")
    parser.add_argument("--only", nargs="*", default=[name for name, _ in ROWS])
    return parser.parse_args()


def import_model(arguments):
    """The float model in FP16, whatever it came as."""
    if arguments.model.is_dir():
        return arguments.model
    folder = arguments.work / "float"
    if not (folder / "config.json").exists():
        subprocess.run([arguments.nibble, "import", arguments.model, "--output", folder], check=True)
    return folder


def quantize(arguments, model, name, flags):
    """Seconds of CPU and of wall clock, remembered beside the checkpoint."""
    folder = arguments.work / name
    timing = arguments.work / f"{name}.json"
    if timing.exists():
        return json.loads(timing.read_text())
    command = [arguments.nibble, "quantize", model, "--output", folder, "--group-size", arguments.group_size]
    command += ["--samples", arguments.samples, "--seq-len", arguments.seq_len] + flags.split()
    if "--method rtn" not in flags and "--calibration" not in flags:
        command += ["--calibration", arguments.data / "wikitext2" / "train.txt"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    subprocess.run([str(word) for word in command], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = {
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_s": time.monotonic() - start,
    }
    timing.write_text(json.dumps(seconds))
    return seconds


def evaluate(arguments, model, names, text, report):
    """{name: metrics}, the float model under ''; remembered for the same list of names."""
    if report.exists():
        known = {entry["name"]: entry["metrics"] for entry in json.loads(report.read_text())["models"]}
        if set(known) == {str(model)} | {str(arguments.work / name) for name in names}:
            return known
    command = [arguments.nibble, "eval", *(arguments.work / name for name in names), "--baseline", model]
    command += ["--tasks", "ppl,kl", "--text", text, "--windows", arguments.windows, "--exact", "--json", report]
    subprocess.run([str(word) for word in command], check=True)
    return {entry["name"]: entry["metrics"] for entry in json.loads(report.read_text())["models"]}


def questions(arguments):
    """GSM8K's questions as one text."""
    text = arguments.work / "gsm8k.txt"
    rows = (arguments.data / "eval" / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
    text.write_text("\n\n".join(json.loads(row)["question"] for row in rows), encoding="utf-8")
    return text


def main():
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = import_model(arguments)
    rows = [(name, flags) for name, flags in ROWS if name in arguments.only]
    timings = {name: quantize(arguments, model, name, flags) for name, flags in rows}
    names = [name for name, _ in rows]
    wiki = evaluate(arguments, model, names, arguments.data / "wikitext2" / "test.txt", arguments.work / "wikitext2.eval")
    gsm = evaluate(arguments, model, names, questions(arguments), arguments.work / "gsm8k.eval")
    print("| flags | KL WikiText-2 | KL GSM8K | top-1 | perplexity | CPU s | wall s |")
    print("|---|---|---|---|---|---|---|")
    float_ppl = wiki[str(model)]["ppl"]["value"]
    print(f"| FP16 | 0 | 0 | 100 % | {float_ppl:.2f} | | |")
    for name, flags in rows:
        on_wiki = wiki[str(arguments.work / name)]
        on_gsm = gsm[str(arguments.work / name)]
        print(f"| `{flags}` | {on_wiki['kl']['value']:.4f} ± {on_wiki['kl']['standard_error']:.4f} "
              f"| {on_gsm['kl']['value']:.4f} ± {on_gsm['kl']['standard_error']:.4f} "
              f"| {100 * on_wiki['top1']['value']:.1f} % | {on_wiki['ppl']['value']:.2f} "
              f"| {timings[name]['cpu_s']:.0f} | {timings[name]['wall_s']:.0f} |")


if __name__ == "__main__":
    main()
