// What a watcher knows about runs: `RunView` for one, `RunViews` for all of them; the twin of rollcast/records/run_view.py.
//
// Like a chain's view, they take any event and never throw, and their memory is bounded as there.

import { isObject, number, own, whole, word } from "./bounded.js";
import { ChainView } from "./chain_view.js";
import { countOf, errorOf, moment, objectOf, secondsOf, seqOf, small, textOf, words } from "./view_parts.js";

/** @typedef {import("./chain_view.js").StreamEvent} StreamEvent */

const MAX_CHAINS = 4_096;
const MAX_STEPS = 1_024;
const MAX_RUNS = 512;
const MAX_ALL_CHAINS = 16_384; // in all runs
const MAX_ENDED_WEIGHT = 8_388_608; // weight of the conversations of a run's ended chains
const WHOLE_RUNS = 8; // how many ended runs keep conversations
const MAX_SOURCES = 4_096;
const WORST_FIRST = ["failed", "unknown", "cancelled"];
const STATUSES = new Set(["completed", "cancelled", "failed"]);

/** @param {ChainView} view */
function isClosed(view) {
  return view.state === "ended" || view.state === "lost";
}

/** @typedef {{train_step: number | null, policy_version: number | null, metrics: Record<string, any>, timestamp: number | null}} TrainStep */

/**
 * A run on one source: how it ended, null before; whether its `run_start` was seen; the source that tells what the run as a whole is,
 * null if it does itself; and what its `run_start` and its `run_end` tell.
 * @typedef {{status: string | null, begun: boolean, leader: string | null, chains: number | null, groups: number | null, duration: number | null,
 *   meanReward: number | null, tokens: number | null}} SourcePart
 */

export class RunView {
  constructor(runId = "") {
    this.runId = runId;
    /** What the run's row has, named as in JSON. @type {Record<string, any> & {ended_at: number | null, train_steps: TrainStep[]}} */
    this.fields = {
      status: "unknown",
      started_at: null,
      last_event_at: null,
      ended_at: null,
      expected_chains: null,
      expected_groups: null,
      agent: null,
      model: null,
      backend: null,
      policy_version: null,
      parent_run_id: null,
      train_step: null,
      split: null,
      name: null,
      tags: null,
      seed: null,
      omitted: 0, // chains that were dropped
      gaps: 0,
      errors: 0,
      error: null,
      train_steps: [],
      duration_s: null,
    };
    /** @type {Map<string, ChainView>} in the order in which they were first seen */
    this.chains = new Map();
    /** @type {Map<string, number>} weights of ended chains' conversations, earliest first */
    this.endedWeights = new Map();
    this.endedWeight = 0; // their sum
    this.omittedTotals = { failed: 0, tokens: 0, reward: 0, rewards: 0 };
    /** @type {Map<string, SourcePart>} its part on each source, in the order in which they were first seen */
    this.sources = new Map();
    /** @type {Map<string, number>} by source: the last `seq` of events that concern only the run */
    this.asOf = new Map();
    this.said = { meanReward: /** @type {number | null} */ (null), tokens: /** @type {number | null} */ (null) };
  }

  /** How many chains ended with `error`. */
  get failed() {
    let count = this.omittedTotals.failed;
    for (const view of this.chains.values()) count += view.fields.finish_reason === "error" ? 1 : 0;
    return count;
  }

  /** How many tokens were sampled, as far as is known. */
  get tokens() {
    let count = this.omittedTotals.tokens;
    for (const view of this.chains.values()) count += view.tokens;
    return Math.max(count, this.said.tokens ?? 0);
  }

  /** The mean over the chains that have a reward, from `run_end` or as far as it is known. @returns {number | null} */
  get meanReward() {
    if (this.said.meanReward !== null) return this.said.meanReward;
    let sum = 0;
    let count = this.omittedTotals.rewards;
    for (const view of this.chains.values()) {
      if (view.fields.reward === null) continue;
      sum += view.fields.reward;
      count += 1;
    }
    return count ? number((this.omittedTotals.reward + sum) / count) : null;
  }

  /**
   * Take the next event, in place. Of other runs' events, only a `train_step` that names its chains changes it.
   * @param {StreamEvent} event
   * @param {boolean} [toChains] whether the end of the run, or a gap in it, concerns its chains too
   */
  apply(event, toChains = true) {
    const kind = textOf(event.event_type);
    if ((event.run_id ?? "") !== this.runId) {
      if (this.runId || this.chains.size || this.fields.status !== "unknown") {
        if (kind === "train_step") learned(this, event);
        return;
      }
      this.runId = textOf(event.run_id);
    }
    if (typeof event.chain_id !== "string" || !event.chain_id) {
      const isNew = applyToRun(this, event, kind, objectOf(event.data));
      if (isNew && toChains && (kind === "gap" || kind === "run_end")) applyToChains(this, event, kind);
      return;
    }
    const source = event.source === undefined ? "" : event.source;
    if (typeof source === "string" && !this.sources.has(source)) partOf(this, source);
    const view = this.chains.get(event.chain_id) ?? newChain(this, event.chain_id);
    const hadEnded = view.state === "ended";
    view.apply(event);
    this.fields.last_event_at = view.fields.last_event_at ?? this.fields.last_event_at;
    if (view.state === "ended" && !hadEnded) chainEnded(this, event.chain_id, view.conversation.weight);
  }

  /** Drop the conversations of all ended chains. */
  forgetMessages() {
    for (const view of this.chains.values()) if (isClosed(view)) view.forgetMessages();
    this.endedWeights = new Map();
    this.endedWeight = 0;
  }
}

/**
 * @param {RunView} run
 * @param {string} chainId
 */
function newChain(run, chainId) {
  if (run.chains.size >= MAX_CHAINS) {
    let found = first(run.chains.keys());
    for (const [name, view] of run.chains) {
      if (isClosed(view)) {
        found = name;
        break;
      }
    }
    letGo(run, found);
  }
  const view = new ChainView();
  run.chains.set(chainId, view);
  return view;
}

/**
 * @param {RunView} run
 * @param {string} chainId
 * @param {number} weight
 */
function chainEnded(run, chainId, weight) {
  const weights = run.endedWeights;
  run.endedWeight += weight - (weights.get(chainId) ?? 0);
  weights.delete(chainId);
  weights.set(chainId, weight);
  while (run.endedWeight > MAX_ENDED_WEIGHT && weights.size > 1) {
    const earliest = first(weights.keys());
    run.endedWeight -= weights.get(earliest) ?? 0;
    weights.delete(earliest);
    const view = run.chains.get(earliest);
    if (view?.state === "ended") view.forgetMessages(); // and has not begun again
  }
}

/**
 * @param {RunView} run
 * @param {string} chainId
 */
function letGo(run, chainId) {
  const view = run.chains.get(chainId);
  if (view === undefined) return;
  run.chains.delete(chainId);
  run.endedWeight -= run.endedWeights.get(chainId) ?? 0;
  run.endedWeights.delete(chainId);
  run.fields.omitted += 1;
  const totals = run.omittedTotals;
  totals.failed += view.fields.finish_reason === "error" ? 1 : 0;
  totals.tokens += view.tokens;
  if (view.fields.reward !== null) {
    totals.reward += view.fields.reward;
    totals.rewards += 1;
  }
}

/**
 * @param {RunView} run
 * @param {StreamEvent} event
 * @param {string} kind
 * @param {Record<string, any>} data
 * @returns {boolean} whether it was not seen before
 */
function applyToRun(run, event, kind, data) {
  const source = textOf(event.source);
  const seq = seqOf(event.seq);
  const before = run.asOf.get(source);
  const fields = run.fields;
  if (kind === "gap") {
    const last = seqOf(data.to_seq);
    if (last < 0 || last > (before ?? -1)) fields.gaps += 1;
  } else if (seq >= 0) {
    if (seq <= (before ?? -1)) return false;
    if (before !== undefined || run.asOf.size < MAX_RUNS) run.asOf.set(source, seq);
  }
  const at = moment(event.timestamp);
  fields.last_event_at = at ?? fields.last_event_at;
  if (kind === "gap" && Object.hasOwn(data, "run_status")) {
    lose(run, source, data, at);
  } else if (kind === "run_start") {
    start(run, source, data, at);
  } else if (kind === "run_end") {
    end(run, source, data, at);
  } else if (kind === "train_step") {
    fields.train_steps = [...fields.train_steps.slice(-MAX_STEPS + 1), trainStep(data, at)];
    learned(run, event);
  } else if (kind === "error") {
    fields.errors += 1;
    fields.error = errorOf(data);
  }
  return true;
}

/**
 * @param {RunView} run
 * @param {string} source
 * @returns {SourcePart}
 */
function partOf(run, source) {
  let part = run.sources.get(source);
  if (part === undefined) {
    part = { status: null, begun: false, leader: null, chains: null, groups: null, duration: null, meanReward: null, tokens: null };
    if (run.sources.size < MAX_SOURCES) run.sources.set(source, part);
  }
  return part;
}

/**
 * A gap, or the end of a source's part, concerns the chains of that source, and the end also those of the sources that it leads.
 * @param {RunView} run
 * @param {StreamEvent} event
 * @param {string} kind
 */
function applyToChains(run, event, kind) {
  const source = textOf(event.source);
  for (const view of run.chains.values()) {
    const ends = kind === "run_end" && run.sources.get(view.source)?.leader === source;
    view.apply(ends ? { ...event, source: view.source } : event);
  }
}

/**
 * The parts that tell what the run as a whole is.
 * @param {RunView} run
 */
function leadingOf(run) {
  return [...run.sources.values()].filter((part) => part.leader === null || !run.sources.has(part.leader));
}

/**
 * @param {RunView} run
 * @param {string} source
 * @param {Record<string, any>} data
 * @param {number | null} at
 */
function start(run, source, data, at) {
  const fields = run.fields;
  const part = partOf(run, source);
  const leader = word(data.leader);
  part.begun = true;
  part.leader = leader === source ? null : leader;
  part.chains = countOf(data.chains);
  part.groups = countOf(data.groups);
  const leading = leadingOf(run);
  fields.expected_chains = sumOf(leading.map((each) => each.chains));
  fields.expected_groups = sumOf(leading.map((each) => each.groups));
  if (leading.includes(part) && !leading.some((other) => other !== part && other.begun)) {
    for (const name of ["agent", "model", "backend", "parent_run_id", "split", "name"]) fields[name] = word(data[name]);
    fields.tags = words(data.tags);
    fields.policy_version = whole(data.policy_version);
    fields.seed = whole(data.seed);
    fields.train_step = whole(data.train_step);
  }
  if ([...run.sources.values()].some((other) => other !== part && other.begun)) {
    fields.ended_at = part.status === null ? null : fields.ended_at;
    fields.status = fields.ended_at === null ? "running" : fields.status;
  } else {
    fields.started_at = at;
    fields.status = fields.status === "unknown" ? "running" : fields.status;
  }
}

/**
 * @param {RunView} run
 * @param {string} source
 * @param {Record<string, any>} data
 * @param {number | null} at
 */
function end(run, source, data, at) {
  const part = partOf(run, source);
  part.duration = secondsOf(data.duration_s);
  part.meanReward = number(data.mean_reward);
  part.tokens = countOf(data.completion_tokens);
  const leading = leadingOf(run);
  const durations = leading.map((each) => each.duration).filter((each) => each !== null);
  run.fields.duration_s = durations.length ? Math.max(...durations) : null;
  run.said = { meanReward: leading.length === 1 ? (leading[0]?.meanReward ?? null) : null, tokens: sumOf(leading.map((each) => each.tokens)) };
  sourceEnded(run, source, STATUSES.has(data.status) ? data.status : "completed", at);
}

/**
 * Note that a source's part of the run has ended, and that its end was lost; of every source, if the gap names none.
 * @param {RunView} run
 * @param {string} source
 * @param {Record<string, any>} data
 * @param {number | null} at
 */
function lose(run, source, data, at) {
  const status = STATUSES.has(data.run_status) ? data.run_status : "unknown";
  if (!source && !run.sources.has(source)) for (const part of run.sources.values()) part.status ??= status;
  sourceEnded(run, source, status, at);
}

/**
 * @param {RunView} run
 * @param {string} source
 * @param {string} status
 * @param {number | null} at
 */
function sourceEnded(run, source, status, at) {
  partOf(run, source).status = status;
  const parts = [...run.sources.values()];
  for (const part of parts) if (part.leader === source) part.status ??= status;
  if (parts.some((part) => part.status === null)) {
    run.fields.status = "running";
    return;
  }
  const ended = new Set(leadingOf(run).map((part) => part.status));
  run.fields.status = WORST_FIRST.find((each) => ended.has(each)) ?? "completed";
  run.fields.ended_at = at;
}

/**
 * The sum of those that are known; null if none is.
 * @param {(number | null)[]} counts
 * @returns {number | null}
 */
function sumOf(counts) {
  const known = counts.filter((each) => each !== null);
  return known.length ? known.reduce((sum, each) => sum + each, 0) : null;
}

/**
 * @param {Record<string, any>} data
 * @param {number | null} at
 * @returns {TrainStep}
 */
function trainStep(data, at) {
  return {
    train_step: whole(data.train_step),
    policy_version: whole(data.policy_version),
    metrics: objectOf(small(data.metrics)),
    timestamp: at,
  };
}

/**
 * Pass the event to the chains that a trainer names.
 * @param {RunView} run
 * @param {StreamEvent} event
 */
function learned(run, event) {
  const named = objectOf(own(objectOf(objectOf(event.data).chains), run.runId));
  for (const chainId of Object.keys(named)) run.chains.get(chainId)?.apply(event);
}

export class RunViews {
  constructor() {
    /** @type {Map<string, RunView>} in the order in which they were first seen */
    this.runs = new Map();
    this.omitted = 0; // runs that were let go
    this.chains = 0; // of all runs
    /** @type {string[]} runs that have ended and keep conversations, the earliest first */
    this.endedIds = [];
  }

  /**
   * Take the next event of any run. What concerns no run, such as the failure of an observer, changes nothing.
   * @param {StreamEvent} event
   * @param {boolean} [toChains] as for a run
   */
  apply(event, toChains = true) {
    const runId = event.run_id === undefined ? "" : event.run_id;
    if (typeof runId === "string" && (this.runs.has(runId) || runId || event.chain_id)) this.applyTo(runId, event, toChains);
    if (event.event_type !== "train_step") return;
    const named = objectOf(event.data).chains;
    if (!isObject(named)) return;
    for (const name of Object.keys(named)) if (name !== runId) this.runs.get(name)?.apply(event);
  }

  /**
   * @param {string} runId
   * @param {StreamEvent} event
   * @param {boolean} toChains
   */
  applyTo(runId, event, toChains) {
    let run = this.runs.get(runId);
    if (run === undefined) {
      this.runs.set(runId, (run = new RunView(runId)));
      this.bound(runId);
    }
    const count = run.chains.size;
    const endedAt = run.fields.ended_at;
    run.apply(event, toChains);
    if (run.chains.size !== count) {
      this.chains += run.chains.size - count;
      this.bound(runId);
    }
    if (run.fields.ended_at !== endedAt) this.runEnded(runId);
  }

  /**
   * Forget a chain, as if nothing of it had been seen.
   * @param {string} runId
   * @param {string} chainId
   */
  forget(runId, chainId) {
    const run = this.runs.get(runId);
    if (!run?.chains.delete(chainId)) return;
    this.chains -= 1;
    run.endedWeight -= run.endedWeights.get(chainId) ?? 0;
    run.endedWeights.delete(chainId);
  }

  /**
   * Put another view of a chain that is known in its place.
   * @param {string} runId
   * @param {string} chainId
   * @param {ChainView} view
   */
  replace(runId, chainId, view) {
    const run = this.runs.get(runId);
    if (!run?.chains.has(chainId)) return;
    run.chains.set(chainId, view);
    if (view.state === "ended") chainEnded(run, chainId, view.conversation.weight);
  }

  /**
   * @param {string} newest
   */
  bound(newest) {
    while (this.runs.size > 1 && (this.runs.size > MAX_RUNS || this.chains > MAX_ALL_CHAINS)) {
      const others = [...this.runs].filter(([name]) => name !== newest);
      const [name, run] = others.find(([, each]) => each.fields.ended_at !== null) ?? /** @type {[string, RunView]} */ (others[0]);
      this.runs.delete(name);
      this.chains -= run.chains.size;
      this.omitted += 1;
    }
  }

  /**
   * @param {string} runId
   */
  runEnded(runId) {
    this.endedIds = [...this.endedIds.filter((name) => name !== runId), runId];
    if (this.endedIds.length > WHOLE_RUNS) this.runs.get(/** @type {string} */ (this.endedIds.shift()))?.forgetMessages();
  }
}

/**
 * The first one; there is one.
 * @param {Iterable<string>} values
 * @returns {string}
 */
function first(values) {
  for (const value of values) return value;
  throw new Error("there is none");
}
