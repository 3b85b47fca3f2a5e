// Detect silently dead connections: after sleep, and after a network outage.

const LOOK_MILLISECONDS = 5000;
// The controller closes silent viewers sooner. Browsers slow timers of hidden pages to one a minute.
const SLEPT_MILLISECONDS = 90_000;

export function onWake(call) {
  window.addEventListener("online", call);
  window.addEventListener("pageshow", ({ persisted }) => persisted && call());
  let lookedAt = Date.now();
  function look() {
    const slept = Date.now() - lookedAt > SLEPT_MILLISECONDS;
    lookedAt = Date.now();
    if (slept) call();
  }
  setInterval(look, LOOK_MILLISECONDS);
  document.addEventListener("visibilitychange", () => document.hidden || look());
}
