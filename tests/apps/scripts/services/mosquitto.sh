cd /tmp; printf "listener $0 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location /tmp/\n" > m.conf; mosquitto -c m.conf > m.log 2>&1 & M=$!
for i in $(seq 100); do mosquitto_pub -p $0 -t x -n 2>/dev/null && break; sleep 0.05; done
mosquitto_sub -p $0 -t 'a/#' -C 3 -v > sub.out & S=$!; sleep 0.5; for i in 1 2 3; do mosquitto_pub -p $0 -t a/$i -m m$i -q 2; done; wait $S; cat sub.out; mosquitto_pub -p $0 -t r -r -m kept; kill -TERM $M; wait $M; echo ended $?; mosquitto -c m.conf -d > /dev/null 2>&1; sleep 0.5; mosquitto_sub -p $0 -t r -C 1; pkill mosquitto
