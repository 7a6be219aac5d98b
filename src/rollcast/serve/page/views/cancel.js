// Cancels a chain, if the link that opened the page allows it. It asks once more before it does.

import { html, usePage, useState } from "../ui.js";

/** @param {{runId: string, chainId: string}} props */
export function CancelButton({ runId, chainId }) {
  const { socket, feed } = usePage();
  const [state, setState] = useState(/** @type {"no" | "asking" | "told" | string} */ ("no"));
  if (!socket.session.scopes.includes("control")) return null;
  const cancel = () => {
    const id = socket.cancel(runId, { chain: chainId });
    if (id === null) {
      setState("There is no connection; try again when there is one.");
      return;
    }
    setState("told");
    const before = feed.onAnswer;
    feed.onAnswer = (notice) => {
      if (notice.id !== id) {
        before(notice);
        return;
      }
      feed.onAnswer = before;
      if (notice.kind === "refused") setState(notice.message);
    };
  };
  if (state === "no") return html`<p><button class="small-button" onClick=${() => setState("asking")}>Cancel this chain …</button></p>`;
  if (state === "asking") return html`<p>End ${chainId} now? <button class="small-button bad" onClick=${cancel}>Cancel it</button> <button class="small-button" onClick=${() => setState("no")}>Let it run</button></p>`;
  return html`<p role="status">${state === "told" ? "It was told to end." : state}</p>`;
}
