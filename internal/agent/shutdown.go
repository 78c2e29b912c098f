package agent

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

// initWay is how the guest's init is asked to end.
type initWay struct {
	name     string
	shutDown func(reboot bool) error
}

// Signals of systemd, in libc's numbers: SIGRTMIN+4 and +5.
const (
	systemdPowerOff = unix.Signal(34 + 4)
	systemdReboot   = unix.Signal(34 + 5)
)

// ownInit tells from PID 1 how it wants to be asked. proc is /proc.
func ownInit(proc string) initWay {
	exe, _ := os.Readlink(filepath.Join(proc, "1/exe"))
	comm, _ := os.ReadFile(filepath.Join(proc, "1/comm"))
	self, _ := os.Readlink(filepath.Join(proc, "self/exe"))
	switch name := filepath.Base(exe); {
	case exe != "" && exe == self:
		return initWay{"hatch-agent", shutDownDirectly}
	case name == "systemd" || strings.TrimSpace(string(comm)) == "systemd":
		return initWay{"systemd", bySignal(systemdPowerOff, systemdReboot)}
	case name == "busybox" || strings.HasPrefix(name, "busybox."):
		return initWay{"busybox", bySignal(unix.SIGUSR2, unix.SIGTERM)}
	default:
		return initWay{name, byCommand}
	}
}

func bySignal(powerOff, reboot unix.Signal) func(bool) error {
	return func(again bool) error {
		signal := powerOff
		if again {
			signal = reboot
		}
		if !awaitListener("/proc/1/status", signal, listenPatience) {
			return errors.New("init does not listen to its signals")
		}
		if err := unix.Kill(1, signal); err != nil {
			return fmt.Errorf("cannot signal init: %w", err)
		}
		return nil
	}
}

// The kernel drops a signal to PID 1 that it does not listen to, as at the very
// beginning of its life. There is no event to await for that.
const (
	listenPatience = 20 * time.Second
	listenLook     = 20 * time.Millisecond
)

// awaitListener reports whether the init behind a status file of /proc listens
// to its signals, within patience.
func awaitListener(status string, signal unix.Signal, patience time.Duration) bool {
	deadline := time.After(patience)
	look := time.NewTicker(listenLook)
	defer look.Stop()
	for {
		if text, err := os.ReadFile(status); err == nil && listens(string(text), signal) {
			return true
		}
		select {
		case <-look.C:
		case <-deadline:
			return false
		}
	}
}

// listens reads the masks of blocked and caught signals. A signal that is
// being waited for, as busybox does, is in neither of them meanwhile; but then
// some other one is caught, and none is right after exec.
func listens(status string, signal unix.Signal) bool {
	masks := map[string]uint64{}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err == nil {
			masks[name] = mask
		}
	}
	if signal == systemdPowerOff || signal == systemdReboot {
		return masks["SigBlk"]&(1<<(uint(signal)-1)) != 0 // read from a signalfd
	}
	return masks["SigCgt"] != 0
}

// byCommand runs the image's own poweroff or reboot, which know their init.
func byCommand(reboot bool) error {
	name := "poweroff"
	if reboot {
		name = "reboot"
	}
	for _, dir := range []string{"/sbin", "/usr/sbin", "/bin", "/usr/bin"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		p, err := os.StartProcess(path, []string{name}, &os.ProcAttr{Dir: "/", Env: os.Environ()})
		if err != nil {
			return fmt.Errorf("cannot run %s: %w", path, err)
		}
		st, err := p.Wait()
		if err == nil && !st.Success() {
			err = errors.New(st.String())
		}
		if err != nil {
			return fmt.Errorf("%s failed: %w", path, err)
		}
		return nil
	}
	return fmt.Errorf("the image has no %s", name)
}

// grace is what processes get between SIGTERM and SIGKILL when there is no
// init to care for them.
const grace = 3 * time.Second

// shutDownDirectly ends all other processes, writes the disks back and ends
// the machine.
func shutDownDirectly(reboot bool) error {
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
