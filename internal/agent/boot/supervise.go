package boot

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/halt"
)

// Pauses of a supervisor.
const (
	restartPause = time.Second            // between restarts of a child that keeps ending
	endPause     = 300 * time.Millisecond // for word that the end was wanted
	lastGrace    = 3 * time.Second        // for what an entrypoint leaves behind
)

// supervise is init for an image that has none, or that is there for one
// program: it keeps the agent running, and that program or else a shell on the
// console, passes on signals, and collects the processes that nobody else waits
// for. It returns only on a fault.
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
	s.powerOff = func() error { return halt.Machine(false, lastGrace) }
	if e != nil {
		s.startEntrypoint = e.start
	} else {
		s.startShell = func() int { return startShell(log) }
	}
	return s.run()
}

// supervisor is PID 1 at work.
type supervisor struct {
	log        *slog.Logger
	agent      int // pid
	startAgent func() (pid int, err error)
	powerOff   func() error

	// One of the two; their pid is main.
	startEntrypoint func() (pid int, err error)
	startShell      func() (pid int) // 0: there is none
	main            int

	signals chan os.Signal
	restart chan int      // pids of children to start again
	ended   chan struct{} // the entrypoint has ended, a moment ago
	halting bool          // somebody ends the machine
}

// newSupervisor returns one that catches signals already: what is ignored
// instead, its children would ignore too.
func newSupervisor(log *slog.Logger) *supervisor {
	s := &supervisor{log: log, signals: make(chan os.Signal, 16), restart: make(chan int), ended: make(chan struct{})}
	signal.Notify(s.signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, halt.Announcement)
	return s
}

func (s *supervisor) run() error {
	if err := s.startMain(); err != nil {
		return err
	}
	s.reap() // what ended before the signal was awaited
	for {
		var err error
		select {
		case signal := <-s.signals:
			s.handle(signal)
			s.reap()
		case pid := <-s.restart:
			err = s.startAgain(pid)
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

func (s *supervisor) startAgain(pid int) (err error) {
	if pid == s.main {
		return s.startMain()
	}
	s.agent, err = s.startAgent()
	return err
}

// handle passes a signal on to the entrypoint. A shell needs none.
func (s *supervisor) handle(signal os.Signal) {
	number, _ := signal.(syscall.Signal)
	switch {
	case number == unix.SIGCHLD:
	case number == halt.Announcement:
		s.halting = true
	case s.startEntrypoint != nil && s.main > 0:
		_ = unix.Kill(s.main, number)
	}
}

// reap collects all children that have ended, and has what must run started
// again.
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
			time.AfterFunc(endPause, func() { s.ended <- struct{}{} })
		case pid == s.main || pid == s.agent:
			time.AfterFunc(restartPause, func() { s.restart <- pid })
		}
	}
}

// startShell starts a shell on the console in a session of its own, and
// returns its pid, or 0 where there is no shell or no console.
func startShell(log *slog.Logger) int {
	shell, err := os.StartProcess("/bin/sh", []string{"-sh"}, &os.ProcAttr{
		Dir: "/", Env: environment(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	})
	if err != nil {
		log.Info("no shell on the console", "err", err)
		return 0
	}
	return shell.Pid
}
