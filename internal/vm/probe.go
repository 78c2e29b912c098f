package vm

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// Bounds of one try at a guest, which may be slow, hostile or not there.
const (
	probeLimit   = 5 * time.Second
	networkLimit = 2 * time.Second // of that, for its network, before the agent is asked
)

const sshPort = 22

// inside reports whether the condition is about a server in the guest, of
// which nobody tells when it begins to answer.
func (w WaitFor) inside() bool { return w.SSH || w.Port != 0 || w.HTTP.Port != 0 }

// awaitAnswer asks the guest until it answers, with growing pauses.
func (s *Service) awaitAnswer(ctx context.Context, owner string, v VM, want WaitFor) (VM, error) {
	pause := 50 * time.Millisecond
	var last error // of the last try that had its time
	for {
		fault := s.probe(ctx, v, want)
		if fault == nil {
			return v, nil
		}
		if last == nil || ctx.Err() == nil {
			last = fault
		}
		if !v.EnableNetwork && errs.HasCode(last, "agent_too_old") {
			return VM{}, errs.New(errs.Conflict, "wait_hopeless", "cannot reach a port of VM %s: it has no network, and its agent is too old", v.ID).
				WithHint("restart the VM: it boots with the present agent").WithCause(last)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return VM{}, unanswered(v, last)
		}
		pause = min(2*pause, time.Second)
		now, err := s.deps.Store.VM(ctx, owner, v.ID)
		if ctx.Err() != nil {
			return VM{}, unanswered(v, last)
		}
		if err != nil {
			return VM{}, err
		}
		if err := hopeless(now); err != nil {
			return VM{}, err
		}
		v = now
	}
}

// unanswered is waitTimeout with what the last try ended with.
func unanswered(v VM, last error) error {
	err := waitTimeout(v)
	err.Message += "; the last try: " + publicMessage(last)
	return err.WithCause(last)
}

// probe tries once whether what is waited for answers.
func (s *Service) probe(ctx context.Context, v VM, want WaitFor) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	switch {
	case want.SSH:
		return s.probeSSH(ctx, v)
	case want.HTTP.Port != 0:
		return s.probeHTTP(ctx, v, want.HTTP)
	default:
		conn, err := s.reach(ctx, v, want.Port)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// reach connects to a port of the VM's own guest and of nothing else: by its
// network, or through its agent, which also finds what listens on loopback.
// Errors: errs.Unavailable, or what Guest.Dial returns.
func (s *Service) reach(ctx context.Context, v VM, port int) (net.Conn, error) {
	if v.EnableNetwork {
		bounded, cancel := context.WithTimeout(ctx, networkLimit)
		defer cancel()
		if conn, err := s.deps.Dial(bounded, netip.AddrPortFrom(v.Lease.Address, uint16(port))); err == nil {
			return conn, nil
		}
	}
	in := s.instanceOf(v.ID)
	if in == nil {
		return nil, closedPort(port)
	}
	conn, err := in.guest.Dial(ctx, port)
	if err != nil && (v.EnableNetwork || ctx.Err() != nil) {
		return nil, closedPort(port).WithCause(err)
	}
	return conn, err
}

func closedPort(port int) *errs.Error {
	return errs.New(errs.Unavailable, "port_closed", "port %d accepts no connections", port)
}

// probeSSH waits for a server's greeting where the VM's SSH port leads to.
func (s *Service) probeSSH(ctx context.Context, v VM) error {
	conn, err := s.deps.Dial(ctx, netip.AddrPortFrom(v.Lease.Address, sshPort))
	if err != nil {
		return closedPort(sshPort).WithCause(err)
	}
	defer hangUp(ctx, conn)()
	greeting, err := bufio.NewReader(io.LimitReader(conn, 256)).ReadString('\n')
	if err != nil || !strings.HasPrefix(greeting, "SSH-") {
		return errs.New(errs.Unavailable, "no_ssh", "port %d does not greet as an SSH server", sshPort).WithCause(err)
	}
	return nil
}

// probeHTTP asks for a page. Where a redirect leads is not looked at: it is an
// answer, and may lead anywhere.
func (s *Service) probeHTTP(ctx context.Context, v VM, page HTTPPage) error {
	conn, err := s.reach(ctx, v, page.Port)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)()
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

// check refuses a path that is none.
func (p HTTPPage) check() error {
	if p.Port == 0 {
		return nil
	}
	if _, err := url.ParseRequestURI(p.Path); err != nil {
		return errs.InvalidField("for", "%q is no path", p.Path)
	}
	return nil
}

// hangUp bounds what is read from and written to conn by ctx, and returns what
// closes it.
func hangUp(ctx context.Context, conn net.Conn) (closeConn func()) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		stop()
		_ = conn.Close()
	}
}
