package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idempotency"
	hostroute "github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/vm"
)

const createText = `Create and start a new microVM. Every field is optional, and so is the body.

` + waitText + `

With snapshot_id the VM is cloned from a snapshot instead of booted; with count, several are, each with its own hostname, address and MAC. The response comes once all have confirmed their identity. If wait_timeout passes first, the status is 409 with code still_working; creation continues, and GET /vms lists the VMs.`

const updateText = `Change a VM, by a JSON merge patch: absent fields stay, null removes one. The name, the description, labels and published ports can be changed in any state, ` +
	`and so can implicit_routes, idle, ttl_seconds, expires_at and expire_action; the sizes only while the VM is stopped. Fields that cannot be changed are refused, each with the reason, unless they are as they are.`

// vmHandlers serves VMs and operations on them.
type vmHandlers struct {
	*door
	vms     Machines
	idle    Idle // nil: not known
	encoded *encodedVMs
	leading Routes // to VMs
}

type createVMInput struct {
	WaitInput
	Body *api.CreateVM
}

type createVMOutput struct {
	Replay
	Location     string `header:"Location" doc:"The path of the new object."`
	ServerTiming string `header:"Server-Timing" doc:"How long each step of the start took, in milliseconds."`
	Body         api.CreatedVM
}

func (h *vmHandlers) create(ctx context.Context, in *createVMInput) (*createVMOutput, error) {
	body := api.CreateVM{}
	if in.Body != nil {
		body = *in.Body
	}
	if body.SnapshotID != "" {
		return h.createFrom(ctx, in)
	}
	if body.Count != nil {
		return nil, errs.InvalidField("count", "is only allowed with snapshot_id").
			WithHint("POST /vms once for each VM, or take a snapshot of one and clone the others from it")
	}
	req, err := h.createRequest(ctx, body)
	if err != nil {
		return nil, err
	}
	var took []vm.Step
	v, err := h.untilWaited(ctx, in.WaitInput, func(ctx context.Context) (vm.VM, error) {
		v, err := h.vms.Create(ctx, owner(ctx), req)
		took = v.Took
		return v, err
	})
	if err != nil {
		return nil, err
	}
	out := &createVMOutput{Location: "/vms/" + v.ID, ServerTiming: serverTiming(took), Body: api.CreatedVM{VM: wholeVM(v)}}
	out.Body.Routes, _ = h.routesOf(ctx, v.ID) // the VM is made, also if the database does not answer now
	return out, nil
}

// routesOf returns the routes to a VM. They are not part of what the VM's ETag is made
// of, but a change of one is a change of the VM.
func (h *vmHandlers) routesOf(ctx context.Context, id string) ([]api.Route, error) {
	routes, err := h.leading.Of(ctx, scope(ctx), id)
	var shown []api.Route
	for _, r := range routes {
		shown = append(shown, shownRoute(h.leading, r))
	}
	return shown, err
}

// replay answers with the VMs that an earlier create has made, and waits for them as
// the request says.
func (h *vmHandlers) replay(ctx context.Context, in *createVMInput, made []string) (*createVMOutput, error) {
	clones, err := h.earlier(ctx, in.WaitInput, made)
	if err != nil {
		return nil, err
	}
	first := clones.VMs[0]
	out := &createVMOutput{Location: "/vms/" + first.ID, Body: api.CreatedVM{VM: wholeVM(first)}}
	if in.Body != nil && in.Body.Count != nil {
		out.Body.VMs, out.Body.Failed = wholeVMs(clones.VMs), h.failures(ctx, clones.Failed)
	}
	out.Body.Routes, _ = h.routesOf(ctx, first.ID)
	return out, nil
}

// earlier returns the VMs that an earlier request has made, as they are now. Failed has
// those that do not exist any more; it is an error if none is left.
func (h *vmHandlers) earlier(ctx context.Context, in WaitInput, made []string) (clones vm.Clones, err error) {
	for _, id := range made {
		v, failed := h.untilWaited(ctx, in, func(ctx context.Context) (vm.VM, error) {
			v, err := h.vms.AwaitCreated(ctx, scope(ctx), id)
			v.ID = cmp.Or(v.ID, id)
			return v, err
		})
		switch {
		case failed == nil:
			clones.VMs = append(clones.VMs, v)
			continue
		case errs.Is(failed, errs.NotFound):
			clones.Failed = append(clones.Failed, idempotency.Gone(id))
		default:
			clones.Failed = append(clones.Failed, failed)
		}
		err = failed
	}
	if len(clones.VMs) > 0 {
		err = nil
	}
	return clones, err
}

// serverTiming returns a Server-Timing header with the duration of each step of a
// start. The machine step is the VMM's start.
func serverTiming(steps []vm.Step) string {
	parts := make([]string, 0, len(steps))
	for _, s := range steps {
		parts = append(parts, fmt.Sprintf("%s;dur=%.3f", s.Name, float64(s.Took.Microseconds())/1000))
	}
	return strings.Join(parts, ", ")
}

// createRequest decodes values that JSON has no types for. The service validates them.
func (h *vmHandlers) createRequest(ctx context.Context, body api.CreateVM) (vm.CreateRequest, error) {
	given, err := h.overrides(ctx, body.MachineSpec, body.ExpiresAt)
	req := vm.CreateRequest{Overrides: given, TemplateID: body.TemplateID, Name: body.Name}
	if err != nil {
		return req, err
	}
	req.Driver = body.VMM
	req.Rights = callerOf(ctx).Rights
	if req.Routes, err = routeSpecs(h.leading, body.Routes); err != nil {
		return req, err
	}
	if req.Address, err = parseGuestIP(body.GuestIP); err != nil {
		return req, err
	}
	req.MAC, err = parseGuestMAC(body.GuestMAC)
	return req, err
}

func parseGuestIP(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil || !addr.Is4() {
		return netip.Addr{}, errs.InvalidField("guest_ip", "%q is not an IPv4 address, such as 172.16.0.10", errs.Brief(s))
	}
	return addr, nil
}

func parseGuestMAC(s string) (net.HardwareAddr, error) {
	if s == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return nil, errs.InvalidField("guest_mac", "%q is not a MAC address of six bytes, such as 02:FC:00:00:00:0A", errs.Brief(s))
	}
	return mac, nil
}

type listVMsInput struct {
	Limit int      `query:"limit" minimum:"1" maximum:"1000" default:"1000" doc:"VMs on a page."`
	State string   `query:"state" enum:"starting,running,stopping,stopped,snapshotted,error,paused" doc:"Only VMs in this state."`
	Name  string   `query:"name" maxLength:"63" doc:"Only the VM of this name."`
	Label []string `query:"label,explode" maxItems:"64" nullable:"false" doc:"KEY=VALUE: only VMs with this label; KEY: with this label, of any value; KEY!=VALUE: without it, or with another value. May be given several times, and all must hold."`
	After string   `query:"after" maxLength:"64" doc:"Only VMs after this one in the list; the Link header has it."`
}

type listVMsOutput struct {
	ContentType string `header:"Content-Type" hidden:"true"`
	Link        string `header:"Link" doc:"The next page, rel=\"next\"; absent on the last."`
	Body        []byte // an array of VMs
}

func (h *vmHandlers) list(ctx context.Context, in *listVMsInput) (*listVMsOutput, error) {
	f := vm.Filter{State: vm.State(in.State), Name: in.Name, Limit: in.Limit, After: in.After}
	if err := addLabels(&f, in.Label); err != nil {
		return nil, err
	}
	page, next, err := h.vms.List(ctx, scope(ctx), f)
	if err != nil {
		return nil, err
	}
	out := &listVMsOutput{ContentType: "application/json"}
	if out.Body, err = h.encoded.list(page, h.use); err != nil {
		return nil, err
	}
	if next != "" {
		out.Link = in.nextPage(next)
	}
	return out, nil
}

// addLabels adds the conditions on labels to a filter.
func addLabels(f *vm.Filter, given []string) error {
	f.Labels = make(map[string]string, len(given))
	for _, s := range given {
		key, value, hasValue := strings.Cut(s, "=")
		plain, negated := strings.CutSuffix(key, "!")
		negated = negated && hasValue
		if negated {
			key = plain
		}
		if key == "" {
			return errs.InvalidField("label", "%q is not KEY=VALUE, KEY or KEY!=VALUE", errs.Brief(s))
		}
		earlier, twice := f.Labels[key]
		switch {
		case negated:
			f.NotLabels = append(f.NotLabels, vm.Label{Key: key, Value: value})
		case !hasValue:
			f.HasLabels = append(f.HasLabels, key)
		case twice && earlier != value:
			return errs.InvalidField("label", "%q has two values", errs.Brief(key))
		default:
			f.Labels[key] = value
		}
	}
	return nil
}

// nextPage returns the Link header to the next page.
func (in *listVMsInput) nextPage(after string) string {
	q := url.Values{"limit": {strconv.Itoa(in.Limit)}, "after": {after}}
	if in.State != "" {
		q.Set("state", in.State)
	}
	if in.Name != "" {
		q.Set("name", in.Name)
	}
	for _, label := range in.Label {
		q.Add("label", label)
	}
	return "</vms?" + q.Encode() + `>; rel="next"`
}

// ConditionalIDPath is IDPath for routes that obey conditions. It is exported for huma,
// which ignores unexported embedded structs.
type ConditionalIDPath struct {
	IDPath
	Conditions
}

func (h *vmHandlers) get(ctx context.Context, in *ConditionalIDPath) (*tagged[api.VM], error) {
	v, err := h.vms.Get(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	out, err := withTag(in.Conditions, wholeVM(v), v.UpdatedAt)
	if err == nil {
		out.Body.Use = h.use(v)
		out.Body.Routes, err = h.routesOf(ctx, v.ID)
	}
	return out, err
}

type patchInput struct {
	IDPath
	Patch
}

func (h *vmHandlers) update(ctx context.Context, in *patchInput) (*tagged[api.VM], error) {
	routes, err := h.routesOf(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	now := vm.Now()
	may := append([]string{"name", "description", "labels", "vcpu_count", "mem_mib", "ports", "implicit_routes"}, idleFields...)
	v, err := h.vms.Update(ctx, scope(ctx), in.ID, func(v *vm.VM) error {
		shown := wholeVM(*v)
		if err := in.allowObject(shown, v.UpdatedAt); err != nil {
			return err
		}
		shown.Routes = routes // for clients that send back what they have read
		after, err := patched[api.UpdateVM](h.door, shown, in.RawBody, may, fixedFields)
		if err != nil {
			return err
		}
		v.Name, v.Description, v.Labels, v.VCPUs, v.MemMiB = after.Name, after.Description, after.Labels, after.VCPUCount, after.MemMiB
		v.ImplicitRoutes = hostroute.ServersChoice
		if decided := implicitRoutes(after.ImplicitRoutes); decided != nil {
			v.ImplicitRoutes = *decided
		}
		if v.Ports, err = changedPorts(ctx, *v, after.Ports); err != nil {
			return err
		}
		return h.idlePatch(v, in.RawBody, shown, after, now)
	})
	if err != nil {
		return nil, err
	}
	out, err := withTag(Conditions{}, wholeVM(v), v.UpdatedAt)
	if err == nil {
		out.Body.Routes = routes
	}
	return out, err
}

// fixedFields says why some fields of a VM cannot be changed.
var fixedFields = map[string]string{
	"hostname":            "it is the guest's own; change it in the guest",
	"disk_mib":            "a disk keeps its size",
	"image_id":            "the VM's disk belongs to its image",
	"boot_args":           "it is decided when the VM is created",
	"template_id":         "it is decided when the VM is created",
	"vmm":                 "it is decided when the VM is created",
	"enable_network":      "it is decided when the VM is created",
	"guest_ip":            "it is decided when the VM is created",
	"guest_mac":           "it is decided when the VM is created",
	"rate_limits":         "they are decided when the VM is created",
	"user_data":           "cloud-init has applied it; clone the VM with other user data",
	"ssh_authorized_keys": "cloud-init has applied them; change them in the guest",
	"ssh_host_keys":       "they are the guest's own; change them in the guest",
	"state":               "it follows from operations; POST /vms/{id}/start, for example",
	"routes":              "POST /vms/{id}/routes makes one, and PATCH /routes/{id} changes it",
	"snapshot_id":         "POST /vms/{id}/restore puts the VM back to a snapshot",
}

func (h *vmHandlers) delete(ctx context.Context, in *ConditionalIDPath) (*answer[api.Deleted], error) {
	err := h.vms.DeleteIf(ctx, scope(ctx), in.ID, func(v vm.VM) error { return in.allowObject(wholeVM(v), v.UpdatedAt) })
	if err != nil {
		return nil, err
	}
	return deleted(), nil
}

type powerInput struct {
	IDPath
	WaitInput
}

func (h *vmHandlers) start(ctx context.Context, in *powerInput) (*answer[api.VM], error) {
	return shown(h.untilWaited(ctx, in.WaitInput, func(ctx context.Context) (vm.VM, error) {
		v, err := h.vms.Start(ctx, scope(ctx), in.ID)
		v.ID = cmp.Or(v.ID, in.ID)
		return v, err
	}))
}

func (h *vmHandlers) restart(ctx context.Context, in *powerInput) (*answer[api.VM], error) {
	return shown(h.untilWaited(ctx, in.WaitInput, func(ctx context.Context) (vm.VM, error) {
		v, err := h.vms.Restart(ctx, scope(ctx), in.ID)
		v.ID = cmp.Or(v.ID, in.ID)
		return v, err
	}))
}

type stopInput struct {
	IDPath
	Timeout string `query:"timeout" maxLength:"32" doc:"How long to wait for the guest before the VM is killed, such as 90s; 0s kills it at once; at most 10m. Defaults to HATCH_STOP_TIMEOUT."`
}

func (h *vmHandlers) stop(ctx context.Context, in *stopInput) (*answer[api.VM], error) {
	var timeout *time.Duration
	if in.Timeout != "" {
		given, err := time.ParseDuration(in.Timeout)
		if err != nil || given < 0 || given > vm.MaxWait {
			return nil, errs.InvalidField("timeout", "%q is not a timeout: want 0s to 10m, such as 90s or 1m30s", errs.Brief(in.Timeout))
		}
		timeout = &given
	}
	return shown(h.vms.Stop(ctx, scope(ctx), in.ID, timeout))
}

func (h *vmHandlers) pause(ctx context.Context, in *IDPath) (*answer[api.VM], error) {
	return shown(h.vms.Pause(ctx, scope(ctx), in.ID))
}

func (h *vmHandlers) resume(ctx context.Context, in *IDPath) (*answer[api.VM], error) {
	return shown(h.vms.Resume(ctx, scope(ctx), in.ID))
}

// shown returns the answer with one VM.
func shown(v vm.VM, err error) (*answer[api.VM], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.VM]{Body: wholeVM(v)}, nil
}
