(function () {
  "use strict";
  var figures = JSON.parse(document.getElementById("figures").textContent);

  var narrow = window.matchMedia("(max-width: 640px)");

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  // Colours come from the style sheet, so a change between light and dark reaches the figures too.
  function coloured(figure) {
    var copy = JSON.parse(JSON.stringify(figure));
    copy.data.forEach(function (trace) {
      var tint = colour(trace.meta.role);
      if (narrow.matches && trace.meta.text) {
        trace.text = trace.meta.text;
        trace.textposition = trace.meta.textposition;
        trace.marker.size = Math.min(trace.marker.size, 7);
      }
      trace.marker = Object.assign({}, trace.marker, { color: tint });
      if (trace.line) { trace.line.color = tint; }
      ["error_x", "error_y"].forEach(function (axis) {
        if (trace[axis]) { trace[axis].color = trace.type === "bar" ? colour("ink") : tint; }
      });
    });
    var layout = copy.layout;
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { color: colour("ink"), family: "system-ui, sans-serif", size: 12 };
    layout.hoverlabel = {
      bgcolor: colour("panel"), bordercolor: colour("rule"), font: { color: colour("ink") }, align: "left"
    };
    layout.dragmode = false;
    ["xaxis", "yaxis"].forEach(function (axis) {
      layout[axis] = Object.assign({}, layout[axis], { gridcolor: colour("rule"), linecolor: colour("rule") });
    });
    (layout.shapes || []).forEach(function (shape) { shape.line.color = colour("soft"); });
    return copy;
  }

  function show(id, figure) {
    var made = coloured(figure);
    return Plotly.react(id, made.data, made.layout, {
      responsive: true, displaylogo: false, showLink: false, displayModeBar: false, scrollZoom: false, doubleClick: false
    });
  }

  // The scores by task of one program at a time.
  var choice = document.getElementById("member");
  function tasks() {
    if (choice) { show("bars", figures.tasks[choice.value]); }
  }

  function draw() {
    Object.keys(figures).forEach(function (id) { if (id !== "tasks") { show(id, figures[id]); } });
    tasks();
  }

  // A link or a point leads to the text of a program, which lies in a closed box.
  function open() {
    var target = document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  }

  draw();
  ["pareto", "steps", "hours"].forEach(function (id) {
    document.getElementById(id).on("plotly_click", function (event) {
      var name = event.points[0].customdata;
      if (name) {
        location.hash = name;
        open();
      }
    });
  });
  if (choice) { choice.addEventListener("change", tasks); }
  document.addEventListener("click", function (event) {
    if (event.target.closest && event.target.closest('a[href^="#"]')) { setTimeout(open, 0); }
  });
  window.addEventListener("hashchange", open);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  open();
})();
