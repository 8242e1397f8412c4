"use strict";
// A figure names its colours by the page's variables, `var(--accent)`; they are looked up here, and again when the
// reader changes between light and dark mode.
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
// Plotly's own set of buttons has one that sends the figure to its makers' server.
const config = {
  responsive: true,
  displaylogo: false,
  plotlyServerURL: "",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};

function coloured(value, style) {
  if (typeof value === "string") {
    const name = /^var\((--[a-z]+)\)$/.exec(value);
    return name ? style.getPropertyValue(name[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.map((one) => coloured(one, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, style)]));
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [id, figure] of Object.entries(figures)) {
    const { data, layout } = coloured(figure, style);
    layout.template.layout.font.family = getComputedStyle(document.body).fontFamily;
    Plotly.react(id, data, layout, config);
  }
}

draw();
dark.addEventListener("change", draw);
