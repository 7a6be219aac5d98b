// Where a run is stuck: chains that have sent nothing for much longer than their state usually lasts. Pure.

import { QUIET_S, usualOf } from "./hints.js";

/** @typedef {import("./store.js").Row} Row */

/**
 * A chain that is quiet. `usual`: the median of its state, or of a call of its tool, in seconds; null if too few have ended to say.
 * @typedef {{row: Row, silence: number, activity: string, tools: string[], usual: number | null}} Stuck
 */

const MIN_STAYS = 8; // a median needs this many stays that have ended
const UNKNOWN_S = 30; // being quiet for so long is worth showing even if there is nothing to compare it with
const GENERATING_S = 60; // rows do not show tokens, so all that is known of a generation is that it has not ended

/**
 * @param {readonly Row[]} rows of one run
 * @param {number} now seconds since the epoch, on the clock of the events
 * @param {readonly Row[]} [all] the rows that show what is usual
 * @returns {Stuck[]} the one that is quiet for longest first
 */
export function stuckOf(rows, now, all = rows) {
  /** @type {Map<string, {median: number, stays: number, least: number}>} */
  const known = new Map();
  /** @type {Stuck[]} */
  const found = [];
  for (const row of rows) {
    if (row.state !== "running" || typeof row.last_event_at !== "number") continue;
    const silence = now - row.last_event_at;
    if (silence < QUIET_S) continue; // whatever is usual
    const activity = String(row.activity ?? "waiting");
    const tools = [...(row.open_tools ?? [])].map(String).sort();
    let usual = { median: 0, stays: 0, least: Infinity };
    for (const tool of tools.length ? tools : [""]) {
      const key = `${activity}\n${tool}`;
      let each = known.get(key);
      if (!each) known.set(key, (each = usualOf(/** @type {Row[]} */ (all), activity, tool)));
      if (usual.stays === 0 || each.least > usual.least) usual = each;
    }
    const enough = usual.stays >= MIN_STAYS;
    if (silence < (enough ? usual.least : activity === "generating" ? GENERATING_S : UNKNOWN_S)) continue;
    found.push({ row, silence, activity, tools, usual: enough ? usual.median : null });
  }
  return found.sort((one, other) => other.silence - one.silence);
}
