cd /tmp; mkdir -p a b; echo A > a/who; echo B > b/who; head -c 3000000 /dev/zero | tr '\0' z > a/big; cp a/big b/big
(cd a; exec python3 -m http.server $2 --bind 127.0.0.1 > /dev/null 2>&1) & P1=$!; (cd b; exec python3 -m http.server $3 --bind 127.0.0.1 >/dev/null 2>&1) & P2=$!
openssl req -x509 -newkey rsa:2048 -nodes -keyout k.pem -out c.pem -days 365 -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null; cat c.pem k.pem > hap.pem
cat > h.cfg <<C
global
 nbthread 4
 stats socket /tmp/h.sock mode 600 level admin
 user haproxy
 group haproxy
 chroot /var/lib/haproxy
defaults
 mode http
 timeout connect 5s
 timeout client 10s
 timeout server 10s
 timeout check 10s
frontend f
 bind 127.0.0.1:$0
 bind 127.0.0.1:$1 ssl crt /tmp/hap.pem alpn h2,http/1.1
 http-request deny if { path /forbidden }
 default_backend b
backend b
 balance roundrobin
 option httpchk GET /who
 server s1 127.0.0.1:$2 check inter 200ms
 server s2 127.0.0.1:$3 check inter 200ms
C
haproxy -c -f h.cfg; haproxy -W -f h.cfg > h.out 2>&1 & H=$!
for i in $(seq 200); do curl -sf http://127.0.0.1:$0/who > /dev/null && break; sleep 0.05; done; sleep 0.5
for i in 1 2 3 4; do curl -s http://127.0.0.1:$0/who; done | sort | uniq -c; curl -s -o /dev/null -w '%{http_code}\n' http://127.0.0.1:$0/forbidden; curl -s http://127.0.0.1:$0/big | md5sum
curl -s --cacert c.pem --http2 -w '%{http_version} %{http_code}\n' -o /dev/null https://localhost:$1/big
python3 - <<'P'
import socket; s=socket.socket(socket.AF_UNIX); s.connect('/tmp/h.sock'); s.sendall(b'show stat\n'); d=b''
while True:
    x=s.recv(65536)
    if not x: break
    d+=x
print([l.split(b',')[17].decode() for l in d.split(b'\n') if l.startswith(b'b,s')])
P
kill $P1; wait $P1 2>/dev/null; for i in $(seq 100); do n=0; for j in 1 2 3 4; do [ "$(curl -s http://127.0.0.1:$0/who)" = B ] && n=$((n+1)); done; [ $n = 4 ] && break; sleep 0.1; done; for i in 1 2 3; do curl -s http://127.0.0.1:$0/who; done | sort | uniq -c
kill -USR2 $H; sleep 1; for i in $(seq 100); do curl -sf http://127.0.0.1:$0/who > /dev/null && break; sleep 0.1; done; curl -s http://127.0.0.1:$0/who; kill -USR1 $H; wait $H; echo ended $?; kill $P2
