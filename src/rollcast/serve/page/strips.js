// A chain as a strip: a cell for each turn. Pure.

import { whereTheyPart } from "./group.js";
import { oneLine } from "./text.js";
import { callProbability } from "./segments.js";

/** @typedef {import("./group.js").Member} Member */
/** @typedef {import("./group.js").Branch} Branch */
/** @typedef {import("./turns.js").Turn} Turn */

/**
 * What a turn did, in a cell. `tool`: the name of its first call, null if it has none. `sign`: a few characters of what the call passes.
 * @typedef {object} StripCell
 * @property {number} step
 * @property {"call" | "failed" | "said" | "cut" | "generating" | "waiting"} kind `cut`: it ended at its limit of tokens
 * @property {string | null} tool
 * @property {string} sign
 * @property {string} words for a title
 * @property {number | null} p the probability of its call, or without a call that of its least likely token; null if it is not known
 */

/**
 * @param {Turn} turn
 * @param {number} place from 1, if the turn has no step
 * @param {import("./segments.js").Segment[] | null} segments of the turn; null: its probability is not asked for
 * @returns {StripCell}
 */
export function cellOf(turn, place, segments) {
  const step = turn.step ?? place;
  const call = turn.calls[0];
  if (call === undefined) {
    const cut = turn.finishReason === "length";
    const said = oneLine(turn.text, 60);
    return { step, kind: turn.tail ? "generating" : cut ? "cut" : "said", tool: null, sign: "", words: turn.tail ? "generating" : `${cut ? "ended at its limit of tokens: " : ""}${said}`, p: leastOf(segments) };
  }
  const failed = turn.calls.some((each) => each.status === "error" || each.status === "timeout" || each.status === "cancelled");
  const open = turn.calls.some((each) => each.open && each.status === null);
  const more = turn.calls.length > 1 ? ` and ${turn.calls.length - 1} more` : "";
  const result = call.output === null ? (open ? "running" : "") : oneLine(call.output, 40);
  return {
    step,
    kind: open ? "waiting" : failed ? "failed" : "call",
    tool: call.name,
    sign: signOf(call.arguments),
    words: `${oneLine(call.line, 60)}${result ? ` → ${result}` : ""}${more}`,
    p: segments === null ? null : callProbability(call.name, call.arguments, segments),
  };
}

/** The first value that a call passes, in a few characters. @param {unknown} given */
function signOf(given) {
  const value = typeof given === "object" && given !== null ? Object.values(given)[0] : given;
  return value === undefined || value === "" ? "" : oneLine(typeof value === "string" ? value : (JSON.stringify(value) ?? ""), 4);
}

/** The probability of the least likely token. @param {import("./segments.js").Segment[] | null} segments */
function leastOf(segments) {
  const known = (segments ?? []).map((each) => each.p).filter((p) => p !== null);
  return known.length ? Math.min(...known) : null;
}

/**
 * The tools that are called, by falling number of calls, each with a letter of its own.
 * @param {Iterable<StripCell>} cells
 * @returns {Map<string, {letter: string, place: number, calls: number}>}
 */
export function toolsOf(cells) {
  /** @type {Map<string, number>} */
  const calls = new Map();
  for (const { tool } of cells) if (tool !== null) calls.set(tool, (calls.get(tool) ?? 0) + 1);
  /** @type {Set<string>} */
  const taken = new Set();
  const sorted = [...calls].sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1));
  return new Map(
    sorted.map(([name, count], place) => {
      const letters = [...name.replace(/[^\p{L}\p{N}]/gu, ""), ..."abcdefghijklmnopqrstuvwxyz"];
      const letter = letters.find((each) => !taken.has(each)) ?? "?";
      taken.add(letter);
      return [name, { letter, place, calls: count }];
    }),
  );
}

/**
 * By chain and place of the turn: the mean reward of all chains that made the same decisions up to there. If it falls, a decision was bad.
 * @param {readonly Member[]} members
 * @returns {Map<string, (number | null)[]>}
 */
export function rewardsOnTheWay(members) {
  /** @type {Map<string, (number | null)[]>} */
  const found = new Map(members.map(({ view }) => [view.chainId, []]));
  /** @type {(branch: Branch) => void} */
  const walk = (branch) => {
    if (branch.step !== null) for (const chain of branch.chains) found.get(chain)?.push(branch.reward);
    branch.children.forEach(walk);
  };
  walk(whereTheyPart(members));
  return found;
}
