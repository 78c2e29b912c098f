package lifecycle

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/vm"
)

// Wait returns the VM once the condition holds. When that is about a guest, and
// not about a state, a sleeping VM is woken first.
//
// Errors: errs.NotFound when the VM is gone; errs.Conflict with code
// wait_impossible when the condition can no longer come true, such as running for
// a VM in state error; errs.TimedOut with code wait_timeout when ctx is done
// first; those of Wake.
func (s *Service) Wait(ctx context.Context, scope access.Scope, id string, want vm.WaitFor) (vm.VM, error) {
	if err := want.Check(); err != nil {
		return vm.VM{}, err
	}
	v, err := s.deps.Store.VM(ctx, scope, id)
	if err != nil && ctx.Err() == nil {
		return vm.VM{}, err
	}
	// Until recovery ends, the row may tell what was true before the host went down.
	if s.runner.AwaitRecovery(ctx) != nil || ctx.Err() != nil {
		return vm.VM{}, vm.WaitTimeout(v)
	}
	if want.State == "" {
		defer s.reach.Hold(ctx, id, reach.Wait)()
		if v, err := s.reach.Awake(ctx, scope, id); ctx.Err() != nil {
			return vm.VM{}, vm.WaitTimeout(v)
		} else if err != nil {
			return vm.VM{}, err
		}
	}
	v, err = s.awaitMet(ctx, scope, id, want)
	if err != nil || !want.AsksGuest() {
		return v, err
	}
	if want.SSH && !v.EnableNetwork {
		return vm.VM{}, errs.New(errs.Conflict, "wait_impossible", "cannot wait for SSH of VM %s: it has no network", id).
			WithHint("wait for its agent, or for port:22")
	}
	return s.awaitAnswer(ctx, scope, v, want)
}

// awaitMet waits until the row meets the condition, in a boot of the guest that is not
// about to end: what was reported of one that reboots says nothing.
func (s *Service) awaitMet(ctx context.Context, scope access.Scope, id string, want vm.WaitFor) (vm.VM, error) {
	boot := "" // that the row must be about, if any
	for {
		changed := s.runner.Changed(id)
		v, err := s.runner.Await(ctx, scope, id, func(v vm.VM) (bool, error) {
			if boot != "" && v.Conditions.BootID != boot {
				return false, v.NeverRuns()
			}
			return want.Met(v)
		})
		m := s.live.Current(id)
		if err != nil || want.State != "" || v.Conditions.Agent.Status != vm.True || m == nil {
			return v, err
		}
		boot, err = m.Guest.Up(ctx)
		switch {
		case ctx.Err() != nil:
			return vm.VM{}, vm.WaitTimeout(v)
		case err == nil && boot == v.Conditions.BootID:
			return v, nil
		case err == nil:
			continue
		}
		select { // the session has ended, or the agent does not answer
		case <-changed:
		case <-ctx.Done():
			return vm.VM{}, vm.WaitTimeout(v)
		}
	}
}

// awaitAnswer probes the guest until it answers.
func (s *Service) awaitAnswer(ctx context.Context, scope access.Scope, v vm.VM, want vm.WaitFor) (vm.VM, error) {
	interval := backoff.New(50*time.Millisecond, time.Second)
	var last error // of the last probe that was not cut short
	for {
		err := s.probe(ctx, scope, v, want)
		if err == nil {
			return v, nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if !v.EnableNetwork && errs.HasCode(last, "agent_too_old") {
			return vm.VM{}, errs.New(errs.Conflict, "wait_impossible", "cannot reach a port of VM %s: it has no network, and its agent is too old", v.ID).
				WithHint("restart the VM: it boots with the current agent").WithCause(last)
		}
		select {
		case <-time.After(interval.Next()):
		case <-ctx.Done():
			return vm.VM{}, unanswered(v, last)
		}
		now, err := s.deps.Store.VM(ctx, scope, v.ID)
		if ctx.Err() != nil {
			return vm.VM{}, unanswered(v, last)
		}
		if err == nil {
			err = now.NeverRuns()
		}
		if err != nil {
			return vm.VM{}, err
		}
		v = now
	}
}

// unanswered is vm.WaitTimeout with the error of the last probe.
func unanswered(v vm.VM, last error) error {
	err := vm.WaitTimeout(v)
	err.Message += "; the last attempt: " + errs.Public(last)
	return err.WithCause(last)
}

// probeTimeout bounds one probe of a guest, which may be slow or hostile.
const probeTimeout = 5 * time.Second

// probe tries once whether the server that is waited for answers.
func (s *Service) probe(ctx context.Context, scope access.Scope, v vm.VM, want vm.WaitFor) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	switch {
	case want.SSH:
		return s.probeSSH(ctx, v)
	case want.HTTP.Port != 0:
		return s.probeHTTP(ctx, scope, v, want.HTTP)
	default:
		conn, err := s.reach.Dial(ctx, scope, v.ID, want.Port, reach.Wait)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

const sshPort = 22

// probeSSH waits for an SSH server's banner at the target of the VM's SSH port.
func (s *Service) probeSSH(ctx context.Context, v vm.VM) error {
	conn, err := s.reach.DialNetwork(ctx, v.ID, netip.AddrPortFrom(v.Lease.Address, sshPort), reach.Wait)
	if err != nil {
		return reach.PortClosed(sshPort).WithCause(err)
	}
	defer closeBounded(ctx, conn)()
	banner, err := bufio.NewReader(io.LimitReader(conn, 256)).ReadString('\n')
	if err != nil || !strings.HasPrefix(banner, "SSH-") {
		return errs.New(errs.Unavailable, "no_ssh", "port %d sends no SSH banner", sshPort).WithCause(err)
	}
	return nil
}

// probeHTTP requests a page. It does not follow a redirect: that is an answer, and
// may lead anywhere.
func (s *Service) probeHTTP(ctx context.Context, scope access.Scope, v vm.VM, page vm.HTTPPage) error {
	conn, err := s.reach.Dial(ctx, scope, v.ID, page.Port, reach.Wait)
	if err != nil {
		return err
	}
	defer closeBounded(ctx, conn)()
	host := "localhost"
	if v.EnableNetwork {
		host = v.Lease.Address.String()
	}
	status, err := s.deps.PageStatus(conn, net.JoinHostPort(host, strconv.Itoa(page.Port)), page.Path)
	switch {
	case err != nil:
		return errs.New(errs.Unavailable, "no_http", "port %d does not answer as an HTTP server", page.Port).WithCause(err)
	case status < 200 || status > 399:
		return errs.New(errs.Unavailable, "http_status", "the answer on port %d was %d", page.Port, status)
	}
	return nil
}

// closeBounded bounds reads and writes of conn by ctx, and returns what closes it.
func closeBounded(ctx context.Context, conn net.Conn) (closeConn func()) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		stop()
		_ = conn.Close()
	}
}
