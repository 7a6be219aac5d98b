// Where a run is stuck: its quiet chains, how long they have been quiet, what is usual, and a button to cancel each.

import { html, usePage, useTicks } from "../ui.js";
import { clock, duration, lasting } from "../format.js";
import { stuckOf } from "../stuck.js";
import { oneLine } from "../text.js";
import { CancelButton } from "./cancel.js";
import { doingWords } from "./doing.js";

/** @typedef {import("../store.js").Row} Row */

const MOST = 8;

/**
 * Nothing if no chain is quiet. `all`: the chains from which is learned what is usual.
 * @param {{rows: readonly Row[], all?: readonly Row[], baseOf?: (runId: string) => import("./looks.js").Base}} props
 */
export function Stuck({ rows, all = rows, baseOf = () => ({}) }) {
  const { store, to } = usePage();
  const running = rows.some((row) => row.state === "running");
  useTicks(1000, running);
  const stuck = running ? stuckOf(rows, store.now, all) : [];
  if (!stuck.length) return null;
  return html`<section class="panel stuck-now" aria-label="Where is it stuck?"><h2>Where is it stuck?</h2>
    <ul class="stuck">${stuck.slice(0, MOST).map((each) => {
      const { row, silence } = each;
      const name = oneLine(row.chain_id, 60);
      return html`<li key=${row.chain_id}>
        <a class="link-button" href=${to({ ...baseOf(row.run_id), view: "chain", chain: row.chain_id })}>${name}</a>
        <span>${doingWords(row)}</span>
        <span><b>quiet for ${lasting(silence)}</b> <span class="muted">since ${clock(row.last_event_at)}; ${usual(each)}</span></span>
        <${CancelButton} target=${{ run: row.run_id, chain: row.chain_id }} open=${true} name=${name} />
      </li>`;
    })}</ul>
    ${stuck.length > MOST && html`<p class="small muted">and ${(stuck.length - MOST).toLocaleString("en")} more</p>`}
  </section>`;
}

/** @param {import("../stuck.js").Stuck} stuck */
function usual({ usual, activity }) {
  const what = { tool: "call", generating: "generation", scoring: "wait for a reward" }[activity] ?? "pause between turns";
  return usual === null ? `too few ${activity === "scoring" ? "waits" : `${what.split(" ")[0]}s`} have ended to tell what is usual` : `the median ${what} takes ${duration(usual)}`;
}
