set -e
cd /tmp; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k.pem -out c.pem -days 3650 -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null
mkdir w; seq 100000 > w/file
(cd w; exec openssl s_server -accept 127.0.0.1:$0 -cert ../c.pem -key ../k.pem -WWW -quiet) > log 2>&1 &
server=$!
for i in $(seq 50); do curl -s --cacert c.pem -o out https://localhost:$0/file && break; sleep 0.1; done
cmp out w/file && echo same
curl -s --cacert c.pem -w '%{http_code} %{ssl_verify_result} %{scheme}\n' -o /dev/null https://localhost:$0/file
curl -s https://localhost:$0/file || echo curl $?
curl -s --cacert c.pem --tls-max 1.2 https://localhost:$0/file | tail -1
echo Q | openssl s_client -connect 127.0.0.1:$0 -CAfile c.pem -servername localhost 2>/dev/null | grep -E '^(New|Verify return)'
kill $server; wait $server || echo ended $?
for i in sha256 aes-256-gcm; do openssl speed -elapsed -seconds 1 -bytes 1024 -evp $i 2>/dev/null | tail -1 | awk '{print $1, ($2+0 > 0)}'; done
openssl speed -elapsed -seconds 1 -multi 2 rsa2048 2>/dev/null | tail -1 | awk '{print $1,$2,$3}'
