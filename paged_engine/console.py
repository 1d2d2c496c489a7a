"""What `verbose=True` prints: the event stream in words."""

from __future__ import annotations

from paged_engine import events as ev


class _Printer:
    """Follows the stream and prints a line where something is worth one."""

    def __init__(self) -> None:
        self._began = 0.0
        self._prefill: dict[str, int] = {}
        self._num_decoding = 0

    def __call__(self, event: ev.Event) -> None:
        match event:
            case ev.StepBegan():
                self._began = event.time
                self._prefill.clear()
                self._num_decoding = 0
            case ev.Scheduled() if event.num_tokens > 1:
                self._prefill[event.request_id] = event.num_tokens
            case ev.Scheduled():
                self._num_decoding += 1
            case ev.Allocated():
                print(f"[Alloc] {event.request_id}: blocks {_ids(event.block_ids)}")
            case ev.Hit():
                print(f"[Hit] {event.request_id}: blocks {_ids(event.block_ids)}")
            case ev.Copied():
                print(f"[Copy] block {event.source} to {event.target}")
            case ev.Freed():
                print(f"[Free] {event.request_id}: blocks {_ids(event.block_ids)}")
            case ev.Preempted():
                print(f"[Preempt] {event.request_id}")
            case ev.Finished():
                print(f"[Finish] {event.request_id}: {event.reason}")
            case ev.Aborted():
                print(f"[Abort] {event.request_id}")
            case ev.StepEnded():
                self._print_step(event)

    def _print_step(self, event: ev.StepEnded) -> None:
        ms = (event.time - self._began) * 1000
        if event.failed:
            print(f"[Step {event.step}] failed and was rolled back after {ms:.1f} ms")
            return
        if self._prefill:
            num_tokens = sum(self._prefill.values())
            print(f"[Prefill] batch of {len(self._prefill)}, {num_tokens} tokens, {ms:.1f} ms")
        print(
            f"[Step {event.step}] {event.num_tokens} tokens, {self._num_decoding} decoding, "
            f"{ms:.1f} ms"
        )


def _ids(block_ids: tuple[int, ...]) -> str:
    return " ".join(map(str, block_ids))


def event_printer() -> _Printer:
    """A listener for `EventLog.subscribe`."""
    return _Printer()
