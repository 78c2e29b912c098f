// Package uevent waits for devices: it hears the kernel announce them and lets
// the caller look again.
//
// It does not parse the announcements; sysfs tells what is there. Start at
// [Listen].
package uevent

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Listener hears the kernel's announcements from the moment it was made.
type Listener struct {
	fd int
}

// Listen begins to hear. Close it.
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

// Await calls found now and after each announcement until it returns true, and
// reports whether it did so within patience. A negative patience has no end.
func (l *Listener) Await(patience time.Duration, found func() bool) bool {
	deadline := time.Now().Add(patience)
	for !found() {
		left := -1
		if patience >= 0 {
			left = max(0, int(time.Until(deadline).Milliseconds()))
		}
		if left == 0 || !l.hear(left) {
			return found()
		}
	}
	return true
}

// hear waits for an announcement, drops all that have come, and reports
// whether there was one. milliseconds < 0 waits without end.
func (l *Listener) hear(milliseconds int) bool {
	poll := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, milliseconds)
	if errors.Is(err, unix.EINTR) {
		return true // look again; the caller knows how much time is left
	}
	if n == 0 || err != nil {
		return false
	}
	buf := make([]byte, 8<<10)
	for {
		_, _, err := unix.Recvfrom(l.fd, buf, 0)
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // ENOBUFS: some were lost, so there were some
			return true
		}
	}
}
