cd /tmp; export HOME=/tmp/h; mkdir -p h g c; cd g; cat > main.go <<'G'
package main
import ("fmt"; "net/http"; "net"; "io"; "sync"; "os/exec"; "runtime"; "os"; "time"; "context")
type T struct{ a *int }
func main() {
 var wg sync.WaitGroup; var mu sync.Mutex; n := 0; for i := 0; i < 100; i++ { wg.Add(1); go func() { defer wg.Done(); mu.Lock(); n++; mu.Unlock() }() }; wg.Wait(); fmt.Println(n)
 l, _ := net.Listen("tcp", "127.0.0.1:0"); go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "path %s", r.URL.Path) })); r, err := http.Get("http://" + l.Addr().String() + "/x"); if err != nil { panic(err) }; b, _ := io.ReadAll(r.Body); fmt.Println(string(b))
 o, _ := exec.Command("sh", "-c", "echo $0 $1", "a", "b").Output(); fmt.Print(string(o)); func() { defer func() { fmt.Println(recover()) }(); var t *T; fmt.Println(*t.a) }()
 m := map[int][]byte{}; for i := 0; i < 20000; i++ { m[i%100] = make([]byte, 10000) }; runtime.GC(); fmt.Println(len(m)); ctx, c := context.WithTimeout(context.Background(), 20*time.Millisecond); defer c(); fmt.Println(exec.CommandContext(ctx, "sleep", "5").Run()); _, err = os.Open("/nope"); fmt.Println(err); go func() { for {} }(); runtime.Gosched(); time.Sleep(20*time.Millisecond); fmt.Println(runtime.NumCPU() > 0); os.Exit(3) }
G
cat > m_test.go <<'G'
package main
import "testing"
func TestX(t *testing.T) { if 1+1 != 2 { t.Fatal() } }
func BenchmarkX(b *testing.B) { for i := 0; i < b.N; i++ { _ = i } }
G
export GO111MODULE=off GOFLAGS= GOCACHE=/tmp/gc CGO_ENABLED=${CGO_ENABLED:-1}; time go build -o x main.go; ./x; echo $?; GOMAXPROCS=2 go test 2>&1 | awk '{print $1}' | head -2; go vet . ; echo vet $?; gofmt -l .; go env GOARCH
cd /tmp; cat > r.rs <<'R'
use std::{thread, sync::mpsc, process::Command, collections::HashMap, net::*, io::*};
fn main() { let (t, r) = mpsc::channel(); for i in 0..8 { let t = t.clone(); thread::spawn(move || t.send((0..i * 1000u64).sum::<u64>()).unwrap()); } drop(t); let mut v: Vec<u64> = r.iter().collect(); v.sort(); println!("{v:?}");
 let l = TcpListener::bind("127.0.0.1:0").unwrap(); let a = l.local_addr().unwrap(); thread::spawn(move || { let (mut s, _) = l.accept().unwrap(); s.write_all(b"hi").unwrap(); }); let mut s = String::new(); TcpStream::connect(a).unwrap().read_to_string(&mut s).unwrap(); println!("{s}");
 println!("{:?}", Command::new("false").status().unwrap().code()); let m: HashMap<_, _> = (0..1000).map(|i| (i, i)).collect(); println!("{}", m.len()); println!("{:?}", std::panic::catch_unwind(|| { let v: Vec<i32> = vec![]; v[0] }).is_err()); }
R
rustc -O r.rs -o r 2>&1 | head; ./r 2>/dev/null
cd c; cat > CMakeLists.txt <<'C'
cmake_minimum_required(VERSION 3.10)
project(p CXX C)
find_package(Threads REQUIRED)
add_library(l SHARED l.c)
add_executable(e e.cpp)
target_link_libraries(e l Threads::Threads)
enable_testing()
add_test(NAME t COMMAND e)
C
echo 'int l(void) { return 5; }' > l.c; cat > e.cpp <<'C'
#include <thread>
#include <vector>
#include <iostream>
#include <stdexcept>
#include <atomic>
extern "C" int l(void);
int main() { std::atomic<int> n{0}; std::vector<std::thread> t; for (int i = 0; i < 8; i++) t.emplace_back([&]{ n += l(); }); for (auto &x : t) x.join(); try { throw std::runtime_error("thrown"); } catch (std::exception &e) { std::cout << e.what() << " " << n << std::endl; } }
C
cmake -G Ninja -B b . > cm.log 2>&1; echo cmake $?; ninja -C b 2>&1 | tail -1 | cut -c1-6; ./b/e; (cd b && ctest 2>&1 | grep 'tests passed'); cmake -B m . > /dev/null && make -s -C m -j2 > /dev/null && ./m/e; tail -2 cm.log
