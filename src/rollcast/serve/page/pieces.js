// Which text belongs to which token. A chunk of one token says so itself. Chunks that were merged have one text for several ids; it
// is divided with the help of the tokens whose text is known. Nothing is guessed: what cannot be divided stays together. Pure.

const MAX_KNOWN = 65_536; // ids whose text is kept
const MAX_RUNS = 16_384; // neighbouring ids whose text together is kept
const LONGEST_RUN = 12; // ids

/** @typedef {{text: string, ids: number[], logprobs: number[]}} Piece one token, or several that could not be told apart */

/** The texts of token ids, learned from the events of one model. */
export class Pieces {
  constructor() {
    /** @type {Map<number, string | null>} null: the same id had different texts, as bytes of a character have */
    this.known = new Map();
    /** @type {Map<string, string>} texts of neighbouring ids, by the ids */
    this.runs = new Map();
    /** Grows with each id that is learned, so that a reader knows when dividing again may help. */
    this.version = 0;
  }

  /**
   * Remember the text of a token.
   * @param {number} id
   * @param {string} text
   */
  learn(id, text) {
    const before = this.known.get(id);
    if (before === text || before === null) return;
    if (before === undefined && this.known.size >= MAX_KNOWN) return;
    this.known.set(id, before === undefined ? text : null);
    this.version += 1;
  }

  /**
   * Divide the text of several tokens.
   * @param {string} text
   * @param {number[]} ids
   * @param {number[]} logprobs as many as ids, or none
   * @returns {Piece[]}
   */
  divide(text, ids, logprobs) {
    if (ids.length < 2) {
      if (ids.length === 1) this.learn(/** @type {number} */ (ids[0]), text);
      return [{ text, ids, logprobs }];
    }
    let start = 0;
    let end = ids.length;
    let from = 0;
    let to = text.length;
    /** @type {string[]} */
    const front = [];
    /** @type {string[]} */
    const back = [];
    for (; start < end; start += 1) {
      const piece = this.known.get(/** @type {number} */ (ids[start]));
      if (typeof piece !== "string" || !text.startsWith(piece, from) || from + piece.length > to) break;
      front.push(piece);
      from += piece.length;
    }
    for (; end > start; end -= 1) {
      const piece = this.known.get(/** @type {number} */ (ids[end - 1]));
      if (typeof piece !== "string" || !text.slice(from, to).endsWith(piece)) break;
      back.unshift(piece);
      to -= piece.length;
    }
    const rest = text.slice(from, to);
    if (start === end && rest) return [{ text, ids, logprobs }]; // what was learned does not fit here
    const lp = (/** @type {number} */ i, /** @type {number} */ j) => (logprobs.length ? logprobs.slice(i, j) : []);
    const pieces = front.map((piece, i) => ({ text: piece, ids: [/** @type {number} */ (ids[i])], logprobs: lp(i, i + 1) }));
    if (end - start === 1) this.learn(/** @type {number} */ (ids[start]), rest);
    if (end - start > 1) pieces.push(...this.divideRun(rest, ids.slice(start, end), lp(start, end)));
    else if (start < end) pieces.push({ text: rest, ids: ids.slice(start, end), logprobs: lp(start, end) });
    back.forEach((piece, i) => pieces.push({ text: piece, ids: [/** @type {number} */ (ids[end + i])], logprobs: lp(end + i, end + i + 1) }));
    return pieces;
  }

  /**
   * Divide tokens none of which is known at either end, if the first or the last few of them came together elsewhere.
   * @param {string} text
   * @param {number[]} ids
   * @param {number[]} logprobs
   * @returns {Piece[]}
   */
  divideRun(text, ids, logprobs) {
    if (ids.length > LONGEST_RUN) return [{ text, ids, logprobs }];
    for (let i = 1; i < ids.length; i += 1) {
      const front = this.runs.get(ids.slice(0, i).join());
      const back = this.runs.get(ids.slice(i).join());
      const fits = front !== undefined ? text.startsWith(front) : back !== undefined && text.endsWith(back);
      if (!fits) continue;
      const at = front !== undefined ? front.length : text.length - /** @type {string} */ (back).length;
      const [before, after] = logprobs.length ? [logprobs.slice(0, i), logprobs.slice(i)] : [[], []];
      return [...this.divide(text.slice(0, at), ids.slice(0, i), before), ...this.divide(text.slice(at), ids.slice(i), after)];
    }
    const key = ids.join();
    if (!this.runs.has(key) && this.runs.size < MAX_RUNS) {
      this.runs.set(key, text);
      this.version += 1;
    }
    return [{ text, ids, logprobs }];
  }
}

/**
 * The probability of a piece, of all its tokens together; null if it is not known.
 * @param {Piece} piece
 */
export function probability(piece) {
  return piece.logprobs.length ? Math.exp(piece.logprobs.reduce((sum, each) => sum + each, 0)) : null;
}

/** @type {Map<string, Pieces>} */
const byModel = new Map();
const MAX_MODELS = 16;

/** The texts of a model's tokens, as far as this page has learned them. @param {string} model */
export function piecesOf(model) {
  let found = byModel.get(model);
  if (!found) {
    if (byModel.size >= MAX_MODELS) byModel.delete(/** @type {string} */ (byModel.keys().next().value));
    byModel.set(model, (found = new Pieces()));
  }
  return found;
}
