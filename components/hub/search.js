const field = element.querySelector('input');
const list = element.querySelector('ul');
const note = element.querySelector('.hub-note');
const LEAST = 3, PAUSE = 450;
let timer, asked = '';

function ask() {
  clearTimeout(timer);
  const text = field.value.trim();
  if (text.length < LEAST || text === asked) return;
  asked = text;
  note.textContent = 'Asking the Hub';
  props.value = {ask: text};
  trigger('input');
}

function button(words, id, role, label) {
  const made = document.createElement('button');
  made.type = 'button';
  made.textContent = words;
  made.setAttribute('aria-label', label);
  made.addEventListener('click', () => trigger('select', {id, role}));
  return made;
}

function item(found) {
  const line = document.createElement('li');
  const words = line.appendChild(document.createElement('div'));
  words.appendChild(document.createElement('strong')).textContent = found.id;
  for (const mark of found.marks) {
    const badge = words.appendChild(document.createElement('span'));
    badge.className = 'badge badge-note';
    badge.textContent = mark;
  }
  words.appendChild(document.createElement('small')).textContent = found.about;
  line.append(
    button('Use as base', found.id, 'base', `Use ${found.id} as the base`),
    button('Add as expert', found.id, 'expert', `Add ${found.id} as an expert`),
  );
  return line;
}

function show() {
  const value = props.value || {};
  if (!value.found) return;
  list.replaceChildren(...value.found.map(item));
  list.hidden = !value.found.length;
  note.textContent = value.note || '';
  if (value.again) asked = '';
}

field.addEventListener('input', () => {
  clearTimeout(timer);
  if (field.value.trim()) { timer = setTimeout(ask, PAUSE); return; }
  asked = '';
  list.replaceChildren();
  list.hidden = true;
  note.textContent = '';
});
field.addEventListener('keydown', (event) => {
  if (event.key === 'Enter') { event.preventDefault(); ask(); }
  if (event.key === 'Escape') { field.value = ''; field.dispatchEvent(new Event('input')); }
});
watch('value', show);
show();
