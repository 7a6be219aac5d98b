// How long a chain spent in each state, and in which.

import { html } from "../ui.js";
import { duration } from "../format.js";

const NAMES = /** @type {[string, string, string][]} */ ([
  ["generating", "generating", "generating"],
  ["tool", "in-tool", "in tools"],
  ["scoring", "scoring", "waiting for its reward"],
  ["waiting", "waiting", "between turns"],
]);

/** @param {{runId: string, chainId: string, view: import("../chain_view.js").ChainView}} props */
export function TimeLine({ view }) {
  const { times, since, last_event_at: last } = view.fields;
  const seconds = new Map([...times].map(([state, time]) => [state, time.seconds]));
  if (view.state !== "ended" && since !== null && last !== null) seconds.set(view.state, (seconds.get(view.state) ?? 0) + Math.max(last - since, 0));
  const parts = NAMES.map(([state, name, words]) => ({ name, words, seconds: seconds.get(/** @type {any} */ (state)) ?? 0 })).filter((part) => part.seconds > 0);
  const sum = parts.reduce((total, part) => total + part.seconds, 0);
  if (sum <= 0) return null;
  let at = 0;
  return html`<svg class="line-of-time" viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" aria-label=${parts.map((part) => `${part.words} ${duration(part.seconds)}`).join(", ")}>
      ${parts.map((part) => {
        const width = (part.seconds / sum) * 1000;
        const rect = html`<rect class=${part.name} x=${at} y="4" width=${Math.max(width, 2)} height="18" />`;
        at += width;
        return rect;
      })}
    </svg>
    <div class="legend">${parts.map((part) => html`<span><i class=${`swatch ${part.name}`}></i>${part.words} ${duration(part.seconds)}</span>`)}</div>`;
}
