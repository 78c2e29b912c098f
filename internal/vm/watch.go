package vm

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Reports of one guest are stored at most every reportPause, and when it has
// sent reportBurst of them, at most every reportRest: a hostile agent can
// neither keep the database busy nor fill it.
const (
	reportPause = 50 * time.Millisecond
	reportBurst = 100
	reportRest  = 2 * time.Second
)

// pace bounds how often something may happen in the long run, and lets bursts
// through. The zero pace has had no burst yet.
type pace struct {
	spent int       // of the burst
	since time.Time // when spent was last brought up to date
}

// pause returns how long to wait after something that happens now.
func (p *pace) pause(now time.Time) time.Duration {
	earned := int(now.Sub(p.since) / reportRest)
	if p.since.IsZero() || earned >= p.spent {
		p.spent, p.since = 0, now
	} else {
		p.spent, p.since = p.spent-earned, p.since.Add(time.Duration(earned)*reportRest)
	}
	if p.spent++; p.spent > reportBurst {
		return reportRest
	}
	return reportPause
}

// watch follows a machine until it ends or the service closes. Watching a
// machine twice is no error.
func (s *Service) watch(id string, in *instance) {
	s.mu.Lock()
	watched := in.watched
	in.watched = true
	s.mu.Unlock()
	if watched {
		return
	}
	s.work.Go(func() {
		reports := in.reports
		pause := time.NewTimer(0)
		defer pause.Stop()
		var last *GuestReport
		var paced pace
		boot := "" // of the last report
		for {
			select {
			case <-s.closing:
				return
			case <-in.machine.Exited():
				s.exited(context.Background(), id, in)
				return
			case <-pause.C:
				reports = in.reports
			case r := <-reports:
				if r == nil || !reflect.DeepEqual(r, last) {
					s.report(context.Background(), id, in, r, &boot)
					last = r
				}
				reports = nil
				pause.Reset(paced.pause(time.Now()))
			}
		}
	})
}

// exited cleans up after a machine that ended without being asked to by an
// operation, and stores why.
func (s *Service) exited(ctx context.Context, id string, in *instance) {
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	if !s.release(id, in) {
		return // an operation ended it and has cleaned up
	}
	exit := in.machine.Exit()
	ctx = event.By(ctx, exitedBy(exit.Cause))
	s.letGo(id, in)
	v, err := s.readUntilClosing(ctx, id)
	if err != nil {
		s.deps.Log.Error("cannot read the VM of a machine that ended", "vm", id, "err", err)
		return // the next start of the daemon finds it out
	}
	if v.Sleep != nil { // it ends late: the VM is asleep as in a snapshot already
		s.detachLink(ctx, v)
		return
	}
	s.unhang(ctx, v)
	s.deps.Log.Info("vm ended", "vm", id, "cause", exit.Cause, "detail", exit.Detail)
	if exit.Cause == vmm.ExitReset && v.Intent == WantRunning {
		if _, err := s.told(ctx, v, "reboot", s.start); err == nil {
			return
		}
	}
	state, reason := afterExit(exit)
	if _, err := s.update(ctx, id, func(v *VM) {
		v.State, v.StateReason, v.Machine, v.Conditions = state, reason, nil, Conditions{}
		if state == Stopped {
			v.Intent = WantStopped
		}
	}); err != nil {
		s.deps.Log.Error("cannot store that a VM ended", "vm", id, "err", err)
	}
}

// afterExit says what a VM is after its machine ended by itself.
func afterExit(exit vmm.Exit) (State, string) {
	switch exit.Cause {
	case vmm.ExitShutdown:
		return Stopped, "the guest powered itself off"
	case vmm.ExitPanic:
		return Failed, withDetail("the guest's kernel panicked", exit.Detail)
	case vmm.ExitReset:
		return Failed, "the guest rebooted, but could not be started again"
	case vmm.ExitCrashed:
		return Failed, withDetail("the VMM ended unexpectedly", exit.Detail)
	case vmm.ExitKilled:
		return Stopped, "the VMM was ended by hatchd"
	default:
		return Failed, withDetail("the VMM ended; how is not known", exit.Detail)
	}
}

func withDetail(what, detail string) string {
	if detail == "" {
		return what
	}
	return what + ": " + detail
}

// readRetry is the pause between two tries to read a VM whose machine has ended.
const readRetry = time.Second

// readUntilClosing reads a VM, however long the database is out of reach: what
// hangs on its machine must be taken down.
func (s *Service) readUntilClosing(ctx context.Context, id string) (VM, error) {
	for {
		v, err := s.deps.Store.VM(ctx, "", id)
		if err == nil || errs.Is(err, errs.NotFound) {
			return v, err
		}
		select {
		case <-s.closing:
			return VM{}, err
		case <-time.After(readRetry):
		}
	}
}

// dismantle takes everything off the host that hangs on a machine that is
// gone. What is reserved for the VM stays reserved.
func (s *Service) dismantle(ctx context.Context, v VM, in *instance) {
	s.letGo(v.ID, in)
	s.unhang(ctx, v)
}

// unhang closes the VM's SSH port, takes it off its network and drops its
// memory. Nothing there is no error.
func (s *Service) unhang(ctx context.Context, v VM) {
	if v.EnableNetwork && v.Lease.SSHPort != 0 {
		s.deps.Forwards.Close(v.Lease.SSHPort)
	}
	s.detachLink(ctx, v)
	s.dropMemory(v.ID)
}

// report stores what an agent said; nil means that its session was lost. boot
// is the boot that the last report was of, or "", and is brought up to date.
func (s *Service) report(ctx context.Context, id string, in *instance, r *GuestReport, boot *string) {
	if s.instanceOf(id) != in {
		return
	}
	if r != nil {
		ctx = event.By(ctx, event.Guest)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	v, err := s.update(ctx, id, func(v *VM) {
		if v.State == Running || v.State == Paused {
			v.Conditions = observed(*v, r, now)
		}
	})
	if err != nil {
		s.deps.Log.Error("cannot store a guest's report", "vm", id, "err", err)
		return
	}
	if r != nil && r.BootID != *boot {
		if *boot != "" {
			s.append(ctx, v, event.Of(event.VMRebooted, "the guest has rebooted", nil))
		}
		*boot = r.BootID
	}
}

// observed returns a VM's conditions after a report.
func observed(v VM, r *GuestReport, now time.Time) Conditions {
	c := v.Conditions
	if r == nil {
		if c.Agent.Status == True {
			c.Agent = Condition{Status: False, Reason: "Lost", Message: "the agent in the guest does not answer any more", ChangedAt: now}
		}
		return c
	}
	c.Agent = c.Agent.moved(True, "Answering", "", now)
	if v.EnableNetwork {
		if slices.Contains(r.Addresses, v.Lease.Address) {
			c.Network = c.Network.moved(True, "AddressSet", "", now)
		} else {
			c.Network = c.Network.moved(False, "NoAddress", "the guest does not have its address "+v.Lease.Address.String(), now)
		}
	}
	c.CloudInit = cloudInitCondition(c.CloudInit, r.CloudInit, v.UserData != "", now)
	return c
}

func cloudInitCondition(c Condition, ci CloudInit, hasUserData bool, now time.Time) Condition {
	lost := ""
	if hasUserData {
		lost = "; user_data was not applied"
	}
	switch ci.Status {
	case "absent":
		return c.moved(False, "Absent", "the image has no cloud-init"+lost, now)
	case "disabled":
		return c.moved(False, "Disabled", "cloud-init is disabled in the guest"+lost, now)
	case "running":
		return c.moved(False, "Running", "cloud-init is at work", now)
	case "done":
		return c.moved(True, "Done", "", now)
	case "error":
		return c.moved(False, "Failed", "cloud-init failed: "+strings.Join(ci.Errors, "; "), now)
	default:
		return c
	}
}

// moved returns the condition with new values; the time of change moves only
// when something did.
func (c Condition) moved(status Status, reason, message string, now time.Time) Condition {
	if c.Status == status && c.Reason == reason && c.Message == message {
		return c
	}
	return Condition{Status: status, Reason: reason, Message: message, ChangedAt: now}
}
