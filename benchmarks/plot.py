"""`python -m benchmarks.plot`: draws the newest kept figures of `scale` as `plots/scale.svg`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from benchmarks.scale import MODES

__all__ = ["main", "newest_first"]

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 780, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 300, 50, 50
COLOURS = dict(
    zip(MODES, ("#888888", "#0072b2", "#009e73", "#d55e00", "#e69f00", "#cc79a7"), strict=True)
)  # Okabe and Ito's, which colour-blind readers tell apart

Points = dict[int, tuple[float, float, float]]  # chains at once: median, low, high


def main() -> None:
    """Draw the newest."""
    for path in newest_first():
        record = json.loads(path.read_text("utf-8"))
        lines = _lines(record["figures"])
        if lines and not record["quick"]:
            plot = FOLDER / "plots" / "scale.svg"
            plot.parent.mkdir(exist_ok=True)
            plot.write_text(_svg(lines, f"{record['cpu']}, {record['python']}, {record['date']}"), "utf-8")
            print(f"{plot.name} shows {path.name}")
            return
    raise SystemExit("no figures of scale are kept; make some: python -m benchmarks scale --save")


def newest_first() -> list[Path]:
    """The kept figures."""
    return sorted((FOLDER / "history").glob("*.json"), key=_age, reverse=True)


def _age(path: Path) -> tuple[str, int]:
    date, _, number = path.stem.rpartition("-")
    return date, int(number)


def _lines(figures: list[dict[str, object]]) -> dict[str, Points]:
    """By mode, what a token costs."""
    found: dict[str, Points] = {}
    names = {words: mode for mode, words in MODES.items()}
    for entry in figures:
        match = re.fullmatch(r"scale: ([\d,]+) at once, (.+), a token", str(entry["name"]))
        if match and match[2] in names:
            values = tuple(float(str(entry[key])) for key in ("value", "low", "high"))
            found.setdefault(names[match[2]], {})[int(match[1].replace(",", ""))] = values  # type: ignore[assignment]
    return found


def _svg(lines: dict[str, Points], about: str) -> str:
    sizes = sorted({n for points in lines.values() for n in points})
    top = max(high for points in lines.values() for _, _, high in points.values())
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if top / s <= 8)
    top = math.ceil(top / step) * step
    span = math.log(sizes[-1] / sizes[0]) or 1

    def x(n: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(n / sizes[0]) / span

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">CPU a token (µs) by chains at once</text>',
        f'<text x="{LEFT}" y="36" fill="#666666">{about}; medians and 95 % intervals</text>',
    ]
    for tick in range(0, int(top) + 1, step):
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#dddddd"/>',
            f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>',
        ]
    parts += [
        f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{n:,}</text>' for n in sizes
    ]
    for row, (mode, points) in enumerate(lines.items()):
        colour, path = COLOURS[mode], " ".join(f"{x(n):.1f},{y(v[0]):.1f}" for n, v in sorted(points.items()))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for n, (value, low, high) in points.items():
            at = f"{x(n):.1f}"
            parts += [
                f'<line x1="{at}" x2="{at}" y1="{y(low):.1f}" y2="{y(high):.1f}" stroke="{colour}"/>',
                f'<circle cx="{at}" cy="{y(value):.1f}" r="3" fill="{colour}"/>',
            ]
        at_row, words = TOP + 10 + 22 * row, MODES[mode]
        parts += [
            f'<circle cx="{WIDTH - RIGHT + 20}" cy="{at_row - 4}" r="4" fill="{colour}"/>',
            f'<text x="{WIDTH - RIGHT + 30}" y="{at_row}" font-size="11">{words}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
