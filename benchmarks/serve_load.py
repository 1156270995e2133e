"""Our gateway under load beside llama.cpp's own server, and beside what people write around `generate`.

    python benchmarks/serve_load.py RECORD MODELS [--rounds 6] [--threads N]
        [--parts streams,overhead,peers,start] [--model small-a|large] [--streams 1 8 32]

MODELS is what benchmarks/serve_models.py has made. Peers run at the same time and are asked in turns, in
rounds, by the same client with the same prompts; while one answers the other waits. A ratio is a mean over
pairs of rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keeping
from comparing import ratio, words
from serve_peers import Client, Peer, bare, gateway, new_key, transformers_serve, wrapper

STREAMS = (1, 8, 32)
TOKENS = 128  # of an answer
PROMPT = 240  # characters
EACH = {1: 3, 8: 2, 32: 2}  # answers of each stream in a round
MASKS = "card,cn_id,email,iban,ip,key,phone"
CALLS = 40  # of a round that measures single requests
OVER_TOKENS = 8
STARTS = 5
BATCHED, ALONE = 8, 3  # streams and rounds of the peers in Python
SAME = {"samplers": ["temperature", "top_p"]}  # llama.cpp's, as the gateway asks for them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--model", default="small-a")
    parser.add_argument("--kind", default="q8_0")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--parts", default="streams,overhead,peers,start")
    given = parser.parse_args()
    parts = given.parts.split(",")
    if "streams" in parts:
        for streams in given.streams:
            measure_streams(given, streams)
    if "overhead" in parts:
        measure_overhead(given)
    if "peers" in parts:
        measure_peers(given)
    if "start" in parts:
        measure_start(given)
    keeping.write_readme(given.record, readme(given.record))


def measure_streams(given: argparse.Namespace, streams: int) -> None:
    key = {
        "what": "streams", "model": given.model, "kind": given.kind, "streams": streams,
        "threads": given.threads,
        "rounds": given.rounds,
    }  # fmt: skip
    file = given.models / f"{given.model}-{given.kind}.gguf"

    def work() -> dict[str, Any]:
        with ExitStack() as ends:
            client = Client(ends)
            how = {"slots": streams, "threads": given.threads}
            peers = [
                ends.enter_context(gateway(file, given.models / "project", **how)),
                ends.enter_context(bare(file, **how)),
            ]
            return {"runs": alternating(client, peers, streams, given.rounds)}

    keeping.once(given.record, key, work)


def alternating(client: Client, peers: Sequence[Peer], streams: int, rounds: int) -> list[dict[str, Any]]:
    """Rounds of all peers: one to get warm, then as many as were asked for, in changing order."""
    texts = prompts()
    found = []
    for number in range(-1, rounds):
        bodies = [body(next(texts)) for _ in range(streams * EACH[streams])]
        told: dict[str, Any] = {}
        for peer in peers if number % 2 else peers[::-1]:
            told[peer.name] = one_round(client, peer, bodies, streams)
        same = [a == b for a, b in zip(*(each.pop("texts") for each in told.values()), strict=True)]
        if number >= 0:
            found.append({"peers": told, "same_texts": sum(same) / len(same)})
    return found


def one_round(client: Client, peer: Peer, bodies: Sequence[dict[str, Any]], streams: int) -> dict[str, Any]:
    before = peer.cpu()
    sent = [{**each, **SAME} for each in bodies] if peer.name == "llama.cpp" else bodies
    done = client.ask(peer, sent, streams)
    after = peer.cpu()
    if wrong := [each["error"] for each in done["answers"] if "error" in each]:
        raise RuntimeError(f"{peer.name}: {wrong[0]}")
    answers = done["answers"]
    tokens = sum(each["tokens"] for each in answers)
    return {
        "tokens": tokens, "seconds": done["seconds"], "tokens_per_second": tokens / done["seconds"],
        "first_ms": 1000 * statistics.median(each["first"] for each in answers),
        "whole_ms": 1000 * statistics.median(each["last"] for each in answers),
        "client_share": done["client_share"],
        "cpu_us_a_token": {name: 1e6 * (after[name] - before[name]) / tokens for name in after},
        "texts": [each["text"] for each in answers],
    }  # fmt: skip


def measure_overhead(given: argparse.Namespace) -> None:
    """One request at a time, whole answers of few tokens: what the way through the gateway takes."""
    key = {
        "what": "overhead",
        "model": given.model,
        "kind": given.kind,
        "threads": given.threads,
        "rounds": given.rounds,
    }
    file = given.models / f"{given.model}-{given.kind}.gguf"

    def work() -> dict[str, Any]:
        with ExitStack() as ends:
            client, project, how = (
                Client(ends),
                given.models / "project",
                {"slots": 1, "threads": given.threads},
            )
            peers = [
                ends.enter_context(gateway(file, project, **how)),
                ends.enter_context(
                    gateway(file, project, **how, name="gateway, masked", more=["--mask", MASKS])
                ),
                ends.enter_context(bare(file, **how)),
            ]
            texts, found = prompts(), []
            for number in range(-1, given.rounds):
                bodies = [body(next(texts), OVER_TOKENS, stream=False) for _ in range(CALLS)]
                told: dict[str, Any] = {}
                for peer in peers if number % 2 else peers[::-1]:
                    told[peer.name] = one_round(client, peer, bodies, 1)
                    del told[peer.name]["texts"]
                if number >= 0:
                    found.append({"peers": told})
            return {"runs": found}

    keeping.once(given.record, key, work)


def measure_peers(given: argparse.Namespace) -> None:
    """What people write around `generate`, beside the gateway with the same weights."""
    folder, threads = given.models / given.model, given.threads
    for kind in ("q8_0", "f32"):
        key = {"what": "peers", "model": given.model, "kind": kind, "threads": threads, "streams": BATCHED}

        def work(kind: str = kind) -> dict[str, Any]:
            file = given.models / f"{given.model}-{kind}.gguf"
            with ExitStack() as ends:
                client = Client(ends)
                ours = ends.enter_context(
                    gateway(file, given.models / "project", slots=BATCHED, threads=threads)
                )
                theirs = [
                    wrapper(folder, threads=threads, locked=True),
                    wrapper(folder, threads=threads, locked=False),
                    transformers_serve(folder, threads=threads, batching=False),
                    transformers_serve(folder, threads=threads, batching=True),
                ]  # fmt: skip
                return {"runs": list(beside(client, ours, theirs))}

        keeping.once(given.record, key, work)


def beside(client: Client, ours: Peer, theirs: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Rounds of ours and of each of theirs in turns; a peer that fails is named with its error."""
    texts = prompts()
    for opened in theirs:
        with opened as peer:
            try:
                for number in range(-1, ALONE):
                    bodies = [body(next(texts), stream=False) for _ in range(BATCHED)]
                    told = {each.name: one_round(client, each, bodies, BATCHED) for each in (ours, peer)}
                    for each in told.values():
                        del each["texts"]
                    if number >= 0:
                        yield {"peers": told}
            except RuntimeError as error:
                yield {"peer": peer.name, "error": str(error)}


def measure_start(given: argparse.Namespace) -> None:
    """From the start of the command's process to the first token, with files in the system's memory."""
    key = {"what": "start", "model": given.model, "kind": given.kind, "threads": given.threads}
    file, project = given.models / f"{given.model}-{given.kind}.gguf", given.models / "project"

    def work() -> dict[str, Any]:
        api_key, seconds, listening = new_key(project), [], []
        for _ in range(STARTS):
            with ExitStack() as ends:
                client = Client(ends)
                began = time.monotonic()
                peer = ends.enter_context(gateway(file, project, slots=8, threads=given.threads, key=api_key))
                listening.append(time.monotonic() - began)
                told = client.ask(peer, [body("Once upon a time", 1)], 1)["answers"][0]
                if "error" in told:
                    raise RuntimeError(told["error"])
                seconds.append(time.monotonic() - began)
        return {"seconds": seconds, "listening": listening}

    keeping.once(given.record, key, work)


def body(prompt: str, tokens: int = TOKENS, *, stream: bool = True) -> dict[str, Any]:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream, **options}


def prompts() -> Iterator[str]:
    """Ever new pieces of the standard library's source, the same in each run."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted([*folder.glob("*.py"), *folder.glob("asyncio/*.py"), *folder.glob("email/*.py")]):
        text = path.read_text(errors="replace")
        yield from (text[at : at + PROMPT] for at in range(0, len(text) - PROMPT, 7 * PROMPT))


def readme(record: Path) -> str:
    rows = keeping.read(record)
    lines = ["# The gateway under load\n", f"Machine: {keeping.machine()}.\n"]
    for what, table in (("streams", _streams), ("overhead", _overhead), ("peers", _peers), ("start", _start)):
        if found := [row for row in rows if row["what"] == what]:
            lines += table(found)
    lines.append("\n    benchmarks/serve_load.py RECORD MODELS\n")
    return "\n".join(lines)


def _of(row: dict[str, Any], peer: str, value: str) -> list[float]:
    return [run["peers"][peer][value] for run in row["runs"] if peer in run.get("peers", {})]


def _streams(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| model | threads | streams | llama.cpp, tokens/s | gateway | ratio | first token ms, llama.cpp |"
        " gateway |"
        " CPU us a token, gateway's process | client's share of a core | same texts | load |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        theirs, ours = (_of(row, name, "tokens_per_second") for name in ("llama.cpp", "gateway"))
        first, ours_first = (statistics.median(_of(row, n, "first_ms")) for n in ("llama.cpp", "gateway"))
        cpu = statistics.median(each["own"] for each in _of(row, "gateway", "cpu_us_a_token"))  # type: ignore[index]
        share = max(_of(row, "gateway", "client_share") + _of(row, "llama.cpp", "client_share"))
        same = statistics.mean(run["same_texts"] for run in row["runs"])
        yield (
            f"| {row['model']}, {row['kind']} | {row['threads']} | {row['streams']} |"
            f" {statistics.median(theirs):,.0f} | {statistics.median(ours):,.0f} |"
            f" {words(ratio(ours, theirs), 3)} | {first:.1f} | {ours_first:.1f} |"
            f" {cpu:.0f} | {share:.2f} | {same:.0%} | {row['load_before']:.1f} to {row['load_after']:.1f} |"
        )


def _overhead(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "\n| model | threads | llama.cpp, ms a request | gateway adds ms | masked | load |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        base = _of(row, "llama.cpp", "whole_ms")
        added = [
            statistics.median(
                ours - theirs for ours, theirs in zip(_of(row, name, "whole_ms"), base, strict=True)
            )
            for name in ("gateway", "gateway, masked")
        ]
        yield (
            f"| {row['model']}, {row['kind']} | {row['threads']} | {statistics.median(base):.2f} |"
            f" {added[0]:+.2f} | {added[1]:+.2f} | {row['load_before']:.1f} to {row['load_after']:.1f} |"
        )


def _peers(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "\n| model | threads | peer at 8 streams | its tokens/s | gateway | ratio | load |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        load = f"{row['load_before']:.1f} to {row['load_after']:.1f}"
        start = f"| {row['model']}, {row['kind']} | {row['threads']} |"
        runs = [run["peers"] for run in row["runs"] if "peers" in run]
        for name in dict.fromkeys(name for run in runs for name in run if name != "gateway"):
            theirs, ours = (
                [run[each]["tokens_per_second"] for run in runs if name in run] for each in (name, "gateway")
            )
            yield (
                f"{start} {name} | {statistics.median(theirs):,.0f} | {statistics.median(ours):,.0f} |"
                f" {words(ratio(ours, theirs))} | {load} |"
            )
        for run in row["runs"]:
            if "error" in run:
                yield f"{start} {run['peer']} | {run['error'][:200]} | | | {load} |"


def _start(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "\n| model | threads | seconds to the first token, median | fastest to slowest | starts | load |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        seconds = sorted(row["seconds"])
        yield (
            f"| {row['model']}, {row['kind']} | {row['threads']} | {statistics.median(seconds):.2f} |"
            f" {seconds[0]:.2f} to {seconds[-1]:.2f} | {len(seconds)} |"
            f" {row['load_before']:.1f} to {row['load_after']:.1f} |"
        )


if __name__ == "__main__":
    main()
