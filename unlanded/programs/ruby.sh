cd /tmp; cat > t.rb <<'R'
require 'socket'; require 'open3'; require 'tempfile'; require 'digest'; require 'zlib'; require 'json'; require 'timeout'; require 'fiddle'; require 'io/console'; require 'pty'; require 'etc'
$stdout.sync = true
puts 8.times.map { |i| Thread.new { (1..10000).sum * i } }.map(&:value).inspect
q = Queue.new; t = Thread.new { 5.times.map { q.pop } }; 5.times { |i| q << i }; p t.value
r, w = IO.pipe; pid = fork { r.close; w.puts "child #{ARGV.size}"; exit 7 }; w.close; puts r.read; Process.wait pid; p $?.exitstatus
s = TCPServer.new('127.0.0.1', 0); Thread.new { 3.times { c = s.accept; c.puts c.gets.upcase; c.close } }
p 3.times.map { |i| c = TCPSocket.new('127.0.0.1', s.addr[1]); c.puts "hello#{i}"; c.read }
p UNIXSocket.pair.then { |a, b| a.send_io($stdout); b.recv_io.class }
o, e, st = Open3.capture3('sh', '-c', 'cat; echo err >&2; exit 3', stdin_data: 'in' * 70000); p o.size, e, st.exitstatus
begin; Timeout.timeout(0.05) { sleep 5 }; rescue Timeout::Error; puts 'timeout'; end
trap('USR1') { puts 'usr1' }; Process.kill('USR1', $$); sleep 0.05
p Zlib::Inflate.inflate(Zlib::Deflate.deflate('x' * 100000)).size, Digest::SHA256.hexdigest('x'), JSON.parse('{"a":[1,2.5]}')
p IO.select([r], nil, nil, 0) rescue p $!.class
PTY.spawn('sh', '-c', 'test -t 0 && stty size && read x && echo got $x') { |o, i, pid| o.winsize = [30, 90]; i.puts 'abc'; begin; print o.read.gsub("\r", ''); rescue Errno::EIO; end; Process.wait pid }
f = Tempfile.new; f.flock(File::LOCK_EX); p Process.wait2(fork { File.open(f.path).flock(File::LOCK_EX | File::LOCK_NB) ? exit(0) : exit(9) })[1].exitstatus
p Process.clock_gettime(Process::CLOCK_MONOTONIC).class, Etc.getpwuid(0).name
def d(n); n == 0 ? 0 : d(n - 1); end; begin; d(1_000_000); rescue SystemStackError; puts 'deep'; end
a = 200_000.times.map { |i| "s#{i}" }; GC.start; GC.compact rescue p $!.class; p a.sum(&:size)
p Ractor.new { 6 * 7 }.take
p `echo backtick; exit 2`, $?.exitstatus; p system('true'), Process.spawn('exit 4').then { |x| Process.wait x; $?.exitstatus }
p Fiddle::Function.new(Fiddle.dlopen(nil)['strlen'], [Fiddle::TYPE_VOIDP], Fiddle::TYPE_INT).call('four')
c = Fiddle::Closure::BlockCaller.new(Fiddle::TYPE_INT, [Fiddle::TYPE_INT]) { |x| x * 2 }; p Fiddle::Function.new(c, [Fiddle::TYPE_INT], Fiddle::TYPE_INT).call(21)
Process.daemon(true, true) if false
exec('echo', 'done')
R
ruby t.rb a b 2>&1; ruby --yjit -e 'x=0; 2_000_000.times{|i| x+=i}; p x' 2>&1; ruby --mjit -e 'x=0; 2_000_000.times{|i| x+=i}; p x' 2>&1 | tail -1; echo 'puts 1+1' | irb --simple-prompt 2>&1 | grep 2 | head -3; gem list 2>&1 | head -3; erb <<< '<%= 3*4 %>'
