package httpapi

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

const forkText = `Clone a running or sleeping VM. Each clone gets its own hostname, address and MAC. ` +
	`The response comes once all have confirmed their identity. The guest is paused while memory and disk are copied once. ` +
	"`failed` lists clones that could not be created; if all fail, the request fails. Creation continues if the client disconnects."

type forkInput struct {
	IDPath
	Body *api.ForkVM
}

func (h *vmHandlers) fork(ctx context.Context, in *forkInput) (*created[api.Copies], error) {
	body := api.ForkVM{}
	if in.Body != nil {
		body = *in.Body
	}
	data, err := userData(body.UserData, body.UserDataEncoding)
	if err != nil {
		return nil, err
	}
	given := machine.Overrides{Labels: body.Labels, UserData: data, SSHKeys: body.SSHAuthorizedKeys}
	if err := mayEnter(ctx, given); err != nil {
		return nil, err
	}
	made, err := h.vms.Fork(ctx, owner(ctx), in.ID, vm.CloneRequest{Count: countOf(body.Count), Name: body.Name, Overrides: given})
	if err != nil {
		return nil, err
	}
	out := api.Copies{VMs: wholeVMs(made.VMs), Failed: h.failures(ctx, made.Failed)}
	return &created[api.Copies]{Location: "/vms/" + made.VMs[0].ID, Body: out}, nil
}

// mayEnter refuses to give a clone keys or user data with a key that may not run commands:
// they lead into a copy of what its VM had in memory and on its disk.
func mayEnter(ctx context.Context, given machine.Overrides) error {
	if given.UserData == nil && len(given.SSHKeys) == 0 {
		return nil
	}
	return checkRight(ctx, access.Write(access.Exec))
}

// replayFork answers with the clones that an earlier fork has made.
func (h *vmHandlers) replayFork(ctx context.Context, _ *forkInput, made []string) (*created[api.Copies], error) {
	clones, err := h.earlier(ctx, WaitInput{}, made)
	if err != nil {
		return nil, err
	}
	out := api.Copies{VMs: wholeVMs(clones.VMs), Failed: h.failures(ctx, clones.Failed)}
	return &created[api.Copies]{Location: "/vms/" + clones.VMs[0].ID, Body: out}, nil
}

func countOf(given *int) int {
	if given == nil {
		return 1
	}
	return *given
}

// createFrom creates VMs from a snapshot.
func (h *vmHandlers) createFrom(ctx context.Context, in *createVMInput) (*createVMOutput, error) {
	body := *in.Body
	if err := refuseBesideSnapshot(body); err != nil {
		return nil, err
	}
	if err := checkRight(ctx, access.Read(access.Snapshots)); err != nil {
		return nil, err
	}
	given, err := h.overrides(ctx, body.MachineSpec, nil)
	if err == nil {
		err = mayEnter(ctx, given)
	}
	if err != nil {
		return nil, err
	}
	made, err := h.clonesOf(ctx, in.WaitInput, body.SnapshotID, vm.CloneRequest{
		Count: countOf(body.Count), Name: body.Name, Overrides: given,
	})
	if err != nil {
		return nil, err
	}
	first := made.VMs[0]
	out := &createVMOutput{Location: "/vms/" + first.ID, ServerTiming: serverTiming(first.Took), Body: api.CreatedVM{VM: wholeVM(first)}}
	if body.Count != nil {
		out.Body.VMs, out.Body.Failed = wholeVMs(made.VMs), h.failures(ctx, made.Failed)
	}
	return out, nil
}

// clonesOf clones VMs from a snapshot and waits for them as the request says.
func (h *vmHandlers) clonesOf(ctx context.Context, in WaitInput, snapshotID string, req vm.CloneRequest) (vm.Clones, error) {
	timeout, err := parseWaitTime("wait_timeout", in.WaitTimeout)
	if err != nil {
		return vm.Clones{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	made, err := h.vms.CreateFrom(bounded, owner(ctx), snapshotID, req)
	if err != nil || in.Wait != "ready" {
		return made, err
	}
	for i, v := range made.VMs {
		ready, err := h.whenReady(bounded, ctx, v)
		switch {
		case err != nil && len(made.VMs) > 1:
			continue // a VM that was deleted meanwhile must not fail the others
		case err != nil:
			return vm.Clones{}, err
		}
		ready.Took = v.Took
		made.VMs[i] = ready
	}
	return made, nil
}

// besideSnapshot lists the fields that are allowed with snapshot_id. All others come
// from the snapshot.
var besideSnapshot = []string{"snapshot_id", "count", "name", "description", "hostname", "labels", "user_data", "user_data_encoding", "ssh_authorized_keys", "ports"}

func refuseBesideSnapshot(body api.CreateVM) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(text, &given); err != nil {
		return err
	}
	if len(body.Routes) > 0 {
		return errs.InvalidField("routes", "is not allowed with snapshot_id").WithHint("POST /vms/{id}/routes makes routes to the new VM")
	}
	for _, field := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(besideSnapshot, field) {
			return errs.InvalidField(field, "is not allowed with snapshot_id: it comes from the snapshot").
				WithHint("leave it out, or leave out snapshot_id")
		}
	}
	if body.Hostname != nil && countOf(body.Count) > 1 {
		return errs.InvalidField("hostname", "is allowed for one VM only; count is %d", *body.Count).
			WithHint("give a name instead: -1, -2 and so on is added, and each is a hostname, too")
	}
	return nil
}

func wholeVMs(made []vm.VM) []api.VM {
	out := make([]api.VM, len(made))
	for i, v := range made {
		out[i] = wholeVM(v)
	}
	return out
}

// failures returns the errors of VMs that could not be created, in the form for
// clients.
func (h *vmHandlers) failures(ctx context.Context, causes []error) []api.Failure {
	out := make([]api.Failure, len(causes))
	for i, err := range causes {
		p := h.problemOf(ctx, err)
		out[i] = api.Failure{Code: p.Code, Message: p.Problem.Error, Field: p.Field, Hint: p.Hint, VMID: p.VMID}
	}
	return out
}
