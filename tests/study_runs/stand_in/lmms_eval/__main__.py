"""Takes lmms-eval's arguments and writes logs of its shape at once; misbehaves as the folder `$STAND_IN` tells it.

`$STAND_IN/how.json`: {"total": documents of every task, "pad": characters per answer, "sleep": seconds,
"faults": {"MODEL:OFFSET": [what happens at the first attempt, at the second, ...]}}. Every call leaves a file there.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def arguments() -> dict[str, str]:
    given, found = sys.argv[1:], {}
    while given:
        name = given.pop(0)
        found[name.removeprefix("--")] = given.pop(0) if given and not given[0].startswith("--") else ""
    return found


def samples(path: Path, numbers: range, model: str, task: str, pad: int) -> list[str]:
    lines = []
    for i in numbers:
        right = not (model.endswith("fastv") and i % 4 == 1)
        answer = ("yes" if right else "no") + "." * pad
        row = {"doc_id": i, "target": "yes", "filtered_resps": answer, "input": f"{task} {i}?"}
        lines.append(json.dumps({**row, "exact_match": float(right), "token_counts": [{"output_tokens": 1}]}))
    return lines


def write(args: dict[str, str], how: dict, fault: str) -> None:
    total, offset = how["total"], int(args.get("offset", 0))
    limit = float(args["limit"]) if "limit" in args else None
    stop = total if limit is None else min(total, offset + int(limit))
    home = Path(args["output_path"]) / "demo"
    home.mkdir(parents=True)
    stamp = "20260101_000000"
    tasks = args["tasks"].split(",")
    numbers = range(offset, stop - 1) if fault == "missing" else range(offset, stop)
    results = {"results": {}, "configs": {}, "versions": {}, "n-samples": {}, "higher_is_better": {}}
    for task in tasks:
        lines = samples(home, numbers, args["model"], task, how.get("pad", 0))
        scores = [json.loads(line)["exact_match"] for line in lines]
        mean = sum(scores) / len(scores) if scores else 0.0
        results["results"][task] = {
            "alias": task,
            "exact_match,none": mean,
            "exact_match_stderr,none": 0.1,
            "f1,none": mean,
        }
        results["configs"][task] = {
            "metric_list": [
                {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
                {"metric": "f1", "aggregation": "<function f1>"},
            ]
        }
        results["versions"][task] = 1
        results["n-samples"][task] = {"original": total, "effective": min(total, int(limit or total))}
        text = "\n".join(lines) + "\n"
        text = {
            "truncate": text[:-30],
            "no newline": text[:-1],
            "garbage": text + "{]\n",
            "twice": text + lines[0] + "\n",
        }.get(fault, text)
        if fault != "no samples" and not (fault == "no ai2d" and task == "ai2d"):
            (home / f"{stamp}_samples_{task}.jsonl").write_text(text)
    config = {"model": args["model"], "model_args": args["model_args"], "limit": limit, "offset": offset}
    config["batch_size"] = args["batch_size"]
    results |= {"config": config, "date": stamp, "model_name_sanitized": "demo", "lmms_eval_version": "0.7.3"}
    if fault != "no results":
        (home / f"{stamp}_results.json").write_text(json.dumps(results))


def main() -> None:
    folder, args = Path(os.environ["STAND_IN"]), arguments()
    how = json.loads((folder / "how.json").read_text())
    where = f"{args['model']}:{args.get('offset', 0)}"
    calls = [json.loads(path.read_text()) for path in folder.glob("call-*")]
    attempt = sum(call["where"] == where for call in calls)
    call = {"where": where, "pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), **args}
    faults = how.get("faults", {}).get(where, [])
    fault = faults[attempt] if attempt < len(faults) else ""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) if fault == "hang" else None
    if child is not None:
        call["child"] = child.pid
    begun = folder / f".{os.getpid()}"
    begun.write_text(json.dumps(call))
    begun.rename(folder / f"call-{time.time_ns()}-{os.getpid()}")
    print(f"this is the stand-in, {fault or 'nothing wrong'}", flush=True)
    time.sleep(600 if fault == "hang" else how.get("sleep", 0))
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "exit 9" or (fault == "ai2d ends it" and "ai2d" in args["tasks"]):
        sys.exit(9)
    try:
        write(args, how, fault)
    except OSError as error:  # as lmms-eval does
        print(f"Could not save results: {error}")


main()
