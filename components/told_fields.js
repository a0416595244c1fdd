// Gradio's page keeps what became of every event, under each field that the event read, and at every word of any event tells
// all of it to all of these fields, searching its whole tree for each: a second for a click in a form of a hundred fields.
// Only a field that sends as it records makes use of that, and there is none here: nothing is told to what was only read.
(() => {
  const entries = Object.entries;
  const onlyRead = (told) => told?.type === "input" && "fn_index" in told && "component_id" in told;
  Object.entries = (table) => entries(table).filter(([, value]) => !onlyRead(value));
})();
