package driver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// machine is one driver's handle to a guest.
type machine struct {
	guest  *guest
	driver *Driver
	work   sync.WaitGroup

	mu     sync.Mutex
	conns  map[vmm.Channel]net.Conn // the guest's ends
	closed bool
	done   chan struct{} // closed by Close
}

func newMachine(g *guest, d *Driver) *machine {
	m := &machine{guest: g, driver: d, conns: map[vmm.Channel]net.Conn{}, done: make(chan struct{})}
	m.work.Go(m.closeConnsAtEnd)
	return m
}

func (m *machine) closeConnsAtEnd() {
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
func (m *machine) Handle() vmm.Handle { return m.guest.handle }

// Dial implements vmm.Machine.
func (m *machine) Dial(_ context.Context, ch vmm.Channel) (net.Conn, error) {
	serve := map[vmm.Channel]func(net.Conn){
		vmm.ChannelConsole: m.serveConsole,
		vmm.ChannelAgent:   func(c net.Conn) { m.driver.agent(m.guest.handle.ID, c) },
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

// serveConsole runs the guest's side of the serial port until the connection ends.
func (m *machine) serveConsole(conn net.Conn) {
	ended := make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Go(func() { m.printTicks(conn, ended) })
	defer ticking.Wait()
	defer close(ended)
	m.guest.greet(conn)
	lines := bufio.NewScanner(conn)
	for lines.Scan() && m.guest.awaitCPU(m.done) {
		m.guest.obey(lines.Text(), conn)
	}
}

func (m *machine) printTicks(conn net.Conn, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-m.guest.ticking:
	}
	clock := time.NewTicker(tickEvery)
	defer clock.Stop()
	for {
		select {
		case <-ended:
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

// check returns an error if the machine has ended.
func (m *machine) check() error {
	if m.guest.gone() {
		return errNoMachine(m.guest.handle.ID)
	}
	return nil
}

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error {
	if err := m.guest.awaitVMM(ctx); err != nil {
		return err
	}
	m.guest.setPaused(true)
	return m.check()
}

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error {
	if err := errors.Join(m.driver.Calls.Begin("Resume"), m.guest.awaitVMM(ctx)); err != nil {
		return err
	}
	m.guest.resume()
	return m.check()
}

// Paused implements vmm.Machine.
func (m *machine) Paused(ctx context.Context) (bool, error) {
	if err := m.guest.awaitVMM(ctx); err != nil {
		return false, err
	}
	return m.guest.paused(), m.check()
}

// Health implements vmm.Reporter.
func (m *machine) Health(ctx context.Context) (vmm.Health, error) {
	if err := m.guest.awaitVMM(ctx); err != nil {
		return vmm.Health{}, err
	}
	return m.guest.health(), m.check()
}

// HealthChanged implements vmm.Reporter.
func (m *machine) HealthChanged() <-chan struct{} { return m.guest.changed }

// Stats implements vmm.Machine. Usage grows with time.
func (m *machine) Stats(context.Context) (vmm.Stats, error) {
	if err := m.check(); err != nil {
		return vmm.Stats{}, err
	}
	const perSecond, block = 64 << 10, 4 << 10 // bytes
	age := time.Since(m.guest.startedAt)
	written := uint64(perSecond * age.Seconds())
	return vmm.Stats{
		StartedAt: m.guest.startedAt.UTC().Round(time.Second),
		CPUTime:   100*time.Millisecond + age/20,
		Resident:  64 << 20,

		GuestMemory: m.driver.GuestMemory,

		Block: vmm.BlockCounters{ReadBytes: 16 << 20, ReadOps: 16 << 20 / block, WriteBytes: written, WriteOps: written / block},
	}, nil
}

// PowerButton implements vmm.Machine.
func (m *machine) PowerButton(ctx context.Context) error {
	if err := errors.Join(m.guest.awaitVMM(ctx), m.check(), m.driver.Calls.Begin("PowerButton")); err != nil {
		return err
	}
	m.guest.pressPowerButton()
	return nil
}

// Kill implements vmm.Machine.
func (m *machine) Kill(context.Context) error {
	if err := m.driver.Calls.Begin("Kill"); err != nil {
		return err
	}
	m.guest.end(vmm.Exit{Cause: vmm.ExitKilled, At: time.Now()})
	return nil
}

// Exited implements vmm.Machine.
func (m *machine) Exited() <-chan struct{} { return m.guest.exited }

// Exit implements vmm.Machine.
func (m *machine) Exit() vmm.Exit {
	m.guest.mu.Lock()
	defer m.guest.mu.Unlock()
	return m.guest.exit
}

// Close implements vmm.Machine.
func (m *machine) Close() error {
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
