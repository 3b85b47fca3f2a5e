// The progress of the login of the session's tool. Pure.
//
// state        none; starting; waiting: its page is open in the VM; failed; done: the tool is logged
//              in; handed_over: its credentials are stored for their user; injecting, injected: the
//              tool is given, or has, credentials stored before
// words        what the tool said, or why its credentials were not handed over or not injected
// url          the login URL; "" until it is known
// deviceCode   the code to enter on that page, in any browser; "" if the tool has none
// acceptsCode  whether a code that the page shows may be sent to the tool

export const NONE = Object.freeze({
  state: "none",
  words: "",
  url: "",
  deviceCode: "",
  acceptsCode: false,
});

const OVER = ["handed_over", "injected", "injecting"];

/** Return the login after the session changed: others may have started it. */
export function afterSession(login, session) {
  const { status, storedCredentials } = session;
  const words = session.loginDetail ?? "";
  if (session.credentialsReceipt) return { ...NONE, state: "handed_over" };
  if (status === "authenticated" || status === "completed") {
    return storedCredentials === "injected" ? { ...NONE, state: "injected" } : { ...NONE, state: "done", words };
  }
  if (status === "oauth_pending" && ["none", "injecting"].includes(login.state)) {
    return { ...NONE, state: "starting" };
  }
  if (status !== "vm_created") return login;
  if (storedCredentials === "wanted") return { ...NONE, state: "injecting" };
  if (storedCredentials === "refused" && ["none", "injecting"].includes(login.state)) return { ...NONE, words };
  return login;
}

/** Return the login after an answer or a Problem of the API. */
export function afterAnswer(login, answer, problem) {
  if (OVER.includes(login.state)) return login;
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

/** Return the seconds until the next request; null: only after an event or on demand. */
export function asksAgainSeconds(login) {
  return { starting: 2, waiting: 10 }[login.state] ?? null;
}

/** Return the name of the text for the progress, below `login`. */
export function textOf(login) {
  return login.state === "waiting" && login.deviceCode ? "device" : login.state;
}

/**
 * Return { text, values } for the receipt of the credentials; null before they were handed over.
 * The first characters of the fingerprint are enough to compare.
 */
export function receiptText(session) {
  const receipt = session?.credentialsReceipt;
  if (!receipt) return null;
  const values = { fingerprint: receipt.sha256.slice(0, 16), recipient: receipt.recipient ?? "" };
  return { text: receipt.recipient ? "login.receipt.sealed" : "login.receipt.stored", values };
}

/** Return the seconds until the session is completed automatically, or null. */
export function completesInSeconds(session, now) {
  if (session?.status !== "authenticated" || !session.completesAt) return null;
  return Math.max(0, Math.ceil((Date.parse(session.completesAt) - now) / 1000));
}
