// Where the view meets Jupyter: messages to and from the kernel, and the state that was saved.

const NUDGE_AFTER = 12; // milliseconds without an answer
const MOST_NUDGES = 3;
const PATIENCE = 4000; // milliseconds, then the reader is told that nobody answers
const UNANSWERED = "The engine has not answered yet: its kernel computes something else, or it has " +
  "ended. If it has, run the cell again.";

async function render({ model, el }) {
  const page = crypto.randomUUID ? crypto.randomUUID() : String(Math.random());
  const send = (message) => {
    try {
      model.send({ page, ...message });
    } catch {
      // the kernel is gone: what was saved can still be looked at
    }
  };
  // Jupyter's server sends a small message only when the one before it was acknowledged (Nagle, RFC
  // 896), and a machine acknowledges 40 ms late unless it has something to send.  The kernel's
  // answer comes behind its word that it is busy, so something is sent until it is there.
  let nudging = null, waiting = null;
  const tell = (message) => {
    send(message);
    if (message.cmd === "pick") return; // that is not answered
    clearInterval(nudging);
    let left = MOST_NUDGES;
    nudging = setInterval(() => {
      if (left-- > 0) send({ cmd: "alive" });
      else clearInterval(nudging);
    }, NUDGE_AFTER);
    waiting ??= setTimeout(() => view.setStatus({ error: UNANSWERED }), PATIENCE);
  };
  const root = document.createElement("div");
  el.append(root);
  const [live, about] = [model.get("live"), model.get("about")];
  const view = new View(root, { parts: model.get("parts"), send: live ? tell : null });
  // Without a kernel this is a replay of what was saved or of what came.  A view's layout is a widget
  // of the same kernel, and knows whether it is there; where a frontend does not say it, it may be.
  const layout = model.get("layout");
  const setLive = () => {
    const isLive = live && (layout?.comm_live ?? true);
    view.stopReplay();
    const words = isLive === live ? about : `${about} · a replay until the cell is run`;
    view.setStatus({ live: isLive, about: words });
  };
  setLive();
  layout?.on?.("comm_live_update", setLive);
  root.dataset.testid = "engine-view";
  root.view = view; // for tests, and for the curious
  let heard = false; // from the kernel
  const onMessage = (message) => {
    if (message.to && message.to !== page) return;
    clearInterval(nudging);
    clearTimeout(waiting);
    waiting = null;
    heard = true;
    if (message.kind === "document") view.load(message.document);
    else if (message.kind === "frames") {
      Object.assign(view, { idleCores: message.idle, playedIn: message.every });
      if (!view.addFrames(message.first, message.frames)) send({ cmd: "ready" }); // some are missing
    }
    if (message.status) view.setStatus(message.status);
    if (message.asks) send({ cmd: "alive" });
  };
  model.on("msg:custom", onMessage);
  const saved = model.get("saved");
  if (saved && saved.byteLength) {
    const document = await unpack(saved);
    if (!heard) view.load(document);
  }
  send({ cmd: "ready" });
  return () => {
    model.off("msg:custom", onMessage);
    layout?.off?.("comm_live_update", setLive);
    clearInterval(nudging);
    send({ cmd: "gone" });
    view.close();
  };
}
