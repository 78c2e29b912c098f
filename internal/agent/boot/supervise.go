package boot

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/halt"
	"github.com/hatchvm/hatch/internal/logkey"
)

const (
	// restartBackoff is the wait before a child that has ended is started again.
	restartBackoff = time.Second
	// powerOffDelay is the wait after the entrypoint's end for [halt.Announcement].
	powerOffDelay = 300 * time.Millisecond
	// gracePeriod is the time between SIGTERM and SIGKILL for processes that the
	// entrypoint has left running.
	gracePeriod = 3 * time.Second
)

// supervise is the init of an image without one, or with an entrypoint: it keeps the
// agent running, runs the entrypoint or else keeps a shell running on the console,
// forwards signals, and reaps orphans. It returns only an error.
func supervise(log *slog.Logger, agentName string, agent *os.Process, e *entrypoint) error {
	s := newSupervisor(log)
	s.agent = agent.Pid
	s.startAgent = func() (int, error) {
		p, err := startAgent(agentName, "/")
		if err != nil {
			return 0, err
		}
		return p.Pid, nil
	}
	s.powerOff = func() error { return halt.Machine(false, gracePeriod) }
	if e != nil {
		s.startEntrypoint = e.start
	} else {
		s.startShell = func() int { return startShell(log) }
	}
	return s.run()
}

// supervisor runs the children of PID 1.
type supervisor struct {
	log        *slog.Logger
	agent      int // pid
	startAgent func() (pid int, err error)
	powerOff   func() error

	// One of the two is set. main is the pid of its child.
	startEntrypoint func() (pid int, err error)
	startShell      func() (pid int) // returns 0 if it cannot start a shell
	main            int

	signals chan os.Signal
	restart chan int      // pids of children to start again
	ended   chan struct{} // receives after powerOffDelay when the entrypoint has ended
	halting bool          // the guest is being shut down
}

// newSupervisor returns a supervisor that catches signals. If PID 1 ignored them
// instead, its children would inherit that.
func newSupervisor(log *slog.Logger) *supervisor {
	s := &supervisor{log: log, signals: make(chan os.Signal, 16), restart: make(chan int), ended: make(chan struct{})}
	signal.Notify(s.signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, halt.Announcement)
	return s
}

func (s *supervisor) run() error {
	if err := s.startMain(); err != nil {
		return err
	}
	s.reap() // children that ended before the supervisor caught SIGCHLD
	for {
		var err error
		select {
		case sig := <-s.signals:
			s.handle(sig)
			s.reap()
		case pid := <-s.restart:
			if pid == s.main {
				err = s.startMain()
			} else {
				s.agent, err = s.startAgent()
			}
		case <-s.ended:
			if !s.halting {
				err = s.powerOff()
			}
		}
		if err != nil {
			return err
		}
	}
}

func (s *supervisor) startMain() (err error) {
	if s.startEntrypoint == nil {
		s.main = s.startShell()
		return nil
	}
	s.main, err = s.startEntrypoint()
	return err
}

// handle forwards a signal to the entrypoint. A shell gets none.
func (s *supervisor) handle(sig os.Signal) {
	number, _ := sig.(syscall.Signal)
	switch {
	case number == unix.SIGCHLD:
	case number == halt.Announcement:
		s.halting = true
	case s.startEntrypoint != nil && s.main > 0:
		_ = unix.Kill(s.main, number)
	}
}

// reap reaps all children that have ended, and schedules the restart of the agent and
// the shell, or the power-off after the entrypoint.
func (s *supervisor) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		switch {
		case pid == s.main && s.startEntrypoint != nil:
			s.main = 0
			s.log.Info("the entrypoint has ended", "code", status.ExitStatus(), "signal", status.Signal())
			time.AfterFunc(powerOffDelay, func() { s.ended <- struct{}{} })
		case pid == s.main || pid == s.agent:
			time.AfterFunc(restartBackoff, func() { s.restart <- pid })
		}
	}
}

// startShell starts a shell on the console, in a session of its own, and returns its
// pid, or 0 if the image has no shell or the guest no console.
func startShell(log *slog.Logger) int {
	shell, err := os.StartProcess("/bin/sh", []string{"-sh"}, &os.ProcAttr{
		Dir: "/", Env: environment(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	})
	if err != nil {
		log.Info("cannot start a shell on the console", logkey.Error, err)
		return 0
	}
	return shell.Pid
}
