// When a chain generated, waited for tools and paused, in order, and how long in all.

import { html, usePage } from "../ui.js";
import { duration } from "../format.js";
import { chainKey } from "../store.js";

const NAMES = /** @type {[string, string, string][]} */ ([
  ["generating", "generating", "generating"],
  ["tool", "in-tool", "in tools"],
  ["scoring", "scoring", "waiting for its reward"],
  ["waiting", "waiting", "between turns"],
]);
const WIDTH = 1000;

/** @param {{runId: string, chainId: string, view: import("../chain_view.js").ChainView}} props */
export function TimeLine({ runId, chainId, view }) {
  const { store } = usePage();
  const { times, since, last_event_at: last } = view.fields;
  const seconds = new Map([...times].map(([state, time]) => [/** @type {string} */ (state), time.seconds]));
  if (view.state !== "ended" && since !== null && last !== null) seconds.set(view.state, (seconds.get(view.state) ?? 0) + Math.max(last - since, 0));
  const parts = NAMES.map(([state, name, words]) => ({ name, words, seconds: seconds.get(state) ?? 0 })).filter((part) => part.seconds > 0);
  if (!parts.length) return null;
  const line = store.timeLines.get(chainKey(runId, chainId));
  const stretches = line?.stretches ?? [];
  const begin = stretches[0]?.from ?? 0;
  const end = Math.max(stretches.at(-1)?.to ?? last ?? 0, begin);
  const x = (/** @type {number} */ at) => (end > begin ? ((at - begin) / (end - begin)) * WIDTH : 0);
  return html`${stretches.length > 0 && html`<svg class="line-of-time" viewBox=${`0 0 ${WIDTH} 26`} preserveAspectRatio="none" role="img"
      aria-label=${`Over ${duration(end - begin)}: ${parts.map((part) => `${part.words} ${duration(part.seconds)}`).join(", ")}`}>
      ${stretches.map(({ doing, from, to }) => html`<rect class=${doing === "tool" ? "in-tool" : doing} x=${x(from)} y=${doing === "tool" ? 1 : doing === "scoring" ? 10 : 5} width=${Math.max(x(to ?? end) - x(from), doing === "tool" ? 3 : 1)} height=${doing === "tool" ? 24 : doing === "scoring" ? 6 : 16} />`)}
    </svg>`}
    <div class="legend">${parts.map((part) => html`<span><i class=${`swatch ${part.name}`}></i>${part.words} ${duration(part.seconds)}</span>`)}</div>
    ${stretches.length > 0 && !line?.whole && html`<p class="small muted">The line begins when this page began to watch the chain.</p>`}`;
}
