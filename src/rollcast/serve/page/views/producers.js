// The producers of a hub, in the view of the runs: who is connected, who is silent and for how long, and what is wrong.

import { html, useEffect, usePage, useTicks, useTimer, useTopics } from "../ui.js";
import { duration, whole } from "../format.js";
import { isTroubled, producersInWords, producersOf } from "../producers.js";
import { oneLine } from "../text.js";

/** @typedef {import("../producers.js").Producer} Producer */

const MAX_ROWS = 50;
const AGAIN_MS = 5_000; // how often the hub is asked again

export function Producers() {
  const { feed, socket } = usePage();
  useTopics("session");
  const { isHub } = feed;
  useEffect(() => {
    if (isHub) feed.askSources();
  }, [feed, isHub]);
  useTimer(AGAIN_MS, isHub, () => feed.askSources());
  useTicks(1000, isHub);
  if (!isHub || feed.sources === null) return null;
  const { rows, at } = feed.sources;
  const producers = producersOf(rows, Math.max(0, socket.session.now() - at));
  const shown = producers.slice(0, MAX_ROWS);
  const more = producers.length - shown.length;
  if (!producers.length) return html`<section class="panel producers"><h2>Producers</h2><p class="muted">None has come yet.</p></section>`;
  return html`<details class="panel producers" open=${producers.some(isTroubled)}>
    <summary><h2>Producers</h2> <span class="muted small">${producersInWords(producers)}</span></summary>
    <div class="scroll-x" tabindex="0" role="region" aria-label="List of producers"><table class="runs">
      <thead><tr><th scope="col">source</th><th scope="col">host</th><th scope="col">state</th><th scope="col">open chains</th><th scope="col">refused</th><th scope="col">clock</th></tr></thead>
      <tbody>${shown.map((each) => html`<${Row} key=${each.source} each=${each} />`)}</tbody>
    </table></div>
    ${more > 0 && html`<p class="muted small">and ${whole(more)} more</p>`}
  </details>`;
}

/** @param {{each: Producer}} props */
function Row({ each }) {
  const { refused, causes, clockS } = each;
  const clock = clockS === null ? html`<span class="muted">–</span>` : html`<span class="warn">${lasting(Math.abs(clockS))} ${clockS > 0 ? "ahead" : "behind"}</span>`;
  return html`<tr>
    <td><bdi><b>${oneLine(each.source, 80)}</b></bdi></td><td data-name="host"><bdi>${oneLine(each.host, 60) || "–"}</bdi></td>
    <td data-name="state">${stateOf(each)}</td><td class="mono" data-name="open chains">${whole(each.chains)}</td>
    <td data-name="refused">${refused ? html`<span class="bad">${whole(refused)}</span> <span class="muted small">${causes.map((cause) => oneLine(cause, 40)).join(", ")}</span>` : html`<span class="mono">0</span>`}</td>
    <td data-name="clock">${clock}</td></tr>`;
}

/** In whole seconds, since the hub is asked only now and then. @param {number} seconds */
function lasting(seconds) {
  return seconds < 59.5 ? `${Math.round(seconds)} s` : duration(Math.round(seconds));
}

/** @param {Producer} each */
function stateOf({ state, silentS }) {
  if (state === "connected") return html`<span class="accent">● connected</span>`;
  const ago = lasting(silentS);
  return state === "silent" ? html`<span class="warn">◔ silent for ${ago}</span>` : html`<span class="muted">ended ${ago} ago</span>`;
}
