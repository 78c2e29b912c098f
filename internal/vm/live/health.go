package live

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Heartbeat says how often VMMs are asked for the health of their guests. Each gets
// one small request at a time.
type Heartbeat struct {
	Interval time.Duration // between two requests to one VMM, give or take a quarter
	Limit    time.Duration // after which a VMM that has not answered counts as silent
	Gap      time.Duration // between a VMM's report and the request: many reports cause one
}

// DefaultHeartbeat finds a VMM that hangs within 25 s.
var DefaultHeartbeat = Heartbeat{Interval: 10 * time.Second, Limit: 12 * time.Second, Gap: time.Second}

// diskCalm is how long after the last error of a disk it counts as well again.
const diskCalm = 5 * time.Minute

// maxMisses is how many requests in a row must get no answer before a VMM counts as silent.
const maxMisses = 2

// pulse is what the heartbeat of one machine remembers.
type pulse struct {
	*Machine
	id string

	handled    *vm.Health // the last one that was handled; nil for none
	misses     int        // requests that were not answered since the last answer
	diskErrors uint64
	failedAt   time.Time // of the last error of a disk

	retries *backoff.Backoff // of putting right what contradicts the row
	retryAt time.Time
}

// watchHealth asks a machine for its health until it ends or is dropped, or closing is closed.
func (r *Registry) watchHealth(id string, m *Machine) {
	p := &pulse{Machine: m, id: id, retries: backoff.New(r.heartbeat.Gap, r.heartbeat.Interval)}
	ctx, cancel := context.WithCancel(event.By(context.Background(), event.Daemon))
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	for {
		answer := make(chan healthAnswer, 1)
		asking.Go(func() {
			health, err := m.Health(ctx)
			answer <- healthAnswer{health, err}
		})
		if !r.awaitHealth(ctx, p, answer) || !r.awaitBeat(m) {
			return
		}
	}
}

type healthAnswer struct {
	health vmm.Health
	err    error
}

// limitSteps is in how many steps the limit is waited for.
const limitSteps = 4

// awaitHealth handles the answer to one request, and before it that there is none
// within the limit. A step does not count that took far too long, since hatchd was
// frozen and the VMM perhaps too, nor one while an operation is in progress, which may
// block the VMM. awaitHealth returns false when watching is over.
func (r *Registry) awaitHealth(ctx context.Context, p *pulse, answer <-chan healthAnswer) bool {
	step := r.heartbeat.Limit / limitSteps
	timer, began := time.NewTimer(step), time.Now()
	defer timer.Stop()
	for waited := 0; ; {
		select {
		case <-r.closing:
			return false
		case <-p.Exited():
			return false
		case <-p.dropped:
			return false
		case a := <-answer:
			if a.err != nil && r.handlers.Busy(p.id) {
				return true
			}
			if h, ok := p.add(a); ok {
				r.handle(ctx, p, h)
			}
			return true
		case <-timer.C:
			late := time.Since(began) > 2*step
			timer.Reset(step)
			began = time.Now()
			if late || r.handlers.Busy(p.id) {
				continue
			}
			if waited++; waited >= limitSteps && len(answer) == 0 {
				r.handle(ctx, p, vm.Health{Silent: true})
			}
		}
	}
}

// awaitBeat waits until the next request is due. It returns false when watching is
// over.
func (r *Registry) awaitBeat(m *Machine) bool {
	interval := r.heartbeat.Interval
	due := time.NewTimer(interval - interval/4 + rand.N(interval/2))
	defer due.Stop()
	for reported := false; ; {
		select {
		case <-r.closing:
			return false
		case <-m.Exited():
			return false
		case <-m.dropped:
			return false
		case <-due.C:
			return true
		case <-m.HealthChanged():
			if !reported { // once: else reports without end would postpone the request
				due.Reset(r.heartbeat.Gap)
			}
			reported = true
		}
	}
}

// add returns what an answer says; ok is false if it says nothing, and for a first
// request without an answer, which may be that of a machine that ends.
func (p *pulse) add(a healthAnswer) (h vm.Health, ok bool) {
	if a.err != nil && !vmm.IsSilent(a.err) {
		return vm.Health{}, false
	}
	if a.err != nil {
		p.misses++
		return vm.Health{Silent: true}, p.misses >= maxMisses
	}
	p.misses = 0
	if a.health.DiskErrors > p.diskErrors {
		p.diskErrors, p.failedAt = a.health.DiskErrors, time.Now()
	}
	failing := !p.failedAt.IsZero() && time.Since(p.failedAt) < diskCalm
	return vm.Health{Halt: a.health.Halt, DiskErrors: failing}, true
}

// handle calls the handler, unless nothing has changed and nothing is to be done.
func (r *Registry) handle(ctx context.Context, p *pulse, h vm.Health) {
	p.silent.Store(h.Silent)
	if r.held(p.id) != p.Machine {
		return
	}
	if h.Halt == vmm.NotHalted {
		p.retries.Reset()
		p.retryAt = time.Time{}
	}
	mayRetry := !time.Now().Before(p.retryAt)
	if p.handled != nil && *p.handled == h && (h.Halt == vmm.NotHalted || !mayRetry) {
		return
	}
	if h.Halt != vmm.NotHalted && mayRetry {
		p.retryAt = time.Now().Add(p.retries.Next())
	}
	p.handled = nil
	if r.handlers.Checked(ctx, p.id, p.Machine, h, mayRetry) == nil {
		p.handled = &h
	}
}
