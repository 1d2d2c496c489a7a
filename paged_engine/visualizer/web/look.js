// Colours of the theme, and the looks of a request: the same as in visualizer/palette.py.

const COLOURS = [
  ["#0072b2", "#2389c9"], ["#e69f00", "#e69f00"], ["#009e73", "#009e73"], ["#56b4e9", "#56b4e9"],
  ["#d55e00", "#d55e00"], ["#cc79a7", "#cc79a7"], ["#e0d000", "#f0e442"],
];
const DARK_INK = [false, true, true, true, true, true, true]; // what can be read on each
const NAMES = ["bg", "fg", "soft", "line", "free", "hatch", "alarm", "accent", "card"];

// The colours as the page computes them now; canvases cannot read variables.
function readTheme(root) {
  const style = getComputedStyle(root);
  const theme = {};
  for (const name of NAMES) theme[name] = style.getPropertyValue(`--pe-${name}`).trim();
  theme.dark = luminance(root, style.getPropertyValue("background-color")) < 0.4;
  return theme;
}

function luminance(root, colour) {
  const parts = (colour.match(/[\d.]+/g) || [255, 255, 255]).map(Number);
  if (parts.length > 3 && parts[3] === 0) return 1;
  return (0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2]) / 255;
}

function colourOf(number, theme) {
  return COLOURS[number % COLOURS.length][theme.dark ? 1 : 0];
}

function inkOn(number) {
  return DARK_INK[number % COLOURS.length] ? "#000" : "#fff";
}

// 0 plain, 1 striped, 2 dotted: tells apart requests of one colour.
function patternOf(number) {
  return Math.floor(number / COLOURS.length) % 3;
}

const tiles = new Map();
const patterns = new WeakMap(); // of each context: making one costs more than filling with it

// A small repeating picture: stripes, dots, or the hatching of blocks that can be reused.
function tile(context, kind, colour, scale) {
  const name = `${kind} ${colour} ${scale}`;
  if (!patterns.has(context)) patterns.set(context, new Map());
  const known = patterns.get(context);
  if (known.has(name)) return known.get(name);
  if (!tiles.has(name)) {
    const canvas = document.createElement("canvas");
    const size = Math.round((kind === "hatch" ? 5 : 4) * scale);
    canvas.width = canvas.height = size;
    const c = canvas.getContext("2d");
    c.fillStyle = c.strokeStyle = colour;
    if (kind === "stripes") c.fillRect(0, 0, size, Math.ceil(size * 0.34));
    else if (kind === "dots") {
      c.arc(size / 2, size / 2, size * 0.24, 0, 7);
      c.fill();
    } else {
      c.lineWidth = 1.3 * scale;
      for (const shift of [-size, 0, size]) {
        c.moveTo(shift - 1, size + 1);
        c.lineTo(shift + size + 1, -1);
      }
      c.stroke();
    }
    tiles.set(name, canvas);
  }
  const pattern = context.createPattern(tiles.get(name), "repeat");
  known.set(name, pattern);
  return pattern;
}

// The pattern of a request in this theme, or null if it is plain.
function patternTile(context, number, theme) {
  const pattern = patternOf(number);
  return pattern ? tile(context, pattern === 1 ? "stripes" : "dots", theme.bg, 1) : null;
}

// A canvas of whole pixels, sharp on every screen and all `ground`; returns its context, drawn in CSS
// pixels.  Nothing shines through, which is cheaper: the browser need not mix.
function fit(canvas, width, height, ground) {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d", { alpha: false });
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.globalAlpha = 1;
  context.fillStyle = ground;
  context.fillRect(0, 0, width + 1, height + 1); // the last pixel may be but half of the width
  return context;
}

const written = new WeakMap(); // element -> what was last put there

// Set a property or an attribute of an element, if it is not that already: each write, even of the
// same text, costs the page a new layout.
function put(element, name, value) {
  let known = written.get(element);
  if (!known) written.set(element, (known = {}));
  if (known[name] === value) return;
  if (name === "textContent" || name === "innerHTML") known.textContent = known.innerHTML = null;
  known[name] = value;
  const text = element.firstChild;
  const isText = text && text === element.lastChild && text.nodeType === Node.TEXT_NODE;
  if (name === "textContent" && isText) text.data = value ?? ""; // a new node would cost more
  else if (name in element) element[name] = value;
  else element.setAttribute(name, value);
}

const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60]/;

// The end of a text that fits into so many columns; a character of the East Asian scripts takes two.
function endOf(text, columns) {
  let start = text.length;
  while (start > 0 && (columns -= WIDE.test(text[start - 1]) ? 2 : 1) >= 0) start -= 1;
  return text.slice(start).replace(/^[\udc00-\udfff]/, ""); // not half a character
}

// The index of the first of these, sorted, whose `key` is above a value.
function firstAbove(items, value, key) {
  let [low, high] = [0, items.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (key(items[middle]) > value) high = middle;
    else low = middle + 1;
  }
  return low;
}

function rounded(context, x, y, w, h, r) {
  context.beginPath();
  context.roundRect(x, y, w, h, Math.min(r, w / 2, h / 2));
}
