// What keys do.

import { html, useEffect, usePage, useRef } from "../ui.js";

const KEYS = /** @type {[string[], string][]} */ ([
  [["j", "k"], "next and previous chain; in the overview, question"],
  [["l", "h"], "next and previous turn; in a group, the next and previous group"],
  [["g"], "the group of the chain, or the first question of the overview"],
  [["s"], "in a group: strips, or side by side"],
  [["t"], "in a group: tokens, or one line a call"],
  [["w"], "in a group: where the chains part"],
  [["f"], "follow the end, or stop following"],
  [["."], "the next hint that needs a look"],
  [["x"], "cancel this chain, group or run; the page asks once more"],
  [["p"], "pause, and go on"],
  [["v"], "replay what happened, or back to now"],
  [["[", "]"], "in a replay: back, and on"],
  [["o"], "the overview"],
  [["r"], "the list of runs"],
  [["←", "→"], "on a turn's text: from token to token; Home and End: the first and last"],
  [["Enter"], "open what has the focus"],
  [["Esc"], "close this list, or let what you were about to cancel run"],
  [["?"], "this list"],
]);

/** @param {{close: () => void}} props */
export function Help({ close }) {
  const { socket } = usePage();
  const place = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => {
    place.current?.showModal();
    place.current?.querySelector("h1")?.focus(); // the list is shown from its beginning
  }, []);
  const mayCancel = socket.session.scopes.includes("control");
  return html`<dialog class="help" ref=${place} aria-labelledby="help-title" onClose=${close}>
    <h1 id="help-title" tabindex="-1">Keys</h1>
    <dl>${KEYS.map(([names, what]) => html`<dt>${names.map((name) => html`<kbd>${name}</kbd> `)}</dt><dd>${what}</dd>`)}</dl>
    ${!mayCancel && html`<p class="small muted">This page may watch and not cancel. The link “with cancel” that the command printed may do both.</p>`}
    <form method="dialog"><button class="small-button">Close</button></form>
  </dialog>`;
}
