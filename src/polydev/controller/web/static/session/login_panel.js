// The login of the session's tool on the page: a button in the bar, and its panel.

import { clock } from "./countdown.js";
import { completesInSeconds, receiptText, textOf } from "./login_progress.js";

const element = (id) => document.getElementById(id);

export class LoginPanel {
  /**
   * tools    what people call the tool of each provider
   * actions  start(), and sendCode(code), which says whether the tool has got it
   */
  constructor(page, t, tools, actions) {
    this.page = page;
    this.t = t;
    this.tools = tools;
    this.actions = actions;
    element("login-start-button").addEventListener("click", () => {
      element("login-button").focus(); // this one goes, and the keyboard would be lost
      actions.start();
    });
    element("copy-device-code").addEventListener("click", () => this.copy());
    element("login-code-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
  }

  get values() {
    const provider = this.page.session?.provider;
    return { tool: this.tools[provider] ?? provider ?? "" };
  }

  show(login, isShown) {
    this.showButton(login, isShown);
    say("login-text", this.t(`login.${textOf(login)}.text`, this.values));
    say("login-problem", login.words);
    this.showDevice(login);
    element("login-code-form").hidden = !login.acceptsCode;
    const receipt = receiptText(this.page.session);
    say("login-receipt", receipt ? this.t(receipt.text, receipt.values) : "");
    this.showCompletion();
    const start = element("login-start-button");
    start.hidden = !["none", "failed"].includes(login.state);
    start.textContent = this.t(login.state === "failed" ? "login.again" : "login.start", this.values);
  }

  showButton(login, isShown) {
    const button = element("login-button");
    button.hidden = !isShown;
    button.dataset.state = login.state;
    const label = this.t(`login.${textOf(login)}.label`, this.values);
    button.title = label;
    say("login-label", label);
  }

  /** Offer the login page in this browser: a device code can be entered in any browser. */
  showDevice({ deviceCode, url }) {
    element("login-device").hidden = deviceCode === "";
    element("device-code").value = deviceCode;
    const link = element("device-page");
    link.hidden = !url.startsWith("https://");
    if (link.hidden) link.removeAttribute("href");
    else link.href = url;
  }

  /** Update the countdown; called each second. */
  showCompletion() {
    const { session } = this.page;
    const seconds = completesInSeconds(session, Date.now() + this.page.heartbeat.skew);
    element("login-completes").hidden = seconds === null;
    if (seconds !== null) element("login-clock").textContent = clock(seconds);
  }

  async copy() {
    const code = element("device-code");
    code.select();
    try {
      await navigator.clipboard.writeText(code.value);
      this.page.bar.say(this.t("login.device.copied"));
    } catch {
      this.page.bar.say(this.t("login.device.selected"));
    }
  }

  async send() {
    const code = element("login-code");
    if (!(await this.actions.sendCode(code.value.trim()))) return;
    code.value = "";
    this.page.bar.say(this.t("login.code.sent", this.values));
  }
}

/** Show an element only while it has text. */
function say(id, words) {
  const place = element(id);
  place.hidden = words === "";
  if (place.textContent !== words) place.textContent = words;
}
