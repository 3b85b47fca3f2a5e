// Read server-sent events by fetch: unlike EventSource, fetch reports why a stream was refused, and
// can send a key in a header.

import { Problem, problemOf } from "../requests_and_notices.js";
import { pauseSeconds } from "../retry_pauses.js";
import { EventReader } from "./event_parser.js";

/**
 * Call `onEvent({ kind, data })` for each event until the session is over. Reconnects after a loss,
 * and at once after `wake()`. `onRefused(problem)` is called if the stream is refused for good.
 */
export class Events {
  constructor(path, key, { onEvent, onRefused }) {
    this.path = path;
    this.key = key;
    this.onEvent = onEvent;
    this.onRefused = onRefused;
    this.lastId = "0";
    this.failures = 0;
    this.isOver = false;
    this.timer = null;
    this.reading = null;
  }

  /** Reconnect now, and continue after the last event. */
  wake() {
    clearTimeout(this.timer);
    this.reading?.abort();
    this.reading = null;
    if (!this.isOver) this.read();
  }

  end() {
    this.isOver = true;
    clearTimeout(this.timer);
    this.reading?.abort();
  }

  async read() {
    const reading = (this.reading = new AbortController());
    try {
      await this.follow(reading.signal);
    } catch (error) {
      if (reading.signal.aborted) return;
      if (error instanceof Problem) {
        this.end();
        this.onRefused(error);
        return;
      }
    }
    if (reading !== this.reading || this.isOver) return;
    const seconds = pauseSeconds(this.failures);
    this.failures += 1;
    this.timer = setTimeout(() => this.read(), seconds * 1000);
  }

  async follow(signal) {
    const headers = { Accept: "text/event-stream", "Last-Event-ID": this.lastId };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    const answer = await fetch(this.path, { headers, signal, credentials: "same-origin" });
    if (answer.status === 204) {
      this.isOver = true;
      return;
    }
    if ([401, 403, 404].includes(answer.status)) throw await problemOf(answer);
    if (!answer.ok) throw new Error(answer.statusText);
    this.failures = 0;
    await this.take(answer.body.pipeThrough(new TextDecoderStream()).getReader());
  }

  async take(texts) {
    const reader = new EventReader();
    for (;;) {
      const { value, done } = await texts.read();
      if (done) return;
      for (const { id, kind, data } of reader.read(value)) {
        if (id) this.lastId = id;
        if (kind) this.onEvent({ kind, data: JSON.parse(data) });
      }
    }
  }
}
