// How a training learns: mean reward by step, and success on held-out questions.

import { html, useLayoutEffect, usePage, useRef, useState } from "../ui.js";
import { fixed } from "../format.js";
import { oneLine } from "../text.js";

const HEIGHT = 230;
const LEFT = 36;
const RIGHT = 150; // for the names of the lines
const TOP = 10;
const BOTTOM = 24;

/** @typedef {{name: string, kind: "mean" | "sampled" | "greedy", points: [number, number][]}} Line step and value */

/** A short course of a figure, without axes. @param {{values: number[], label: string}} props */
export function Spark({ values, label }) {
  if (values.length < 2) return null;
  const low = Math.min(...values);
  const height = Math.max(...values) - low || 1;
  const points = values.map((value, i) => `${((i / (values.length - 1)) * 100).toFixed(2)},${(20 - ((value - low) / height) * 18).toFixed(2)}`);
  return html`<svg class="spark" viewBox="0 0 100 22" preserveAspectRatio="none" role="img" aria-label=${label}>
    <polyline points=${points.join(" ")} />
  </svg>`;
}

/**
 * Numbers for an axis, not more than `most`.
 * @param {number} low
 * @param {number} high
 * @param {number} most
 */
export function ticks(low, high, most) {
  const span = high - low || 1;
  const rough = span / Math.max(most, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => span / each <= most) ?? rough;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

/** @param {{lines: Line[], last: number, chosen: number | null, unit: boolean}} props `last`: the last step of the axis; `unit`: it shows 0 to 1 at least */
export function Curve({ lines, last, chosen, unit }) {
  const { go, route } = usePage();
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const [width, setWidth] = useState(700);
  const [reading, read] = useState(/** @type {number | null} */ (null));
  useLayoutEffect(() => {
    if (!place.current) return undefined;
    const observer = new ResizeObserver((entries) => setWidth(Math.max(240, Math.round(entries[0]?.contentRect.width ?? 700))));
    observer.observe(place.current);
    return () => observer.disconnect();
  }, []);
  const shown = lines.filter((line) => line.points.length);
  const values = shown.flatMap((line) => line.points.map((point) => point[1]));
  if (!values.length) return html`<div class="curve" ref=${place}><p class="empty">The first step is not over yet.</p></div>`;
  const right = width < 480 ? 12 : RIGHT;
  const least = Math.min(...values);
  const most = Math.max(...values);
  const margin = most > least ? 0 : Math.abs(least) / 2 || 1; // a line that is flat stands in the middle
  const low = unit ? Math.min(0, least) : least - margin;
  const high = unit ? Math.max(1, most) : most + margin;
  const x = (/** @type {number} */ step) => LEFT + (step / Math.max(last, 1)) * (width - LEFT - right);
  const y = (/** @type {number} */ value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const known = [...new Set(shown.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  const stepAt = (/** @type {MouseEvent} */ event) => {
    const box = /** @type {HTMLElement} */ (event.currentTarget).getBoundingClientRect();
    const step = ((event.clientX - box.left - LEFT) / (width - LEFT - right)) * Math.max(last, 1);
    return known.reduce((near, each) => (Math.abs(each - step) < Math.abs(near - step) ? each : near), known[0] ?? 0);
  };
  const show = (/** @type {number} */ step) => go({ view: "overview", query: { ...(route.query.metric ? { metric: route.query.metric } : {}), step: [String(step)] } });
  const onKeyDown = (/** @type {KeyboardEvent} */ event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = reading === null ? -1 : known.indexOf(reading);
    /** @type {Record<string, number>} */
    const moves = { ArrowRight: at + 1, ArrowLeft: at < 0 ? known.length - 1 : at - 1, Home: 0, End: known.length - 1 };
    const next = moves[event.key];
    if (next !== undefined) read(known[Math.min(Math.max(next, 0), known.length - 1)] ?? null);
    else if (event.key === "Enter" && reading !== null) show(reading);
    else if (event.key === "Escape") read(null);
    else return;
    event.preventDefault();
  };
  const names = placed(shown, y, HEIGHT - BOTTOM);
  const end = Math.max(...shown.map((line) => line.points.at(-1)?.[0] ?? 0));
  const atStep = reading === null ? null : shown.map((line) => [line.name, line.points.find((point) => point[0] === reading)?.[1]]).filter((each) => each[1] !== undefined);
  return html`<div class="curve" ref=${place} role="group" tabindex="0" aria-label="Curve; arrow keys go from step to step, Enter shows its chains" onKeyDown=${onKeyDown}
      onFocus=${(/** @type {FocusEvent} */ event) => /** @type {HTMLElement} */ (event.currentTarget).matches(":focus-visible") && read(known.at(-1) ?? null)} onBlur=${() => read(null)}>
    <svg
      height=${HEIGHT}
      viewBox=${`0 0 ${width} ${HEIGHT}`}
      role="img"
      aria-label=${shown.map((line) => `${line.name}: ${fixed(line.points[0]?.[1])} at first, ${fixed(line.points.at(-1)?.[1])} at step ${line.points.at(-1)?.[0]}`).join("; ")}
      onMouseMove=${(/** @type {MouseEvent} */ event) => read(stepAt(event))}
      onMouseLeave=${() => read(null)}
      onClick=${(/** @type {MouseEvent} */ event) => {
        show(stepAt(event));
      }}
    >
      ${ticks(low, high, 4).map((value) => html`<line class="grid" x1=${LEFT} x2=${width - right} y1=${y(value)} y2=${y(value)} /><text x=${LEFT - 8} y=${y(value) + 4} text-anchor="end">${axis(value)}</text>`)}
      ${ticks(0, Math.max(last, 1), width < 480 ? 4 : 8)
        .filter(Number.isInteger)
        .map((step) => html`<text x=${x(step)} y=${HEIGHT - 5} text-anchor="middle">${step}</text>`)}
      ${chosen !== null && html`<line class="chosen" x1=${x(chosen)} x2=${x(chosen)} y1=${TOP} y2=${HEIGHT - BOTTOM} />`}
      ${reading !== null && html`<line class="now" x1=${x(reading)} x2=${x(reading)} y1=${TOP} y2=${HEIGHT - BOTTOM} />`}
      ${last > end && html`<line class="now" x1=${x(end)} x2=${x(end)} y1=${TOP} y2=${HEIGHT - BOTTOM} />`}
      ${shown.map((line) => html`<g class=${line.kind}>
        <polyline class=${line.kind} points=${line.points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ")} />
        ${line.kind === "sampled" && line.points.map(([step, value]) => html`<circle class="sampled" cx=${x(step)} cy=${y(value)} r="3.4" />`)}
        ${line.kind === "greedy" && line.points.map(([step, value]) => html`<rect class="dot greedy" x=${x(step) - 3} y=${y(value) - 3} width="6" height="6" />`)}
        ${line.kind === "mean" && line.points.length === 1 && html`<circle class="mean" cx=${x(/** @type {any} */ (line.points[0])[0])} cy=${y(/** @type {any} */ (line.points[0])[1])} r="2.6" />`}
        ${reading !== null && line.points.filter((point) => point[0] === reading).map(([step, value]) => html`<circle class=${`read ${line.kind}`} cx=${x(step)} cy=${y(value)} r="4.5" />`)}
      </g>`)}
      ${width >= 480 && names.map(({ line, at }) => html`<text class=${line.kind} x=${Math.min(x(end) + 10, width - right + 8)} y=${at + 4}>${oneLine(line.name, 18)} ${fixed(line.points.at(-1)?.[1], unit ? 2 : 3)}</text>`)}
    </svg>
    <div class="reading" aria-live="polite">${atStep && atStep.length > 0 ? `step ${reading}: ${atStep.map((each) => `${each[0]} ${fixed(/** @type {number} */ (each[1]), unit ? 2 : 4)}`).join(" · ")}` : ""}</div>
    ${width < 480 && html`<div class="legend">${shown.map((line) => html`<span class=${{ mean: "accent", sampled: "good", greedy: "muted" }[line.kind]}>${{ mean: "—", sampled: "○", greedy: "□" }[line.kind]} ${oneLine(line.name, 40)} ${fixed(line.points.at(-1)?.[1])}</span>`)}</div>`}
  </div>`;
}

/** A number at an axis. @param {number} value */
function axis(value) {
  return Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential() : String(value);
}

/** Where the names of the lines stand, so that none covers another. @param {Line[]} lines @param {(v: number) => number} y @param {number} bottom */
function placed(lines, y, bottom) {
  const found = lines.map((line) => ({ line, at: y(line.points.at(-1)?.[1] ?? 0) })).sort((a, b) => a.at - b.at);
  for (let i = 1; i < found.length; i += 1) {
    const [before, it] = [/** @type {any} */ (found[i - 1]), /** @type {any} */ (found[i])];
    it.at = Math.max(it.at, before.at + 15);
  }
  const over = (found.at(-1)?.at ?? 0) - bottom;
  if (over > 0) for (const each of found) each.at -= over;
  return found;
}
