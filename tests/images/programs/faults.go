// Nil pointers are dereferenced in several goroutines at once, while the collector runs: each time the
// fault becomes a panic, which is recovered. Unmapped addresses too, with debug.SetPanicOnFault.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"
)

type node struct {
	next  *node
	value [8]int
	call  func() int
}

var recovered, wrong int64

func expect() {
	if found := recover(); found == nil {
		atomic.AddInt64(&wrong, 1)
	} else if err, ok := found.(runtime.Error); !ok || !strings.Contains(err.Error(), "invalid memory address") {
		atomic.AddInt64(&wrong, 1)
	} else {
		atomic.AddInt64(&recovered, 1)
	}
}

//go:noinline
func read(n *node) int {
	defer expect()
	return n.value[3]
}

//go:noinline
func write(n *node) {
	defer expect()
	n.next = &node{}
}

//go:noinline
func call(n *node) int {
	defer expect()
	return n.call()
}

//go:noinline
func walk(n *node) (depth int) {
	defer expect()
	for {
		depth++
		n = n.next
		_ = n.value[7]
	}
}

//go:noinline
func peek(address uintptr) byte {
	defer expect()
	return **(**byte)(unsafe.Pointer(&address))
}

func main() {
	const rounds, workers = 200, 6
	stop := make(chan bool)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	var all sync.WaitGroup
	for worker := 0; worker < workers; worker++ {
		all.Add(1)
		go func() {
			defer all.Done()
			debug.SetPanicOnFault(true)
			for round := 0; round < rounds; round++ {
				list := &node{next: &node{next: &node{}}}
				read(nil)
				write(nil)
				call(nil)
				call(&node{})
				walk(list)
				peek(0x7000_0000_0000)
			}
		}()
	}
	all.Wait()
	close(stop)
	fmt.Printf("procs %d recovered %d of %d wrong %d\n", runtime.GOMAXPROCS(0), recovered, rounds*workers*6, wrong)
	if wrong != 0 {
		os.Exit(1)
	}
}
