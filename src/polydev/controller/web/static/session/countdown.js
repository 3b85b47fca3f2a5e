// The time until a session ends, and whether it can be extended. Pure; times in ms since 1970.

export const WARN_SECONDS = 300;
// A session in use gets heartbeats all the time, so its end only comes near without them.
const IDLE_SHARE = 0.5;

/**
 * Return { seconds, canStay } when the end is near, else null.
 * session    has expiresAt and createdAt, as in the API
 * limits     has idleSeconds and maxSeconds, of sessions of this host
 */
export function countdown(session, limits, now) {
  const ends = Date.parse(session.expiresAt);
  const longest = Date.parse(session.createdAt) + limits.maxSeconds * 1000;
  const canStay = ends < longest - 1000;
  const left = Math.max(0, Math.ceil((ends - now) / 1000));
  const warn = canStay ? Math.min(WARN_SECONDS, limits.idleSeconds * IDLE_SHARE) : WARN_SECONDS;
  return left <= warn ? { seconds: left, canStay } : null;
}

/** Format minutes and seconds: 4:07. */
export function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
