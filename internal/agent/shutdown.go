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

	"github.com/hatchvm/hatch/internal/agent/halt"
)

// initProgram is the guest's PID 1, and how to shut down through it.
type initProgram struct {
	name     string
	shutDown func(reboot bool) error
}

// Signals of systemd, in libc's numbers: SIGRTMIN+4 and +5.
const (
	systemdPowerOff = unix.Signal(34 + 4)
	systemdReboot   = unix.Signal(34 + 5)
)

// findInit returns the program that is PID 1. proc is /proc.
func findInit(proc string) initProgram {
	exe, _ := os.Readlink(filepath.Join(proc, "1/exe"))
	comm, _ := os.ReadFile(filepath.Join(proc, "1/comm"))
	self, _ := os.Readlink(filepath.Join(proc, "self/exe"))
	switch name := filepath.Base(exe); {
	case exe != "" && exe == self:
		return initProgram{"hatch-agent", withoutInit}
	case name == "systemd" || strings.TrimSpace(string(comm)) == "systemd":
		return initProgram{"systemd", bySignal(systemdPowerOff, systemdReboot)}
	case name == "busybox" || strings.HasPrefix(name, "busybox."):
		return initProgram{"busybox", bySignal(unix.SIGUSR2, unix.SIGTERM)}
	default:
		return initProgram{name, byCommand}
	}
}

func bySignal(powerOffSignal, rebootSignal unix.Signal) func(bool) error {
	return func(reboot bool) error {
		signal := powerOffSignal
		if reboot {
			signal = rebootSignal
		}
		if !awaitHandler("/proc/1/status", signal, handlerTimeout) {
			return fmt.Errorf("init has no handler for signal %d after %v", signal, handlerTimeout)
		}
		if err := unix.Kill(1, signal); err != nil {
			return fmt.Errorf("cannot signal init: %w", err)
		}
		return nil
	}
}

// The kernel drops a signal that PID 1 has no handler for, such as just after its
// start. No event reports when PID 1 has set one.
const (
	handlerTimeout  = 20 * time.Second
	handlerInterval = 20 * time.Millisecond
)

// awaitHandler waits until the init handles the signal, and reports whether it does
// within timeout. status is its status file in /proc.
func awaitHandler(status string, signal unix.Signal, timeout time.Duration) bool {
	deadline := time.After(timeout)
	tick := time.NewTicker(handlerInterval)
	defer tick.Stop()
	for {
		if text, err := os.ReadFile(status); err == nil && handles(string(text), signal) {
			return true
		}
		select {
		case <-tick.C:
		case <-deadline:
			return false
		}
	}
}

// handles reports whether a process handles a signal, from its masks of blocked and
// caught signals. A signal in sigwait, as busybox uses it, is in neither; but then
// busybox catches another one, while just after exec it catches none.
func handles(status string, signal unix.Signal) bool {
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

// byCommand runs the image's poweroff or reboot.
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

// Time between SIGTERM and SIGKILL when the agent ends the processes. An entrypoint
// may need longer to stop.
const (
	gracePeriod           = 3 * time.Second
	entrypointGracePeriod = 10 * time.Second
)

// withoutInit shuts down a guest whose PID 1 is hatch-agent. It announces that, so
// that PID 1 does not power off when its entrypoint ends.
func withoutInit(reboot bool) error {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil || !strings.Contains(string(cmdline), " hatch.entrypoint=") {
		return halt.Machine(reboot, gracePeriod)
	}
	_ = unix.Kill(1, halt.Announcement)
	return halt.Machine(reboot, entrypointGracePeriod)
}
