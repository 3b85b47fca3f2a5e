// The progress of a VM's start until its screen is up, as text and percentage. Pure.

const STAGES = ["none", "kernel", "init", "network", "services", "ready"];
const LIVE = ["vm_creating", "vm_starting", "vm_created", "oauth_pending", "authenticated"];

export function isLive(session) {
  return LIVE.includes(session.status);
}

export function isComing(session) {
  return session.status === "vm_creating" || session.status === "vm_starting";
}

/**
 * Return { text, values, share, because } for a VM that comes up.
 * queued     data of the last event `queued` since the last other step, null if there is none
 * share      0 to 1, null where nobody can tell
 * because    why it boots although VMs are resumed here, "" where it is resumed
 */
export function progress(session, queued) {
  const { stage, template, bootsBecause } = session.boot;
  const because = bootsBecause ?? "";
  if (session.status === "vm_creating" && queued) {
    const text = queued.because ? "progress.queued_because" : "progress.queued";
    return { text, values: queued, share: null, because };
  }
  if (template) return { text: "progress.resuming", values: {}, share: null, because };
  const share = (STAGES.indexOf(stage) + (session.status === "vm_starting" ? 1 : 0)) / STAGES.length;
  return { text: `progress.${stage}`, values: {}, share, because };
}
