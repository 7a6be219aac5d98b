// What a subscription missed while its connection was down, as `gap` events; the twin of rollcast/serve/continuity.py for one page.
//
// A server says what is gone (`lost` in `subscribed`). For one that does not, the runs that were open before and that `welcome` lists
// tell it.

/** @typedef {import("./chain_view.js").StreamEvent} StreamEvent */
/** @typedef {import("./session.js").RunInfo} RunInfo */

const MAX_OPEN = 4096; // how many open runs are remembered
const GONE = "the server no longer had what came while the connection was down";
const UNTOLD = `${GONE}, and does not say what it was`;
const ANOTHER = "the server is another one than before, and does not know what came while the connection was down";
const UNKNOWN = "how many events are missing is not known";

export class Losses {
  /** @param {string} since `live`, `start` or a cursor */
  constructor(since) {
    /** @type {Map<string, number>} by source and run: the `seq` of the last event of each open run */
    this.last = new Map();
    /** @type {Map<string, string>} */
    this.listed = new Map();
    /** @type {Set<string>} open runs of which something may be missing before their next event */
    this.holes = new Set();
    /** @type {Map<string, number>} by source and run: those that ended, with the `seq` of their last event, or -1 */
    this.ended = new Map();
    /** @type {Set<string>} runs that were over before this page came, or ended unseen */
    this.over = new Set();
    /** @type {Map<string, number>} by source and run: how far the page was when it began again; what was recorded until then may come once more */
    this.fence = new Map();
    this.first = true;
    this.fromStart = since === "start";
    this.why = GONE;
  }

  /** The page begins again at its cursor. */
  returns() {
    this.fence = new Map(this.ended);
    for (const [key, last] of this.last) this.fence.set(key, last);
  }

  /**
   * Whether the event came before the page began again. Text of generations is never called so: views know how much of it they have.
   * @param {StreamEvent} event
   */
  isRepeated(event) {
    if (event.event_type === "llm_generation_chunk" || event.event_type === "chain_snapshot" || event.event_type === "gap") return false;
    const seq = event.seq ?? -1;
    return seq >= 0 && seq <= (this.fence.get(keyOf(event.source ?? "", event.run_id ?? "")) ?? -1);
  }

  /** @param {RunInfo[]} runs that the server knows */
  welcomed(runs) {
    this.listed = new Map(runs.map((run) => [run.run_id, run.status]));
    if (this.first && !this.fromStart) for (const run of runs) if (run.status !== "running") this.isOver(run.run_id);
    this.first = false;
  }

  /**
   * @param {Record<string, any>} answer `subscribed`
   * @param {number} at seconds since the epoch
   * @returns {StreamEvent[]} the gaps that are known at once
   */
  subscribed(answer, at) {
    this.holes.clear();
    if (answer.recovered !== false) return [];
    const lost = /** @type {Record<string, any>[] | null} */ (answer.lost ?? null);
    this.why = lost === null ? UNTOLD : answer.began_anew ? ANOTHER : GONE;
    const complete = lost !== null && !answer.began_anew && !answer.lost_more;
    const named = new Set((lost ?? []).map((run) => keyOf(run.source ?? "", run.run_id ?? "")));
    /** @type {StreamEvent[]} */
    const gaps = [];
    for (const [key, last] of [...this.last]) {
      const runId = runOf(key);
      if (named.has(key)) continue;
      const status = this.listed.get(runId);
      if (status === "running") {
        if (!complete) this.holes.add(key);
        continue;
      }
      this.last.delete(key);
      this.end(key, -1);
      if (!complete) gaps.push(gap(key, last + 1, last + 1, `${this.why}; the run has ended meanwhile, and ${UNKNOWN}`, at, status ?? "unknown"));
    }
    for (const run of lost ?? []) gaps.push(...this.gapsOfLost(run, at));
    if (answer.lost_more) gaps.push(gap(keyOf("", ""), 0, 0, `${this.why}: events of further runs (${answer.lost_more}); ${UNKNOWN}`, at));
    if (!complete && !gaps.length && !this.holes.size) gaps.push(gap(keyOf("", ""), 0, 0, `${this.why}; ${UNKNOWN}`, at));
    return gaps;
  }

  /**
   * @param {Record<string, any>} run one of `lost`
   * @param {number} at
   * @returns {StreamEvent[]}
   */
  gapsOfLost(run, at) {
    const key = keyOf(run.source ?? "", run.run_id ?? "");
    const ended = run.status === "running" ? null : String(run.status);
    const from = Math.max((this.last.get(key) ?? -1) + 1, run.from_seq ?? 0);
    if (this.ended.has(key) || this.over.has(run.run_id) || (run.to_seq < from && ended === null)) return []; // its events came in another way
    const reason = ended === null ? this.why : `${this.why}; run ${run.run_id} has ended (${ended})`;
    this.heard(key, run.to_seq, ended !== null);
    if (ended === null) this.holes.add(key); // its snapshots may be a little newer than this answer
    return [gap(key, from, Math.max(from, run.to_seq), reason, at, ended)];
  }

  /**
   * The events of a batch, each after a gap if events are missing before it.
   * @param {StreamEvent[]} events
   * @param {number} at
   * @returns {StreamEvent[]}
   */
  arrived(events, at) {
    /** @type {StreamEvent[]} */
    const out = [];
    for (const event of events) {
      if (this.fence.size && this.isRepeated(event)) continue;
      const key = keyOf(event.source ?? "", event.run_id ?? "");
      const seq = event.seq ?? -1;
      if (this.holes.delete(key)) {
        const from = (this.last.get(key) ?? -1) + 1;
        const told = event.event_type === "gap" && typeof event.data?.from_seq === "number" ? event.data.from_seq - 1 : seq - 1;
        const to = event.event_type === "chain_snapshot" ? seq : told;
        if (to >= from) out.push(gap(key, from, to, this.why, at));
      }
      out.push(event);
      const isEnd = event.event_type === "run_end" || (event.event_type === "gap" && Object.hasOwn(event.data ?? {}, "run_status"));
      this.heard(key, seq, isEnd);
    }
    return out;
  }

  /**
   * Note how far a run got.
   * @param {string} key
   * @param {number} seq
   * @param {boolean} isEnd
   */
  heard(key, seq, isEnd) {
    const last = this.last.get(key) ?? -1;
    this.last.delete(key);
    if (isEnd) {
      this.end(key, Math.max(last, seq));
    } else if (runOf(key)) {
      this.last.set(key, Math.max(last, seq));
      if (this.last.size > MAX_OPEN) this.last.delete(/** @type {string} */ (this.last.keys().next().value));
    }
  }

  /** @param {string} key @param {number} last the `seq` of its last event */
  end(key, last) {
    this.ended.delete(key);
    this.ended.set(key, last);
    if (this.ended.size > MAX_OPEN) this.ended.delete(/** @type {string} */ (this.ended.keys().next().value));
  }

  /** @param {string} runId */
  isOver(runId) {
    this.over.delete(runId);
    this.over.add(runId);
    if (this.over.size > MAX_OPEN) this.over.delete(/** @type {string} */ (this.over.values().next().value));
  }
}

/**
 * @param {string} source
 * @param {string} runId
 */
function keyOf(source, runId) {
  return `${source}\n${runId}`;
}

/** @param {string} key */
function runOf(key) {
  return key.slice(key.indexOf("\n") + 1);
}

/**
 * @param {string} key
 * @param {number} first
 * @param {number} last
 * @param {string} reason
 * @param {number} at
 * @param {string | null} [runStatus]
 * @returns {StreamEvent}
 */
function gap(key, first, last, reason, at, runStatus = null) {
  const data = { from_seq: first, to_seq: last, dropped: {}, reason, ...(runStatus === null ? {} : { run_status: runStatus }) };
  const source = key.slice(0, key.indexOf("\n"));
  return { event_type: "gap", chain_id: "", timestamp: at, data, step: null, depth: null, seq: last, run_id: runOf(key), group_id: null, source };
}
