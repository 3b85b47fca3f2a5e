// The key of a page that was opened by a link. The link's ticket works once; the key that it is
// exchanged for is kept for this tab, so that a reload works.

import { Problem, ask } from "../requests_and_notices.js";
import { PAUSES_SECONDS } from "../retry_pauses.js";

/** Return { key, viewOnly } of the page; the key is null if the browser is signed in. */
export async function openKey({ sessionId }) {
  const ticket = new URLSearchParams(location.search).get("ticket");
  if (ticket === null) return { key: null, viewOnly: false };
  const name = `polydev ${sessionId} ${ticket}`;
  const kept = recall(name);
  if (kept) return kept;
  const { key, viewOnly } = await redeemed(ticket);
  remember(name, { key, viewOnly });
  return { key, viewOnly };
}

/** Exchange the ticket. Without an answer, as while the network changes, try again after pauses. */
async function redeemed(ticket) {
  for (const seconds of [...PAUSES_SECONDS, null]) {
    try {
      return await ask("/api/auth/redeem", { method: "POST", body: { ticket } });
    } catch (error) {
      const hasAnswer = !(error instanceof Problem) || (error.status !== 0 && error.status < 500);
      if (hasAnswer || seconds === null) throw error;
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    }
  }
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
