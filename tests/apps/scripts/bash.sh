cat <<EOT | tr a-z A-Z
here $((6*7)) $(echo nested)
EOT
cat <<-'EOT'
	quoted $HOME
	EOT
exec 3<<< "from fd 3"; cat <&3; exec 3<&-
trap 'echo exit trap' EXIT; trap 'echo err at $LINENO' ERR; false
trap 'echo usr1' USR1; kill -USR1 $$
trap 'echo chld >> /tmp/chld' CHLD; sleep 0.01 & wait; test -s /tmp/chld && echo got chld; trap - CHLD
coproc CO { while read -r l; do echo "co:$l"; done; }; echo hello >&${CO[1]}; read -r r <&${CO[0]}; echo $r; kill $CO_PID; wait $CO_PID 2>/dev/null; echo $?
for i in 1 2 3; do (exit $i) & pids+=($!); done; for p in ${pids[@]}; do wait $p; echo status $?; done
(sleep 0.05; echo late) & wait -n; echo wait-n $?
mkfifo /tmp/ff; (echo through fifo > /tmp/ff) & cat /tmp/ff; wait
set -m; sleep 100 & jobs | sed 's/  */ /g'; kill -STOP %1; sleep 0.05; jobs | sed 's/  */ /g'; kill -CONT %1; kill %1; wait %1; echo $?; set +m
diff <(seq 3) <(seq 2 4); echo "pipestatus $(false | true | (exit 5); echo ${PIPESTATUS[*]})"
timeout 0.1 sleep 5; echo timeout $?
ulimit -n 64; ulimit -n; (ulimit -t 1; while :; do :; done) ; echo cpu $?
yes | head -n 100000 | wc -l; seq 1000 | xargs -P4 -n50 echo | wc -w
( trap '' TERM; kill -TERM $BASHPID; echo survived ); ( kill -SEGV $BASHPID ); echo segv $?
exec -a renamed bash -c 'echo $0; trap "echo int; exit 9" INT; kill -INT $$; sleep 1'
