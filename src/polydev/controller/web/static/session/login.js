// How far the login of the session's tool is. Pure.
//
// state        none; starting; waiting: its page is open in the VM; failed; done: the tool is logged
//              in; handed_over: its user has the credentials, and the VM has none any more
// words        what the tool said, or why its credentials stay in the VM
// url          where the login is; "" while nobody knows
// deviceCode   to be entered on that page, in any browser; "" where the tool has none
// acceptsCode  whether a code that the page shows may be sent to the tool

export const NONE = Object.freeze({
  state: "none",
  words: "",
  url: "",
  deviceCode: "",
  acceptsCode: false,
});

/** The login after the session changed; the session knows of logins that others began. */
export function afterSession(login, { status, credentialsReceipt }) {
  if (credentialsReceipt) return { ...NONE, state: "handed_over" };
  if (status === "authenticated" || status === "completed") {
    return { ...NONE, state: "done", words: login.state === "done" ? login.words : "" };
  }
  if (status === "oauth_pending" && login.state === "none") return { ...NONE, state: "starting" };
  return login;
}

/** The login after an answer of the API, or its Problem. */
export function afterAnswer(login, answer, problem) {
  if (login.state === "handed_over") return login;
  if (problem && problem.status !== 502) return login; // it says nothing of the tool
  if (problem) return { ...NONE, state: "failed", words: problem.message };
  if (answer.status === "done") return { ...NONE, state: "done", words: answer.detail ?? "" };
  if (answer.status !== "waiting") return { ...NONE, state: "starting" };
  return {
    state: "waiting",
    words: "",
    url: answer.url ?? "",
    deviceCode: answer.deviceCode ?? "",
    acceptsCode: answer.acceptsCode ?? false,
  };
}

/** After how many seconds to ask again; null: only when the user wants it, or an event says so. */
export function asksAgainSeconds(login) {
  return { starting: 2, waiting: 10 }[login.state] ?? null;
}

/** Which text says how far it is, below `login`. */
export function textOf(login) {
  return login.state === "waiting" && login.deviceCode ? "device" : login.state;
}

/**
 * Return { text, values } of what became of the credentials, null before they were handed over.
 * Of the fingerprint the first characters are enough for people to compare.
 */
export function receiptText(session) {
  const receipt = session?.credentialsReceipt;
  if (!receipt) return null;
  const values = { fingerprint: receipt.sha256.slice(0, 16), recipient: receipt.recipient ?? "" };
  return { text: receipt.recipient ? "login.receipt.sealed" : "login.receipt.stored", values };
}

/** Seconds until the session is completed by itself, null where it is not; times in ms since 1970. */
export function completesInSeconds(session, now) {
  if (session?.status !== "authenticated" || !session.completesAt) return null;
  return Math.max(0, Math.ceil((Date.parse(session.completesAt) - now) / 1000));
}
