export RABBITMQ_MNESIA_BASE=/tmp/mn RABBITMQ_LOG_BASE=/tmp/rl HOME=/var/lib/rabbitmq RABBITMQ_NODENAME=r@localhost RABBITMQ_NODE_PORT=15672 RABBITMQ_DIST_PORT=25673 ERL_EPMD_PORT=14369
mkdir -p /tmp/mn /tmp/rl; chown rabbitmq: /tmp/mn /tmp/rl
rabbitmq-server > /tmp/r.out 2>&1 & R=$!
sleep 45; ps axf | cut -c1-150; cat /tmp/r.out | tail; tail -5 /tmp/rl/*.log | cut -c1-300
