package httpapi

import (
	"context"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

const waitText = `Answers once the VM runs, or with wait=ready once its guest is up: the agent answers, the network is there and cloud-init has ended. ` +
	`When wait_timeout passes first, the VM is returned as it is then, and goes on coming up: look at its state and conditions.`

const waitForText = `Answers once a condition holds: a state of the VM, or something inside its guest, for which a VM that sleeps is woken first. ` +
	`When the timeout passes first, the answer is 503 with code wait_timeout; when the condition cannot come true any more, 409.`

const defaultWait = 5 * time.Minute

// WaitInput says how long the caller wants to wait for a VM to come up.
type WaitInput struct {
	Wait        string `query:"wait" enum:"running,ready" default:"running" doc:"What to wait for."`
	WaitTimeout string `query:"wait_timeout" maxLength:"32" doc:"How long to wait, such as 90s or 5m (default); at most 10m."`
}

// untilWaited lets raise bring a VM up and then waits for it as the caller
// asked. A VM that is merely late is returned as it is.
func (d *door) untilWaited(ctx context.Context, in WaitInput, raise func(context.Context) (vm.VM, error)) (vm.VM, error) {
	timeout, err := parseWaitTime("wait_timeout", in.WaitTimeout)
	if err != nil {
		return vm.VM{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	v, err := raise(bounded)
	if err == nil && in.Wait == "ready" {
		return d.whenReady(bounded, ctx, v)
	}
	if v.ID != "" && bounded.Err() != nil {
		return d.asItIs(ctx, v, err)
	}
	return v, err
}

// whenReady returns a VM that runs once its guest is up, or as it is when the
// bounded context ends.
func (d *door) whenReady(bounded, ctx context.Context, v vm.VM) (vm.VM, error) {
	_, err := d.VMs.Wait(bounded, owner(ctx), v.ID, vm.WaitFor{Ready: true})
	if errs.HasCode(err, "wait_hopeless") {
		err = nil // it came up and went down again; its state says why
	}
	return d.asItIs(ctx, v, err)
}

// asItIs returns the VM as it is now, when the wait for it ended well or late.
func (d *door) asItIs(ctx context.Context, v vm.VM, err error) (vm.VM, error) {
	if err != nil && !errs.HasCode(err, "wait_timeout") && !errs.HasCode(err, "still_working") {
		return vm.VM{}, err
	}
	return d.VMs.Get(ctx, owner(ctx), v.ID)
}

type waitVMInput struct {
	IDPath
	For     string `query:"for" required:"true" maxLength:"1100" doc:"A state (starting, running, stopping, stopped, snapshotted, error, paused), or ready, agent, cloud-init, ssh, port:N (a TCP port accepts), or http:PORT/PATH (GET answers 2xx or 3xx; redirects are not followed)."`
	Timeout string `query:"timeout" maxLength:"32" doc:"How long to wait, such as 90s or 5m (default); at most 10m."`
}

func (d *door) waitVM(ctx context.Context, in *waitVMInput) (*answer[api.VM], error) {
	want, err := parseWaitFor(in.For)
	if err != nil {
		return nil, err
	}
	timeout, err := parseWaitTime("timeout", in.Timeout)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return shown(d.VMs.Wait(ctx, owner(ctx), in.ID, want))
}

func parseWaitFor(s string) (vm.WaitFor, error) {
	switch s {
	case "ready":
		return vm.WaitFor{Ready: true}, nil
	case "agent":
		return vm.WaitFor{Agent: true}, nil
	case "cloud-init":
		return vm.WaitFor{CloudInit: true}, nil
	case "ssh":
		return vm.WaitFor{SSH: true}, nil
	}
	switch state := vm.State(s); state {
	case vm.Starting, vm.Running, vm.Stopping, vm.Stopped, vm.Snapshotted, vm.Failed, vm.Paused:
		return vm.WaitFor{State: state}, nil
	}
	if number, isPort := strings.CutPrefix(s, "port:"); isPort {
		if port, ok := parsePort(number); ok {
			return vm.WaitFor{Port: port}, nil
		}
	}
	if page, isHTTP := strings.CutPrefix(s, "http:"); isHTTP {
		return parsePage(page)
	}
	return vm.WaitFor{}, errs.InvalidField("for", "%q is nothing to wait for; a state of a VM, ready, agent, cloud-init, ssh, port:1 to port:65535 or http:PORT/PATH can be given", errs.Brief(s))
}

// parsePage reads PORT/PATH. Only the guest itself is ever asked, so that no
// host can be named.
func parsePage(s string) (vm.WaitFor, error) {
	number, path := s, "/"
	if i := strings.IndexByte(s, '/'); i >= 0 {
		number, path = s[:i], s[i:]
	}
	port, ok := parsePort(number)
	if !ok {
		return vm.WaitFor{}, errs.InvalidField("for", "%q is no page to wait for; a port from 1 to 65535 comes first, such as http:8080/health", errs.Brief("http:"+s))
	}
	if _, err := url.ParseRequestURI(path); err != nil || strings.ContainsFunc(path, notInURL) {
		return vm.WaitFor{}, errs.InvalidField("for", "%q is no path; it is of visible ASCII characters without #, with others percent-encoded, such as /health?full=1", errs.Brief(path))
	}
	return vm.WaitFor{HTTP: vm.HTTPPage{Port: port, Path: path}}, nil
}

func notInURL(r rune) bool { return r <= ' ' || r > '~' || r == '#' }

func parsePort(s string) (port int, ok bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err == nil && n > 0 && s[0] != '0'
}

func parseWaitTime(field, s string) (time.Duration, error) {
	if s == "" {
		return defaultWait, nil
	}
	timeout, err := time.ParseDuration(s)
	if err != nil || timeout <= 0 || timeout > vm.MaxWait {
		return 0, errs.InvalidField(field, "%q is not a time to wait; more than 0s and up to 10m can be given, such as 90s or 1m30s", errs.Brief(s))
	}
	return timeout, nil
}
