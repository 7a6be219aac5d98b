// What a chain does now and since when: in which tool, for how long.

import { html, usePage, useTicks, useTopicsFor } from "../ui.js";
import { lasting } from "../format.js";
import { oneLine } from "../text.js";

const SHOWN_S = 3; // shorter times are not shown

/** @type {Record<string, string>} */
const WORDS = { waiting: "between two turns", generating: "generating", tool: "in a tool", scoring: "waiting for its reward" };

/** @param {import("../store.js").Row} row of a chain that runs */
export function doingWords(row) {
  const tools = row.activity === "tool" ? (row.open_tools ?? []) : [];
  return tools.length ? `in ${tools.map((/** @type {string} */ tool) => oneLine(tool, 40)).join(" and ")}` : (WORDS[row.activity ?? ""] ?? "running");
}

/** @param {{row: import("../store.js").Row}} props */
export function Doing({ row: given }) {
  const { store } = usePage();
  const latest = () => store.row(given.run_id, given.chain_id) ?? given;
  useTopicsFor([`rows\n${given.run_id}`], () => doingWords(latest()));
  useTicks(1000);
  const row = latest();
  const seconds = typeof row.last_event_at === "number" ? store.now - row.last_event_at : 0;
  return html`<span class="accent">${doingWords(row)}${seconds >= SHOWN_S ? ` for ${lasting(seconds)}` : ""}</span>`;
}
