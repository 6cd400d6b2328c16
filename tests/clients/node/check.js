// What every client from npm is tried with, whatever its own interface looks like: 1,000 calls, batches and notifications
// where it has them, errors. The scripts beside this one adapt one client each; tests/clients/run starts them.
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');

const [host, port] = process.argv[2].split(':');
exports.host = host;
exports.port = Number(port);
exports.url = `http://${host}:${port}/`;

const CALLS = 1000;
const BATCHES = 10;
const NOTIFICATIONS = 100;

// client.call(method, params)     promises the result, or fails with the client's own error
// client.error(error)             true if it is of the client's own type; code, message and data stand in it
// client.atOnce                   how many calls may be under way
// client.batch([[method, params]…]) promises as many of { result } or { error }, in the same order; optional
// client.notify(method, params)   promises that it is sent; optional
exports.tryOut = async (name, how, client) => {
  ended = false;
  const done = [await calls(client)];
  if (client.batch) done.push(await batches(client));
  if (client.notify) done.push(await notifications(client, `${name} ${how} ${process.pid}`));
  done.push(await errors(client));
  console.log(`${name} ${version(name)}, ${how}: ${done.join(', ')}`);
  ended = true;
};

// Node ends well when nothing is left to wait for, such as the answers on a connection that was closed.
let ended = true;
process.on('exit', () => {
  if (ended) return;
  console.error('expected an answer to every call, found none left to come');
  process.exitCode ||= 1;
});

function version(name) {
  const file = path.join(__dirname, 'node_modules', name, 'package.json');
  return JSON.parse(fs.readFileSync(file, 'utf8')).version;
}

async function calls(client) {
  let next = 0;
  const one = async () => {
    while (next < CALLS) {
      const n = next++;
      const params = [n, `Grüße ${n} \u{1F600}`];
      assert.deepEqual(await client.call('echo', params), params);
    }
  };
  await Promise.all(Array.from({ length: client.atOnce }, one));
  return `${CALLS} calls, ${client.atOnce} at once`;
}

async function batches(client) {
  for (let batch = 0; batch < BATCHES; batch++) {
    const wanted = Array.from({ length: 9 }, (_, n) => ['echo', [batch, n]]);
    const answers = await client.batch([...wanted, ['nothing', []]]);
    const found = answers.map((answer) => (answer?.error ? answer.error.code : answer?.result));
    assert.deepEqual(found, [...wanted.map(([, params]) => params), -32601]);
  }
  return `${BATCHES} batches of 10`;
}

async function notifications(client, of) {
  for (let n = 0; n < NOTIFICATIONS; n++) await client.notify('count', { of, add: 1 });
  // They run beside later calls, so the last ones may not have yet.
  for (let look = 0; look < CALLS; look++) {
    if ((await client.call('count', { of, add: 0 })) === NOTIFICATIONS) return `${NOTIFICATIONS} notifications`;
  }
  throw new Error(`of ${NOTIFICATIONS} notifications some did not run`);
}

async function errors(client) {
  const raised = async (method, params) => {
    let result;
    try {
      result = await client.call(method, params);
    } catch (error) {
      assert.ok(client.error(error), `not the client's own error: ${error?.constructor?.name} ${error}`);
      return error;
    }
    throw new Error(`expected an error, found ${JSON.stringify(result)}`);
  };
  const own = await raised('fail', { code: 7, message: 'out of paper', data: { tray: 2 } });
  assert.deepEqual([own.code, own.message, own.data], [7, 'out of paper', { tray: 2 }]);
  assert.equal((await raised('nothing', [])).code, -32601);
  assert.equal((await raised('sleep', { ms: 'long' })).code, -32602);
  return 'errors';
}
