// The chains of one question beside each other: aligned by turn, and where they part.

import { callLine, oneLine, splitCalls } from "./text.js";
import { turnsOf } from "./turns.js";

/** @typedef {import("./chain_view.js").ChainView} ChainView */
/** @typedef {import("./tokens.js").Tokens} Tokens */
/** @typedef {import("./turns.js").Turn} Turn */

/**
 * A chain of a group: its view, its tokens if they came, and its row if there is one.
 * @typedef {{view: ChainView, tokens?: Tokens | undefined}} Member
 */

/**
 * Ids in the order in which a person counts: chain_2 before chain_10.
 * @param {string} one
 * @param {string} other
 */
export function compareIds(one, other) {
  return COUNTING.compare(one, other);
}

const COUNTING = new Intl.Collator("en", { numeric: true });

// -- side by side ---------------------------------------------------------------------------------------------------------

/**
 * A line of the table: the same turn of every chain. `alike`: every chain has done the same there, and none is still at it.
 * @typedef {{step: number, cells: (Turn | null)[], alike: boolean}} Line
 */

/**
 * The turns of the chains, aligned: a line for each turn that any of them has, a cell for each chain.
 * @param {readonly Member[]} members
 * @returns {Line[]}
 */
export function alignTurns(members) {
  const columns = members.map(({ view }) => {
    /** @type {Map<number, Turn>} */
    const byStep = new Map();
    for (const [i, turn] of turnsOf(view).entries()) byStep.set(turn.step ?? i + 1, turn);
    return byStep;
  });
  const steps = [...new Set(columns.flatMap((column) => [...column.keys()]))].sort((one, other) => one - other);
  return steps.map((step) => {
    const cells = columns.map((column) => column.get(step) ?? null);
    return { step, cells, alike: areAlike(cells) };
  });
}

/** The cells of a column when they were last requested. @type {WeakMap<ChainView, (Turn | null)[]>} */
const CELLS = new WeakMap();

/**
 * The cells of one chain, up to its last turn: the same array as before if it has only written text since, so that it need not be drawn again. The text of
 * a turn that is being written may be older than its `tail`.
 * @param {ChainView} view
 * @param {readonly Line[]} lines
 * @param {number} index of the chain among the members
 * @returns {(Turn | null)[]}
 */
export function cellsOf(view, lines, index) {
  const cells = lines.map((line) => line.cells[index] ?? null);
  while (cells.at(-1) === null) cells.pop();
  const before = CELLS.get(view);
  if (before?.length === cells.length && cells.every((cell, i) => isSame(cell, before[i] ?? null))) return before;
  CELLS.set(view, cells);
  return cells;
}

/** @param {Turn | null} one @param {Turn | null} other */
function isSame(one, other) {
  return one === other || (one !== null && other !== null && one.tail !== null && one.tail === other.tail && one.step === other.step);
}

/** @param {(Turn | null)[]} cells */
function areAlike(cells) {
  const first = cells[0];
  if (cells.length < 2 || !first || first.open) return false;
  const wanted = signature(first);
  return cells.every((cell) => cell !== null && !cell.open && signature(cell) === wanted);
}

/**
 * What a turn says and does, to compare it with others. Ids of calls differ by chance.
 * @param {Turn} turn
 */
function signature(turn) {
  let made = SIGNATURES.get(turn);
  if (made === undefined) {
    const calls = turn.calls.map((call) => [call.name, call.arguments, call.output, call.status]);
    SIGNATURES.set(turn, (made = JSON.stringify([turn.text, turn.reasoning, calls])));
  }
  return made;
}

/** Of turns that are over, which do not change. @type {WeakMap<Turn, string>} */
const SIGNATURES = new WeakMap();
/** @type {WeakMap<Turn, string>} */
const OUTCOMES = new WeakMap();

/**
 * A turn in a few words, such as `guess(number=8) → lower`: its calls and what they gave, else what it said.
 * @param {Turn} turn
 * @param {number} [limit] characters
 */
export function turnLabel(turn, limit = 60) {
  if (turn.calls.length) {
    const calls = turn.calls.map((call) => {
      const outcome = call.output === null ? "" : ` → ${oneLine(call.output, 24)}`;
      return `${callLine(call.name, call.arguments, 40)}${outcome}`;
    });
    return oneLine(calls.join("  "), limit);
  }
  const said = splitCalls(turn.text).filter((part) => part.kind === "text");
  return oneLine(said.map((part) => part.text).join(" ") || turn.text, limit);
}

// -- where they part ---------------------------------------------------------------------------------------------------------

/**
 * A place in the tree: a turn that some chains share with everything before it. The root is the prompt.
 * @typedef {object} Branch
 * @property {string} id the path to it, stable while chains go on
 * @property {number | null} step null for the prompt
 * @property {Turn | null} turn as the first of its chains has it
 * @property {string} label
 * @property {string} decision the first text in which it differs from its siblings; "" if it has none
 * @property {string[]} chains ids of the chains that came through here
 * @property {boolean} open whether this turn is being generated or waits for a tool
 * @property {number | null} reward the mean over its chains that have one
 * @property {string[]} ended ids of the chains that ended here
 * @property {Branch[]} children those that most chains took first
 */

/**
 * The tree of decisions. Chains are together as long as they generated the same: the same token ids if those of both are known, otherwise
 * the same text; and as long as the tools gave the same.
 * @param {readonly Member[]} members
 * @returns {Branch}
 */
export function whereTheyPart(members) {
  const walkers = members.map((member) => ({ ...member, turns: turnsOf(member.view), ids: new Map() }));
  return branch("", walkers, 0, null);
}

/** @typedef {Member & {turns: Turn[], ids: Map<number, number[] | null>}} Walker `ids`: of the turns that were compared */

/**
 * @param {string} id
 * @param {Walker[]} walkers
 * @param {number} depth how many turns came before
 * @param {Turn | null} turn
 * @returns {Branch}
 */
function branch(id, walkers, depth, turn) {
  /** @type {Walker[][]} */
  const parties = [];
  for (const walker of walkers) {
    if (walker.turns[depth] === undefined) continue;
    const party = parties.find((each) => areTogether(/** @type {Walker} */ (each[0]), walker, depth));
    if (party) party.push(walker);
    else parties.push([walker]);
  }
  parties.sort((one, other) => other.length - one.length);
  const texts = parties.map((party) => party[0]?.turns[depth]?.text ?? "");
  const children = parties.map((party, i) => {
    const next = /** @type {Turn} */ (party[0]?.turns[depth]);
    const first = party.map((walker) => walker.view.chainId).reduce((one, other) => (compareIds(one, other) <= 0 ? one : other));
    const child = branch(`${id}/${first}`, party, depth + 1, next);
    child.decision = firstDifference(texts, i);
    return child;
  });
  const rewards = walkers.map((walker) => walker.view.fields.reward).filter((reward) => reward !== null);
  return {
    id,
    step: turn === null ? null : (turn.step ?? depth),
    turn,
    label: turn === null ? "prompt" : turnLabel(turn),
    decision: "",
    chains: walkers.map((walker) => walker.view.chainId),
    open: turn?.open ?? false,
    reward: rewards.length ? rewards.reduce((sum, each) => sum + each, 0) / rewards.length : null,
    ended: walkers.filter((walker) => walker.turns.length === depth && walker.view.state === "ended").map((walker) => walker.view.chainId),
    children,
  };
}

/**
 * Whether two chains, which came the same way so far, did the same in this turn. An open turn is alone: it may still differ.
 * @param {Walker} one
 * @param {Walker} other
 * @param {number} depth
 */
function areTogether(one, other, depth) {
  const [first, second] = [one.turns[depth], other.turns[depth]];
  if (!first || !second || first.open || second.open) return false;
  const [ids, otherIds] = [idsAt(one, depth), idsAt(other, depth)];
  if (ids !== null && otherIds !== null) {
    if (ids.length !== otherIds.length || ids.some((id, i) => id !== otherIds[i])) return false;
  } else if (first.text !== second.text) {
    return false;
  }
  return outcomes(first) === outcomes(second);
}

/**
 * The token ids of a turn, if they are known.
 * @param {Walker} walker
 * @param {number} depth
 * @returns {number[] | null}
 */
function idsAt(walker, depth) {
  let ids = walker.ids.get(depth);
  if (ids === undefined) walker.ids.set(depth, (ids = walker.tokens?.ids(walker.turns[depth]?.step ?? null) ?? null));
  return ids;
}

/** @param {Turn} turn */
function outcomes(turn) {
  let made = OUTCOMES.get(turn);
  if (made === undefined) {
    OUTCOMES.set(turn, (made = JSON.stringify(turn.calls.map((call) => [call.name, call.output, call.status]))));
  }
  return made;
}

/**
 * The word of text `i` that holds the first character in which it differs from any of the others.
 * @param {string[]} texts
 * @param {number} i
 */
function firstDifference(texts, i) {
  const own = texts[i] ?? "";
  let at = Infinity;
  for (const [j, other] of texts.entries()) if (j !== i && other !== own) at = Math.min(at, commonLength(own, other));
  if (at === Infinity || at >= own.length) return "";
  const start = own.slice(0, at).search(/[\p{L}\p{N}]+$/u);
  const found = own.slice(start < 0 ? at : start).match(/^\s*([\p{L}\p{N}]+|\S)/u);
  return found?.[1] ?? "";
}

/**
 * @param {string} one
 * @param {string} other
 */
function commonLength(one, other) {
  let at = 0;
  while (at < one.length && at < other.length && one[at] === other[at]) at += 1;
  return at;
}

/**
 * A branch with its place: `column` counts turns from the prompt; `row` is in lines from the top, a leaf each, its branch in the middle of them.
 * A chain that goes on alone is one leaf: `alone` has the turns that follow.
 * @typedef {{branch: Branch, parent: number | null, column: number, row: number, alone: Branch[]}} Placed
 */

/**
 * The tree as a list to draw, parents before their children, and how many rows and columns it takes.
 * @param {Branch} root
 * @returns {{places: Placed[], rows: number, columns: number}}
 */
export function placeTree(root) {
  /** @type {Placed[]} */
  const places = [];
  let rows = 0;
  let columns = 0;
  /** @type {(found: Branch, parent: number | null, column: number) => number} */
  const put = (found, parent, column) => {
    const place = { branch: found, parent, column, row: 0, alone: /** @type {Branch[]} */ ([]) };
    const own = places.push(place) - 1;
    columns = Math.max(columns, column + 1);
    let next = found;
    while (found.step !== null && found.chains.length === 1 && next.children[0]) place.alone.push((next = next.children[0]));
    const placed = next === found ? found.children.map((child) => put(child, own, column + 1)) : [];
    place.row = placed.length ? ((placed[0] ?? 0) + (placed.at(-1) ?? 0)) / 2 : rows++;
    return place.row;
  };
  put(root, null, 0);
  return { places, rows, columns };
}
