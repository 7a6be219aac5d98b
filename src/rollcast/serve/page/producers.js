// The producers of a hub: which of them send, which are silent, and what is wrong with one. Pure.

/** A row of the query `sources`, see docs/hub.md. @typedef {Record<string, any>} SourceRow */

/**
 * @typedef {{source: string, host: string, state: "connected" | "silent" | "ended", silentS: number, chains: number, refused: number, causes: string[],
 *   clockS: number | null}} Producer `silent`: it left a run open, and is not connected; `ended`: it left none. `clockS`: only if it is worth a warning
 */

const CLOCK_S = 60; // a larger difference of clocks is told, as the hub's own log does
/** @type {Record<Producer["state"], number>} */
const ORDER = { silent: 0, connected: 1, ended: 2 };

/**
 * The producers, those that are missed first, and those that have ended last.
 * @param {readonly SourceRow[]} rows
 * @param {number} [sinceS] how many seconds ago the hub told them
 * @returns {Producer[]}
 */
export function producersOf(rows, sinceS = 0) {
  const found = rows.map((row) => producerOf(row, sinceS));
  return found.sort((one, other) => ORDER[one.state] - ORDER[other.state] || (one.source < other.source ? -1 : 1));
}

/** @param {SourceRow} row @param {number} sinceS @returns {Producer} */
function producerOf(row, sinceS) {
  const causes = Object.entries(row.refused ?? {}).filter(([, count]) => typeof count === "number" && count > 0);
  const clock = typeof row.clock_s === "number" && Math.abs(row.clock_s) > CLOCK_S ? row.clock_s : null;
  return {
    source: String(row.source ?? ""),
    host: String(row.host ?? ""),
    state: row.connected ? "connected" : row.open_runs ? "silent" : "ended",
    silentS: (typeof row.silent_s === "number" ? row.silent_s : 0) + (row.connected ? 0 : sinceS),
    chains: typeof row.open_chains === "number" ? row.open_chains : 0,
    refused: causes.reduce((sum, [, count]) => sum + count, 0),
    causes: causes.map(([cause]) => cause),
    clockS: clock,
  };
}

/** Whether something is wrong with it that somebody should see. @param {Producer} producer */
export function isTroubled({ state, refused, clockS }) {
  return state === "silent" || refused > 0 || clockS !== null;
}

/** How many there are in each state, in words. @param {readonly Producer[]} producers */
export function producersInWords(producers) {
  const counts = { connected: 0, silent: 0, ended: 0 };
  for (const each of producers) counts[each.state] += 1;
  const { connected, silent, ended } = counts;
  return [`${connected} connected`, silent ? `${silent} silent` : "", ended ? `${ended} ended` : ""].filter(Boolean).join(", ");
}
