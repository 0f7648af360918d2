"""Go over the networks of torchvision, pytorchcv and timm, and make a table of how they fare.

usage: python -m zoo [--output DIR] [--only PATTERN ...] [--limit N] [--jobs N] [--table FILE]

Each network has a process of its own, which may fail. Results are lines of JSON in results.jsonl
in --output (runs/zoo), as they come; a network that is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection, wait
from pathlib import Path

from zoo import measure, networks
from zoo.table import write_table


@dataclass
class Job:
    """A network that is being measured, and what is known of it so far."""

    name: str
    process: multiprocessing.Process
    results: Connection
    deadline: float
    result: dict

    def receive(self) -> bool:
        """Take what has come; whether the process is done."""
        try:
            while self.results.poll():
                update = self.results.recv()
                if update is None:
                    self.result.pop("step")
                    return True
                self.result = update
        except EOFError:
            return self._ended(f"the process ended ({self.process.exitcode})")
        if time.monotonic() > self.deadline:
            self.process.kill()
            return self._ended("took too long")
        return False

    def _ended(self, reason: str) -> bool:
        self.process.join()
        self.result.setdefault("failures", {})["process"] = reason
        return True


def main() -> int:
    args = parse_args()
    (args.output / "logs").mkdir(parents=True, exist_ok=True)
    file = args.output / "results.jsonl"
    known = file.read_text().splitlines() if file.exists() else []
    done = {json.loads(line)["name"] for line in known}
    chosen = [name for name in networks.names() if any(fnmatchcase(name, p) for p in args.only)]
    waiting = [name for name in chosen if name not in done][: args.limit]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo.measure"])
    running: list[Job] = []
    total = len(waiting)
    while waiting or running:
        while waiting and len(running) < args.jobs:
            running.append(start(context, waiting.pop(0), args))
        wait([job.results for job in running], timeout=1)
        for job in [job for job in running if job.receive()]:
            running.remove(job)
            job.process.join()
            with file.open("a") as lines:
                lines.write(json.dumps(job.result) + "\n")
            left = len(waiting) + len(running)
            print(f"{total - left}/{total} {summary(job.result)}", file=sys.stderr, flush=True)
    if args.table:
        write_table(file, args.table)
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--only", action="append", metavar="PATTERN", help="such as 'timm:*'")
    parser.add_argument("--limit", type=int, help="measure no more networks than this now")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=int, default=600, help="for one network")
    parser.add_argument("--memory", type=int, default=10, help="for one network, in GB")
    parser.add_argument("--until", default="parity", help="the last step, such as 'count'")
    parser.add_argument("--table", type=Path, help="Markdown file to write all results to")
    args = parser.parse_args()
    args.only = args.only or ["*"]
    return args


def start(context, name: str, args: argparse.Namespace) -> Job:
    receiver, sender = context.Pipe(duplex=False)
    log = args.output / "logs" / f"{name.replace(':', '-')}.txt"
    told = (name, log, args.memory << 30, args.until, sender)
    process = context.Process(target=measure.run, args=told)
    process.start()
    sender.close()
    return Job(name, process, receiver, time.monotonic() + args.seconds, {"name": name})


def summary(result: dict) -> str:
    """One line on a result."""
    failures = "; ".join(f"{step}: {why}" for step, why in result.get("failures", {}).items())
    parity = result.get("parity", {})
    figures = {
        "share": result.get("share_quantized"),
        "sqnr": result.get("sqnr_db"),
        "noise": result.get("input_noise_db"),
        "error": result.get("pass_through_error"),
        "parity": parity.get("optimized", {}).get("sqnr_db"),
        "seconds": sum(result.get("seconds", {}).values()),
    }
    shown = " ".join(f"{key} {value:.4g}" for key, value in figures.items() if value is not None)
    return f"{result['name']} {result.get('input_shape')} {shown} {failures}"


if __name__ == "__main__":
    sys.exit(main())
