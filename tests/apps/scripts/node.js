const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const http = require('http'), cp = require('child_process'), fs = require('fs'), zlib = require('zlib'), crypto = require('crypto');
if (!isMainThread) {
  const view = new Int32Array(workerData.shared);
  for (let i = 0; i < 10000; i++) Atomics.add(view, 0, 1);
  if (workerData.id === 0) { Atomics.wait(view, 1, 0, 5000); }
  else { Atomics.store(view, 1, 1); Atomics.notify(view, 1); }
  let s = 0; for (let i = 0; i < 1e6; i++) s = (s * 31 + i) | 0;
  parentPort.postMessage({ id: workerData.id, s });
} else (async () => {
  const shared = new SharedArrayBuffer(8);
  const results = await Promise.all([0, 1, 2, 3].map(id => new Promise((resolve, reject) => {
    const w = new Worker(__filename, { workerData: { shared, id } });
    w.on('message', resolve); w.on('error', reject);
  })));
  console.log('workers', results.map(r => r.id + ':' + r.s).sort().join(' '), new Int32Array(shared)[0]);
  const server = http.createServer((req, res) => {
    let body = ''; req.on('data', d => body += d);
    req.on('end', () => { res.setHeader('x-method', req.method); res.end(`${req.url} ${body.length}`); });
  });
  await new Promise(r => server.listen(0, '127.0.0.1', r));
  const port = server.address().port;
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
  const ask = (path, body) => new Promise((resolve, reject) => {
    const req = http.request({ port, host: '127.0.0.1', path, method: 'POST', agent }, res => {
      let text = ''; res.on('data', d => text += d); res.on('end', () => resolve(res.statusCode + ' ' + res.headers['x-method'] + ' ' + text));
    }); req.on('error', reject); req.end(body);
  });
  const answers = await Promise.all(Array.from({ length: 40 }, (_, i) => ask('/' + i, 'x'.repeat(i * 1000))));
  console.log('http', answers[0], answers[39], answers.length);
  agent.destroy(); server.close();
  console.log('exec', cp.execFileSync('sh', ['-c', 'echo $0 $(expr 1 + 2)', 'arg']).toString().trim());
  const child = cp.spawn('sh', ['-c', 'cat; exit 7']); let out = '';
  child.stdout.on('data', d => out += d); child.stdin.end('piped '.repeat(1000));
  const code = await new Promise(r => child.on('close', r)); console.log('spawn', out.length, code);
  const killed = cp.spawn('sleep', ['60']); killed.kill('SIGTERM');
  console.log('kill', await new Promise(r => killed.on('exit', (c, s) => r(s))));
  const forked = cp.fork(process.argv[1], [], { execArgv: ['-e', 'process.on("message", m => { process.send(m * 2); process.disconnect(); })'] });
  forked.send(21); console.log('fork', await new Promise(r => forked.on('message', r)));
  const results2 = await Promise.all([1, 2, 3].map(i => new Promise(r => cp.exec(`sleep 0.0${i}; echo ${i}`, (e, o) => r(o.trim())))));
  console.log('exec', results2.join(','));
  fs.mkdirSync('/tmp/n'); const w = fs.watch('/tmp/n'); const seen = new Promise(r => w.on('change', (t, f) => r(t + ' ' + f)));
  fs.writeFileSync('/tmp/n/file', 'x'); console.log('watch', await seen); w.close();
  console.log('zlib', await new Promise(r => zlib.gzip(Buffer.alloc(1 << 20), (e, b) => r(zlib.gunzipSync(b).length))));
  console.log('pbkdf2', await new Promise(r => crypto.pbkdf2('p', 's', 1000, 16, 'sha256', (e, k) => r(k.toString('hex')))));
  try { null.x } catch (e) { console.log(e.constructor.name) }
  const deep = n => n === 0 ? 0 : 1 + deep(n - 1); try { deep(1e7) } catch (e) { console.log(e.constructor.name) }
  setTimeout(() => {}, 60000);
  process.on('SIGUSR2', () => { console.log('signal'); process.exit(4); }); process.kill(process.pid, 'SIGUSR2');
})();
