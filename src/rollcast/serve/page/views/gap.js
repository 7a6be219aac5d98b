// Where events are missing in a transcript: what, why, and *load* if there is a record that may have them.

import { html, usePage } from "../ui.js";
import { Gaps } from "../gaps.js";
import { chainKey } from "../store.js";
import { oneLine } from "../text.js";

/** @typedef {import("../gaps.js").Gap} Gap */

/**
 * The gaps before each item of a transcript, and behind the last one.
 * @param {readonly {first: number}[]} items
 * @param {readonly Gap[]} gaps in order
 * @returns {Gap[][]} by the number of the item; empty if there are none
 */
export function gapsBefore(items, gaps) {
  if (!gaps.length) return [];
  /** @type {Gap[][]} */
  const found = Array.from({ length: items.length + 1 }, () => []);
  for (const gap of gaps) {
    const i = items.findIndex((item) => item.first >= gap.after);
    found[i < 0 ? items.length : i]?.push(gap);
  }
  return found;
}

/** @param {{runId: string, chainId: string, gap: Gap | null}} props */
export function GapBlock({ runId, chainId, gap }) {
  const { feed } = usePage();
  const key = chainKey(runId, chainId);
  const loading = feed.loading.has(key);
  const what = gap === null ? "Events of this chain are missing" : Gaps.words(gap);
  const lacks = feed.loaded.has(key) ? "; the record does not have them" : feed.hasRecord ? "" : "; there is no record to read them from";
  return html`<div class="block gap" role="note">${oneLine(what, 300)}${loading ? "" : lacks}.
    ${loading && html`<span class="muted">Reading the record …</span>`}
    ${!loading && feed.hasRecord && !feed.loaded.has(key) && html`<button class="small-button" onClick=${() => feed.askStory(runId, chainId)}>Load</button>`}</div>`;
}
