'use strict';
(() => {
  const content = JSON.parse(document.getElementById('content').textContent);
  const NARROW = 640;
  const FORMULA = /^[=+\-@\t\r]/;
  const figures = [...document.querySelectorAll('figure[data-chart]')];
  const everything = document.getElementById('everything');
  const drawn = new Set();
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const chartOf = (figure) => {
    const number = Number(figure.dataset.chart);
    return (everything.checked && content.wide[number]) || content.plain[number];
  };
  const isNarrow = (figure) => figure.clientWidth < NARROW;

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function themed(chart, narrow) {
    const [ink, quiet, line] = ['--ink', '--quiet', '--line'].map(variable);
    const layout = Object.assign({}, chart.layout, narrow ? chart.narrow : {});
    Object.assign(layout, {
      autosize: true,
      paper_bgcolor: 'rgba(0,0,0,0)',
      plot_bgcolor: 'rgba(0,0,0,0)',
      font: Object.assign({}, layout.font, {color: ink, family: variable('--font')}),
      hoverlabel: Object.assign({}, layout.hoverlabel, {
        bgcolor: variable('--page'), bordercolor: line, font: {color: ink},
      }),
      shapes: (layout.shapes || []).map((shape) =>
        Object.assign({line: {color: quiet, dash: 'dot', width: 1.5}}, shape)),
    });
    for (const key of Object.keys(layout)) {
      if (!/^[xy]axis\d*$/.test(key)) continue;
      layout[key] = Object.assign({gridcolor: line, zerolinecolor: line, linecolor: line}, layout[key]);
      layout[key].tickfont = Object.assign({color: quiet}, layout[key].tickfont);
    }
    return layout;
  }

  function draw(figure) {
    const chart = chartOf(figure);
    const narrow = isNarrow(figure);
    const plot = figure.querySelector('.plot');
    const layout = themed(chart, narrow);
    figure.querySelector('h3').textContent = chart.title;
    figure.querySelector('.note').textContent = chart.note;
    plot.setAttribute('aria-label', chart.alt);
    plot.style.height = layout.height + 'px';
    figure.dataset.narrow = narrow;
    Plotly.react(plot, chart.data, layout, {displayModeBar: false, showSendToCloud: false, responsive: false});
    drawn.add(figure);
  }

  function table(chart) {
    const cell = (tag, value) => make(tag, {textContent: value === null ? '–' : String(value)});
    const row = (values, first, rest) =>
      make('tr', {}, ...values.map((value, place) => {
        const made = cell(place ? rest : first, value);
        if (made.tagName === 'TH') made.scope = first === rest ? 'col' : 'row';
        return made;
      }));
    const head = make('thead', {}, row(chart.headers, 'th', 'th'));
    const body = make('tbody', {}, ...chart.rows.map((values) => row(values, 'th', 'td')));
    const scroll = make('div', {className: 'scroll', tabIndex: 0}, make('table', {}, head, body));
    scroll.setAttribute('role', 'region');
    scroll.setAttribute('aria-label', chart.title + ', as a table');
    return scroll;
  }

  function csv(chart) {
    const quoted = (value) => {
      if (value === null) return '';
      let text = String(value);
      if (typeof value === 'string' && FORMULA.test(text)) text = "'" + text;
      return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
    };
    return [chart.headers, ...chart.rows].map((row) => row.map(quoted).join(',')).join('\n') + '\n';
  }

  function saveCsv(chart, name) {
    const address = URL.createObjectURL(new Blob([csv(chart)], {type: 'text/csv'}));
    make('a', {href: address, download: name + '.csv'}).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  function savePng(figure, name) {
    const chart = chartOf(figure);
    const layout = themed(chart, isNarrow(figure));
    layout.paper_bgcolor = variable('--page');
    const margin = layout.margin || {};
    layout.margin = Object.assign({}, margin, {t: (margin.t || 0) + 56, l: (margin.l || 0) + 16, r: 24, b: (margin.b || 0) + 16});
    layout.height += 72;
    layout.title = {text: chart.title.replace(/</g, '&lt;'), x: 0, xref: 'paper', y: 1, yref: 'container',
      yanchor: 'top', pad: {t: 24}, font: {size: 15, weight: 600}};
    Plotly.downloadImage({data: chart.data, layout}, {
      format: 'png', filename: name, width: figure.clientWidth + 48, height: layout.height, scale: 2,
    });
  }

  function fillTable(details, figure) {
    const chart = chartOf(figure);
    const save = make('button', {type: 'button', className: 'csv', textContent: 'Save as CSV'});
    save.addEventListener('click', () => saveCsv(chart, nameOf(figure)));
    details.replaceChildren(details.firstElementChild, table(chart), save);
  }

  const nameOf = (figure) => 'mergescope-' + figure.closest('section').id + '-' + figure.dataset.chart;

  function build(figure) {
    const chart = chartOf(figure);
    const png = make('button', {type: 'button', className: 'png', textContent: 'Save as PNG'});
    png.addEventListener('click', () => savePng(figure, nameOf(figure)));
    const plot = make('div', {className: 'plot'});
    plot.setAttribute('role', 'img');
    const about = make('details', {}, make('summary', {textContent: 'What am I looking at?'}),
      make('p', {textContent: chart.about}));
    const twin = make('details', {className: 'twin'}, make('summary', {textContent: 'As a table'}));
    twin.addEventListener('toggle', () => { if (twin.open) fillTable(twin, figure); });
    figure.append(make('figcaption', {}, make('h3', {}), make('p', {className: 'note'})), plot, about, twin, png);
    figure.querySelector('h3').textContent = chart.title;
  }

  function redraw() {
    for (const figure of drawn) {
      draw(figure);
      const twin = figure.querySelector('.twin');
      if (twin.open) fillTable(twin, figure);
    }
  }

  figures.forEach(build);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      if (!drawn.has(entry.target)) draw(entry.target);
    }
  }, {rootMargin: '700px'});
  figures.forEach((figure) => seen.observe(figure));
  const sized = new ResizeObserver((entries) => {
    for (const {target} of entries) {
      if (!drawn.has(target)) continue;
      if (String(isNarrow(target)) !== target.dataset.narrow) draw(target);
      else Plotly.Plots.resize(target.querySelector('.plot'));
    }
  });
  figures.forEach((figure) => sized.observe(figure));
  if (content.wide.length) document.querySelector('.switch').hidden = false;
  everything.addEventListener('change', redraw);
  dark.addEventListener('change', redraw);
  addEventListener('beforeprint', () => figures.forEach((figure) => { if (!drawn.has(figure)) draw(figure); }));
})();
