// Every state of the page as a URL: `#/run/ID/group/group_3/parts?step=47&state=failed`.

/**
 * Where the page is.
 * @typedef {object} Route
 * @property {"runs" | "overview" | "chains" | "group" | "chain" | "events"} view
 * @property {string | null} run null: the latest one
 * @property {string | null} group
 * @property {string | null} chain
 * @property {string | null} mode of a view: `side` and `parts` of a group
 * @property {number | null} turn of a chain
 * @property {Record<string, string[]>} query filters (see `Chips` in lists.js), `sort`, `step`; several values of a name are repeated
 */

/** @type {Route} */
const NOWHERE = { view: "overview", run: null, group: null, chain: null, mode: null, turn: null, query: {} };

/**
 * The route of a URL's fragment. What it does not know leads to the overview.
 * @param {string} hash with or without `#`
 * @returns {Route}
 */
export function parseRoute(hash) {
  const [path = "", search = ""] = splitOnce(hash.replace(/^#/, ""), "?");
  const names = path.split("/").filter((name) => name).map(decoded);
  const query = parseQuery(search);
  const [first, run, view, id, mode, turn] = names;
  if (first === "runs" && names.length === 1) return { ...NOWHERE, view: "runs", query };
  if (first !== "run" || run === undefined) return { ...NOWHERE, query };
  const there = { ...NOWHERE, run, query };
  if (view === "chains" || view === "events") return { ...there, view };
  if (view === "group" && id !== undefined) return { ...there, view, group: id, mode: mode ?? null };
  if (view === "chain" && id !== undefined) {
    return { ...there, view, chain: id, turn: mode === "turn" && /^\d+$/.test(turn ?? "") ? Number(turn) : null };
  }
  return there;
}

/**
 * The fragment of a route, with `#`.
 * @param {Partial<Route>} route
 */
export function formatRoute(route) {
  const { view, run, group, chain, mode, turn, query } = { ...NOWHERE, ...route };
  const names = view === "runs" ? ["runs"] : run === null ? [] : ["run", run];
  if (run !== null) {
    if (view === "chains" || view === "events") names.push(view);
    if (view === "group" && group !== null) names.push("group", group, ...(mode === null ? [] : [mode]));
    if (view === "chain" && chain !== null) names.push("chain", chain, ...(turn === null ? [] : ["turn", String(turn)]));
  }
  const search = formatQuery(query);
  return `#/${names.map(encodeURIComponent).join("/")}${search && `?${search}`}`;
}

/** @param {string} search */
function parseQuery(search) {
  /** @type {Record<string, string[]>} */
  const query = Object.create(null);
  for (const part of search.split("&").filter((each) => each)) {
    const [name = "", value = ""] = splitOnce(part, "=").map((each) => decoded(each.replace(/\+/g, " ")));
    query[name] = [...(query[name] ?? []), value];
  }
  return query;
}

/** @param {Record<string, string[]>} query */
function formatQuery(query) {
  return Object.entries(query)
    .flatMap(([name, values]) => values.map((value) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`))
    .join("&");
}

/**
 * @param {string} text
 * @param {string} separator
 */
function splitOnce(text, separator) {
  const at = text.indexOf(separator);
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + separator.length)];
}

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a stray `%`
  }
}
