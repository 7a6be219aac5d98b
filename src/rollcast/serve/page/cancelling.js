// What this page was asked to cancel, and what became of it. Without a DOM.

import { oneLine } from "./text.js";

/** @typedef {import("./store.js").Row} Row */
/** @typedef {import("./session.js").Notice} Notice */

/**
 * What is cancelled: a chain or a group of the run, or all of it.
 * @typedef {{run: string, chain?: string, group?: string}} Target
 */

/**
 * @typedef {object} Request
 * @property {Target} target
 * @property {string | null} id under which the answer comes; null if there was no connection
 * @property {number} connection the number of the connection on which it was sent
 * @property {"sent" | "accepted" | "refused"} state
 * @property {string[]} chains that were asked to end, as many as the answer names
 * @property {{ending: number, notBegun: number, over: number}} counts
 * @property {string} message why it was refused
 * @property {boolean} unknown whether it was refused since nothing of that name is open
 */

const MAX_REQUESTS = 256;
const MAX_NAMED = 3;
const NOT_FOUND = 404;

export class Cancellations {
  /**
   * @param {Pick<import("./socket.js").Socket, "cancel" | "session">} line
   * @param {() => void} onChange
   */
  constructor(line, onChange) {
    this.line = line;
    this.onChange = onChange;
    /** @type {Map<string, Request>} the latest of each target */
    this.requests = new Map();
  }

  /** @param {Target} target @returns {Request | undefined} */
  of(target) {
    return this.requests.get(keyOf(target));
  }

  /** Cancel it. @param {Target} target */
  send(target) {
    const { run, chain, group } = target;
    const part = { ...(chain === undefined ? {} : { chain }), ...(group === undefined ? {} : { group }) };
    const id = this.line.cancel(run, part);
    const key = keyOf(target);
    this.requests.delete(key);
    this.requests.set(key, {
      target,
      id,
      connection: this.line.session.reconnections,
      state: id === null ? "refused" : "sent",
      chains: [],
      counts: { ending: 0, notBegun: 0, over: 0 },
      message: id === null ? "There is no connection to the server; try again when there is one" : "",
      unknown: false,
    });
    if (this.requests.size > MAX_REQUESTS) this.requests.delete(/** @type {string} */ (this.requests.keys().next().value));
    this.onChange();
  }

  /** Forget what was asked of the target, so that it can be asked again. @param {Target} target */
  forget(target) {
    this.requests.delete(keyOf(target));
    this.onChange();
  }

  /** Take the server's answer. @param {Extract<Notice, {kind: "done" | "refused"}>} notice */
  answered(notice) {
    for (const request of this.requests.values()) {
      if (request.id !== notice.id || request.id === null) continue;
      if (notice.kind === "refused") {
        request.state = "refused";
        request.unknown = notice.code === NOT_FOUND;
        request.message = `The server does not cancel it: ${notice.message}`;
      } else {
        request.state = "accepted";
        request.chains = request.target.chain === undefined ? notice.chains : [request.target.chain];
        request.counts = notice.counts ?? { ending: notice.chains.length, notBegun: 0, over: 0 };
      }
      this.onChange();
    }
  }
}

/** @param {Target} target */
function keyOf({ run, chain, group }) {
  return JSON.stringify([run, chain ?? null, group ?? null]);
}

/**
 * The outcome of a request, in a sentence. `pending`: it may still change.
 * @param {Request} request
 * @param {object} known
 * @param {(chain: string) => Row | undefined} known.row
 * @param {Record<string, any> | null} known.run
 * @param {number} known.connection the number of the connection that there is now
 * @param {boolean} [known.isTraining]
 * @param {boolean} [known.isOpen] whether something of the target is still open, as far as this page knows
 * @returns {{sentence: string, pending: boolean, failed: boolean}}
 */
export function outcomeOf(request, { row, run, connection, isTraining = false, isOpen = true }) {
  const { state, target } = request;
  const isOver = !isOpen || (run !== null && run.status !== "running");
  if (state === "refused" && request.unknown && isOver) return { sentence: "It was over already.", pending: false, failed: false };
  if (state === "refused") return { sentence: `${oneLine(request.message, 300)}.`, pending: false, failed: true };
  if (state === "sent") {
    if (connection === request.connection) return { sentence: "Asking the server …", pending: true, failed: false };
    return { sentence: "The connection was lost before the server answered; it may have been cancelled or not.", pending: false, failed: true };
  }
  if (target.chain !== undefined) return ofChain(row(target.chain));
  if (target.group === undefined && isTraining) return ofTraining(run);
  return ofChains(request, row, target.group === undefined ? run : null);
}

/** @param {Row | undefined} row */
function ofChain(row) {
  if (row === undefined || row.state === "running") {
    return { sentence: `It was told to end${stillIn(row)}.`, pending: true, failed: false };
  }
  const reason = String(row.finish_reason ?? "");
  if (reason === "cancelled") return { sentence: "It was cancelled.", pending: false, failed: false };
  if (row.state === "lost") return { sentence: "It was told to end; its end was not seen.", pending: false, failed: false };
  return { sentence: `It was over before it could be cancelled: ${oneLine(reason.replace("_", " "), 40) || "it has ended"}.`, pending: false, failed: false };
}

/** @param {Record<string, any> | null} run */
function ofTraining(run) {
  if (run === null || run.status === "running") {
    return { sentence: "The training was told to end. It ends after the step that it is in, and saves it.", pending: true, failed: false };
  }
  return { sentence: `The training has ended: ${oneLine(String(run.status), 40)}.`, pending: false, failed: false };
}

/** @param {Request} request @param {(chain: string) => Row | undefined} rowOf @param {Record<string, any> | null} run of which all was cancelled */
function ofChains({ chains, counts }, rowOf, run) {
  const { ending, notBegun, over } = counts;
  const rows = chains.map(rowOf);
  const running = rows.filter((row) => row?.state === "running");
  const otherwise = rows.filter((row) => row !== undefined && row.state === "ended" && row.finish_reason !== "cancelled").length;
  const all = ending + notBegun + over;
  const pending = running.length > 0 || (run !== null && run.status === "running");
  /** @type {string[]} */
  const parts = [];
  if (running.length) {
    const names = running.slice(0, MAX_NAMED).map((row) => `${oneLine(row?.chain_id ?? "", 60)}${stillIn(row)}`).join(", ");
    const more = running.length > MAX_NAMED ? ` and ${(running.length - MAX_NAMED).toLocaleString("en")} more` : "";
    parts.push(`${count(ending)} of ${count(all)} chains ${ending === 1 ? "was" : "were"} told to end, and ${count(ending - running.length)} ${ending - running.length === 1 ? "has" : "have"}; not yet: ${names}${more}`);
  } else {
    parts.push(`${count(ending)} of ${count(all)} chains ended`);
  }
  if (otherwise) parts.push(`${count(otherwise)} of them by ${otherwise === 1 ? "itself" : "themselves"}`);
  if (over) parts.push(`${count(over)} ${over === 1 ? "was" : "were"} over already`);
  if (notBegun) parts.push(`${count(notBegun)} had not begun and will not`);
  const ended = run !== null && run.status !== "running" ? ` The run has ended: ${oneLine(String(run.status), 40)}.` : "";
  return { sentence: `${parts.join(", ")}.${ended}`, pending, failed: false };
}

/** @param {Row | undefined} row */
function stillIn(row) {
  if (row?.state !== "running" || row.activity !== "tool") return "";
  const tools = (row.open_tools ?? []).map((/** @type {unknown} */ name) => oneLine(String(name), 40)).join(" and ");
  return tools ? `, still in the tool ${tools}` : ", still in a tool";
}

/** @param {number} value */
function count(value) {
  return Math.max(value, 0).toLocaleString("en");
}
