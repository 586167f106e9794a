cd /tmp; mkdir -p web cache; echo page > web/p; (cd web; exec python3 -m http.server 18101 --bind 127.0.0.1 > /tmp/web.log 2>&1) &
cat > s.conf <<C
http_port 127.0.0.1:18100
acl all2 src all
http_access allow all2
cache_mem 8 MB
cache_dir ufs /tmp/cache 10 4 4
pid_filename /tmp/squid.pid
access_log /tmp/squid.access
cache_log /tmp/squid.log
coredump_dir /tmp
shutdown_lifetime 1 seconds
refresh_pattern . 60 100% 60
C
chmod 777 /tmp cache; squid -f s.conf -z --foreground > z.out 2>&1; echo z $?; squid -f s.conf -N > n.out 2>&1 & S=$!
for i in $(seq 200); do curl -sf -x http://127.0.0.1:18100 http://127.0.0.1:18101/p -o /dev/null && break; sleep 0.05; done
curl -s -x http://127.0.0.1:18100 http://127.0.0.1:18101/p; curl -sI -x http://127.0.0.1:18100 http://127.0.0.1:18101/p | grep -i '^X-Cache:' | tr -d '\r' | sed 's/from.*//'; curl -s -o /dev/null -w '%{http_code}\n' -x http://127.0.0.1:18100 http://127.0.0.1:1/
kill $S; wait $S; echo ended $?; rm -f squid.pid; squid -f s.conf; sleep 2; curl -s -x http://127.0.0.1:18100 http://127.0.0.1:18101/p; squid -f s.conf -k shutdown; sleep 2.5; ls squid.pid 2>&1 | head -1; grep -ciE 'fatal|assert' squid.log; kill %1
