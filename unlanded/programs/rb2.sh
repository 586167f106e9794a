export RABBITMQ_MNESIA_BASE=/tmp/mn RABBITMQ_LOG_BASE=/tmp/rl HOME=/var/lib/rabbitmq RABBITMQ_NODENAME=r@localhost RABBITMQ_NODE_PORT=15672 RABBITMQ_DIST_PORT=25673 ERL_EPMD_PORT=14369
mkdir -p /tmp/mn /tmp/rl; chown rabbitmq: /tmp/mn /tmp/rl
rabbitmq-server > /tmp/r.out 2>&1 & R=$!
for i in $(seq 60); do grep -q "completed with" /tmp/r.out && break; sleep 0.5; done; date +%s; timeout 30 rabbitmqctl -q status > st 2>&1; date +%s; head -3 st; ps axf | cut -c1-100; date +%s
