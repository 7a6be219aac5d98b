// Replaces the parts of a chain that were seen with its whole story from a record, and keeps what came while that was read. Pure.

import { ChainView } from "./chain_view.js";
import { TimeLine } from "./time_line.js";
import { Tokens } from "./tokens.js";

/** @typedef {import("./chain_view.js").StreamEvent} StreamEvent */

/**
 * @typedef {object} ChainFromStory
 * @property {ChainView} view
 * @property {Tokens} tokens
 * @property {TimeLine} timeLine
 */

/**
 * The chain after the events of its story, and those that came since.
 * @param {readonly StreamEvent[]} story the events of a chain from a record, in order
 * @param {readonly StreamEvent[]} since the events that came while the story was read; those that the story has, too, are applied once
 * @param {{until?: number, before?: {view: ChainView, tokens: Tokens | undefined} | undefined}} [options] `until`: the last `seq` of the story that
 *   counts; `before`: what was known, for the text of an open generation, which not every record has
 * @returns {ChainFromStory | null} null if the story lacks the chain's beginning, so that it is no better than what was seen
 */
export function chainFromStory(story, since, { until = Infinity, before } = {}) {
  const view = new ChainView();
  const tokens = new Tokens();
  const timeLine = new TimeLine();
  let last = -1;
  const take = (/** @type {StreamEvent} */ event) => {
    view.apply(event);
    if (event.event_type.startsWith("llm_generation") || event.event_type === "chain_start") tokens.apply(event);
    if (event.event_type !== "llm_generation_chunk") timeLine.apply(event);
  };
  for (const event of story) {
    const seq = event.seq ?? -1;
    if (seq > until) break;
    last = Math.max(last, seq);
    take(event);
  }
  for (const event of since) if ((event.seq ?? -1) > last || event.seq === undefined) take(event);
  if (view.fields.joined_late || view.state === "unknown") return null;
  const known = before?.view;
  if (known?.generation && known.fields.generation_step === view.fields.generation_step && view.state === known.state) {
    if ((view.generation?.end ?? 0) < known.generation.end) {
      view.generation = known.generation;
      view.reasoning = known.reasoning ?? view.reasoning;
      view.fields.generation_tokens = Math.max(view.fields.generation_tokens, known.fields.generation_tokens);
      tokens.takeStep(view.fields.generation_step, before?.tokens);
    }
  }
  return { view, tokens, timeLine };
}
