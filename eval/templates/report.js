// Draws a chart when it comes near the screen. Until then, in print, and wherever a chart cannot be
// drawn, its image stands in the same place.
(function () {
  "use strict";
  var config = {
    displayModeBar: false,
    responsive: true
  };

  function draw(plot) {
    var source = document.getElementById("chart-" + plot.dataset.chart);
    var spec = JSON.parse(source.textContent);
    var figure = plot.closest("figure");
    figure.classList.add("live");
    plot.style.height = spec.layout.height + "px";
    Plotly.newPlot(plot, spec.data, spec.layout, config).catch(function (error) {
      figure.classList.remove("live");
      console.error(plot.dataset.chart, error);
    });
  }

  var margin = 600;
  var later = [];
  document.querySelectorAll("figure.chart").forEach(function (figure) {
    if (figure.getBoundingClientRect().top < window.innerHeight + margin) {
      draw(figure.querySelector(".plot"));
    } else {
      later.push(figure);
    }
  });
  var observer = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (entry.isIntersecting) {
        observer.unobserve(entry.target);
        draw(entry.target.querySelector(".plot"));
      }
    });
  }, { rootMargin: margin + "px" });
  later.forEach(function (figure) { observer.observe(figure); });

  // Marks in the list of contents the section that is being read.
  var links = {};
  document.querySelectorAll("nav a[href^='#']").forEach(function (link) {
    links[link.getAttribute("href").slice(1)] = link;
  });
  var sections = Array.prototype.slice.call(document.querySelectorAll("main section[id]"));
  function mark() {
    var current = sections[0];
    sections.forEach(function (section) {
      if (section.getBoundingClientRect().top < 160) { current = section; }
    });
    Object.keys(links).forEach(function (id) {
      links[id].classList.toggle("current", current !== undefined && id === current.id);
    });
  }
  document.addEventListener("scroll", mark, { passive: true });
  mark();
})();
