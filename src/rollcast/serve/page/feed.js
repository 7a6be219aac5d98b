// Requests what the views need from the server, and puts it into the store: a list of chains, the chains on screen, stories of ended chains.

import { GapReader, MISSED } from "./gap_reader.js";
import { chainKey } from "./store.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./store.js").Row} Row */
/** @typedef {import("./socket.js").Socket} Socket */
/** @typedef {import("./session.js").Notice} Notice */
/** @typedef {import("./session.js").Query} Query */
/** @typedef {import("./session.js").Filter} Filter */
/** @typedef {import("./chain_view.js").StreamEvent} StreamEvent */

const RUN_TYPES = ["run_start", "run_end", "train_step"];
const WITHOUT_TOKENS = [
  "run_start", "run_end", "train_step", "chain_start", "chain_end", "llm_generation_start", "llm_generation_end", "tool_call_start", "tool_observation",
  "tool_call_end", "reward", "message", "error", "gap", "chain_snapshot",
]; // prettier-ignore
const MAX_PAGES = 256; // of one answer
const OPEN_CHAINS = 1000; // as many as are asked for before all others
const RUNS_S = 1; // the runs are asked for no more often
const NEWEST_RUNS = 64; // those that may have begun or ended
const MAX_GONE = 64;
const AGAIN_S = 1; // a question that the server could not answer is asked again after so long; twice as long each further time, up to
const LONGEST_AGAIN_S = 30;
const CANNOT_NOW = [429, 503];
const SLOW_S = 10; // an answer that takes longer is said to be missing
const UNANSWERED_S = 120; // a question of which nothing came for so long is asked again; the server gives up on its record's reader after 60 s
const STORY_TRIES = 4; // a record that is damaged in the middle of a story stays so
const SNAPSHOT_S = 1; // a chain that runs and of which nothing came for so long has no snapshot: its server reads a record

/**
 * A question with all its pages. `about`: under which `missing` has what the answer lacks; `open`: pages that are not answered.
 * @typedef {object} Question
 * @property {Query} query
 * @property {string} about
 * @property {number} pages
 * @property {number} open
 * @property {number} movedAt when it was asked, or something of its answer came
 * @property {boolean} heard whether something of its answer came since it was asked
 * @property {number} tries how many times it had no answer
 * @property {number} maxTries
 * @property {number | null} dueAt when it is asked again; null: it is being answered
 * @property {string} failure why it has no answer, as `missing` says it; empty: it is not said
 * @property {(rows: Record<string, any>[], anew: boolean) => void} onRows
 * @property {(complete: boolean) => void} onEnd `complete`: the question was not refused
 */

/** @typedef {{id: string, name: string}} GoneRun */

/**
 * What the feed needs of a `Socket`.
 * @typedef {Pick<Socket, "subscribe" | "replay" | "speed" | "update" | "unsubscribe" | "ask" | "stop" | "session">} Line
 */

const SAID = new Set(["runs", "steps", "chains"]); // what the page asks for whatever is shown

/** @param {string} about */
function unanswered(about) {
  return `the server has not answered yet which ${SAID.has(about) ? about : "events"} it has`;
}

export class Feed {
  /**
   * @param {Line} line
   * @param {Store} store
   * @param {(action: () => void, ms: number) => unknown} [later]
   */
  constructor(line, store, later = setTimeout) {
    this.line = line;
    this.later = (/** @type {() => void} */ action, /** @type {number} */ ms) => later(action, ms);
    this.store = store;
    this.gapReader = new GapReader(line, store, this.later);
    /** @type {Map<string, Question>} by the id of each page */
    this.asked = new Map();
    /** @type {Set<string>} keys of chains whose story is being loaded */
    this.loading = new Set();
    /** @type {Set<string>} keys of chains whose story was loaded as far as the server has it, so that what it lacks is not requested again and again */
    this.loaded = new Set();
    /** @type {Map<string, string[]>} what answers lack, by key of a chain, or `runs`, `steps`, `chains` */
    this.missing = new Map();
    /** @type {string | null} the query that watches rows */
    this.watching = null;
    /** @type {{run?: string, filter?: Record<string, any>, sort?: string, limit?: number}} what it asks for */
    this.watched = {};
    /** @type {string | null} the query for the rows of open chains, which come first */
    this.opening = null;
    this.total = /** @type {number | null} */ (null); // rows of that query, on the server
    this.runsAt = -Infinity;
    this.runsDue = false;
    this.newestOpen = false; // whether the newest runs are being asked for
    /** @type {Map<string, GoneRun>} runs that this page knows, and the server that it is connected to now does not */
    this.gone = new Map();
    this.word = ""; // of the session's state, when it was last looked at
    this.welcomed = false;
    this.runsAnswered = false; // whether it is known which runs there are
    /** @type {string | null} the run whose record has told its runs, of a folder of records */
    this.toldOf = null;
    /** @type {Record<string, any>[]} the producers of a hub */
    this.sources = [];
    /** @type {string[]} what the server can do, from its `welcome` */
    this.features = [];
    /** @type {string | null} with a folder of records: a run of the record that is shown */
    this.opened = null;
    /** @type {Map<string, number>} by key: since when the chains on screen are shown */
    this.shownSince = new Map();
    /** @type {string | null} the subscription of a replay; during it, the views get everything from there */
    this.replayId = null;
    this.replays = 0;
    /** @type {{runId: string, chainIds: string[]}} chains that are shown token by token */
    this.shown = { runId: "", chainIds: [] };
    /** @type {{filter: Filter, options: {since?: string, speed?: number | "max" | null} | undefined} | null} what the list of events shows */
    this.listed = null;
    /** @type {(notice: Extract<Notice, {kind: "done" | "refused"}>) => void} gets answers to requests of others, such as `cancel` */
    this.onAnswer = () => {};
  }

  /** Take the socket's notices. @param {Notice[]} notices */
  take(notices) {
    for (const notice of notices) this.takeOne(notice);
    // Events come many times a second, and what is shown of the session rarely changes with them.
    const { word } = this.line.session.state;
    if (word !== this.word || !notices.length || notices.some((notice) => notice.kind !== "events" || notice.id === MISSED)) this.store.sessionChanged();
    this.word = word;
  }

  /** @param {Notice} notice */
  takeOne(notice) {
    switch (notice.kind) {
      case "events":
        this.events(notice.id, notice.events);
        break;
      case "rows": {
        const question = this.asked.get(notice.id);
        if (question === undefined) break;
        const anew = notice.anew || (question.tries > 0 && !question.heard);
        this.heard(question);
        if (notice.id === this.watching && notice.total !== null) this.total = notice.total;
        question.onRows(notice.rows, anew);
        this.lacks(question.about, notice.missing ?? []);
        if (notice.next !== null && question.query.limit === undefined) this.goOn(question, notice.next);
        break;
      }
      case "done":
      case "refused": {
        const question = notice.id === null ? undefined : this.asked.get(notice.id);
        if (question === undefined) {
          this.onAnswer(notice);
          break;
        }
        if (notice.kind === "refused" && CANNOT_NOW.includes(notice.code) && question.tries < question.maxTries) {
          this.failed(/** @type {string} */ (notice.id), question, notice.message);
          break;
        }
        this.asked.delete(/** @type {string} */ (notice.id));
        this.heard(question);
        this.lacks(question.about, notice.kind === "done" ? notice.missing : [notice.message]);
        question.open -= 1;
        if (question.open === 0) question.onEnd(notice.kind === "done");
        break;
      }
      case "welcome":
        this.features = notice.features;
        this.welcomed = true;
        this.store.takeOpenRuns(notice.runs);
        for (const question of this.asked.values()) question.movedAt = this.line.session.now(); // the time without a connection does not count
        if (notice.again) this.askAgain();
        break;
    }
  }

  /**
   * @param {string} id
   * @param {StreamEvent[]} events
   */
  events(id, events) {
    if (id === "events") {
      this.store.list(events); // the views get their events from the other subscriptions, in order
    } else if (id === MISSED) {
      this.gapReader.take(events);
    } else if (id === "runs") {
      this.store.applyToRuns(events);
      if (events.some((event) => event.event_type === "run_start" || event.event_type === "run_end")) this.askNewestRuns();
    } else {
      this.store.apply(events);
      for (const event of events) if (event.event_type === "gap") this.missed(event.run_id ?? "");
      if (events.some((event) => event.event_type === "chain_snapshot")) this.askStories();
      if (id !== this.replayId) return;
      this.store.passed(events);
      const { listed } = this;
      if (listed !== null) this.store.list(events.filter((event) => listed.filter.types?.includes(event.event_type) ?? true));
    }
  }

  /** Events of a run are missing, so the stories that were loaded before lack them. @param {string} runId */
  missed(runId) {
    for (const key of this.loaded) if (key.startsWith(`${runId}\n`)) this.loaded.delete(key);
  }

  // -- runs and steps ---------------------------------------------------------------------------------------------------

  /** Follow which runs there are, and the steps of trainings. Call it once. */
  followRuns() {
    this.subscribeToRuns();
    this.askRuns();
  }

  subscribeToRuns() {
    this.line.subscribe("runs", { types: RUN_TYPES }, this.opened === null ? {} : { ofRun: this.opened });
  }

  /** Whether producers connect to the server. */
  get isHub() {
    return this.features.includes("hub");
  }

  /** Ask for the producers, if the server is a hub, unless the last answer is still to come. */
  askSources() {
    if (!this.isHub || [...this.asked.values()].some(({ about }) => about === "producers")) return;
    /** @type {Record<string, any>[]} */
    let found = [];
    const end = (/** @type {boolean} */ complete) => {
      if (complete) this.sources = found;
    };
    this.ask({ what: "sources" }, (rows, anew) => void (found = anew ? rows : [...found, ...rows]), "producers", end);
  }

  /** Whether the server has a folder of records: its runs are those of one record once that is opened. */
  get hasFolder() {
    return this.features.includes("records");
  }

  /** Read the record that has a run, if the server has several. @param {string} runId */
  openRecord(runId) {
    if (!this.hasFolder || this.opened === runId) return;
    this.opened = runId;
    if (this.replayId === null) {
      this.line.unsubscribe("runs");
      this.subscribeToRuns();
    }
    this.askRunsOf(runId);
  }

  /** Ask for all runs of the record that has a run, and for the steps of its trainings. @param {string} runId */
  askRunsOf(runId) {
    /** @type {Set<string>} */
    const roots = new Set();
    const take = (/** @type {Record<string, any>[]} */ rows) => {
      this.store.takeRunRows(rows);
      for (const row of rows) if (!row.parent_run_id) roots.add(row.run_id);
    };
    const end = () => {
      this.toldOf = runId;
      roots.forEach((root) => this.askSteps(root));
      this.store.sessionChanged();
    };
    this.ask({ what: "runs", run: runId }, take, "runs", end);
  }

  /** Ask for the rows of all runs. */
  askRuns() {
    this.runsAt = this.line.session.now();
    const end = () => {
      this.runsAnswered = true;
      this.store.sessionChanged();
    };
    this.ask({ what: "runs" }, (rows) => this.store.takeRunRows(rows), "runs", end);
  }

  /** Whether the server has said which runs there are, so that one that is not among them does not exist. @param {string} runId */
  knowsRuns(runId) {
    return this.hasFolder ? this.toldOf === runId : this.runsAnswered;
  }

  /** After a lost connection: ask which runs there are now, since the server may be another one, and note which are gone. */
  askAgain() {
    const known = new Set([...this.store.runRows.keys(), ...this.store.views.runs.keys()]);
    known.delete("");
    /** @type {Set<string>} */
    const found = new Set();
    this.runsAt = this.line.session.now();
    const onRows = (/** @type {Record<string, any>[]} */ rows, /** @type {boolean} */ anew) => {
      if (anew) found.clear();
      for (const row of rows) found.add(row.run_id);
      this.store.takeRunRows(rows);
    };
    const onEnd = (/** @type {boolean} */ complete) => {
      if (!complete) return;
      const at = this.line.session.epoch();
      for (const id of known) {
        if (found.has(id)) this.gone.delete(id);
        else this.lose(id, at);
      }
      this.store.sessionChanged();
    };
    this.ask({ what: "runs" }, onRows, "runs", onEnd);
    this.askSteps();
  }

  /** @param {string} id of a run that the server does not know @param {number} at seconds since the epoch */
  lose(id, at) {
    if (this.gone.has(id)) return;
    const row = this.store.runRows.get(id);
    const fields = this.store.views.runs.get(id)?.fields;
    const isPart = row?.parent_run_id || fields?.parent_run_id;
    if (!isPart) this.gone.set(id, { id, name: String(fields?.name || fields?.agent || row?.name || row?.agent || "") });
    while (this.gone.size > MAX_GONE) this.gone.delete(/** @type {string} */ (this.gone.keys().next().value));
    this.store.loseRun(id, "the server that answers now does not know this run", at);
  }

  /**
   * Ask for the rows of the newest runs; if runs were asked for a moment ago, in a moment; if the answer is still to come, after it. A server
   * that is slow is thus never asked faster than it answers.
   */
  askNewestRuns() {
    if (this.runsDue) return;
    this.runsDue = true;
    if (!this.newestOpen) this.askNewestSoon();
  }

  askNewestSoon() {
    this.newestOpen = true;
    const ask = () => {
      this.runsDue = false;
      this.runsAt = this.line.session.now();
      const ofRecord = this.opened === null ? {} : { run: this.opened };
      const end = () => {
        this.newestOpen = false;
        if (this.runsDue) this.askNewestSoon();
      };
      this.ask({ what: "runs", limit: NEWEST_RUNS, ...ofRecord }, (rows) => this.store.takeRunRows(rows), "runs", end);
    };
    const pause = Math.max(this.runsAt + RUNS_S - this.line.session.now(), 0);
    if (pause === 0) ask();
    else this.later(ask, pause * 1000);
  }

  /** Ask for the rows of training steps and evaluations. @param {string} [run] */
  askSteps(run) {
    this.ask({ what: "steps", ...(run === undefined ? {} : { run }) }, (rows) => this.store.takeStepRows(rows), "steps");
  }

  // -- rows of chains ------------------------------------------------------------------------------------------------------

  /**
   * Follow the rows of chains: what is asked for replaces what was followed before.
   * @param {{run?: string, filter?: Record<string, any>, sort?: string, limit?: number}} wanted
   */
  watchChains(wanted) {
    this.unwatchChains();
    this.watched = wanted;
    this.total = null;
    let answered = false;
    this.opening = this.askOpenChains(wanted, () => answered);
    /** @type {Set<string>} */
    const runs = new Set();
    this.watching = this.ask(
      { what: "chains", watch: true, ...wanted },
      (rows, anew) => {
        answered = true;
        if (anew && rows.length) for (const run of runs) this.store.forgetChainRows(run); // of a run that is gone, what was seen stays
        for (const row of rows) runs.add(row.run_id);
        this.takeRows(/** @type {Row[]} */ (rows));
      },
      "chains",
    );
  }

  /**
   * Ask first for the chains that are open: the server has them at hand, and what is over may have to be read from a record. A run that is
   * over has none.
   * @param {{run?: string, filter?: Record<string, any>, sort?: string}} wanted
   * @param {() => boolean} answered whether all rows are coming, so that these are no longer wanted
   * @returns {string | null} the query
   */
  askOpenChains({ run, filter, sort }, answered) {
    if (filter?.state !== undefined) return null;
    const status = run === undefined ? undefined : this.store.runRows.get(run)?.status;
    if (status !== undefined && status !== "running") return null;
    const query = { ...(run === undefined ? {} : { run }), ...(sort === undefined ? {} : { sort }) };
    return this.ask({ what: "chains", limit: OPEN_CHAINS, ...query, filter: { ...filter, state: "running" } }, (rows) => answered() || this.takeRows(/** @type {Row[]} */ (rows)), "open chains");
  }

  /** @param {Row[]} rows */
  takeRows(rows) {
    for (const row of rows) {
      const before = this.store.chainRows.get(row.run_id)?.get(row.chain_id)?.state;
      if (before !== undefined && before !== row.state) this.loaded.delete(chainKey(row.run_id, row.chain_id));
    }
    this.store.takeChainRows(rows);
  }

  unwatchChains() {
    for (const id of [this.opening, this.watching]) {
      if (id === null || !this.asked.delete(id)) continue;
      this.line.stop(id);
    }
    this.opening = this.watching = null;
  }

  // -- chains on screen -----------------------------------------------------------------------------------------------------

  /**
   * Show these chains token by token, and no others. Open ones begin with a snapshot; of others their story is asked for. Call it again and
   * again while they are on screen.
   * @param {string} runId
   * @param {readonly string[]} chainIds
   */
  showChains(runId, chainIds) {
    const now = this.line.session.now();
    this.shownSince = new Map(
      chainIds.map((chainId) => [chainKey(runId, chainId), this.shownSince.get(chainKey(runId, chainId)) ?? now]),
    );
    this.loaded = new Set([...this.loaded].filter((key) => this.shownSince.has(key)));
    this.shown = { runId, chainIds: [...chainIds] };
    const filter = { runs: [runId], chains: [...chainIds].sort() };
    if (this.replayId !== null) this.line.update(this.replayId, this.replayFilter());
    else if (!chainIds.length) this.line.unsubscribe("chains");
    else if (this.line.session.subscriptions.has("chains")) this.line.update("chains", filter);
    else this.line.subscribe("chains", filter);
    this.askStories();
  }

  /** Ask for the stories of the chains on screen of which something did not come. */
  askStories() {
    const now = this.line.session.now();
    const { runId, chainIds } = this.shown;
    for (const chainId of chainIds) if (this.needsStory(runId, chainId, now)) this.askStory(runId, chainId);
  }

  /**
   * Whether no subscription will tell what came of a chain so far.
   * @param {string} runId
   * @param {string} chainId
   * @param {number} now
   */
  needsStory(runId, chainId, now) {
    const state = this.store.row(runId, chainId)?.state;
    const view = this.store.chain(runId, chainId);
    if (state === undefined || this.loaded.has(chainKey(runId, chainId))) return false;
    if (state === "running") {
      if (view === undefined) return this.replayId === null && now - (this.shownSince.get(chainKey(runId, chainId)) ?? now) > SNAPSHOT_S;
      return this.hasRecord && this.store.timeLines.get(chainKey(runId, chainId))?.whole === false && !this.store.gaps.has(chainKey(runId, chainId));
    }
    return !(view?.state === "ended" && view.complete && view.messages.length && this.hasTokens(runId, chainId));
  }

  /**
   * Whether the tokens of every turn came. Those before a snapshot did not.
   * @param {string} runId
   * @param {string} chainId
   */
  hasTokens(runId, chainId) {
    const view = this.store.chain(runId, chainId);
    const tokens = this.store.tokens(runId, chainId);
    const steps = (view?.messages ?? []).filter((message) => message.role === "assistant").map((message) => message.step ?? null);
    return steps.every((step) => tokens !== undefined && tokens.ids(step) !== null);
  }

  /** Whether the server has a record of what it serves. */
  get hasRecord() {
    return this.features.includes("record");
  }

  /**
   * Ask for the whole story of a chain; it replaces what is known of it from events.
   * @param {string} runId
   * @param {string} chainId
   */
  askStory(runId, chainId) {
    const key = chainKey(runId, chainId);
    if (this.loading.has(key)) return;
    this.loading.add(key);
    this.store.sessionChanged();
    if (this.store.row(runId, chainId)?.state === "running") this.askOpenStory(runId, chainId, key);
    else this.askWholeStory(runId, chainId, key);
  }

  /**
   * If the chain is running, the record has what happened so far. Events that come meanwhile are kept, and applied after it.
   * @param {string} runId
   * @param {string} chainId
   * @param {string} key
   */
  askOpenStory(runId, chainId, key) {
    const replays = this.replays;
    /** @type {StreamEvent[]} */
    let story = [];
    this.store.taps.set(key, []);
    this.ask(
      { what: "chain", run: runId, chain: chainId, recorded: true },
      (rows, anew) => {
        if (anew) story = [];
        story.push(.../** @type {StreamEvent[]} */ (rows));
      },
      key,
      () => {
        this.loading.delete(key);
        this.store.sessionChanged();
        if (replays !== this.replays) return; // another moment is shown
        this.loaded.add(key);
        // In a replay, the record also has what comes after the moment that is shown.
        const until = this.replayId === null ? Infinity : (this.store.chain(runId, chainId)?.asOf ?? -1);
        const found = this.store.retell(runId, chainId, story, until);
        this.store.taps.delete(key);
        if (found) this.missing.delete(key);
        if (this.store.row(runId, chainId)?.state === "running") return;
        this.loaded.delete(key); // it ended meanwhile
        this.askStories();
      },
      STORY_TRIES,
    );
  }

  /**
   * @param {string} runId
   * @param {string} chainId
   * @param {string} key
   */
  askWholeStory(runId, chainId, key) {
    const replays = this.replays;
    let begun = false;
    this.ask(
      { what: "chain", run: runId, chain: chainId },
      (rows, anew) => {
        if (replays !== this.replays) return;
        if (!begun || anew) this.store.forgetChain(runId, chainId);
        begun = true;
        this.store.apply(/** @type {StreamEvent[]} */ (rows));
      },
      key,
      () => {
        this.loading.delete(key);
        if (replays === this.replays) this.loaded.add(key);
      },
      STORY_TRIES,
    );
  }

  // -- a replay -------------------------------------------------------------------------------------------------------------

  /**
   * Show a run as it was, from a time on: the views get only the record's events, at this speed.
   * @param {{runId: string, time: number, speed: number | "max"}} place `time` in seconds since the epoch; a speed of 0 waits there
   */
  replay({ runId, time, speed }) {
    for (const id of this.replayId === null ? ["runs", "chains", "events"] : [this.replayId]) this.line.unsubscribe(id);
    this.replays += 1;
    this.replayId = `replay-${this.replays}`;
    this.loaded.clear();
    this.store.showMoment(time);
    this.line.replay(this.replayId, this.replayFilter(), { time, speed, ofRun: runId });
  }

  /** Tokens are subscribed to only while chains are on screen. @returns {Filter} */
  replayFilter() {
    return this.shown.chainIds.length ? {} : { types: WITHOUT_TOKENS };
  }

  /** @param {number | "max"} speed */
  setReplaySpeed(speed) {
    if (this.replayId !== null) this.line.speed(this.replayId, speed);
  }

  /** Show what happens now. */
  endReplay() {
    if (this.replayId === null) return;
    this.line.unsubscribe(this.replayId);
    this.replayId = null;
    this.replays += 1;
    this.loaded.clear();
    this.store.showMoment(null);
    this.followRuns();
    if (this.listed !== null) this.followEvents(this.listed.filter, this.listed.options);
  }

  // -- the list of events ---------------------------------------------------------------------------------------------------

  /** Follow events for the list of events. @param {Filter} filter @param {{since?: string, speed?: number | "max" | null}} [options] */
  followEvents(filter, options) {
    this.line.unsubscribe("events");
    this.store.events = [];
    this.listed = { filter, options };
    if (this.replayId === null) this.line.subscribe("events", filter, options);
  }

  unfollowEvents() {
    this.listed = null;
    this.line.unsubscribe("events");
    this.gapReader.stop();
  }

  /** What reads a gap of the list from the record; null if it cannot be read. @param {StreamEvent} gap @returns {(() => void) | null} */
  loaderOf(gap) {
    const { listed } = this;
    return listed !== null && this.hasRecord && this.replayId === null && this.gapReader.canRead(gap) ? () => this.gapReader.load(gap, listed.filter) : null;
  }

  // -- questions ------------------------------------------------------------------------------------------------------------

  /**
   * Ask, and go on to the last page unless the query has a limit. What the server cannot answer is asked again.
   * @param {Query} query
   * @param {Question["onRows"]} onRows
   * @param {string} about
   * @param {Question["onEnd"]} [onEnd]
   * @param {number} [maxTries] how many times it is asked again
   * @returns {string} the id of the first page
   */
  ask(query, onRows, about, onEnd = () => {}, maxTries = Infinity) {
    this.missing.delete(about);
    const id = this.line.ask(query);
    const movedAt = this.line.session.now();
    this.asked.set(id, { query, about, pages: 1, open: 1, movedAt, heard: false, tries: 0, maxTries, dueAt: null, failure: "", onRows, onEnd });
    return id;
  }

  /** Time passes: ask again what was not answered, and say what takes long. Call it about once a second. */
  tick() {
    if (this.line.session.phase !== "open") return; // what was asked is asked again after a lost connection
    const now = this.line.session.now();
    for (const [id, question] of [...this.asked]) {
      const { about, dueAt, heard, movedAt, query, tries } = question;
      if (this.asked.get(id) !== question || (heard && query.watch)) continue;
      if (dueAt !== null) {
        if (now >= dueAt) this.repeat(id, question);
      } else if (now - movedAt > UNANSWERED_S * 2 ** tries && tries < question.maxTries) {
        this.line.stop(id);
        this.failed(id, question, unanswered(about));
      } else if (now - movedAt > SLOW_S && question.failure === "" && SAID.has(about)) {
        question.failure = unanswered(about);
        this.lacks(about, [question.failure]);
      }
    }
  }

  /** Something of an answer came. @param {Question} question */
  heard(question) {
    question.movedAt = this.line.session.now();
    question.heard = true;
    if (question.query.watch) question.tries = 0;
    this.failureOver(question);
  }

  /** Why a question has no answer is no longer missing. @param {Question} question */
  failureOver(question) {
    const { about, failure } = question;
    if (failure === "") return;
    question.failure = "";
    const left = (this.missing.get(about) ?? []).filter((sentence) => sentence !== failure);
    if (left.length) this.missing.set(about, left);
    else this.missing.delete(about);
    this.store.sessionChanged();
  }

  /**
   * The server cannot answer a question now: it is asked again in a while, from its first page on. Until then `asked` keeps it under its old id.
   * @param {string} id
   * @param {Question} question
   * @param {string} why
   */
  failed(id, question, why) {
    for (const [other, each] of [...this.asked]) {
      if (each !== question || other === id) continue;
      this.asked.delete(other);
      this.line.stop(other);
      this.renamed(other, id);
    }
    this.failureOver(question);
    question.dueAt = this.line.session.now() + Math.min(AGAIN_S * 2 ** question.tries, LONGEST_AGAIN_S);
    question.tries += 1;
    question.heard = false;
    question.failure = why;
    this.lacks(question.about, [why]);
  }

  /** Ask a question again. @param {string} before its id until now @param {Question} question */
  repeat(before, question) {
    this.asked.delete(before);
    this.missing.delete(question.about);
    const id = this.line.ask(question.query);
    this.asked.set(id, Object.assign(question, { pages: 1, open: 1, movedAt: this.line.session.now(), dueAt: null, failure: "" }));
    this.renamed(before, id);
  }

  /** A question has another id now. @param {string} before @param {string} id */
  renamed(before, id) {
    if (this.watching === before) this.watching = id;
    if (this.opening === before) this.opening = id;
  }

  /**
   * Ask for the next page of an answer.
   * @param {Question} question
   * @param {string} after
   */
  goOn(question, after) {
    if (question.pages >= MAX_PAGES) {
      this.lacks(question.about, [`there is more; the page asks for ${MAX_PAGES} windows of it at most`]);
      return;
    }
    question.pages += 1;
    question.open += 1;
    this.asked.set(this.line.ask({ ...question.query, after, watch: false }), question);
  }

  /**
   * @param {string} about
   * @param {string[]} sentences
   */
  lacks(about, sentences) {
    if (!sentences.length) return;
    this.missing.set(about, [...new Set([...(this.missing.get(about) ?? []), ...sentences])]);
    this.store.sessionChanged();
  }
}
