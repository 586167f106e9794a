cd /tmp; cat > t.lua <<'L'
local co = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end); print(co(), co(), co())
local f = io.popen('echo hello from sh; exit 3'); print(f:read('a'), f:close())
local t = {}; for i = 1, 1e6 do t[i] = i * 2 end; print(#t, collectgarbage('count') > 1000)
print(os.execute('exit 4')); print(os.rename('/nonexistent', '/x')); print(string.format('%q', 'a\nb'), 7 // 2, 7 / 2, 1 << 40)
local function deep(n) return n == 0 and 0 or 1 + deep(n - 1) end; print(pcall(deep, 1e7)); print(os.time{year=2000,month=1,day=1,hour=12}); print(os.getenv('HOME')); os.exit(5)
L
lua5.4 t.lua 2>&1 | sed 's/0x[0-9a-f]*//'; echo ${PIPESTATUS[0]}; tclsh <<'T'
proc fib n { expr {$n < 2 ? $n : [fib [expr $n-1]] + [fib [expr $n-2]]} }; puts [fib 20]; puts [exec echo hi | tr a-z A-Z]
set s [socket -server {apply {{c a p} { puts $c "you are $a"; close $c }}} -myaddr 127.0.0.1 0]; set c [socket 127.0.0.1 [lindex [fconfigure $s -sockname] 2]]; fileevent $c readable { puts [gets $c]; set done 1 }; vwait done; after 20 {set x 1}; vwait x; puts $x
T
