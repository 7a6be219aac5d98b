// What keys do.

import { html, useEffect, useRef } from "../ui.js";

const KEYS = /** @type {[string[], string][]} */ ([
  [["j", "k"], "next and previous chain; in the overview, question"],
  [["l", "h"], "next and previous turn"],
  [["g"], "the group of the chain, or the first question of the overview"],
  [["t"], "in a group: tokens, or one line a call"],
  [["w"], "in a group: where the chains part"],
  [["f"], "follow the end, or stop following"],
  [["."], "the next hint that needs a look"],
  [["p"], "pause, and go on"],
  [["v"], "replay the run, or go back to now"],
  [["[", "]"], "in a replay: five seconds back and forward"],
  [["o"], "the overview"],
  [["r"], "the list of runs"],
  [["←", "→"], "on a turn's text: from token to token"],
  [["?"], "this list"],
]);

/** @param {{close: () => void}} props */
export function Help({ close }) {
  const place = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => place.current?.showModal(), []);
  return html`<dialog class="help" ref=${place} aria-labelledby="help-title" onClose=${close}>
    <h1 id="help-title">Keys</h1>
    <dl>${KEYS.map(([names, what]) => html`<dt>${names.map((name) => html`<kbd>${name}</kbd> `)}</dt><dd>${what}</dd>`)}</dl>
    <form method="dialog"><button class="small-button">Close</button></form>
  </dialog>`;
}
