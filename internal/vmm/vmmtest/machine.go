package vmmtest

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// fakeMachine is one driver's hold on a guest.
type fakeMachine struct {
	guest *guest
	agent func(vmID string, conn net.Conn)
	work  sync.WaitGroup

	mu     sync.Mutex
	conns  map[vmm.Channel]net.Conn // the guest's ends
	closed bool
	done   chan struct{} // closed by Close
}

func newFakeMachine(g *guest, agent func(string, net.Conn)) *fakeMachine {
	m := &fakeMachine{guest: g, agent: agent, conns: map[vmm.Channel]net.Conn{}, done: make(chan struct{})}
	m.work.Go(m.hangUpAtEnd)
	return m
}

func (m *fakeMachine) hangUpAtEnd() {
	select {
	case <-m.guest.exited:
	case <-m.done:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, c := range m.conns {
		_ = c.Close()
	}
}

// Handle implements vmm.Machine.
func (m *fakeMachine) Handle() vmm.Handle { return m.guest.handle }

// Dial implements vmm.Machine.
func (m *fakeMachine) Dial(_ context.Context, ch vmm.Channel) (net.Conn, error) {
	serve := map[vmm.Channel]func(net.Conn){
		vmm.ChannelConsole: m.serveConsole,
		vmm.ChannelAgent:   func(c net.Conn) { m.agent(m.guest.handle.ID, c) },
	}[ch]
	if serve == nil {
		return nil, errs.New(errs.Unsupported, "no_channel", "cannot dial channel %q: the fake does not have it", ch)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.guest.gone() {
		return nil, errNoMachine(m.guest.handle.ID)
	}
	if old := m.conns[ch]; old != nil {
		_ = old.Close()
	}
	ours, theirs := net.Pipe()
	m.conns[ch] = theirs
	m.work.Go(func() {
		serve(theirs)
		_ = theirs.Close()
	})
	return ours, nil
}

// serveConsole is the guest at its serial port, until the connection ends.
func (m *fakeMachine) serveConsole(conn net.Conn) {
	hungUp := make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Go(func() { m.printTicks(conn, hungUp) })
	defer ticking.Wait()
	defer close(hungUp)
	m.guest.greet(conn)
	lines := bufio.NewScanner(conn)
	for lines.Scan() && m.guest.awaitCPU(m.done) {
		m.guest.obey(lines.Text(), conn)
	}
}

func (m *fakeMachine) printTicks(conn net.Conn, hungUp <-chan struct{}) {
	clock := time.NewTicker(tickEvery)
	defer clock.Stop()
	for {
		select {
		case <-hungUp:
			return
		case <-clock.C:
		}
		if n, ok := m.guest.tick(); ok {
			if _, err := fmt.Fprintf(conn, "tick %d\r\n", n); err != nil {
				return
			}
		}
	}
}

// check returns an error when the machine is gone.
func (m *fakeMachine) check() error {
	if m.guest.gone() {
		return errNoMachine(m.guest.handle.ID)
	}
	return nil
}

// Pause implements vmm.Machine.
func (m *fakeMachine) Pause(context.Context) error {
	m.guest.setPaused(true)
	return m.check()
}

// Resume implements vmm.Machine.
func (m *fakeMachine) Resume(context.Context) error {
	m.guest.setPaused(false)
	return m.check()
}

// Paused implements vmm.Machine.
func (m *fakeMachine) Paused(context.Context) (bool, error) { return m.guest.paused(), m.check() }

// PowerButton implements vmm.Machine.
func (m *fakeMachine) PowerButton(context.Context) error {
	if err := m.check(); err != nil {
		return err
	}
	m.guest.pressPowerButton()
	return nil
}

// Kill implements vmm.Machine.
func (m *fakeMachine) Kill(context.Context) error {
	m.guest.end(vmm.Exit{Cause: vmm.ExitKilled, At: time.Now()})
	return nil
}

// Exited implements vmm.Machine.
func (m *fakeMachine) Exited() <-chan struct{} { return m.guest.exited }

// Exit implements vmm.Machine.
func (m *fakeMachine) Exit() vmm.Exit {
	m.guest.mu.Lock()
	defer m.guest.mu.Unlock()
	return m.guest.exit
}

// Close implements vmm.Machine.
func (m *fakeMachine) Close() error {
	m.mu.Lock()
	select {
	case <-m.done:
	default:
		close(m.done)
	}
	m.mu.Unlock()
	m.work.Wait()
	return nil
}
