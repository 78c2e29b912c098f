// Package uevent waits for devices: it receives the kernel's uevents, and lets the
// caller check again after each.
//
// It does not parse uevents: callers read sysfs. Start at [Listen].
package uevent

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Listener receives the kernel's uevents.
type Listener struct {
	fd int
}

// Listen opens a listener, which the caller must close.
func Listen() (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for devices: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("cannot listen for devices: %w", err)
	}
	return &Listener{fd: fd}, nil
}

// Close stops listening.
func (l *Listener) Close() error { return unix.Close(l.fd) }

// Await calls found now and after each uevent until found returns true, and reports
// whether it did so within timeout. A negative timeout means none.
func (l *Listener) Await(timeout time.Duration, found func() bool) bool {
	deadline := time.Now().Add(timeout)
	for !found() {
		left := -1
		if timeout >= 0 {
			left = max(0, int(time.Until(deadline).Milliseconds()))
		}
		if left == 0 || !l.wait(left) {
			return found()
		}
	}
	return true
}

// wait waits for a uevent, drops all that have arrived, and reports whether there was
// one. Negative milliseconds mean no timeout.
func (l *Listener) wait(milliseconds int) bool {
	poll := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, milliseconds)
	if errors.Is(err, unix.EINTR) {
		return true // Await checks again, and knows how much time is left
	}
	if n == 0 || err != nil {
		return false
	}
	buf := make([]byte, 8<<10)
	for {
		_, _, err := unix.Recvfrom(l.fd, buf, 0)
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // ENOBUFS: the kernel dropped uevents
			return true
		}
	}
}
