// Cancels a chain, a group or a run, if the link that opened the page allows it. It asks for confirmation, and then says what became
// of it.

import { html, useAgain, useEffect, useKeys, usePage, useRef, useState, useTopics } from "../ui.js";
import { outcomeOf } from "../cancelling.js";
import { childrenOf, runRow } from "../training.js";

/** @typedef {import("../cancelling.js").Target} Target */

/**
 * @param {object} props
 * @param {Target} props.target
 * @param {boolean} props.open whether it goes on; otherwise there is nothing to cancel
 * @param {string} props.name what it is called in the question
 * @param {string} [props.label] of the button; without it, `Cancel …`
 * @param {string} [props.warning] what else ends
 * @param {boolean} [props.byKey] whether the key `x` presses the button
 */
export function CancelButton({ target, open, name, label, warning = "", byKey = false }) {
  const { socket, cancels, store, runs, topics } = usePage();
  const again = useAgain();
  useTopics(`rows\n${target.run}`);
  useEffect(() => topics.listen("session", again), [topics]);
  const [asking, ask] = useState(false);
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const moveFocus = useRef(false);
  useEffect(() => {
    if (!moveFocus.current) return;
    moveFocus.current = false;
    /** @type {HTMLElement | null} */ (place.current?.querySelector("[data-focus]") ?? null)?.focus();
  });
  const may = socket.session.scopes.includes("control") && store.moment === null; // nothing of the past can be cancelled
  const request = cancels.of(target);
  const begin = () => {
    moveFocus.current = true;
    ask(true);
  };
  const end = (/** @type {boolean} */ send) => {
    moveFocus.current = true;
    ask(false);
    if (send) cancels.send(target);
  };
  useKeys(byKey ? { x: () => may && open && !request && begin() } : {});
  if (!may || (!open && !request)) return null;
  const onKeyDown = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    end(false);
  };
  if (asking && open) {
    return html`<span class="cancel" ref=${place} role="group" aria-label=${`Cancel ${name}`} onKeyDown=${onKeyDown}>
      <span>End ${name} now?${warning && ` ${warning}`}</span>
      <button class="small-button" data-focus onClick=${() => end(false)}>Let it run</button>
      <button class="small-button bad" onClick=${() => end(true)}>End it</button></span>`;
  }
  if (request) {
    const run = runRow(store, target.run);
    const isTraining = childrenOf(runs, target.run).length > 0;
    const outcome = outcomeOf(request, { row: (chain) => store.row(target.run, chain), run, connection: socket.session.reconnections, isTraining, isOpen: open });
    return html`<span class="cancel" ref=${place}><span class=${outcome.failed ? "bad" : ""} role="status" tabindex="-1" data-focus>${outcome.sentence}</span>
      ${!outcome.pending && open && html`<button class="small-button" onClick=${() => (cancels.forget(target), begin())}>Cancel again …</button>`}</span>`;
  }
  return html`<span class="cancel" ref=${place}><button class="small-button" data-focus onClick=${begin}>${label ?? html`Cancel …<span class="hidden-name"> ${name}</span>`}${byKey && html` <kbd aria-hidden="true">x</kbd>`}</button></span>`;
}
