// The key of a page that was opened by a link. The link's ticket works once; the key that it is
// exchanged for is kept for this tab, so that a reload works.

import { ask } from "../requests_and_notices.js";

/** Return { key, viewOnly } of the page; the key is null if the browser is signed in. */
export async function openKey({ sessionId }) {
  const ticket = new URLSearchParams(location.search).get("ticket");
  if (ticket === null) return { key: null, viewOnly: false };
  const name = `polydev ${sessionId} ${ticket}`;
  const kept = recall(name);
  if (kept) return kept;
  const { key, viewOnly } = await ask("/api/auth/redeem", { method: "POST", body: { ticket } });
  remember(name, { key, viewOnly });
  return { key, viewOnly };
}

function recall(name) {
  try {
    return JSON.parse(sessionStorage.getItem(name));
  } catch {
    return null; // a frame may have no storage
  }
}

function remember(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch {
    // Then a reload needs another link.
  }
}
