// The bar above the screen: status, buttons, and the panels that they open.

import { confirmed } from "../dialogs.js";
import { typeThrough } from "./keyboard.js";
import { Share } from "./share.js";

const element = (id) => document.getElementById(id);
const SAY_MILLISECONDS = 5000;
const MATCH = "polydev match window";

export class Bar {
  constructor(page, t) {
    this.page = page;
    this.t = t;
    this.said = "";
    this.saidUntil = 0;
    this.share = new Share(page, t);
    element("home").hidden = !page.canStart;
    this.tools = toolsOf(page.viewOnly);
    for (const panel of ["clipboard", "share", "login"]) this.addPanel(panel);
    this.addTools();
    document.addEventListener("focusin", () => this.showKeyHint());
    document.addEventListener("focusout", () => this.showKeyHint());
  }

  addTools() {
    const does = {
      type: () => this.page.screen.focus(),
      keyboard: () => element("typed").focus({ preventScroll: true }),
      match: () => this.match(!this.page.screen.matchesWindow),
      full: () => toggleFullScreen(),
      end: () => this.end(),
      hide: () => this.toggle(false),
      show: () => this.toggle(true),
    };
    for (const [name, work] of Object.entries(does)) {
      element(`${name}-button`).addEventListener("click", work);
    }
    typeThrough(element("typed"), this.page.screen);
    this.match(recall(MATCH) === "yes");
    const full = () => pressed("full-button", document.fullscreenElement !== null);
    document.addEventListener("fullscreenchange", full);
    full();
  }

  match(wanted) {
    this.page.screen.matchWindow(wanted);
    pressed("match-button", wanted);
    remember(MATCH, wanted ? "yes" : "no");
  }

  toggle(isShown) {
    element("bar").hidden = !isShown;
    element("show-button").hidden = isShown;
    this.closePanels();
    if (isShown) element("hide-button").focus();
    else this.page.screen.focus();
  }

  addPanel(name) {
    const button = element(`${name}-button`);
    const panel = element(`${name}-panel`);
    button.addEventListener("click", () => {
      const opens = panel.hidden;
      this.closePanels();
      if (!opens) return;
      this.openPanel(name);
      const inputs = panel.querySelectorAll("textarea, input, button");
      [...inputs].find((input) => input.offsetParent !== null)?.focus();
    });
    for (const place of [button, panel]) {
      place.addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        this.closePanels();
        button.focus();
      });
    }
  }

  openPanel(name) {
    this.closePanels();
    element(`${name}-panel`).hidden = false;
    element(`${name}-button`).setAttribute("aria-expanded", "true");
  }

  closePanels() {
    for (const panel of document.querySelectorAll(".panel")) panel.hidden = true;
    for (const button of document.querySelectorAll("[aria-expanded]")) {
      button.setAttribute("aria-expanded", "false");
    }
  }

  /** Move the keyboard focus from the VM to the page. */
  takeKeyboard() {
    if (element("bar").hidden) this.toggle(true);
    element(this.tools[0]).focus();
    this.say(this.t("keyboard.released"));
  }

  showKeyHint() {
    const hint = element("key-hint");
    hint.hidden = !this.page.screen.hasFocus || this.page.viewOnly;
    hint.textContent = this.t("keyboard.release");
  }

  /** Show a message for a moment in place of the status. */
  say(words) {
    this.said = words;
    this.saidUntil = Date.now() + SAY_MILLISECONDS;
    this.page.render();
  }

  show(view) {
    const isLive = ["screen", "connecting", "lost", "given-up", "coming"].includes(view.kind);
    for (const name of this.tools) {
      const needsScreen = ["type-button", "keyboard-button", "clipboard-button"].includes(name);
      element(name).hidden = needsScreen ? view.kind !== "screen" : !isLive;
    }
    if (!isLive) this.closePanels();
    element("status").dataset.kind = view.kind;
    const words = Date.now() < this.saidUntil ? this.said : this.t(`status.${view.kind}`);
    const status = element("status-text");
    const whole = this.page.viewOnly ? `${words} · ${this.t("status.view_only")}` : words;
    if (status.textContent !== whole) status.textContent = whole;
    this.showKeyHint();
  }

  async end() {
    const question = { title: this.t("end.title"), text: this.t("end.text"), action: this.t("end.label") };
    if (!(await confirmed(question))) return;
    this.page.login.pause();
    const session = await this.page.attempt(() => this.page.ask("", { method: "DELETE" }));
    if (session) this.page.take(session);
    else this.page.login.resume();
  }
}

function toolsOf(viewOnly) {
  const always = ["full-button", "hide-button"];
  if (viewOnly) return always;
  const typing = matchMedia("(any-pointer: coarse)").matches ? "keyboard-button" : "type-button";
  return [typing, "clipboard-button", "match-button", "share-button", "end-button", ...always];
}

function pressed(id, isPressed) {
  element(id).setAttribute("aria-pressed", String(isPressed));
}

async function toggleFullScreen() {
  if (document.fullscreenElement) await document.exitFullscreen();
  else await document.documentElement.requestFullscreen();
}

function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // a frame may have no storage
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // Then the next visit begins as the first one.
  }
}
