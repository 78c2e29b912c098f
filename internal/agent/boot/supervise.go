package boot

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// restartPause spaces the restarts of a child that keeps ending.
const restartPause = time.Second

// supervise is init for an image that has none: it keeps the agent running,
// and a shell on the console where the image has one, and collects the
// processes that nobody else waits for. It returns only on a fault.
func supervise(log *slog.Logger, agentName string, agent *os.Process) error {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	restart := make(chan int)
	agentPID, shellPID := agent.Pid, startShell(log)
	reap := func() {
		for _, pid := range reapAll() {
			if pid == agentPID || pid == shellPID {
				time.AfterFunc(restartPause, func() { restart <- pid })
			}
		}
	}
	reap() // what ended before the signal was awaited
	for {
		select {
		case <-ended:
			reap()
		case pid := <-restart:
			if pid == shellPID {
				shellPID = startShell(log)
				continue
			}
			agent, err := startAgent(agentName, "/")
			if err != nil {
				return err
			}
			agentPID = agent.Pid
		}
	}
}

// reapAll collects all children that have ended and returns their pids.
func reapAll() []int {
	var pids []int
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return pids
		}
		pids = append(pids, pid)
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
