"""Style sheet and script of the page; both work from the page alone."""

STYLE = """
:root {
  --paper: #ffffff; --ink: #1b1f24; --muted: #5b6570; --rule: #d9dee3;
  --accent: #0b62a4; --bad: #b3400a; --second: #d98d00; --third: #5aa897;
  --other: #b4bcc4; --tint: #f3f7fa;
  --serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, "Liberation Serif",
    serif;
  --sans: system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial,
    sans-serif;
  color-scheme: light dark;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --ink: #e4e7ea; --muted: #9ba5af; --rule: #343b42;
    --accent: #6cb4ee; --bad: #ff9563; --second: #e8a93a; --third: #6cc2ae;
    --other: #566069; --tint: #1c2126;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 70rem;
  background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.55 var(--serif); overflow-wrap: break-word;
}
h1, h2, h3, table, dl, nav, .eyebrow, .verdict, svg text { font-family: var(--sans); }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; }
h2 {
  margin: 3.5rem 0 1rem; padding-top: 0.75rem; border-top: 1px solid var(--rule);
  font-size: 1.25rem; letter-spacing: -0.005em;
}
h3 { margin: 0 0 0.25rem; font-size: 0.8125rem; }
p { max-width: 42rem; margin: 0.5rem 0; }
a { color: var(--accent); }
.eyebrow { margin: 0 0 0.25rem; color: var(--accent); font-size: 0.8125rem;
  font-weight: 600; }
.lead { color: var(--muted); }
nav { margin-top: 1.25rem; font-size: 0.875rem; }
nav a { margin-right: 1rem; white-space: nowrap; text-decoration: none; }
.verdict {
  margin: 1.5rem 0; padding: 0.25rem 0 0.25rem 1rem; max-width: 46rem;
  border-left: 4px solid var(--accent); font-size: 1rem;
}
.verdict b { display: block; font-size: 1.25rem; color: var(--accent); }
.verdict.bad { border-color: var(--bad); }
.verdict.bad b { color: var(--bad); }
.tiles {
  display: grid; gap: 1rem 1.5rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr));
}
.tiles dt { color: var(--muted); font-size: 0.8125rem; }
.tiles dd { margin: 0; font-size: 1.5rem; font-variant-numeric: tabular-nums;
  line-height: 1.3; }
.tiles small { display: block; color: var(--muted); font-size: 0.8125rem;
  line-height: 1.4; }
.facts {
  display: grid; grid-template-columns: max-content minmax(0, 1fr);
  gap: 0.25rem 1.25rem; margin: 0; font-size: 0.9375rem;
}
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0 2.25rem; }
figcaption { max-width: 46rem; font-size: 0.9375rem; line-height: 1.5; }
figcaption b { font-family: var(--sans); font-size: 0.875rem; }
.panels {
  display: grid; gap: 1rem 1.25rem; margin-bottom: 0.75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr));
}
.panels svg { width: 100%; max-width: 27rem; }
svg { display: block; height: auto; overflow: visible; }
svg * { stroke-linejoin: round; }
.scroll { overflow-x: auto; margin-bottom: 0.75rem; }
.picture { position: relative; width: 100%; min-width: 30rem; max-width: 46rem; }
.picture svg { width: 100%; }
.smooth image { image-rendering: auto !important; }
.tip {
  position: absolute; pointer-events: none; padding: 0.375rem; text-align: center;
  background: var(--paper); border: 1px solid var(--rule); border-radius: 0.25rem;
  font: 0.8125rem/1.3 var(--sans); transform: translate(-50%, 0.75rem);
  box-shadow: 0 2px 8px rgb(0 0 0 / 0.2);
}
.tip canvas { display: block; width: 5rem; height: 5rem; margin: 0 auto 0.25rem;
  image-rendering: pixelated; }
.smooth .tip canvas { image-rendering: auto; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 1rem 0.3rem 0; text-align: left; vertical-align: baseline; }
th { font-weight: 600; }
.scroll th, .scroll td { white-space: nowrap; }
thead th { color: var(--muted); vertical-align: bottom; }
thead tr:last-child th { border-bottom: 1px solid var(--muted); }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
.number { text-align: right; white-space: nowrap; }
.span { text-align: center; }
.best { font-weight: 700; }
td small, th small { color: var(--muted); font-weight: 400; }
.more > * { border-top: 0 !important; }
.gain > * { border-top: 1px solid var(--muted) !important; }
.groups { columns: 19rem; column-gap: 2rem; }
.groups section { break-inside: avoid; margin-bottom: 1.5rem; }
.groups table { width: 100%; table-layout: fixed; }
.groups th { font-weight: 400; color: var(--muted); width: 46%; }
.groups td { overflow-wrap: anywhere; padding-right: 0.25rem; }
.groups .changed { background: var(--tint); }
.groups .changed td { color: var(--accent); font-weight: 600; }
.groups td small { display: block; }
.notes { font-size: 0.9375rem; color: var(--muted); padding-left: 1.1rem;
  max-width: 46rem; overflow-wrap: anywhere; }
footer { margin-top: 4rem; padding-top: 0.75rem; border-top: 1px solid var(--rule);
  color: var(--muted); font-size: 0.875rem; }
@media (min-width: 60rem) {
  .facts { grid-template-columns: repeat(2, max-content minmax(0, 1fr)); }
  .beside { display: grid; grid-template-columns: minmax(0, 44rem) minmax(0, 1fr);
    gap: 2rem; align-items: end; }
  .beside .scroll { margin: 0; }
}
@media print {
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  figure, .groups section, tr { break-inside: avoid; }
  h2 { break-after: avoid; margin-top: 2rem; }
  .panels { grid-template-columns: repeat(3, 1fr); }
  .scroll { overflow: visible; }
  .scroll table { font-size: 0.75rem; }
  th, td { padding-right: 0.6rem; }
  .picture { max-width: 36rem; }
  .groups { columns: 3; column-gap: 1.25rem; }
  .groups table { font-size: 0.75rem; }
  .groups .changed { print-color-adjust: exact; }
}
"""

# Shows the image under the pointer; without it the map is complete but for that.
SCRIPT = """
const at = JSON.parse(document.getElementById("points").textContent);
const sprites = document.getElementById("sprites");
const box = sprites.closest(".picture");
const tip = document.createElement("div");
const canvas = document.createElement("canvas");
const name = document.createElement("span");
canvas.width = canvas.height = at.size;
tip.className = "tip";
tip.hidden = true;
tip.append(canvas, name);
box.append(tip);
function show(event) {
  const edge = box.getBoundingClientRect();
  const scale = at.side / edge.width;
  const x = (event.clientX - edge.left) * scale, y = (event.clientY - edge.top) * scale;
  let best = -1, least = (14 * scale) ** 2;
  at.x.forEach((px, i) => {
    const distance = (px - x) ** 2 + (at.y[i] - y) ** 2;
    if (distance < least) { least = distance; best = i; }
  });
  tip.hidden = best < 0;
  if (best < 0) return;
  const row = Math.floor(best / at.columns), column = best % at.columns, t = at.size;
  canvas.getContext("2d").drawImage(
    sprites, column * t, row * t, t, t, 0, 0, t, t);
  name.textContent = at.names[best] ?? "";
  tip.style.left = `${at.x[best] / scale}px`;
  tip.style.top = `${at.y[best] / scale}px`;
}
box.addEventListener("pointermove", show);
box.addEventListener("pointerdown", show);
box.addEventListener("pointerleave", () => { tip.hidden = true; });
"""
