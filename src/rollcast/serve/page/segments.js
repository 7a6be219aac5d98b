// The text of a generation divided into tokens, as far as they are known. Pure.

import { length, slice } from "./bounded.js";
import { probability } from "./pieces.js";

/**
 * A token, several that could not be told apart, or text whose tokens were not seen (`ids` is empty then).
 * @typedef {{text: string, ids: number[], logprobs: number[], p: number | null}} Segment `p`: the probability of all its tokens together
 */

/**
 * Divide a text.
 * @param {string} text
 * @param {number} at the character of the generation at which the text begins
 * @param {readonly import("./tokens.js").Span[]} spans of the generation
 * @param {number} from the first span that may be in this text
 * @param {import("./pieces.js").Pieces} pieces
 * @returns {Segment[]}
 */
export function segmentsOf(text, at, spans, from, pieces) {
  /** @type {Segment[]} */
  const segments = [];
  const end = at + length(text);
  let done = at;
  const unknown = (/** @type {number} */ to) => {
    if (to > done) segments.push({ text: slice(text, done - at, to - at), ids: [], logprobs: [], p: null });
  };
  for (let i = from; i < spans.length; i += 1) {
    const span = /** @type {import("./tokens.js").Span} */ (spans[i]);
    if (span.at < done || span.end > end) continue;
    unknown(span.at);
    for (const piece of pieces.divide(span.text, span.ids, span.logprobs)) segments.push({ ...piece, p: probability(piece) });
    done = span.end;
  }
  unknown(end);
  return segments;
}

/**
 * The probability of what a call passes: of the tokens that overlap with the values of its arguments. Null if it is not known.
 * @param {string} name
 * @param {unknown} given the arguments
 * @param {Segment[]} segments of its turn
 */
export function callProbability(name, given, segments) {
  const text = segments.map((segment) => segment.text).join("");
  const values = typeof given === "object" && given !== null ? Object.values(given) : [given];
  /** @type {[number, number][]} */
  const ranges = [];
  let from = Math.max(text.indexOf(name), 0) + name.length;
  for (const value of values) {
    const written = typeof value === "string" ? JSON.stringify(value).slice(1, -1) : (JSON.stringify(value) ?? "");
    const at = written ? text.indexOf(written, from) : -1;
    if (at < 0) continue;
    ranges.push([at, at + written.length]);
    from = at + written.length;
  }
  if (!ranges.length) return null;
  let sum = 0;
  let start = 0;
  for (const segment of segments) {
    const end = start + segment.text.length;
    if (ranges.some(([low, high]) => start < high && end > low)) {
      if (segment.p === null) return null;
      for (const logprob of segment.logprobs) sum += logprob;
    }
    start = end;
  }
  return Math.exp(sum);
}
