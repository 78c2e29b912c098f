package driver

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
)

// The lines of vmmtest that the guest prints.
const (
	greeting    = "guest ready "
	tickEvery   = 20 * time.Millisecond
	agentPrefix = "agent: "
)

// guest is a machine with its guest. It outlives drivers.
type guest struct {
	handle    vmm.Handle
	startedAt time.Time
	isDeaf    func() bool
	limits    vmm.RateLimits

	mu      sync.Mutex
	running chan struct{} // closed while the CPUs run
	ticks   int           // 0: not ticking
	ticking chan struct{} // closed once the guest has ticked: others need no clock
	kept    []string
	boots   int
	greeted bool // this boot's greeting is out
	deaf    bool
	exit    vmm.Exit
	exited  chan struct{}

	answers chan struct{} // closed while the VMM answers
	halt    vmm.Halt      // of a guest whose CPUs do not run though it was not paused
	full    bool          // a resumed guest stands still again, for the same reason
	errors  uint64        // of its disks
	changed chan struct{} // capacity 1
}

func newGuest(h vmm.Handle, isDeaf func() bool) *guest {
	running := make(chan struct{})
	close(running)
	return &guest{
		handle: h, startedAt: time.Now(), isDeaf: isDeaf, running: running, boots: 1, exited: make(chan struct{}), ticking: make(chan struct{}),
		answers: running, changed: make(chan struct{}, 1),
	}
}

func (g *guest) gone() bool {
	select {
	case <-g.exited:
		return true
	default:
		return false
	}
}

// end ends the machine; only the first cause counts.
func (g *guest) end(exit vmm.Exit) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone() {
		return
	}
	g.exit = exit
	close(g.exited)
}

func (g *guest) setPaused(paused bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case paused == g.pausedLocked():
	case paused:
		g.running = make(chan struct{})
	default:
		close(g.running)
	}
}

func (g *guest) paused() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pausedLocked()
}

func (g *guest) pausedLocked() bool {
	select {
	case <-g.running:
		return false
	default:
		return true
	}
}

// awaitCPU returns true once the CPUs run, false if the machine has ended or
// stop is closed.
func (g *guest) awaitCPU(stop <-chan struct{}) bool {
	g.mu.Lock()
	running := g.running
	g.mu.Unlock()
	select {
	case <-running:
		return !g.gone()
	case <-g.exited:
	case <-stop:
	}
	return false
}

func (g *guest) pressPowerButton() {
	g.mu.Lock()
	deaf := g.deaf
	g.mu.Unlock()
	if !deaf && !g.isDeaf() {
		g.end(vmm.Exit{Cause: vmm.ExitShutdown, At: time.Now()})
	}
}

// greet writes this boot's greeting unless it was written before.
func (g *guest) greet(w io.Writer) {
	g.mu.Lock()
	boot, greeted := g.boots, g.greeted
	g.greeted = true
	g.mu.Unlock()
	if !greeted {
		_, _ = fmt.Fprintf(w, "%s%d\r\n", greeting, boot)
	}
}

// obey runs the command in a console line.
func (g *guest) obey(line string, w io.Writer) {
	verb, words, _ := strings.Cut(line, " ")
	switch verb {
	case "echo":
		_, _ = fmt.Fprintf(w, "echo: %s\r\n", words)
	case "tick":
		g.mu.Lock()
		g.setTicksLocked(max(g.ticks, 1))
		g.mu.Unlock()
	case "deaf":
		g.mu.Lock()
		g.deaf = true
		g.mu.Unlock()
		_, _ = io.WriteString(w, "deaf: ok\r\n")
	case "keep":
		word, _, _ := strings.Cut(words, " ")
		g.mu.Lock()
		g.kept = append(g.kept, word)
		g.mu.Unlock()
		_, _ = io.WriteString(w, "keep: ok\r\n")
	case "kept":
		g.mu.Lock()
		kept := strings.Join(g.kept, " ")
		g.mu.Unlock()
		_, _ = fmt.Fprintf(w, "kept: %s\r\n", kept)
	case "poweroff":
		g.end(vmm.Exit{Cause: vmm.ExitShutdown, At: time.Now()})
	case "panic":
		g.end(vmm.Exit{Cause: vmm.ExitPanic, At: time.Now()})
	case "reboot":
		g.reboot()
		g.greet(w)
	}
}

func (g *guest) setTicksLocked(ticks int) {
	g.ticks = ticks
	select {
	case <-g.ticking:
	default:
		if ticks > 0 {
			close(g.ticking)
		}
	}
}

func (g *guest) reboot() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.boots++
	g.greeted, g.ticks, g.kept, g.deaf = false, 0, nil, false
}

// tick returns the next number, if the guest ticks and is not paused.
func (g *guest) tick() (n int, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ticks == 0 || g.pausedLocked() {
		return 0, false
	}
	g.ticks++
	return g.ticks - 1, true
}

// echoLines is the default agent.
func echoLines(conn io.ReadWriter) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if _, err := fmt.Fprintf(conn, "%s%s\n", agentPrefix, lines.Text()); err != nil {
			return
		}
	}
}
