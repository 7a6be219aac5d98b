// Notes where events are missing in the conversation of a chain. Pure.

/** @typedef {import("./chain_view.js").StreamEvent} StreamEvent */
/** @typedef {import("./chain_view.js").ChainView} ChainView */

/**
 * @typedef {object} Gap
 * @property {number} after how many messages of the chain came before it
 * @property {number} from the first `seq` that is missing, -1 if that is not known
 * @property {number} to the last one
 * @property {string} reason
 * @property {Record<string, number>} dropped how many events, by type, if that is known
 */

const MAX_GAPS = 64; // of one chain; the latest ones

export class Gaps {
  constructor() {
    /** @type {Gap[]} in order */
    this.all = [];
  }

  /**
   * Take a `gap` that concerns the chain.
   * @param {StreamEvent} event
   * @param {ChainView} view as it is before what comes next
   */
  add(event, view) {
    const data = event.data ?? {};
    const after = view.conversation.omitted + view.messages.length;
    const dropped = Object.fromEntries(
      Object.entries(typeof data.dropped === "object" && data.dropped !== null ? data.dropped : {}).filter(([, count]) => Number.isSafeInteger(count)),
    );
    const { from_seq: from, to_seq: to } = data;
    const gap = { after, from: Number.isSafeInteger(from) ? from : -1, to: Number.isSafeInteger(to) ? to : -1, reason: String(data.reason ?? ""), dropped };
    if (this.all.some((each) => each.from === gap.from && each.to === gap.to && gap.to >= 0)) return; // the same gap again
    this.all.push(gap);
    if (this.all.length > MAX_GAPS) this.all.shift();
  }

  /** What is missing, in words. @param {Gap} gap */
  static words({ from, to, dropped, reason }) {
    const counts = Object.entries(dropped).map(([type, count]) => `${count.toLocaleString("en")} × ${type}`);
    const what = counts.length ? counts.join(", ") : to > from && from >= 0 ? `up to ${(to - from + 1).toLocaleString("en")} events of the run` : "events";
    return `${what[0]?.toUpperCase()}${what.slice(1)} missing here${reason ? `: ${reason}` : ""}`;
  }
}
