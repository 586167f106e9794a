// The micro-benchmarks of bench.c that make sense for a static Go program; same output.
package main

import (
	"fmt"
	"os"
	"sort"
	"syscall"
	"time"
)

func main() {
	zero, err := syscall.Open("/dev/zero", syscall.O_RDONLY, 0)
	check(err)
	var pipes [2]int
	check(syscall.Pipe(pipes[:]))
	buffer := make([]byte, 64)
	one := make([]byte, 1)
	self := os.Args[0]
	benches := []struct {
		name  string
		times int
		run   func()
	}{
		{"getppid", 100000, func() { syscall.Getppid() }},
		{"read-zero", 50000, func() { _, err := syscall.Read(zero, one); check(err) }},
		{"open-close", 10000, func() {
			fd, err := syscall.Open(self, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
			check(err)
			syscall.Close(fd)
		}},
		{"stat", 20000, func() { var st syscall.Stat_t; check(syscall.Stat(self, &st)) }},
		{"pipe", 20000, func() {
			_, err := syscall.Write(pipes[1], buffer)
			check(err)
			_, err = syscall.Read(pipes[0], buffer)
			check(err)
		}},
	}
	for _, bench := range benches {
		if len(os.Args) > 1 && !named(os.Args[1:], bench.name) {
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

func named(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
