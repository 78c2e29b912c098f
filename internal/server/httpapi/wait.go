package httpapi

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

const waitText = `The response comes once the VM runs, or with wait=ready once its guest is ready: the agent answers, the network is up and cloud-init has ended. ` +
	`If wait_timeout passes first, the VM is returned as it is then, and continues to start: see state and conditions.`

const waitForText = `Waits for a condition: a state of the VM, or a condition in its guest, for which a sleeping VM is woken first. ` +
	`If the timeout passes first, the status is 409 with code wait_timeout; if the condition can no longer become true, 409 with code wait_impossible.`

const defaultWait = 5 * time.Minute

// WaitInput says what to wait for after a start, and how long.
type WaitInput struct {
	Wait        string `query:"wait" enum:"running,ready" default:"running" doc:"What to wait for."`
	WaitTimeout string `query:"wait_timeout" maxLength:"32" doc:"How long to wait, such as 90s or 5m (default); at most 10m."`
}

// untilWaited starts a VM and then waits for it as the request says. If the timeout
// passes first it returns the VM in its current state.
func (h *vmHandlers) untilWaited(ctx context.Context, in WaitInput, start func(context.Context) (vm.VM, error)) (vm.VM, error) {
	timeout, err := parseWaitTime("wait_timeout", in.WaitTimeout)
	if err != nil {
		return vm.VM{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	v, err := start(bounded)
	if err == nil && in.Wait == "ready" {
		return h.whenReady(bounded, ctx, v)
	}
	if v.ID != "" && bounded.Err() != nil {
		return h.asItIs(ctx, v, err)
	}
	return v, err
}

// whenReady waits for the guest of a running VM, and returns its current state when the
// guest is ready or the bounded context ends.
func (h *vmHandlers) whenReady(bounded, ctx context.Context, v vm.VM) (vm.VM, error) {
	_, err := h.vms.Wait(bounded, scope(ctx), v.ID, vm.WaitFor{Ready: true})
	if errs.HasCode(err, "wait_impossible") {
		err = nil // it started and stopped again; its state says why
	}
	return h.asItIs(ctx, v, err)
}

// asItIs returns the current VM if err is nil or a timeout.
func (h *vmHandlers) asItIs(ctx context.Context, v vm.VM, err error) (vm.VM, error) {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return vm.VM{}, vm.WaitTimeout(vm.VM{}).WithCause(err) // before the operation began
	}
	if err != nil && !errs.HasCode(err, "wait_timeout") && !errs.HasCode(err, "still_working") {
		return vm.VM{}, err
	}
	return h.vms.Get(ctx, scope(ctx), v.ID)
}

type waitVMInput struct {
	IDPath
	For     string `query:"for" required:"true" maxLength:"1100" doc:"A state (starting, running, stopping, stopped, snapshotted, error, paused), or ready, agent, cloud-init, ssh, port:N (a TCP port accepts), or http:PORT/PATH (GET answers 2xx or 3xx; redirects are not followed)."`
	Timeout string `query:"timeout" maxLength:"32" doc:"How long to wait, such as 90s or 5m (default); at most 10m."`
}

func (h *vmHandlers) wait(ctx context.Context, in *waitVMInput) (*answer[api.VM], error) {
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
	return shown(h.vms.Wait(ctx, scope(ctx), in.ID, want))
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
	return vm.WaitFor{}, errs.InvalidField("for", "%q is not a condition: want a state of a VM, ready, agent, cloud-init, ssh, port:1 to port:65535 or http:PORT/PATH", errs.Brief(s))
}

// parsePage parses PORT/PATH. There is no host: the request always goes to the guest.
func parsePage(s string) (vm.WaitFor, error) {
	number, path := s, "/"
	if i := strings.IndexByte(s, '/'); i >= 0 {
		number, path = s[:i], s[i:]
	}
	port, ok := parsePort(number)
	if !ok {
		return vm.WaitFor{}, errs.InvalidField("for", "%q is not a page: want a port from 1 to 65535 and a path, such as http:8080/health", errs.Brief("http:"+s))
	}
	if _, err := url.ParseRequestURI(path); err != nil || strings.ContainsFunc(path, notInURL) {
		return vm.WaitFor{}, errs.InvalidField("for", "%q is not a path: want visible ASCII characters without #, all others percent-encoded, such as /health?full=1", errs.Brief(path))
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
		return 0, errs.InvalidField(field, "%q is not a timeout: want more than 0s and up to 10m, such as 90s or 1m30s", errs.Brief(s))
	}
	return timeout, nil
}
