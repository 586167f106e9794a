cd /tmp; cat > t.erl <<'E'
-module(t). -export([main/0]).
ping(0, P) -> P ! done; ping(N, P) -> Q = spawn(fun() -> receive X -> P ! X end end), Q ! N, receive N -> ping(N-1, P) end.
main() -> ping(10000, self()), receive done -> io:format("done~n") end,
 Rs = [ begin S = self(), spawn(fun() -> S ! {I, lists:sum(lists:seq(1, I * 1000))} end), receive {I, V} -> V end end || I <- lists:seq(1, 8)], io:format("~p~n", [Rs]),
 {ok, L} = gen_tcp:listen(0, [binary, {packet, 4}, {active, false}, {ip, {127,0,0,1}}]), {ok, Port} = inet:port(L), spawn(fun() -> {ok, C} = gen_tcp:accept(L), {ok, B} = gen_tcp:recv(C, 0), gen_tcp:send(C, [B, B]) end),
 {ok, C} = gen_tcp:connect({127,0,0,1}, Port, [binary, {packet, 4}, {active, true}]), gen_tcp:send(C, <<"ab">>), receive {tcp, C, D} -> io:format("~p~n", [D]) end,
 io:format("~s", [os:cmd("echo from shell; exit 3")]), T = ets:new(t, [set, public]), [ets:insert(T, {K, K}) || K <- lists:seq(1, 50000)], io:format("~p~n", [ets:info(T, size)]),
 timer:sleep(20), io:format("~p~n", [byte_size(zlib:gunzip(zlib:gzip(binary:copy(<<"x">>, 100000))))]), ok = file:write_file("x", "data"), {ok, R} = file:read_file("x"), io:format("~p ~p~n", [R, file:read_file("nope")]),
 io:format("~p~n", [catch 1 div (length([]))]), io:format("~p~n", [erlang:md5("x")]), init:stop(4).
E
erlc t.erl && erl -noshell -s t main 2>&1 | cat; echo ${PIPESTATUS[0]}; erl -noshell -sname a@localhost -eval 'io:format("~p~n",[node()]), halt().' 2>&1; pkill epmd; echo 'io:format("esc~n").' > /dev/null
