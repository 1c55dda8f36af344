// Shows the image under the pointer; without it the map is complete but for that.
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
