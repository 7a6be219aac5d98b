// The token that a link to the page carries: `http://localhost:8765/#token=…`.
//
// A fragment is never sent to a server, so no log has it. `takeToken` moves it into `sessionStorage` and takes it out of the
// address, so that it is neither in a screenshot nor in a link that somebody copies.

/** Characters of a token, as `ServerSettings` checks them, after percent-decoding. */
const TOKEN = /^[!-~]+$/;

/**
 * The token in a fragment, and the fragment without it. Pure.
 *
 * `#token=abc` gives `abc` and no fragment; `#token=abc&to=/run/r1` gives `abc` and `#/run/r1`. Another fragment stays as it is.
 *
 * @param {string} hash with its `#`, or empty.
 * @returns {{token: string | null, hash: string}}
 */
export function splitHash(hash) {
  if (!tokenInAddress(hash)) return { token: null, hash };
  const fields = hash.slice(1).split("&");
  const token = decoded((fields[0] ?? "").slice("token=".length));
  const to = fields.find((field) => field.startsWith("to="));
  const route = to === undefined ? "" : decoded(to.slice("to=".length)) ?? "";
  return {
    token: token !== null && TOKEN.test(token) ? token : null,
    hash: route.startsWith("/") ? `#${route}` : "",
  };
}

/**
 * The name under which the token of a page is kept: several servers may stand behind one origin, each under a path of its own. Pure.
 *
 * @param {string} pathname of the page.
 * @returns {string}
 */
export function storageKey(pathname) {
  return `rollcast.token ${pathname.slice(0, pathname.lastIndexOf("/") + 1)}`;
}

/**
 * The token of this tab, from its address or from an earlier load; null if there is none. Call it before anything is drawn.
 *
 * @param {{location: Location, history: History, sessionStorage: Storage}} [window_]
 * @returns {string | null}
 */
export function takeToken(window_ = window) {
  const { location, history, sessionStorage } = window_;
  const { token, hash } = splitHash(location.hash);
  if (hash !== location.hash) history.replaceState(null, "", location.pathname + location.search + hash);
  const key = storageKey(location.pathname);
  try {
    if (token !== null) sessionStorage.setItem(key, token);
    return token ?? sessionStorage.getItem(key);
  } catch {
    return token; // the browser stores nothing for this page; the token is lost when it is reloaded
  }
}

/**
 * Whether a fragment carries a token. Pure.
 *
 * @param {string} hash with its `#`, or empty.
 */
export function tokenInAddress(hash) {
  return hash.startsWith("#token=");
}

/**
 * Keep the token for this tab, since the server has accepted it.
 *
 * @param {string} token
 * @param {{location: Location, sessionStorage: Storage}} [window_]
 */
export function keepToken(token, window_ = window) {
  try {
    window_.sessionStorage.setItem(storageKey(window_.location.pathname), token);
  } catch {
    // the browser stores nothing for this page; the token is lost when it is reloaded
  }
}

/**
 * Forget the token, as after a server refused it.
 *
 * @param {{location: Location, sessionStorage: Storage}} [window_]
 */
export function forgetToken(window_ = window) {
  try {
    window_.sessionStorage.removeItem(storageKey(window_.location.pathname));
  } catch {
    // it was not kept
  }
}

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}
