//go:build linux

package vmmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Suspend stops a process, as a debugger does, and returns once none of its threads
// runs. resume, which the end of the test calls, too, lets it go on; it is no error if
// the process is gone.
func Suspend(t *testing.T, pid int) (resume func()) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume = func() { _ = unix.Kill(pid, unix.SIGCONT) }
	t.Cleanup(resume)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(timeout); !stands(pid); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not stop", pid)
		}
	}
	return resume
}

// stands reports whether all threads of a process are stopped.
func stands(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, path := range stats {
		text, readErr := os.ReadFile(path)
		_, fields, _ := strings.Cut(string(text), ") ")
		if readErr != nil || !strings.HasPrefix(fields, "T") {
			return false
		}
	}
	return err == nil && len(stats) > 0
}
