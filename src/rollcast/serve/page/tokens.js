// The tokens of one chain, as far as events tell: which text each of them gave, its id and its log-probability.
//
// Events come with one token each or with several merged ones, whose text cannot be divided among them: a `Span` is what came together.

import { length, slice } from "./bounded.js";
import { objectOf, textOf } from "./view_parts.js";

/** @typedef {import("./chain_view.js").StreamEvent} StreamEvent */

/**
 * Neighbouring tokens of a generation and their text, mostly a single one.
 * @typedef {object} Span
 * @property {number} at the first character in the generation
 * @property {number} end behind the last one
 * @property {string} text
 * @property {number[]} ids
 * @property {number[]} logprobs of the sampled tokens, natural logarithms; empty if the server does not tell
 */

/** @type {readonly Span[]} */
const NONE = [];
const MAX_TOKENS = 131_072; // of one chain; the earliest generations go first

export class Tokens {
  constructor() {
    /** @type {Map<number, Span[]>} by step */
    this.steps = new Map();
    this.count = 0;
  }

  /**
   * Take the chain's next event.
   * @param {StreamEvent} event
   */
  apply(event) {
    const kind = event.event_type;
    if (kind === "chain_start") {
      this.steps.clear();
      this.count = 0;
    } else if (kind === "llm_generation_chunk") {
      const data = objectOf(event.data);
      const spans = this.steps.get(event.step ?? 0) ?? [];
      const before = spans.at(-1)?.end ?? 0;
      this.add(event, data, typeof data.offset === "number" ? data.offset : before);
    } else if (kind === "llm_generation_end" && !this.steps.has(event.step ?? 0)) {
      this.add(event, objectOf(event.data), 0); // its chunks were not seen: a record keeps the ids with the end
    }
  }

  /**
   * @param {StreamEvent} event
   * @param {Record<string, any>} data
   * @param {number} at
   */
  add(event, data, at) {
    const ids = numbers(data.token_ids);
    if (!ids.length) return;
    const step = event.step ?? 0;
    let spans = this.steps.get(step);
    if (spans === undefined) this.steps.set(step, (spans = []));
    if (at < (spans.at(-1)?.end ?? 0)) return; // it is known, or merged with what is known, so that its ids have no place
    const text = textOf(data.content);
    const logprobs = numbers(data.logprobs);
    const known = logprobs.length === ids.length ? logprobs : [];
    const lengths = numbers(data.lengths);
    if (ids.length > 1 && lengths.length === ids.length && lengths.every((each) => each >= 0) && sum(lengths) === length(text)) {
      let from = 0;
      ids.forEach((id, i) => {
        const to = from + /** @type {number} */ (lengths[i]);
        spans.push({ at: at + from, end: at + to, text: slice(text, from, to), ids: [id], logprobs: known.slice(i, i + 1) });
        from = to;
      });
    } else {
      spans.push({ at, end: at + length(text), text, ids, logprobs: known });
    }
    this.count += ids.length;
    while (this.count > MAX_TOKENS && this.steps.size > 1) {
      const [earliest, gone] = /** @type {[number, Span[]]} */ (this.steps.entries().next().value);
      this.steps.delete(earliest);
      for (const span of gone) this.count -= span.ids.length;
    }
  }

  /**
   * Take over the tokens of a step from another `Tokens`.
   * @param {number | null} step
   * @param {Tokens | undefined} other
   */
  takeStep(step, other) {
    const spans = other?.steps.get(step ?? 0);
    if (spans === undefined) return;
    for (const span of this.of(step)) this.count -= span.ids.length;
    this.steps.set(step ?? 0, [...spans]);
    for (const span of spans) this.count += span.ids.length;
  }

  /**
   * The tokens of the generation of a step, in order: the same list each time, so that what shows them need not be drawn again.
   * @param {number | null} step
   * @returns {readonly Span[]}
   */
  of(step) {
    return this.steps.get(step ?? 0) ?? NONE;
  }

  /**
   * The ids of a generation, if they are known without a hole; else null.
   * @param {number | null} step
   * @returns {number[] | null}
   */
  ids(step) {
    const spans = this.of(step);
    let end = 0;
    for (const span of spans) {
      if (span.at !== end) return null;
      end = span.end;
    }
    return spans.length ? spans.flatMap((span) => span.ids) : null;
  }
}

/** @param {number[]} values */
function sum(values) {
  return values.reduce((all, each) => all + each, 0);
}

/** @param {unknown} value @returns {number[]} */
function numbers(value) {
  return Array.isArray(value) && value.every((each) => typeof each === "number") ? value : [];
}

// -- surprise ---------------------------------------------------------------------------------------------------------

const SURE = -Math.log(0.9);
const TOP = -Math.log(0.05); // where the highest level begins; the same for every text, so that colours can be compared
const HIGHEST = 6;

/** How surprising a probability is: 0 if the model was sure, up to 6; null if it is not known. @param {number | null} p */
export function surprise(p) {
  if (p === null) return null;
  const share = (-Math.log(Math.max(p, 1e-300)) - SURE) / (TOP - SURE);
  return share <= 0 ? 0 : Math.min(1 + Math.floor(share * HIGHEST), HIGHEST);
}
