// Make a link by which somebody else can watch the session.

const element = (id) => document.getElementById(id);

export class Share {
  constructor(page, t) {
    this.page = page;
    this.t = t;
    element("make-link-button").addEventListener("click", () => this.make());
    element("copy-link-button").addEventListener("click", () => this.copy());
  }

  async make() {
    const body = { purpose: "page", viewOnly: true };
    const ask = () => this.page.ask("/tickets", { method: "POST", body });
    const made = await this.page.attempt(ask);
    if (!made) return;
    element("share-link").value = new URL(made.url, location.href).href;
    const until = new Date(made.expiresAt).toLocaleTimeString([], { timeStyle: "short" });
    element("share-until").textContent = this.t("share.until", { until });
    element("share-made").hidden = false;
    element("make-link-button").textContent = this.t("share.another");
    this.copy();
  }

  async copy() {
    const link = element("share-link");
    link.select();
    try {
      await navigator.clipboard.writeText(link.value);
      this.page.bar.say(this.t("share.copied"));
    } catch {
      this.page.bar.say(this.t("share.selected"));
    }
  }
}
