// Text from outside: made visible, bounded, and folded if it is long.

import { html, useState } from "../ui.js";
import { fold, visible } from "../text.js";

const MORE = 20_000; // characters that one press shows

/** @param {{text: string, lines?: number, characters?: number, tag?: string, class?: string}} props */
export function TextBlock({ text, lines = 24, characters = 4_000, tag = "div", class: name = "text" }) {
  const [shown, show] = useState(characters);
  const folded = shown === characters ? fold(text, { lines, characters }) : { head: text.slice(0, shown), hidden: Math.max(text.length - shown, 0), tail: "" };
  const { head, hidden, tail } = folded;
  return html`<${tag} class=${name}>${visible(head)}${hidden > 0 &&
  html` <button class="small-button" onClick=${() => show((characters === shown ? head.length : shown) + MORE)}>
    ${hidden.toLocaleString("en")} more characters: show ${Math.min(MORE, hidden).toLocaleString("en")}
  </button> ${visible(tail)}`}<//>`;
}
