// Numbers, times and names as the page writes them. Pure.

import { oneLine } from "./text.js";

/** @param {number | null | undefined} value @param {number} [digits] */
export function fixed(value, digits = 2) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  return written(value, digits).replace("-", "−");
}

/** Large numbers as `3.5e+8`, so that they stay short, and small ones as `2e-6`, so that they are not taken for 0. @param {number} value @param {number} digits */
function written(value, digits) {
  const size = Math.abs(value);
  return size >= 1e6 ? value.toExponential(1) : size > 1e-12 && size < 0.5 * 10 ** -digits ? value.toExponential(0) : value.toFixed(digits);
}

/** With its sign. @param {number | null | undefined} value */
export function signed(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  return `${value < 0 ? "−" : "+"}${written(Math.abs(value), 2).replace("-", "−")}`;
}

/** @param {number | null | undefined} value */
export function whole(value) {
  return typeof value === "number" && Number.isFinite(value) ? Math.round(value).toLocaleString("en") : "–";
}

/** A duration. @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds)) return "–";
  if (seconds < 0.001) return `${Math.max(0, Math.round(seconds * 1e6))} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** A duration in whole seconds. @param {number} seconds */
export function lasting(seconds) {
  const whole = Math.floor(seconds);
  return whole < 60 ? `${whole} s` : duration(whole);
}

/** A probability. @param {number | null | undefined} p */
export function odds(p) {
  if (typeof p !== "number" || !Number.isFinite(p)) return "–";
  if (p > 0.995) return "1";
  if (p < 0.005) return p === 0 ? "0" : p.toExponential(0).replace("-", "−");
  return p.toFixed(2).replace(/^0/, "");
}

/** The time of day. @param {number | null | undefined} timestamp seconds since the epoch */
export function clock(timestamp) {
  return typeof timestamp === "number" ? new Date(timestamp * 1000).toLocaleTimeString("en-GB") : "–";
}

/** Date and time. @param {number | null | undefined} timestamp seconds since the epoch */
export function when(timestamp) {
  if (typeof timestamp !== "number") return "–";
  const at = new Date(timestamp * 1000);
  const day = at.toLocaleDateString("en-CA");
  return `${day} ${at.toLocaleTimeString("en-GB")}`;
}

/** @param {number[]} values */
export function mean(values) {
  return values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : null;
}

/** The standard deviation. @param {number[]} values */
export function spread(values) {
  const middle = mean(values);
  return middle === null ? null : Math.sqrt(/** @type {number} */ (mean(values.map((each) => (each - middle) ** 2))));
}

/** `1 chain`, `2 chains`. @param {number} count @param {string} noun */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** What a run is called. @param {Record<string, any> | undefined} row */
export function runName(row) {
  return oneLine(String(row?.name || row?.agent || row?.run_id?.slice(0, 8) || "run"), 60);
}

const MADE_ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** A run's id, to tell it from others: the end of one that was made, and the whole of one that somebody gave. @param {string} id */
export function shortRunId(id) {
  return MADE_ID.test(id) ? id.slice(-6) : oneLine(id, 40);
}

/** Which processes a run is on: the name of the only one, or how many there are; "" if it has no name. @param {Record<string, any>} row */
export function sourcesOf({ sources }) {
  const names = Object.keys(sources ?? {}).filter(Boolean);
  return names.length > 1 ? counted(names.length, "source") : oneLine(names[0] ?? "", 60);
}

/** The source as it stands beside a chain's id; "" if the id ends with it already, as `chain_0@gpu-7` does. @param {string} chainId @param {string | null | undefined} source */
export function sourceBeside(chainId, source) {
  return !source || chainId.endsWith(`@${source}`) ? "" : oneLine(source, 80);
}

const MAX_TAGS = 8;

/** The tags that its owner gave a run, the first ones. @param {Record<string, any>} row @returns {string[]} */
export function tagsOf({ tags }) {
  return Array.isArray(tags) ? tags.slice(0, MAX_TAGS).map((tag) => oneLine(String(tag), 40)) : [];
}
