const view = element.querySelector('.tk-view');
const title = element.querySelector('.chart-title');
const by = element.querySelector('.tk-by');
const legend = element.querySelector('.tk-legend');
const tokens = element.querySelector('.tk-tokens');
const card = element.querySelector('.tk-card');
const empty = element.querySelector('.tk-empty');
let shade = 'divergence';

// every text that comes from a model goes in as text, never as HTML
function made(tag, className, text) {
  const one = document.createElement(tag);
  if (className) one.className = className;
  if (text !== undefined) one.textContent = text;
  return one;
}

function candidates(model, name, said) {
  const side = made('section');
  side.append(made('h4', '', name));
  side.append(made('p', '', `This token: ${model.share}, rank ${model.rank}`));
  const list = made('ol');
  for (const [text, share, probability] of model.best) {
    const row = made('li', text === said ? 'said' : '');
    const bar = made('i');
    bar.style.width = `${100 * probability}%`;
    row.append(bar, made('code', '', text), made('span', '', share));
    list.append(row);
  }
  side.append(list);
  return side;
}

function tell(number) {
  const value = props.value;
  const token = value.tokens[number];
  const head = made('p', 'tk-head');
  head.append('Token ', made('strong', '', `${number + 1}`), ' ', made('code', '', token.text),
    ` KL ${token.nats} nats`);
  card.replaceChildren(head, ...token.models.map((one, index) => candidates(one, value.names[index], token.text)));
  tokens.querySelectorAll('.told').forEach((one) => one.classList.remove('told'));
  tokens.children[number] && at(number).classList.add('told');
}

function at(number) {
  return tokens.querySelector(`[data-number="${number}"]`);
}

function tint() {
  const value = props.value;
  const chosen = value.by.find((one) => one.key === shade);
  legend.replaceChildren(...chosen.legend.map(([step, label]) => {
    const one = made('span', 'tk-swatch', label);
    one.dataset.step = step;
    return one;
  }), made('span', 'tk-unit', shade === 'divergence' ? 'nats' : 'rank'));
  tokens.querySelectorAll('.tk').forEach((one) => { one.dataset.step = value.tokens[one.dataset.number][shade]; });
}

function choices() {
  by.replaceChildren(made('span', '', 'Shade by'), ...props.value.by.map((one) => {
    const label = made('label', '', undefined);
    const input = made('input');
    Object.assign(input, {type: 'radio', name: 'tk-by', value: one.key, checked: one.key === shade});
    input.addEventListener('change', () => { shade = one.key; tint(); });
    label.append(input, one.label);
    return label;
  }));
}

function button(token, number) {
  const one = made('button', token.models[1].rank > 1 ? 'tk tk-other' : 'tk', token.text);
  one.type = 'button';
  one.dataset.number = number;
  one.tabIndex = number ? -1 : 0;
  one.setAttribute('aria-label', `${token.text}: KL ${token.nats} nats, rank ${token.models[0].rank} here, `
    + `${token.models[1].rank} there`);
  return one;
}

function draw() {
  const value = props.value || {};
  const there = Boolean(value.tokens);
  view.hidden = !there;
  empty.hidden = there;
  empty.textContent = value.empty || '';
  if (!there) return;
  title.textContent = value.title;
  tokens.setAttribute('aria-label', `${value.title} Arrow keys go from token to token.`);
  const row = [];
  value.tokens.forEach((token, number) => {
    row.push(button(token, number));
    if (token.text.includes('↵')) row.push(made('br'));
  });
  tokens.replaceChildren(...row);
  choices();
  tint();
  const worst = value.tokens.reduce((best, one, number) => (one.divergence > value.tokens[best].divergence ? number : best), 0);
  if (value.tokens.length) tell(worst);
}

function numberOf(event) {
  const one = event.target.closest('.tk');
  return one ? Number(one.dataset.number) : null;
}

tokens.addEventListener('mouseover', (event) => { if (numberOf(event) !== null) tell(numberOf(event)); });
tokens.addEventListener('focusin', (event) => { if (numberOf(event) !== null) tell(numberOf(event)); });
tokens.addEventListener('keydown', (event) => {
  const number = numberOf(event);
  const last = props.value.tokens.length - 1;
  const steps = {ArrowLeft: number - 1, ArrowUp: number - 1, ArrowRight: number + 1, ArrowDown: number + 1, Home: 0, End: last};
  if (number === null || !(event.key in steps)) return;
  event.preventDefault();
  const next = at(Math.min(last, Math.max(0, steps[event.key])));
  tokens.querySelectorAll('.tk').forEach((one) => { one.tabIndex = one === next ? 0 : -1; });
  next.focus();
});

watch('value', draw);
draw();
