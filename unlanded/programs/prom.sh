cd /tmp; cat > p.yml <<C
global: { scrape_interval: 200ms }
scrape_configs: [ { job_name: self, static_configs: [ { targets: ['127.0.0.1:18130'] } ] } ]
C
prometheus --config.file=p.yml --web.listen-address=127.0.0.1:18130 --storage.tsdb.path=/tmp/pd > p.log 2>&1 & P=$!
for i in $(seq 100); do curl -sf http://127.0.0.1:18130/-/ready > /dev/null && break; sleep 0.1; done; for i in $(seq 50); do curl -s "http://127.0.0.1:18130/api/v1/query?query=process_resident_memory_bytes" | grep -q value && break; sleep 0.2; done; curl -s 'http://127.0.0.1:18130/api/v1/query?query=up' | python3 -c 'import json,sys; d=json.load(sys.stdin)["data"]["result"]; print(d[0]["metric"]["job"], d[0]["value"][1])'; curl -s 'http://127.0.0.1:18130/api/v1/query?query=count(%7B__name__%3D~%22process_.*%22%7D)' | python3 -c 'import json,sys; print(json.load(sys.stdin)["data"]["result"][0]["value"][1])'; curl -s 'http://127.0.0.1:18130/api/v1/query?query=process_resident_memory_bytes' | python3 -c 'import json,sys; d=json.load(sys.stdin)["data"]["result"]; print(float(d[0]["value"][1]) > 1e6)'; kill $P; wait $P; echo ended $?; grep -c 'See you next time' p.log; promtool check config p.yml
