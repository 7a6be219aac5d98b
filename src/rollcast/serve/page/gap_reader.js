// Reads from the record what a gap in the list of events is about, and puts it in the gap's place. Without a DOM.

/** @typedef {import("./chain_view.js").StreamEvent} StreamEvent */

export const MISSED = "missed"; // the subscription
const LONGEST_MS = 5_000; // what has not come by then counts as not recorded
const NOT_LISTED = ["chain_snapshot", "gap"];

export class GapReader {
  /**
   * @param {import("./feed.js").Line} line
   * @param {import("./store.js").Store} store
   * @param {(action: () => void, ms: number) => unknown} later
   */
  constructor(line, store, later) {
    this.line = line;
    this.store = store;
    this.later = later;
    /** @type {{gap: StreamEvent, events: StreamEvent[]} | null} the gap that is being read, and what came */
    this.reading = null;
    /** @type {WeakSet<StreamEvent>} gaps that were read; if they are still there, the record did not have it */
    this.read = new WeakSet();
  }

  /** Whether it is known which events the gap is about, and they were not asked for yet. @param {StreamEvent} gap */
  canRead(gap) {
    return !this.read.has(gap) && Number(gap.data?.from_seq) >= 0 && Number(gap.data?.to_seq) >= 0;
  }

  /** Read one; another one waits until it is asked for again. @param {StreamEvent} gap of the list @param {import("./session.js").Filter} filter of the list */
  load(gap, filter) {
    const at = this.store.events.indexOf(gap);
    if (at < 0 || this.reading !== null) return;
    this.reading = { gap, events: [] };
    this.read.add(gap);
    const ofRun = gap.run_id ? { ofRun: gap.run_id } : {};
    this.line.replay(MISSED, filter, { time: this.store.events[at - 1]?.timestamp ?? 0, speed: "max", aside: true, ...ofRun });
    this.later(() => this.reading?.gap === gap && this.finish(), LONGEST_MS);
  }

  /** @param {StreamEvent[]} events of the record */
  take(events) {
    if (this.reading === null) return;
    const { from_seq: from, to_seq: to } = this.reading.gap.data;
    for (const event of events) {
      const { seq = -1 } = event;
      if (seq >= from && seq <= to && !NOT_LISTED.includes(event.event_type)) this.reading.events.push(event);
    }
    if (events.some(({ seq = -1, event_type }) => seq >= to && event_type !== "chain_snapshot")) this.finish();
  }

  finish() {
    if (this.reading === null) return;
    this.store.fillGap(this.reading.gap, this.reading.events);
    this.stop();
  }

  stop() {
    this.line.unsubscribe(MISSED);
    this.reading = null;
  }
}
