// The login of the session's tool: poll its progress, and run the user's actions.

import { Problem } from "../requests_and_notices.js";
import { NONE, afterAnswer, afterSession, asksAgainSeconds } from "./login_progress.js";
import { LoginPanel } from "./login_panel.js";
import { isComing } from "./boot_progress.js";

// In these states the user needs the panel: the screen does not show what to do.
const OPENS_PANEL = ["failed", "handed_over", "injected"];

export class ToolLogin {
  /** `tools` has the label of each provider's tool. */
  constructor(page, t, tools) {
    this.page = page;
    this.login = NONE;
    this.timer = null;
    this.isOver = false;
    this.question = new AbortController();
    this.isKnown = false;
    this.panel = new LoginPanel(page, t, tools, {
      start: () => this.start(),
      sendCode: (code) => this.sendCode(code),
    });
  }

  sessionChanged(session) {
    this.isKnown = !isComing(session);
    this.become(afterSession(this.login, session));
  }

  get isFollowed() {
    return !this.isOver && !this.page.viewOnly;
  }

  /** Read the login from the API: events only say that it changed. */
  heard() {
    if (this.isFollowed && this.login.state !== "none") this.ask();
  }

  /** Ask for the login. The first request starts the tool; POST starts a failed one again. */
  async start() {
    const method = this.login.state === "failed" ? "POST" : "GET";
    this.become({ ...NONE, state: "starting" });
    await this.ask(method);
  }

  async ask(method = "GET") {
    const { signal } = this.question;
    try {
      const answer = await this.page.ask("/oauth-url", { method, signal });
      this.become(afterAnswer(this.login, answer, null), true);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      this.become(afterAnswer(this.login, null, error), true);
    }
  }

  /** Send the code to the tool, and return whether it worked; an error is shown. */
  async sendCode(code) {
    const send = () => this.page.ask("/oauth-code", { method: "POST", body: { code } }).then(() => true);
    const isSent = await this.page.attempt(send);
    if (isSent) await this.ask();
    return isSent;
  }

  become(login, wasAsked = false) {
    const isNew = login.state !== this.login.state;
    const hasNews = ["deviceCode", "words"].some((name) => login[name] && login[name] !== this.login[name]);
    this.login = login;
    const seconds = asksAgainSeconds(login);
    if (isNew || wasAsked) {
      clearTimeout(this.timer);
      if (seconds !== null && this.isFollowed) {
        this.timer = setTimeout(() => this.ask(), seconds * 1000);
      }
    }
    this.show();
    if (!this.isFollowed) return;
    if ((isNew && OPENS_PANEL.includes(login.state)) || hasNews) this.page.bar.openPanel("login");
  }

  /** Stop polling: the session is over, or will be soon. */
  pause() {
    clearTimeout(this.timer);
    this.question.abort();
    this.question = new AbortController();
  }

  resume() {
    this.become(this.login, true);
  }

  end() {
    this.isOver = true;
    this.pause();
    this.show();
  }

  show() {
    this.panel.show(this.login, this.isKnown && this.isFollowed);
  }
}
