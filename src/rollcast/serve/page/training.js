// Runs, trainings and their steps, from the rows that queries gave and the events that came since. Pure.

/** @typedef {import("./store.js").Store} Store */
/** @typedef {Record<string, any> & {run_id: string}} RunRow */

const TOLD = ["parent_run_id", "name", "tags", "agent", "model", "split", "train_step", "policy_version", "started_at", "ended_at", "duration_s", "expected_chains", "expected_groups"];

/** What is known of a run. @param {Store} store @param {string | null} id @returns {RunRow | null} */
export function runRow(store, id) {
  if (id === null) return null;
  const row = store.runRow(id);
  if (row === null) return null;
  const fields = store.views.runs.get(id)?.fields;
  if (!fields) return row ? { ...row, run_id: id } : null;
  /** @type {RunRow} */
  const merged = { ...row, run_id: id };
  for (const name of TOLD) merged[name] = fields[name] ?? row?.[name] ?? null;
  merged.model = row?.model || fields.model || null; // the row also names those that its chains called
  merged.status = fields.status === "unknown" ? (row?.status ?? "running") : fields.status;
  if (fields.ended_at !== null) merged.mean_reward = store.views.runs.get(id)?.meanReward ?? row?.mean_reward ?? null;
  return merged;
}

/** All runs, the newest first. @param {Store} store @returns {RunRow[]} */
export function allRuns(store) {
  const ids = new Set([...store.runRows.keys(), ...store.views.runs.keys()]);
  ids.delete("");
  const rows = [...ids].map((id) => runRow(store, id)).filter((row) => row !== null);
  return rows.sort((a, b) => (b.started_at ?? 0) - (a.started_at ?? 0) || (a.run_id < b.run_id ? 1 : -1));
}

/** The runs that are no part of another one, the newest first. @param {RunRow[]} runs */
export function rootsOf(runs) {
  const known = new Set(runs.map((row) => row.run_id));
  return runs.filter((row) => !row.parent_run_id || !known.has(row.parent_run_id));
}

/** The run that a page without a run in its address shows: the newest that goes on, else the newest. @param {RunRow[]} runs */
export function latestRun(runs) {
  const roots = rootsOf(runs);
  return (roots.find((row) => row.status === "running") ?? roots[0])?.run_id ?? null;
}

/** The runs of a training, in order. @param {RunRow[]} runs @param {string | null} id @returns {RunRow[]} */
export function childrenOf(runs, id) {
  return runs.filter((row) => row.parent_run_id === id && id !== null).reverse();
}

/**
 * The run whose chains are meant: of a training its rollouts of that step, else its evaluation after it; without a step the latest rollouts;
 * of another run, itself.
 * @param {RunRow[]} runs
 * @param {string | null} id
 * @param {string | undefined} step
 */
export function rolloutOf(runs, id, step) {
  const children = childrenOf(runs, id);
  const training = children.filter((row) => row.split !== "eval");
  const ofStep = (/** @type {RunRow[]} */ rows) => rows.filter((row) => String(row.train_step) === step).at(-1);
  const wanted = step === undefined ? training.at(-1) : (ofStep(training) ?? ofStep(children));
  return (wanted ?? (step === undefined ? children.at(-1) : undefined))?.run_id ?? (children.length ? null : id);
}

/**
 * How the chains of a run are addressed: those of a training's rollout by the training and its step, others by their run.
 * @param {RunRow[]} runs
 * @param {string} id
 * @returns {{run: string, query: Record<string, string[]>}}
 */
export function addressOf(runs, id) {
  const row = runs.find((each) => each.run_id === id);
  const parent = row?.parent_run_id;
  const ofStep = row && parent && row.split !== "eval" && typeof row.train_step === "number" && runs.some((each) => each.run_id === parent);
  // Of several rollouts of a step, its address leads to the latest alone.
  return ofStep && rolloutOf(runs, parent, String(row.train_step)) === id ? { run: parent, query: { step: [String(row.train_step)] } } : { run: id, query: {} };
}

const MAX_SUMMARIES = 300; // steps of a training that trends are found in, the latest

/**
 * The summaries of the rollouts of a training that have ended, in order.
 * @param {RunRow[]} runs
 * @param {string | null} id
 * @param {string | undefined} until the last step that counts; undefined: the latest one
 * @returns {import("./hints.js").StepSummary[]}
 */
export function summariesOf(runs, id, until) {
  const training = childrenOf(runs, id).filter((row) => row.split !== "eval" && row.status !== "running" && row.summary && (until === undefined || (row.train_step ?? 0) <= Number(until)));
  return training.slice(-MAX_SUMMARIES).map((row) => row.summary);
}

/**
 * The runs whose chains are shown together: the rollout of the chosen step; without one, all rollouts that go on, since an asynchronous
 * trainer has several steps in flight, in the order of their steps; else the latest rollout.
 * @param {RunRow[]} runs
 * @param {string | null} id
 * @param {string | undefined} step
 * @returns {string[]}
 */
export function rolloutsOf(runs, id, step) {
  const latest = rolloutOf(runs, id, step);
  if (step !== undefined) return latest === null ? [] : [latest];
  const open = childrenOf(runs, id).filter((row) => row.split !== "eval" && row.status === "running");
  if (open.length < 2) return latest === null ? [] : [latest];
  return open.sort((one, other) => (one.train_step ?? 0) - (other.train_step ?? 0)).map((row) => row.run_id);
}

/** The steps of a training, in order. @param {Store} store @param {string | null} id @returns {Record<string, any>[]} */
export function trainSteps(store, id) {
  /** @type {Map<number, Record<string, any>>} */
  const found = new Map();
  const { moment } = store;
  for (const row of store.stepRows.get(id ?? "") ?? []) {
    if (row.row === "train_step" && (moment === null || row.timestamp <= moment)) found.set(row.train_step, row);
  }
  for (const row of store.views.runs.get(id ?? "")?.fields.train_steps ?? []) found.set(/** @type {number} */ (row.train_step), row);
  return [...found.values()].sort((a, b) => a.train_step - b.train_step);
}

/** The evaluations of a training that are over, in order. @param {RunRow[]} runs @param {string | null} id */
export function evaluationsOf(runs, id) {
  return childrenOf(runs, id).filter((row) => row.split === "eval" && row.status === "completed" && typeof row.mean_reward === "number");
}
