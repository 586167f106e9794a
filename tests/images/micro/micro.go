// The benchmarks of micro.c that make sense for a static Go program; same output.
package main

import (
	"fmt"
	"os"
	"sort"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	event, _, errno := syscall.RawSyscall(syscall.SYS_EVENTFD2, 0, 0, 0)
	if errno != 0 {
		panic(errno)
	}
	value := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	var word uint32
	benches := []struct {
		name  string
		times int
		run   func()
	}{
		{"clock_gettime", 100000, func() { _ = time.Now() }},
		{"clock-call", 100000, func() {
			var now [2]int64
			syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&now)), 0)
		}},
		{"futex-wake", 100000, func() {
			syscall.RawSyscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(&word)), 1|128, 1, 0, 0, 0)
		}},
		{"eventfd", 20000, func() {
			_, err := syscall.Write(int(event), value)
			check(err)
			_, err = syscall.Read(int(event), value)
			check(err)
		}},
	}
	for _, bench := range benches {
		if len(os.Args) > 1 && os.Args[1] != bench.name {
			continue
		}
		var results []float64
		for batch := 0; batch < 7; batch++ {
			start := time.Now()
			for i := 0; i < bench.times; i++ {
				bench.run()
			}
			results = append(results, float64(time.Since(start).Nanoseconds())/float64(bench.times))
		}
		sort.Float64s(results)
		fmt.Printf("%s %.1f %d\n", bench.name, results[len(results)/2], len(results)*bench.times)
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
