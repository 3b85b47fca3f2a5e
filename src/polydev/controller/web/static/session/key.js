// The right to the session of whoever came by a link: its ticket is good once, what it was
// exchanged for stays with this tab, so that a reload needs no other link.

import { ask } from "../app.js";

/** Return { key, viewOnly } of a page; the key is null where the browser is signed in. */
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
