cd /tmp; cat > t.php <<'P'
<?php
$p = proc_open(['sort','-r'], [['pipe','r'],['pipe','w'],['pipe','w']], $pipes); fwrite($pipes[0], "a\nb\n"); fclose($pipes[0]); echo stream_get_contents($pipes[1]); echo proc_close($p), "\n";
$pid = pcntl_fork(); if (!$pid) { exit(6); } pcntl_waitpid($pid, $s); echo pcntl_wexitstatus($s), "\n";
pcntl_async_signals(true); pcntl_signal(SIGUSR1, function() { echo "usr1\n"; }); posix_kill(posix_getpid(), SIGUSR1);
$s = stream_socket_server('tcp://127.0.0.1:0'); $n = stream_socket_get_name($s, false); $c = stream_socket_client("tcp://$n"); $a = stream_socket_accept($s); fwrite($c, "hello\n"); echo fgets($a); $r=[$a]; $w=null; $e=null; fwrite($c,"x"); echo stream_select($r,$w,$e,1), "\n";
$db = null; echo md5(str_repeat('x', 1000000)), "\n", crc32('x'), "\n"; echo json_encode(['a'=>[1,2.5,null]]), "\n"; echo strlen(gzcompress(str_repeat('a',100000))), "\n"; echo count(hash_algos()) > 30 ? "hashes\n" : "";
$id = shmop_open(0x1234, 'c', 0644, 100); shmop_write($id, 'shared', 0); echo shmop_read($id, 0, 6), "\n"; shmop_delete($id);
$f = fopen('/tmp/l','w'); echo flock($f, LOCK_EX) ? "locked\n" : ""; echo preg_match('/^(a+)+$/', str_repeat('a', 30).'b'), "\n"; $x=[]; for($i=0;$i<300000;$i++) $x[]="k$i"; echo count($x), "\n"; echo gethostbyname('localhost'), "\n"; echo date('Y', 0), "\n"; function g() { for($i=0;$i<3;$i++) yield $i; } foreach(g() as $v) echo $v; echo "\n"; $fi = new Fiber(function() { $x = Fiber::suspend('s'); echo $x; }); echo $fi->start(), "\n"; $fi->resume("resumed\n"); echo random_int(5,5), bin2hex(random_bytes(2)) !== '' ? " ok\n" : "";
P
php t.php; php -d opcache.enable_cli=1 -d opcache.jit=tracing -d opcache.jit_buffer_size=16M -r '$s=0; for($i=0;$i<3000000;$i++) $s+=$i%7; echo $s,"\n"; var_dump(opcache_get_status(false)["jit"]["on"] ?? null);' 2>&1
mkdir -p w; echo '<?php header("X-A: b"); usleep(1000); echo "pid ", getmypid() > 0, " ", $_GET["q"] ?? "", " ", PHP_SAPI, "\n";' > w/i.php
PHP_CLI_SERVER_WORKERS=3 php -q -S 127.0.0.1:18080 -t w > cli.log 2>&1 & S=$!
for i in $(seq 100); do curl -sf http://127.0.0.1:18080/i.php?q=1 -o /dev/null && break; sleep 0.05; done
for i in 1 2 3; do curl -s "http://127.0.0.1:18080/i.php?q=$i"; done; kill $S; wait $S; echo "cli ended $?"
cat > fpm.conf <<C
[global]
error_log = /tmp/fpm.log
daemonize = no
[www]
listen = /tmp/fpm.sock
pm = dynamic
pm.max_children = 4
pm.start_servers = 2
pm.min_spare_servers = 1
pm.max_spare_servers = 3
user = www-data
group = www-data
listen.owner = www-data
pm.status_path = /status
C
php-fpm8.2 -y fpm.conf & F=$!; for i in $(seq 100); do [ -S fpm.sock ] && break; sleep 0.05; done
cat > ng.conf <<C
worker_processes 2; error_log /tmp/ng.err; pid /tmp/ng.pid; events { }
http { access_log off; server { listen 127.0.0.1:18081; root /tmp/w; location ~ \.php$ { fastcgi_pass unix:/tmp/fpm.sock; include /etc/nginx/fastcgi_params; fastcgi_param SCRIPT_FILENAME \$document_root\$fastcgi_script_name; } } }
C
nginx -c /tmp/ng.conf; for i in $(seq 20); do curl -s "http://127.0.0.1:18081/i.php?q=$i" & done | sort | uniq -c; wait $(jobs -p | grep -v $F) 2>/dev/null
kill -USR2 $F; sleep 0.5; curl -s "http://127.0.0.1:18081/i.php?q=after"; nginx -c /tmp/ng.conf -s quit; kill -QUIT $F; wait $F; echo fpm ended $?; grep -c 'ready to handle' fpm.log
