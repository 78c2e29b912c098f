package live

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Handlers are called for the machines of a registry: Exited and Reported one at a time
// for each, and Checked beside them.
type Handlers struct {
	// Exited is called once, when the machine has ended.
	Exited func(ctx context.Context, id string, m *Machine)
	// Reported is called with what the guest's agent reported; nil means that
	// the session was lost. rebooted says that the guest has rebooted since the
	// report before. After an error it is called again with the newest report: the
	// session does not repeat one.
	Reported func(ctx context.Context, id string, r *vm.GuestReport, rebooted bool) error
	// Checked is called with how the machine is, when that has changed, after an error,
	// and again and again while the CPUs stand still. It may put right what contradicts
	// the row only if mayRetry.
	Checked func(ctx context.Context, id string, m *Machine, h vm.Health, mayRetry bool) error
	// Busy reports whether an operation on the VM is in progress. Its VMM does not
	// count as silent then.
	Busy func(id string) bool
}

// Handle sets what is done when machines end and guests report. It starts
// watchers by start, and they end when closing is closed. Call it before any
// machine is joined.
func (r *Registry) Handle(h Handlers, start func(watch func()), closing <-chan struct{}) {
	r.handlers, r.start, r.closing = h, start, closing
}

// Watch follows a machine until it ends or is dropped, or the registry's closing is closed.
// Watching a machine twice is no error.
func (r *Registry) Watch(id string, m *Machine) {
	r.mu.Lock()
	watched := m.watched
	m.watched = true
	r.mu.Unlock()
	if !watched {
		r.start(func() { r.watch(id, m) })
		r.start(func() { r.watchHealth(id, m) })
	}
}

// reportRetry is the interval between attempts to handle a report.
const reportRetry = time.Second

func (r *Registry) watch(id string, m *Machine) {
	var report *vm.GuestReport // the newest
	var retry <-chan time.Time // nil unless its handling failed
	boot := ""                 // of the last report that was handled
	for {
		select {
		case <-r.closing:
			return
		case <-m.dropped:
			return
		case <-m.Exited():
			r.handlers.Exited(event.By(context.Background(), actorOf(m.Exit().Cause)), id, m)
			return
		case report = <-m.reports:
		case <-retry:
		}
		retry = nil
		if r.held(id) != m {
			continue
		}
		if err := r.report(id, report, &boot); err != nil {
			retry = time.After(reportRetry)
		}
	}
}

// report calls the handler of a report. boot is the guest's boot in the report before.
func (r *Registry) report(id string, report *vm.GuestReport, boot *string) error {
	ctx := context.Background()
	if report == nil {
		return r.handlers.Reported(ctx, id, nil, false)
	}
	rebooted := *boot != "" && report.BootID != *boot
	if err := r.handlers.Reported(event.By(ctx, event.Guest), id, report, rebooted); err != nil {
		return err
	}
	*boot = report.BootID
	return nil
}

// actorOf returns who made a machine end without a request.
func actorOf(cause vmm.ExitCause) event.ActorKind {
	switch cause {
	case vmm.ExitShutdown, vmm.ExitReset, vmm.ExitPanic:
		return event.Guest
	default:
		return event.Daemon
	}
}

// observe keeps the newest report for the watcher. It never blocks.
func (m *Machine) observe(r *vm.GuestReport) {
	for {
		select {
		case m.reports <- r:
			return
		default:
		}
		select {
		case <-m.reports: // drop an older one
		default:
		}
	}
}
