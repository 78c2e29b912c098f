// Package halt ends the machine where no init of the image's own does it: all
// processes are asked to end and then made to, the disks are written back, and
// the kernel powers off or begins anew.
//
// How an image's init is asked is internal/agent's. Start at [Machine].
package halt

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Announcement is the signal that tells PID 1, if it is ours, that the machine
// is being ended. An init of another's would take it for a failure of power.
const Announcement = unix.SIGPWR

// Machine ends all processes but PID 1 and this one, which get grace between
// SIGTERM and SIGKILL, and then the machine. It returns only when it cannot.
func Machine(reboot bool, grace time.Duration) error {
	alive := others()
	_ = unix.Kill(-1, unix.SIGTERM)
	awaitEnd(alive, time.Now().Add(grace))
	_ = unix.Kill(-1, unix.SIGKILL)
	unix.Sync()
	command := unix.LINUX_REBOOT_CMD_POWER_OFF
	if reboot {
		command = unix.LINUX_REBOOT_CMD_RESTART
	}
	return unix.Reboot(command)
}

// others opens a pidfd for each process that is not init, a kernel thread or
// this one.
func others() []int {
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

// awaitEnd returns when all processes have ended, or at the deadline.
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
