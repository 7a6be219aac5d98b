// Whether an evaluation took the likeliest token or sampled: its first chain says so.

/** @type {WeakMap<object, Map<string, number | null>>} */
const known = new WeakMap();

/**
 * The temperature of an evaluation's chains; null as long as it is not known.
 * @param {import("../ui.js").PageContext} page
 * @param {string} runId
 * @returns {number | null}
 */
export function temperatureOf({ store, feed }, runId) {
  let found = known.get(store);
  if (!found) known.set(store, (found = new Map()));
  if (found.has(runId)) return /** @type {number | null} */ (found.get(runId));
  found.set(runId, null);
  const all = found;
  feed.ask({ what: "chain", run: runId, chain: "chain_0", limit: 4 }, (rows) => {
    for (const event of rows) {
      const temperature = event.event_type === "llm_generation_start" ? event.data?.sampling?.temperature : undefined;
      if (typeof temperature !== "number") continue;
      all.set(runId, temperature);
      store.marks.runs.add(runId);
      store.touched();
    }
  }, `temperature of ${runId}`);
  return null;
}
