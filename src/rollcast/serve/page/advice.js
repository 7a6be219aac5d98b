// What a person can do if the server refuses the page. Pure.

import { oneLine } from "./text.js";

/**
 * Why the server refuses the page, and what to do.
 * @param {{refusedWith: number, why: string, token: string | null}} session
 * @returns {{what: string, todo: string, token: boolean}} `token`: whether another token would help
 */
export function adviceOn({ refusedWith, why, token }) {
  const link = "Open the newest link that the command printed (it ends in #token=…), or give its token here.";
  if (refusedWith === 4003) return { what: "The token of this page has expired.", todo: link, token: true };
  if (refusedWith === 4500 && token === null) return { what: "This server needs a token, and this page has none.", todo: link, token: true };
  if (refusedWith === 4500) return { what: "The server does not know the token of this page; it may have been started anew with another one.", todo: link, token: true };
  const what = `The server does not accept this page: ${oneLine(why, 400) || "it closed the connection"}.`;
  return { what, todo: refusedWith === 4507 ? "Reload this page when the server lets it in." : "Reload this page.", token: false };
}
