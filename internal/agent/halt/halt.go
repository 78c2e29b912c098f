// Package halt shuts the guest down where the image's init does not: it terminates and
// then kills all processes, syncs the disks, and has the kernel power off or reboot.
//
// internal/agent shuts down through an image's init. Start at [Machine].
package halt

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Announcement is the signal that tells PID 1, if that is hatch-agent, that the guest
// is being shut down. Other inits take it for a power failure.
const Announcement = unix.SIGPWR

// Machine ends all processes but PID 1 and this one, and then powers off or reboots.
// Processes have the time grace between SIGTERM and SIGKILL. It returns only if the
// kernel refuses.
func Machine(reboot bool, grace time.Duration) error {
	running := openProcesses()
	_ = unix.Kill(-1, unix.SIGTERM)
	awaitEnd(running, time.Now().Add(grace))
	_ = unix.Kill(-1, unix.SIGKILL)
	unix.Sync()
	command := unix.LINUX_REBOOT_CMD_POWER_OFF
	if reboot {
		command = unix.LINUX_REBOOT_CMD_RESTART
	}
	return unix.Reboot(command)
}

// openProcesses opens a pidfd for each process except PID 1, kernel threads and this
// one.
func openProcesses() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var fds []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		if exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe")); err != nil || exe == "" {
			continue // a kernel thread has none
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds
}

// awaitEnd waits until all processes have ended, or until the deadline, and closes
// their pidfds.
func awaitEnd(fds []int, deadline time.Time) {
	for _, fd := range fds {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			left := time.Until(deadline).Milliseconds()
			if _, err := unix.Poll(poll, int(max(0, left))); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		_ = unix.Close(fd)
	}
}
