// Rows as they were at an earlier moment, from the rows of now and the events until then. Pure.
//
// A replay shows a run as it was: a chain that had not begun is not there, one that had not ended runs, and what was learned from it later
// is not known yet.

/** @typedef {import("./store.js").Row} Row */
/** @typedef {import("./chain_view.js").ChainView} ChainView */

/** The fields that only the end of a chain sets. */
const OF_THE_END = ["ended_at", "duration_s", "finish_reason", "reward", "metrics", "steps", "completion_tokens", "calls", "calls_failed", "tool_use", "truncated", "answer", "error", "error_where", "policy_last", "trajectory", "last", "times", "stays"]; // prettier-ignore
const ACTIVITIES = new Set(["waiting", "generating", "tool", "scoring"]);

/**
 * The row of a chain at a moment.
 * @param {Row} row as it is now
 * @param {ChainView | undefined} view the view after the events until the moment
 * @param {number} moment seconds since the epoch
 * @param {{learnedAt?: number | null, runEndedAt?: number | null}} [known] when a trainer learned from it, and when its run ended
 * @returns {Row | null} null if the chain had not begun
 */
export function rowAt(row, view, moment, { learnedAt = null, runEndedAt = null } = {}) {
  if (typeof row.started_at === "number" && row.started_at > moment) return null;
  const over = typeof row.ended_at === "number" && row.ended_at <= moment;
  /** @type {Row} */
  const then = { ...row };
  if (learnedAt === null || learnedAt > moment) {
    then.advantage = null;
    then.staleness = null;
  }
  if (over) return then;
  for (const name of OF_THE_END) delete then[name];
  delete then.open_tools;
  if (row.state === "lost" && (view?.state === "lost" || (runEndedAt !== null && runEndedAt <= moment))) return then;
  then.state = "running";
  then.activity = view !== undefined && ACTIVITIES.has(view.state) ? view.state : "waiting";
  then.step = view?.fields.step ?? null;
  then.last_event_at = view?.fields.last_event_at ?? row.started_at ?? null;
  then.reward = view?.fields.reward ?? null;
  then.completion_tokens = view?.tokens ?? 0;
  if (view !== undefined && view.toolCalls.size) {
    then.open_tools = [...new Set([...view.toolCalls.values()].filter((call) => call.status === null).map((call) => call.toolName))].sort();
  }
  return then;
}

/**
 * The row of a run at a moment.
 * @param {Record<string, any>} row as it is now
 * @param {readonly Row[]} chains the rows of its chains then; none if they are not known
 * @param {number} moment seconds since the epoch
 * @returns {Record<string, any> | null} null if the run had not begun
 */
export function runRowAt(row, chains, moment) {
  if (typeof row.started_at === "number" && row.started_at > moment) return null;
  if (typeof row.ended_at === "number" && row.ended_at <= moment) return row;
  const rewards = chains.map((each) => each.reward).filter((reward) => typeof reward === "number");
  return {
    ...row,
    status: "running",
    ended_at: null,
    duration_s: null,
    chains: chains.length,
    open_chains: chains.filter((each) => each.state === "running").length,
    failed: chains.filter((each) => each.finish_reason === "error").length,
    mean_reward: rewards.length ? rewards.reduce((sum, each) => sum + each, 0) / rewards.length : null,
    completion_tokens: chains.reduce((sum, each) => sum + (each.completion_tokens ?? 0), 0),
  };
}

/**
 * From when to when a run can be replayed, in seconds since the epoch.
 * @param {Record<string, any>} row of the run
 * @param {readonly Record<string, any>[]} others rows of its chains, and of the runs in it
 * @param {number} now
 * @returns {{start: number, end: number, goesOn: boolean} | null} null while it is not known when it began
 */
export function spanOf(row, others, now) {
  if (typeof row.started_at !== "number") return null;
  const start = row.started_at;
  if (typeof row.ended_at === "number") return { start, end: Math.max(row.ended_at, start), goesOn: false };
  if (row.status === "running") return { start, end: Math.max(now, start), goesOn: true };
  let end = start; // if its end was lost
  for (const each of others) {
    for (const at of [each.ended_at, each.last_event_at, each.started_at]) if (typeof at === "number") end = Math.max(end, at);
  }
  return { start, end, goesOn: false };
}
