package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// vmm is a running QEMU.
type vmm struct {
	pid  int
	args []string
}

// findVMM returns the process that runs a VM.
func findVMM(id string) (vmm, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return vmm{}, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || !strings.Contains(string(text), id) || !strings.Contains(string(text), "qemu-system") {
			continue
		}
		return vmm{pid: pid, args: strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")}, nil
	}
	return vmm{}, fmt.Errorf("no process runs %s", id)
}

// link returns a path in the process's directory in /proc.
func (v vmm) link(below ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(v.pid)}, below...)...)
}

// watch returns a channel that receives the time at which the process ends.
func (v vmm) watch() <-chan time.Time {
	gone := make(chan time.Time, 1)
	fd, err := unix.PidfdOpen(v.pid, 0)
	if err != nil {
		gone <- time.Now()
		return gone
	}
	go func() {
		defer func() { _ = unix.Close(fd) }()
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				gone <- time.Now()
				return
			}
		}
	}()
	return gone
}
