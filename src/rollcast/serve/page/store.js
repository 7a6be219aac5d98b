// What the page knows: views of the chains whose events it gets, and rows of runs, chains and steps that queries gave. Without a DOM.
//
// Every change marks what it concerns. The first mark after `take` calls `onDirty` once, so that the page asks for one animation frame, in
// which it takes the marks and draws what they name.

import { Gaps } from "./gaps.js";
import { Generations } from "./generations.js";
import { rowAt, runRowAt } from "./past.js";
import { RunViews } from "./run_view.js";
import { chainFromStory } from "./story.js";
import { TimeLine } from "./time_line.js";
import { Tokens } from "./tokens.js";

/** @typedef {import("./chain_view.js").StreamEvent} StreamEvent */
/** @typedef {import("./chain_view.js").ChainView} ChainView */
/** @typedef {import("./run_view.js").RunView} RunView */
/** @typedef {import("./session.js").Notice} Notice */

/**
 * A row of a chain, as `chains` gives it; docs/archive.md has the fields. An open chain has `state: "running"` and `activity`.
 * @typedef {Record<string, any> & {run_id: string, chain_id: string}} Row
 */

/**
 * What has changed since the marks were taken: keys of chains, ids of runs; `everything`: another moment is shown.
 * @typedef {{chains: Set<string>, rows: Set<string>, runs: Set<string>, steps: Set<string>, events: boolean, session: boolean, everything: boolean}} Marks
 */

const MAX_ROWS = 16_384; // of chains, in all runs
const MAX_STEPS = 16_384; // of all trainings
const MAX_RUNS = 4_096; // the earliest that came go first
const MAX_EVENTS = 2_000; // the latest ones, for the list of events
const MAX_TRACKS = 256; // chains whose tokens are kept

/**
 * The key of a chain among those of all runs.
 * @param {string} runId
 * @param {string} chainId
 */
export function chainKey(runId, chainId) {
  return `${runId}\n${chainId}`;
}

/**
 * What is kept of a chain, made if there is nothing yet. It is the latest then; the earliest goes if there are too many.
 * @template T
 * @param {Map<string, T>} kept by key
 * @param {string} key
 * @param {new () => T} Kind
 * @returns {T}
 */
function latestOf(kept, key, Kind) {
  const found = kept.get(key) ?? new Kind();
  kept.delete(key);
  kept.set(key, found);
  if (kept.size > MAX_TRACKS) kept.delete(/** @type {string} */ (kept.keys().next().value));
  return found;
}

/** @returns {Marks} */
function noMarks() {
  return { chains: new Set(), rows: new Set(), runs: new Set(), steps: new Set(), events: false, session: false, everything: false };
}

export class Store {
  /** @param {() => void} [onDirty] called once when something is marked and nothing was */
  constructor(onDirty = () => {}) {
    this.onDirty = onDirty;
    this.views = new RunViews();
    /** @type {Map<string, Tokens>} by key, those that changed latest last */
    this.tracks = new Map();
    /** @type {Map<string, TimeLine>} by key, those that changed latest last */
    this.timeLines = new Map();
    /** @type {Map<string, Generations>} by key, those that changed latest last */
    this.generations = new Map();
    /** @type {Map<string, Gaps>} by key: where events of a chain are missing */
    this.gaps = new Map();
    /** @type {Map<string, StreamEvent[]>} by key: the events of a chain since its story was requested */
    this.taps = new Map();
    /** @type {number | null} the moment of a replay that is shown, in seconds since the epoch; null: now */
    this.moment = null;
    /** @type {Map<string, Map<string, Row>>} by run: the rows at that moment, until something changes */
    this.then = new Map();
    /** @type {Map<string, Map<string, Row>>} by run and chain, as they stand now */
    this.chainRows = new Map();
    this.rowCount = 0;
    /** @type {Map<string, Record<string, any>>} by run, as `runs` gives them */
    this.runRows = new Map();
    /** @type {Map<string, Record<string, any>[]>} by run, as `steps` gives them */
    this.stepRows = new Map();
    /** @type {Set<string>} what tells the steps apart */
    this.knownSteps = new Set();
    /** @type {StreamEvent[]} the latest events, up to twice as many */
    this.events = [];
    this.marks = noMarks();
    this.dirty = false;
  }

  /** What has changed since this was last called. @returns {Marks} */
  take() {
    const marks = this.marks;
    this.marks = noMarks();
    this.dirty = false;
    return marks;
  }

  /** The session's state or its figures have changed. */
  sessionChanged() {
    this.marks.session = true;
    this.touched();
  }

  touched() {
    if (this.dirty) return;
    this.dirty = true;
    this.onDirty();
  }

  // -- events --------------------------------------------------------------------------------------------------------------

  /**
   * Take events, those of a chain in order.
   * @param {StreamEvent[]} events
   */
  apply(events) {
    for (const event of events) this.applyOne(event);
    if (events.length) this.touched();
  }

  /**
   * Take events that tell of runs and not of chains. They may come before earlier events of chains, so the end of a run ends no chain.
   * @param {StreamEvent[]} events
   */
  applyToRuns(events) {
    for (const event of events) {
      this.views.apply(event, false);
      this.marks.runs.add(event.run_id ?? "");
      if (event.event_type === "train_step") this.marks.steps.add(event.run_id ?? "");
    }
    if (events.length) this.touched();
  }

  /**
   * Take events for the list of events alone.
   * @param {StreamEvent[]} events
   */
  list(events) {
    this.events.push(...events);
    if (this.events.length > 2 * MAX_EVENTS) this.events.splice(0, this.events.length - MAX_EVENTS);
    this.marks.events = true;
    this.touched();
  }

  /** Put events in the place of a gap of the list; without any it stays. @param {StreamEvent} gap @param {StreamEvent[]} events */
  fillGap(gap, events) {
    const at = this.events.indexOf(gap);
    if (at >= 0 && events.length) this.events.splice(at, 1, ...events);
    this.marks.events = true;
    this.touched();
  }

  /** @param {StreamEvent} event */
  applyOne(event) {
    const runId = event.run_id ?? "";
    if (event.event_type === "gap" && !event.chain_id) this.noteGap(event, runId);
    this.views.apply(event);
    if (this.taps.size) this.tapOne(event, runId);
    if (event.chain_id) {
      const key = chainKey(runId, event.chain_id);
      this.marks.chains.add(key);
      if (event.event_type.startsWith("llm_generation") || event.event_type === "chain_start") latestOf(this.tracks, key, Tokens).apply(event);
      if (event.event_type !== "llm_generation_chunk") {
        latestOf(this.timeLines, key, TimeLine).apply(event);
        latestOf(this.generations, key, Generations).apply(event);
      }
      return;
    }
    this.marks.runs.add(runId);
    if (event.event_type === "gap" || event.event_type === "run_end") {
      for (const name of this.views.runs.get(runId)?.chains.keys() ?? []) this.marks.chains.add(chainKey(runId, name));
    }
    if (event.event_type === "train_step") this.marks.steps.add(runId);
  }

  /** @param {StreamEvent} event a gap in a run @param {string} runId */
  noteGap(event, runId) {
    for (const [name, view] of this.views.runs.get(runId)?.chains ?? []) {
      if (view.state === "ended" || view.state === "lost") continue;
      const key = chainKey(runId, name);
      latestOf(this.gaps, key, Gaps).add(event, view);
    }
  }

  /** @param {StreamEvent} event @param {string} runId */
  tapOne(event, runId) {
    for (const [key, came] of this.taps) {
      if (event.chain_id ? key === chainKey(runId, event.chain_id) : key.startsWith(`${runId}\n`)) came.push(event);
    }
  }

  /**
   * Replace what was seen of a chain with its story, if that has the chain's beginning. `taps` must have the events that came since it was requested.
   * @param {string} runId
   * @param {string} chainId
   * @param {StreamEvent[]} story
   * @param {number} until the last `seq` that counts
   * @returns {boolean} whether it has the beginning
   */
  retell(runId, chainId, story, until) {
    const key = chainKey(runId, chainId);
    const view = this.chain(runId, chainId);
    const found = chainFromStory(story, this.taps.get(key) ?? [], { until, before: view && { view, tokens: this.tracks.get(key) } });
    if (found === null) return false;
    if (view === undefined) this.applyOne(/** @type {StreamEvent} */ (story[0])); // so that its run knows of it
    this.views.replace(runId, chainId, found.view);
    this.tracks.set(key, found.tokens);
    this.timeLines.set(key, found.timeLine);
    this.gaps.delete(key);
    this.marks.chains.add(key);
    this.changedThen(runId);
    this.touched();
    return true;
  }

  // -- another moment ----------------------------------------------------------------------------------------------------------

  /** Show another moment: forget everything from events. @param {number | null} moment seconds since the epoch; null: now */
  showMoment(moment) {
    this.moment = moment;
    this.views = new RunViews();
    for (const each of [this.tracks, this.timeLines, this.gaps, this.taps, this.then]) each.clear();
    this.events = [];
    this.marks.everything = true;
    this.touched();
  }

  /** Take the events of a replay. @param {StreamEvent[]} events */
  passed(events) {
    for (const event of events) {
      if (this.moment !== null && typeof event.timestamp === "number" && event.timestamp > this.moment) this.moment = event.timestamp;
      if (event.event_type !== "llm_generation_chunk") this.changedThen(event.run_id ?? "");
    }
    this.then.clear();
  }

  /** @param {string} runId */
  changedThen(runId) {
    if (this.moment === null) return;
    this.marks.rows.add(runId);
    this.marks.runs.add(runId);
    this.then.delete(runId);
  }

  /** The time that is shown, in seconds since the epoch. */
  get now() {
    return this.moment ?? Date.now() / 1000;
  }

  /** @param {string} runId @returns {Map<string, Row>} */
  rowsThen(runId) {
    const known = this.chainRows.get(runId) ?? new Map();
    const { moment } = this;
    if (moment === null) return known;
    const found = this.then.get(runId);
    if (found !== undefined) return found;
    const runEndedAt = this.runRows.get(runId)?.ended_at ?? null;
    const steps = this.stepRows.get(this.runRows.get(runId)?.parent_run_id ?? runId) ?? [];
    const learned = new Map(steps.filter((row) => row.row === "train_step").map((row) => [row.train_step, row.timestamp]));
    const rows = new Map();
    for (const [name, row] of known) {
      const then = rowAt(row, this.chain(runId, name), moment, { learnedAt: learned.get(row.train_step) ?? null, runEndedAt });
      if (then !== null) rows.set(name, then);
    }
    this.then.set(runId, rows);
    return rows;
  }

  /** The row of a run; null if it had not begun at the moment that is shown. @param {string} runId */
  runRow(runId) {
    const row = this.runRows.get(runId);
    return row === undefined || this.moment === null ? row : runRowAt(row, [...this.rowsThen(runId).values()], this.moment);
  }

  /** What the events of a chain tell. @param {string} runId @param {string} chainId @returns {ChainView | undefined} */
  chain(runId, chainId) {
    return this.views.runs.get(runId)?.chains.get(chainId);
  }

  /** The tokens of a chain, as far as they came. @param {string} runId @param {string} chainId @returns {Tokens | undefined} */
  tokens(runId, chainId) {
    return this.tracks.get(chainKey(runId, chainId));
  }

  /**
   * Forget what is known of a chain from events: before its story is requested, or when it has left the screen.
   * @param {string} runId
   * @param {string} chainId
   */
  forgetChain(runId, chainId) {
    this.views.forget(runId, chainId);
    this.tracks.delete(chainKey(runId, chainId));
    this.timeLines.delete(chainKey(runId, chainId));
    this.generations.delete(chainKey(runId, chainId));
    this.gaps.delete(chainKey(runId, chainId));
    this.marks.chains.add(chainKey(runId, chainId));
    this.touched();
  }

  // -- rows ------------------------------------------------------------------------------------------------------------------

  /**
   * Take rows of chains. A row replaces the earlier one of its chain.
   * @param {Row[]} rows
   */
  takeChainRows(rows) {
    for (const row of rows) {
      let ofRun = this.chainRows.get(row.run_id);
      if (ofRun === undefined) this.chainRows.set(row.run_id, (ofRun = new Map()));
      this.rowCount += ofRun.has(row.chain_id) ? 0 : 1;
      ofRun.set(row.chain_id, row);
      this.marks.rows.add(row.run_id);
      this.then.delete(row.run_id);
    }
    const latest = rows.at(-1)?.run_id;
    if (latest !== undefined) this.boundRows(latest);
    if (rows.length) this.touched();
  }

  /** Forget the rows of the chains of a run, since they are asked for anew. @param {string} runId */
  forgetChainRows(runId) {
    this.rowCount -= this.chainRows.get(runId)?.size ?? 0;
    this.chainRows.delete(runId);
    this.then.delete(runId);
    this.marks.rows.add(runId);
    this.touched();
  }

  /** @param {string} latest the run whose rows came last; those of others go first */
  boundRows(latest) {
    for (const runId of [...this.chainRows.keys()]) {
      if (this.rowCount <= MAX_ROWS) return;
      if (runId !== latest) this.forgetChainRows(runId);
    }
    const ofRun = this.chainRows.get(latest) ?? new Map();
    for (const [name, row] of ofRun) {
      if (this.rowCount <= MAX_ROWS) return;
      if (row.state === "running") continue;
      ofRun.delete(name);
      this.rowCount -= 1;
    }
  }

  /** The rows of a run's chains, in the order in which they first came. @param {string} runId @returns {Row[]} */
  rows(runId) {
    return [...this.rowsThen(runId).values()];
  }

  /** @param {string} runId @param {string} chainId @returns {Row | undefined} */
  row(runId, chainId) {
    return this.rowsThen(runId).get(chainId);
  }

  /**
   * Take rows of runs.
   * @param {Record<string, any>[]} rows
   */
  takeRunRows(rows) {
    for (const row of rows) {
      const known = this.runRows.get(row.run_id);
      // Without a record, a server forgets chains that ended long ago, and can no longer summarize their run. The list of records had said which record it is in.
      const kept = { summary: row.summary ?? known?.summary, record: row.record ?? known?.record };
      this.runRows.set(row.run_id, { ...row, ...Object.fromEntries(Object.entries(kept).filter(([, value]) => value !== undefined)) });
      this.then.delete(row.run_id);
      this.marks.runs.add(row.run_id);
      if (this.runRows.size > MAX_RUNS) this.runRows.delete(/** @type {string} */ (this.runRows.keys().next().value));
    }
    if (rows.length) this.touched();
  }

  /**
   * Take what a server says of its open runs when it is connected to. A row of a run tells more, so what is known stays.
   * @param {{run_id: string, parent_run_id: string | null, status: string}[]} runs
   */
  takeOpenRuns(runs) {
    for (const { run_id, parent_run_id, status } of runs) {
      if (status === "running" && !this.runRows.has(run_id)) this.takeRunRows([{ run_id, parent_run_id, status }]);
    }
  }

  /**
   * The server does not know this run any more: what was open in it has lost its end.
   * @param {string} runId
   * @param {string} reason
   * @param {number} at seconds since the epoch
   */
  loseRun(runId, reason, at) {
    const data = { from_seq: -1, to_seq: -1, dropped: {}, reason, run_status: "unknown" };
    const running = (/** @type {string} */ status) => status === "running" || status === "unknown";
    const before = this.views.runs.get(runId);
    if (before !== undefined && running(before.fields.status)) {
      this.apply([{ event_type: "gap", chain_id: "", timestamp: at, data, step: null, depth: null, run_id: runId, group_id: null }]);
    }
    const row = this.runRows.get(runId);
    if (row === undefined || row.status === "running") this.takeRunRows([{ ...row, run_id: runId, status: "lost" }]);
    this.takeChainRows(this.rows(runId).filter((each) => each.state === "running").map((each) => ({ ...each, state: "lost" })));
  }

  /** Forget the steps of other trainings, and then the earliest ones. */
  boundSteps() {
    const latest = [...this.stepRows].at(-1);
    this.stepRows = new Map(latest ? [[latest[0], latest[1].slice(-MAX_STEPS / 2)]] : []);
    this.knownSteps = new Set(
      (latest?.[1] ?? []).slice(-MAX_STEPS / 2).map((row) => JSON.stringify([row.run_id, row.row, row.train_step, row.timestamp])),
    );
  }

  /**
   * Take rows of training steps and evaluations, in order.
   * @param {Record<string, any>[]} rows
   */
  takeStepRows(rows) {
    for (const row of rows) {
      const key = JSON.stringify([row.run_id, row.row, row.train_step, row.timestamp]);
      this.marks.steps.add(row.run_id);
      if (this.knownSteps.has(key)) continue;
      this.knownSteps.add(key);
      const known = this.stepRows.get(row.run_id);
      this.then.clear();
      if (known) known.push(row);
      else this.stepRows.set(row.run_id, [row]);
    }
    if (this.knownSteps.size > MAX_STEPS) this.boundSteps();
    if (rows.length) this.touched();
  }
}
