// When connections are dead although nobody said so: after sleep, and when the network came back.

const LOOK_MILLISECONDS = 5000;
// The service gives up a silent viewer after less. Browsers slow the timers of hidden pages down
// to one a minute.
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
