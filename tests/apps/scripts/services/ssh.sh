cd /tmp; mkdir -p /run/sshd k; for t in ed25519 rsa ecdsa; do ssh-keygen -q -t $t -N '' -f k/$t; done; mkdir -p ~/.ssh; chmod 700 ~/.ssh; cat k/ed25519.pub > ~/.ssh/authorized_keys; chmod 600 ~/.ssh/authorized_keys
cat > sshd.conf <<C
Port $0
ListenAddress 127.0.0.1
HostKey /tmp/k/rsa
HostKey /tmp/k/ecdsa
PermitRootLogin yes
StrictModes no
UsePAM ${PAM:-no}
PidFile /tmp/sshd.pid
Subsystem sftp /usr/lib/openssh/sftp-server
C
/usr/sbin/sshd -f sshd.conf -E sshd.log; for i in $(seq 100); do [ -s sshd.pid ] && break; sleep 0.05; done
o="-q -i k/ed25519 -p $0 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1"
ssh $o 'echo remote $(id -un) $SSH_CONNECTION' | sed 's/127.0.0.1 [0-9]*/127.0.0.1 N/'; ssh $o 'exit 9'; echo $?; seq 100000 | ssh $o 'md5sum'; ssh -tt $o 'tty | tr -d 0-9; stty size; test -t 1 && echo pty' < /dev/null | tr -d '\r'; head -c 1000000 /dev/urandom > big; scp -q -i k/ed25519 -P $0 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null big root@127.0.0.1:/tmp/big2; cmp big big2 && echo scp; echo 'ls /tmp/k' | sftp -q -b - -i k/ed25519 -P $0 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1 | grep -v '^sftp>'
(cd k; exec python3 -m http.server $1 --bind 127.0.0.1 > /dev/null 2>&1) & W=$!; ssh -N -L $2:127.0.0.1:$1 $o & T=$!; for i in $(seq 60); do curl -sf http://127.0.0.1:$2/rsa.pub > o && break; sleep 0.1; done; cmp o k/rsa.pub && echo tunnel; kill $T $W
mkdir -p src/d; seq 1000 > src/d/f; ln -s d/f src/l; rsync -a -e "ssh -q -i k/ed25519 -p $0 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null" src/ root@127.0.0.1:/tmp/dst/ && diff -r src dst && echo rsync; rsync -ai src/ dst2/ | wc -l; printf '[m]\npath=/tmp/src\nuse chroot=yes\nuid=nobody\ngid=nogroup\n' > rs.conf; rsync --daemon --no-detach --config=rs.conf --port=$3 --address=127.0.0.1 & R=$!; sleep 0.5; rsync -a rsync://127.0.0.1:$3/m/ dst3/; diff -r src dst3 && echo daemon; kill $R; ssh-agent bash -c 'ssh-add -q k/ed25519; ssh-add -l | wc -l'; ssh $o 'sleep 100' & sleep 0.7; kill $(cat sshd.pid); sleep 0.3; kill %1 2>/dev/null; kill $!; grep -c 'Accepted publickey' sshd.log; grep -iE 'fatal|error' sshd.log | head -5
