// Light, dark, or as the system has it.

/** @typedef {"light" | "dark" | null} Theme null: the system's */

const KEY = "rollcast.theme";

/** @returns {Theme} */
export function storedTheme() {
  try {
    const found = localStorage.getItem(KEY);
    return found === "light" || found === "dark" ? found : null;
  } catch {
    return null;
  }
}

/** @param {Theme} theme */
export function showTheme(theme) {
  if (theme === null) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** The theme that a press of the button gives. @returns {Theme} */
export function nextTheme() {
  const now = storedTheme();
  const next = now === null ? (matchMedia("(prefers-color-scheme: dark)").matches ? "light" : "dark") : now === "dark" ? "light" : "dark";
  try {
    localStorage.setItem(KEY, next);
  } catch {
    // it is not kept beyond this page
  }
  showTheme(next);
  return next;
}
