"""A worker that does what its first argument says; a program, not a test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from paged_engine.benchmark.processes.workers.protocol import Job, Limits, serve


class Fake:
    """Generates the prompt's first token over and over; and goes wrong as it is told to."""

    version = "1.2.3"

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.asked: list[list[int]] = []
        if BEHAVIOUR == "missing":
            import an_engine_that_nobody_has  # noqa: F401
        if BEHAVIOUR == "no load":
            raise ValueError("the model is\nof the wrong kind")
        if BEHAVIOUR == "hangs":
            time.sleep(3600)
        if BEHAVIOUR == "noisy":
            print("hello from the engine")
            os.write(1, b"and from its native part\n")
            subprocess.run(["echo", "and from a child"], check=True)
        if BEHAVIOUR == "child":
            subprocess.Popen(["sleep", "3600"], process_group=0)
        if BEHAVIOUR == "bfloat16 differs":
            self.version = limits.dtype

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        self.asked.append([job["num_tokens"] for job in jobs])
        if BEHAVIOUR == "cold" and len(jobs) > 1 and [4, 4] not in self.asked:
            raise ValueError("it was not warmed up with all jobs")
        is_turn = jobs[0]["num_tokens"] > 4  # neither the first token nor the warm-up
        if BEHAVIOUR == "dies" and is_turn:
            print("out of luck", file=sys.stderr)
            os._exit(3)
        if BEHAVIOUR == "no run" and is_turn:
            raise ValueError("no room")
        outputs = [[job["prompt"][0]] * job["num_tokens"] for job in jobs]
        if BEHAVIOUR == "fewer" and is_turn:
            return outputs[:-1]
        if BEHAVIOUR == "shorter" and is_turn:
            return [outputs[0][:-1], *outputs[1:]]
        if BEHAVIOUR == "bfloat16 differs" and is_turn and self.limits.dtype == "bfloat16":
            outputs[0][-1] += 1
        return outputs


if __name__ == "__main__":
    BEHAVIOUR = sys.argv[1]
    if BEHAVIOUR == "babbles":
        for _ in sys.stdin:
            print("ready when you are", flush=True)
    elif BEHAVIOUR == "other answer":
        for _ in sys.stdin:
            print('{"event": "done"}', flush=True)
    else:
        serve(Fake)
