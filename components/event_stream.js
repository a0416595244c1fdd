// Gradio's page reads the answers to all its events from one stream, which the server ends when it has nothing left to
// answer. An event sent in the instant of that end was answered into no stream: the page believed that it still had one.
// Here the page's stream goes on with the server's next one as long as an event has no answer. And a stream that the server
// ends is read to its end, because the server drops the events of a page that hangs up first.
// Two events sent at nearly the same time may overtake each other on their way. Those that fill the same parts of the page,
// as quick clicks on a map, or a field that is left by Enter, are sent one after another, so that the server has them in the
// order in which they happened; none waits for long for one that is stuck. The page keeps an answer that comes before the
// receipt of its event, and then puts it before answers that came earlier: here an answer waits until the page has read the
// receipt.
(() => {
  const PATIENCE = 5000;
  const send = window.fetch.bind(window);
  const unanswered = new Set();
  const onTheWay = new Map();
  const receipts = new EventTarget();
  let sending = 0;
  window.awaitedAnswers = () => sending + unanswered.size;

  window.fetch = (input, options) => {
    const { pathname } = new URL(input.url ?? input, location.href);
    if (pathname.endsWith("/queue/join")) return join(input, options);
    if (pathname.endsWith("/queue/data")) return answers(new Request(input, options));
    return send(input, options);
  };

  async function join(input, options) {
    const parts = filled(JSON.parse(options.body).fn_index);
    const before = parts.map((part) => onTheWay.get(part));
    sending += 1;
    const sent = Promise.race([Promise.allSettled(before), after(PATIENCE)]).then(() => send(input, options));
    for (const part of parts) onTheWay.set(part, sent);
    let event;
    try {
      const response = await sent;
      const receipt = response.json();
      response.json = () => receipt;
      ({ event_id: event } = await receipt.catch(() => ({})));
      return response;
    } finally {
      whenRead(() => {
        if (event) unanswered.add(event);
        sending -= 1;
        receipts.dispatchEvent(new Event("read"));
      });
    }
  }

  const after = (time) => new Promise((over) => setTimeout(over, time));

  // The event itself, and the components that its answer sets.
  function filled(event) {
    const known = window.gradio_config?.dependencies?.find(({ id }) => id === event);
    return [`event ${event}`, ...(known?.outputs ?? [])];
  }

  // Once the page has done all that it does at once with what it was just given.
  function whenRead(act) {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = act;
    port2.postMessage(null);
  }

  async function receipted(event) {
    while (event && sending && !unanswered.has(event)) {
      await new Promise((read) => receipts.addEventListener("read", read, { once: true }));
    }
  }

  async function answers({ url, headers, credentials }) {
    const left = new AbortController();
    const ask = () => send(url, { headers, credentials, signal: left.signal });
    const first = await ask();
    if (!first.ok) return first;
    const body = new ReadableStream({
      async start(page) {
        try {
          let end;
          for (let response = first; ; response = await ask()) {
            if (!response.ok) throw response;
            end = await pass(response.body.getReader(), page);
            if (!end || !(sending || unanswered.size)) break;
          }
          if (end) page.enqueue(end);
          page.close();
        } catch (error) {
          unanswered.clear();
          page.error(error);
        }
      },
      cancel: () => left.abort(),
    });
    return new Response(body, { headers: first.headers });
  }

  // Hands on each message of a stream but the one that ends it, which is returned.
  async function pass(reader, page) {
    const decoder = new TextDecoder();
    const encoder = new TextEncoder();
    let rest = "";
    let end = null;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return end;
      const messages = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = messages.pop();
      for (const message of messages) {
        const { msg, event_id: event } = JSON.parse(message.slice("data:".length));
        await receipted(event);
        if (msg === "process_completed") unanswered.delete(event);
        if (msg === "unexpected_error") unanswered.clear();
        const line = encoder.encode(`${message}\n\n`);
        if (msg === "close_stream") end = line;
        else page.enqueue(line);
      }
    }
  }
})();
