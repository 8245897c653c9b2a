"""Damage, the same for the same seed; how much of it, and the small files that it begins with."""

from __future__ import annotations

import os
import random
from pathlib import Path

CASES = int(os.environ.get("IFAN_FUZZ_CASES", "150"))
"""Cases of a target that takes less than a millisecond for one; slower ones take a share of it."""

SEED = int(os.environ.get("IFAN_FUZZ_SEED", "0"))
SEEDS = Path(__file__).resolve().parents[1] / "fuzz" / "seeds"


def seeds(suffix: str) -> dict[str, bytes]:
    """Files that fuzzing begins with, and files that it has found, by name."""
    found = {path.name: path.read_bytes() for path in sorted(SEEDS.glob(f"*{suffix}"))}
    assert found, f"no seeds *{suffix} in {SEEDS}"
    return found


def chance_of(*names: object) -> random.Random:
    """Random numbers of a target."""
    return random.Random(" ".join(map(str, (SEED, *names))))


def damaged(data: bytes, chance: random.Random, reach: float = 60) -> bytes:
    """``data`` with some bytes changed, left out or doubled, most of them within ``reach`` of the beginning."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 2, 5))):
        at = min(int(chance.expovariate(1 / reach)), len(out) - 1)
        length = chance.randrange(1, 9)
        turn = chance.randrange(4)
        if turn == 0:
            out[at] = chance.randrange(256)
        elif turn == 1:
            del out[at : at + length]
        elif turn == 2:
            out[at:at] = out[at : at + length]
        else:
            out[at : at + 2] = chance.choice((b"\0\0", b"\xff\xff", b"\xff\x01", b"\x01\x00"))
        out = out or bytearray(b"\0")
    return bytes(out)


def damaged_anywhere(data: bytes, chance: random.Random) -> bytes:
    """``data`` cut short, or damaged from a place in the middle on."""
    at = chance.randrange(len(data))
    return data[:at] if at and chance.random() < 0.2 else data[:at] + damaged(data[at:], chance)
