// What events say about each generation of a chain besides its text: the version of the weights, the length of its prompt, and where a new
// segment begins because the template showed the past differently. Pure.

import { objectOf } from "./view_parts.js";

/**
 * `policyVersion`: of the weights when it began. `promptTokens`: of its whole prompt. `depth`: turns since the last prompt that was rendered
 * anew; null if the event does not say. `sampled`: its tokens, null while it goes on.
 * @typedef {object} Generation
 * @property {number} step
 * @property {number | null} depth
 * @property {number | null} policyVersion
 * @property {number | null} promptTokens
 * @property {number | null} sampled
 */

/**
 * A sequence to train on: turns whose prompts each continue the ids of the turns before. `sent`: tokens of the last prompt that is known,
 * with all that came before it; `sampled`: tokens that the model sampled in its turns, which are trained on.
 * @typedef {{number: number, first: number, last: number, prompt: number | null, sent: number | null, sampled: number, before: number | null}} ChainSegment
 */

const MAX_GENERATIONS = 4_096; // of one chain; the earliest ones go first

export class Generations {
  constructor() {
    /** @type {Map<number, Generation>} by step, in order */
    this.steps = new Map();
  }

  /** Take the chain's next event. @param {import("./chain_view.js").StreamEvent} event */
  apply(event) {
    const data = objectOf(event.data);
    switch (event.event_type) {
      case "chain_start":
        this.steps.clear();
        break;
      case "llm_generation_start":
        this.began(numberOf(event.step), event.depth, data);
        break;
      case "chain_snapshot":
        if (data.content !== null && data.content !== undefined) this.began(numberOf(data.generation_step), data.depth, data);
        break;
      case "llm_generation_end": {
        const found = this.steps.get(event.step ?? -1);
        if (found === undefined) break;
        found.sampled = numberOf(data.completion_tokens);
        found.promptTokens = numberOf(data.prompt_tokens) ?? found.promptTokens;
        break;
      }
    }
  }

  /**
   * @param {number | null} step
   * @param {unknown} depth
   * @param {Record<string, any>} data
   */
  began(step, depth, data) {
    if (step === null) return;
    this.steps.set(step, {
      step,
      depth: numberOf(depth),
      policyVersion: numberOf(data.policy_version),
      promptTokens: numberOf(data.prompt_tokens),
      sampled: null,
    });
    if (this.steps.size > MAX_GENERATIONS) this.steps.delete(/** @type {number} */ (this.steps.keys().next().value));
  }

  /** @param {number | null} step @returns {Generation | undefined} */
  of(step) {
    return this.steps.get(step ?? -1);
  }

  /**
   * The segments, in order. There is one unless a prompt was rendered afresh.
   * @returns {ChainSegment[]}
   */
  segments() {
    /** @type {ChainSegment[]} */
    const segments = [];
    /** @type {Generation | null} */
    let before = null;
    for (const each of this.steps.values()) {
      const first = each.depth === null ? null : each.step - each.depth + 1;
      let segment = segments.at(-1);
      if (segment === undefined || (first !== null && first > segment.last)) {
        segment = {
          number: segments.length + 1,
          first: first ?? each.step,
          last: each.step,
          prompt: each.promptTokens,
          sent: null,
          sampled: 0,
          before: before === null || before.promptTokens === null ? null : before.promptTokens + (before.sampled ?? 0),
        };
        segments.push(segment);
      }
      segment.last = each.step;
      segment.sent = each.promptTokens ?? segment.sent;
      segment.sampled += each.sampled ?? 0;
      before = each;
    }
    return segments;
  }
}

/** @param {unknown} value */
function numberOf(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}
