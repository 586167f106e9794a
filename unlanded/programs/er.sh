cd /tmp; cat > t.erl <<'X'
-module(t). -export([main/0]).
main() ->
 {ok, L} = gen_tcp:listen(0, [binary, {packet, 4}, {active, false}, {ip, {127,0,0,1}}]), {ok, Port} = inet:port(L), spawn(fun() -> {ok, C} = gen_tcp:accept(L), {ok, B} = gen_tcp:recv(C, 0), gen_tcp:send(C, [B, B]) end),
 {ok, C} = gen_tcp:connect({127,0,0,1}, Port, [binary, {packet, 4}, {active, true}]), gen_tcp:send(C, <<"ab">>), receive {tcp, C, D} -> io:format("~p~n", [D]) end,  init:stop(4).
X
erlc t.erl && erl -noshell -s t main
