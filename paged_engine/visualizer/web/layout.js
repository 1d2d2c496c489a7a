// The page's elements: built once, filled by view.js.

const ICONS = {
  play: '<path d="M4 2.5v11l9-5.5z"/>',
  pause: '<path d="M4 2.5h3v11H4zM9 2.5h3v11H9z"/>',
  back: '<path d="M12 2.5v11L5 8zM3 2.5h1.8v11H3z"/>',
  step: '<path d="M4 2.5v11L11 8zM11.2 2.5H13v11h-1.8z"/>',
  end: '<path d="M2 3v10l6-5zM8 3v10l6-5z"/>',
  stop: '<path d="M3.5 3.5h9v9h-9z"/>',
};

function icon(name) {
  return `<svg viewBox="0 0 16 16" width="12" height="12" aria-hidden="true" ` +
    `fill="currentColor">${ICONS[name]}</svg>`;
}

function button(name, label, title, shape) {
  return `<button type="button" data-pe="${name}" aria-label="${title}" title="${title}">` +
    `${shape ? icon(shape) : ""}<span>${label}</span></button>`;
}

const BREAKS = [
  ["preempted", "a preemption"], ["evicted", "an eviction"], ["finished", "a request ends"],
  ["full", "the pool is over 90 % full"],
];

const CONTROLS = `
<header class="pe-head">
  <strong>paged_engine</strong><span class="pe-soft" data-pe="about"></span>
  <span class="pe-buttons" role="group" aria-label="playing">
    ${button("back", "", "one step back, in the history", "back")}
    ${button("play", "play", "play or pause", "play")}
    ${button("step", "step", "one step", "step")}
    ${button("end", "end", "run to the end", "end")}
    <label class="pe-field">speed <select data-pe="speed" aria-label="speed">
      <option value="0">full</option><option value="20">20 steps/s</option>
      <option value="5">5 steps/s</option><option value="1">1 step/s</option></select></label>
    <details class="pe-menu" data-pe="breaks"><summary>break when</summary><div>
      ${BREAKS.map(([name, words]) => `<label><input type="checkbox" value="${name}"> ${words}` +
        "</label>").join("")}</div></details>
  </span>
</header>
<div class="pe-time"><span data-pe="where"></span>
  <span class="pe-track"><input type="range" min="0" max="0" value="0" data-pe="slider"
    aria-label="step of the history"><svg viewBox="0 0 1000 16"
    preserveAspectRatio="none" aria-hidden="true"><path data-pe="ticks"/></svg></span>
  <button type="button" data-pe="live" aria-label="back to the newest step">live</button></div>
<div class="pe-error" data-pe="error" role="alert" hidden></div>`;

const PARTS = {
  controls: CONTROLS,
  blocks: `<section class="pe-card pe-blocks"><h3>KV blocks <span class="pe-soft"
    data-pe="counts"></span></h3>
    <canvas tabindex="0" data-pe="blocks" role="img" aria-label="the block map; arrow keys move
 from block to block, Enter picks its owner"></canvas>
    <p class="pe-legend" data-pe="block-legend"></p>
    <p class="pe-say" data-pe="block-says"></p></section>`,
  lanes: `<section class="pe-card pe-lanes"><h3>Batch <span class="pe-soft"
    data-pe="batch"></span></h3><canvas data-pe="lanes" role="img" tabindex="0"
    aria-label="a lane a request over the steps; arrow keys move the cursor"></canvas>
    <p class="pe-legend" data-pe="lane-legend"></p>
    <p class="pe-say" data-pe="lane-says"></p></section>`,
  gauges: `<div class="pe-gauges" data-pe="gauges">${GAUGES.map((title) => `<div class="pe-card">
    <small>${title}</small><div><b></b> <span class="pe-soft"></span></div>
    <svg viewBox="0 0 ${SPARK} ${SPARK_HEIGHT}" preserveAspectRatio="none" aria-hidden="true"><path/>
    </svg></div>`).join("")}</div>`,
  requests: `<section class="pe-card"><h3>Requests <span class="pe-soft" data-pe="queue"></span>
    </h3><div class="pe-requests" data-pe="requests"></div>
    <form class="pe-form" data-pe="inject"><input type="text" name="prompt" aria-label="prompt"
      placeholder="Type a prompt and send it into the running batch …">
      <label class="pe-field">max <input type="number" name="max" value="32" min="1"
        aria-label="most tokens"></label>
      <label class="pe-field">priority <input type="number" name="priority" value="0"
        aria-label="priority, lower is served first"></label>
      <button type="submit" class="pe-main">inject</button></form>
    <form class="pe-form" data-pe="pool"><label class="pe-field">usable blocks
      <input type="number" name="usable" min="1" aria-label="blocks that may be in use"></label>
      <button type="submit">resize the pool</button>
      <span class="pe-soft">fewer blocks provoke preemption</span></form></section>`,
};

function swatch(style, words) {
  return `<span><i style="${style}"></i>${words}</span>`;
}

const BLOCK_LEGEND = [
  swatch("background:var(--pe-free)", "free"),
  swatch("background:repeating-linear-gradient(135deg,var(--pe-hatch) 0 1.5px,var(--pe-free) " +
    "1.5px 4px)", "cached, reusable"),
  swatch("background:linear-gradient(135deg,#e69f00 50%,#56b4e9 50%)", "shared"),
  swatch("background:linear-gradient(90deg,#009e73 40%,transparent 40%);" +
    "box-shadow:inset 0 0 0 1px #009e73", "part full"),
  swatch("box-shadow:inset 0 0 0 1.5px var(--pe-fg)", "just taken"),
  "<span><b>•</b> hit</span><span><b>+</b> copied</span><span class='pe-alarm'><b>×</b> evicted" +
  "</span><span><b>┄</b> freed</span>",
].join("");

const LANE_LEGEND = "<span><b>┄</b> waiting</span>" +
  swatch("background:var(--pe-accent);height:12px", "prefill chunk") +
  swatch("background:var(--pe-accent);height:5px", "decode") +
  "<span class='pe-alarm'><b>×</b> preempted</span><span><b>○</b> finished</span>" +
  "<span class='pe-alarm'><b>□</b> aborted</span>";

// Builds the parts that were asked for; returns an object that finds elements by name.
function build(root, parts) {
  root.classList.add("pe-root");
  root.innerHTML = parts.map((name) => PARTS[name]).join("");
  const panels = [".pe-blocks", ".pe-lanes"].map((name) => root.querySelector(name));
  if (panels.every(Boolean)) {
    const pair = document.createElement("div");
    pair.className = "pe-pair";
    panels[0].before(pair);
    pair.append(...panels);
  }
  const status = document.createElement("div");
  status.className = "pe-status";
  status.setAttribute("role", "status");
  root.append(status);
  const found = new Map(); // they stay the same: each is looked for once
  const find = (name) => {
    if (!found.has(name)) found.set(name, root.querySelector(`[data-pe="${name}"]`));
    return found.get(name);
  };
  if (find("block-legend")) find("block-legend").innerHTML = BLOCK_LEGEND;
  if (find("lane-legend")) find("lane-legend").innerHTML = LANE_LEGEND;
  return { find, status };
}

function escapeText(text) {
  const element = document.createElement("span");
  element.textContent = text;
  return element.innerHTML;
}
