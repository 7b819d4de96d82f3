// Answers each request with what was asked, in the way of a service worker.
let requests = 0;

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const { pathname } = new URL(request.url);
  requests += 1;
  console.log(`request ${requests}: ${request.method} ${pathname}`);
  return Response.json({ language: "JavaScript", method: request.method, path: pathname, request: requests });
}
