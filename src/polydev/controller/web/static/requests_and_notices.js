// Shared by all pages: requests carry the CSRF token, and errors are shown as notices.

const texts = JSON.parse(document.getElementById("app-texts").textContent);
const csrf = document.querySelector('meta[name="csrf-token"]')?.content ?? "";
const notice = document.getElementById("notice");

/** Return a text of the page with its {values} filled in. */
export function fill(text, values = {}) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

/** Return an error's message as a sentence. */
export function sentence(words) {
  const begun = words.charAt(0).toUpperCase() + words.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** Read the texts of a script from the page; `id` is that of their script element. */
export function textsOf(id) {
  const found = JSON.parse(document.getElementById(id).textContent);
  return (name, values) => fill(found[name] ?? name, values);
}

const ANSWER_MILLISECONDS = 30_000;

/** Return a signal that ends a request without an answer: a network may be silent for minutes. */
export function untilSilent() {
  return AbortSignal.timeout(ANSWER_MILLISECONDS);
}

/** An error of the API: message, hint, and HTTP status (0: no answer). */
export class Problem extends Error {
  constructor(status, detail, hint = "") {
    super(detail);
    this.status = status;
    this.hint = hint;
  }
}

/**
 * Send a request to the API and return its JSON, or null without any. Throws Problem.
 * `key` is a page's key; without it the cookie is used.
 */
export async function ask(path, { method = "GET", body, key, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  else if (method !== "GET") headers["X-CSRF-Token"] = csrf;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    const sent = body === undefined ? undefined : JSON.stringify(body);
    answer = await fetch(path, { method, headers, body: sent, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, texts.no_answer);
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer.json().catch(() => null);
}

/** Read the problem details of an error; an error page of a proxy has none. */
export async function problemOf(answer) {
  const body = await answer.json().catch(() => null);
  return new Problem(answer.status, body?.detail ?? answer.statusText, body?.hint);
}

/** Show an error above the page until the user or `clearNotice` closes it. */
export function showNotice(words, link) {
  const paragraph = document.createElement("p");
  paragraph.textContent = words;
  if (link) {
    const anchor = document.createElement("a");
    anchor.href = link.href;
    anchor.textContent = link.words;
    paragraph.append(" ", anchor);
  }
  const close = document.createElement("button");
  close.type = "button";
  close.className = "secondary outline compact";
  close.textContent = texts.dismiss;
  close.addEventListener("click", clearNotice);
  notice.replaceChildren(paragraph, close);
  notice.hidden = false;
}

export function clearNotice() {
  notice.hidden = true;
  notice.replaceChildren();
}

/** Show a Problem; if the user is signed out, with a link to the sign-in. */
export function showProblem(problem) {
  if (problem.status === 401) {
    const here = encodeURIComponent(location.pathname + location.search);
    showNotice(texts.signed_out, { href: `/login?next=${here}`, words: texts.sign_in });
    return;
  }
  const words = fill(texts.failed, { detail: sentence(problem.message) });
  showNotice(problem.hint ? `${words} ${sentence(problem.hint)}` : words);
}

document.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers["X-CSRF-Token"] = csrf;
});

// A list that asks for itself every few seconds is not replaced between press and release of a
// pointer: they would be on two elements, which makes no click. Its next answer comes soon.
let isPressed = false;
for (const kind of ["pointerdown", "pointerup", "pointercancel", "pointermove"]) {
  const note = ({ buttons }) => (isPressed = kind !== "pointercancel" && buttons > 0);
  document.addEventListener(kind, note, { capture: true, passive: true });
}

document.addEventListener("htmx:beforeSwap", (event) => {
  const trigger = event.detail.requestConfig.elt.getAttribute("hx-trigger") ?? "";
  if (isPressed && trigger.includes("every")) event.detail.shouldSwap = false;
});

document.addEventListener("htmx:responseError", (event) => {
  const { status, statusText, responseText } = event.detail.xhr;
  let body = {};
  try {
    body = JSON.parse(responseText);
  } catch {
    // A proxy's own page: its status has to do.
  }
  showProblem(new Problem(status, body.detail ?? statusText, body.hint));
});

for (const silence of ["htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(silence, () => showNotice(texts.no_refresh));
}

// The next successful answer clears the notice.
document.addEventListener("htmx:afterOnLoad", (event) => {
  if (event.detail.successful && notice.textContent.includes(texts.no_refresh)) clearNotice();
});
