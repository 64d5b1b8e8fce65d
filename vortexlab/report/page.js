(function () {
  "use strict";
  var figures = JSON.parse(document.getElementById("figures").textContent);

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  // Colours come from the style sheet, so a change between light and dark reaches the figures too.
  function coloured(figure) {
    var copy = JSON.parse(JSON.stringify(figure));
    copy.data.forEach(function (trace) {
      var tint = colour(trace.meta === "line" ? "soft" : trace.meta);
      trace.marker = Object.assign({}, trace.marker, { color: tint });
      if (trace.line) { trace.line.color = tint; }
      ["error_x", "error_y"].forEach(function (axis) { if (trace[axis]) { trace[axis].color = tint; } });
    });
    var layout = copy.layout;
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { color: colour("ink") };
    ["xaxis", "yaxis"].forEach(function (axis) {
      layout[axis] = Object.assign({}, layout[axis], { gridcolor: colour("rule"), linecolor: colour("rule") });
    });
    (layout.shapes || []).forEach(function (shape) { shape.line.color = colour("soft"); });
    return copy;
  }

  function draw() {
    Object.keys(figures).forEach(function (id) {
      var figure = coloured(figures[id]);
      Plotly.react(id, figure.data, figure.layout, { responsive: true, displaylogo: false, showLink: false });
    });
  }

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
