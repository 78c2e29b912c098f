package agent

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

const (
	// systemdSocket is where systemd, and not the message bus, answers.
	systemdSocket = "unix:path=/run/systemd/private"
	// askTimeout bounds the wait for systemd, which is busy just when a guest goes down.
	askTimeout = 5 * time.Second
	// endingInterval is how often an agent asks anew once the guest is going down: the
	// shutdown may be cancelled.
	endingInterval = time.Second
	// lastRequest is how long a shutdown that the host asked for counts. A guest that is
	// still there then has refused it.
	lastRequest = 3 * time.Minute
	// lastSignal is how long a SIGTERM counts. An init sends it to all processes.
	lastSignal = 30 * time.Second
)

// ending finds out whether the guest is about to end: then it must begin nothing new, and
// is not ready. No event says so in time with systemd, so it is asked when it matters.
type ending struct {
	proc    string
	systemd func(context.Context) (state string, err error)
	suspect chan struct{} // has an element when the guest may have begun to go down

	mu       sync.Mutex
	asked    time.Time // to shut down, by the host
	signaled time.Time // the last SIGTERM
	wasUp    bool      // a busybox init has handled signals
	stopping bool      // as systemd said last
}

func newEnding() *ending {
	return &ending{proc: "/proc", systemd: systemdState, suspect: make(chan struct{}, 1)}
}

// now reports whether the guest is going down.
func (e *ending) now(ctx context.Context) bool {
	e.mu.Lock()
	known := time.Since(e.asked) < lastRequest || time.Since(e.signaled) < lastSignal
	e.mu.Unlock()
	if _, err := os.Stat(filepath.Join(e.proc, "1")); known || err != nil { // all is unmounted already
		return true
	}
	switch pid1 := findInit(e.proc); pid1.name {
	case "systemd":
		state, err := e.systemd(ctx)
		e.mu.Lock()
		defer e.mu.Unlock()
		if err == nil { // at its end it does not answer
			e.stopping = state == "stopping"
		}
		return e.stopping
	case "systemd-shutdown": // what systemd becomes at last
		return true
	case "busybox": // it drops its handlers before anything else
		status, err := os.ReadFile(filepath.Join(e.proc, "1/status"))
		up := err == nil && handles(string(status), syscall.SIGUSR2)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.wasUp = e.wasUp || up
		return err == nil && e.wasUp && !up
	default:
		return false
	}
}

// systemdState returns the state of systemd, which is "stopping" from the moment when a
// shutdown is queued.
func systemdState(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := dbus.Dial(systemdSocket, dbus.WithContext(ctx))
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		return "", err
	}
	state := ""
	manager := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
	err = manager.StoreProperty("org.freedesktop.systemd1.Manager.SystemState", &state)
	return state, err
}

// look makes the agent ask whether the guest is going down.
func (e *ending) look() {
	select {
	case e.suspect <- struct{}{}:
	default:
	}
}

// watchEnding updates the status once the guest may be going down, until ctx is done.
func (a *Agent) watchEnding(ctx context.Context) {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	defer signal.Stop(terminated)
	for {
		select {
		case <-terminated:
			a.ending.mu.Lock()
			a.ending.signaled = time.Now()
			a.ending.mu.Unlock()
		case <-a.ending.suspect:
		case <-ctx.Done():
			return
		}
		for a.goingDown(ctx) {
			select {
			case <-time.After(endingInterval):
			case <-ctx.Done():
				return
			}
		}
	}
}

// goingDown reports whether the guest is going down, and updates the status.
func (a *Agent) goingDown(ctx context.Context) bool {
	now := a.ending.now(ctx)
	a.status.update(func(st *wire.Status) { st.GoingDown = now })
	return now
}
