export RABBITMQ_MNESIA_BASE=/tmp/mn RABBITMQ_LOG_BASE=/tmp/rl HOME=/var/lib/rabbitmq RABBITMQ_NODENAME=r@localhost RABBITMQ_NODE_PORT=15672 RABBITMQ_DIST_PORT=25673 ERL_EPMD_PORT=14369
mkdir -p /tmp/mn /tmp/rl; chown rabbitmq: /tmp/mn /tmp/rl
rabbitmq-server > /tmp/r.out 2>&1 & R=$!
rabbitmqctl -q wait --pid $R --timeout 120 2>&1 | head -3; for i in $(seq 60); do rabbitmqctl -q status > /tmp/st 2>&1 && break; sleep 1; done; grep -E 'RabbitMQ version|Product' /tmp/st; 
python3 - <<'P'
import socket
s=socket.create_connection(('127.0.0.1',15672)); s.sendall(b'AMQP\0\0\x09\1'); print(s.recv(1000)[:1])
P
rabbitmqctl -q list_vhosts; rabbitmqctl -q add_user me pw; rabbitmqctl -q list_users | sort; rabbitmqctl -q eval 'length(nodes()).'; rabbitmqctl -q stop; wait $R; echo ended $?
