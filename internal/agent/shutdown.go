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
		return initWay{"hatch-agent", shutDownOwn}
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

// Times between SIGTERM and SIGKILL when there is no init to care for the
// processes: usually, and for an entrypoint, which may have a lot to put away.
const (
	grace           = 3 * time.Second
	entrypointGrace = 10 * time.Second
)

// shutDownOwn is for PID 1 of ours, which is told that the end of its
// entrypoint is none of the machine's own.
func shutDownOwn(reboot bool) error {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil || !strings.Contains(string(cmdline), " hatch.entrypoint=") {
		return shutDownDirectly(reboot)
	}
	_ = unix.Kill(1, halt.Announcement)
	return halt.Machine(reboot, entrypointGrace)
}

func shutDownDirectly(reboot bool) error { return halt.Machine(reboot, grace) }
