package httpapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

const createText = `Create and start a new microVM. Every field is optional, and so is the body.

` + waitText + `

With snapshot_id the VM goes on from a snapshot in place of booting, and with count several do, each with a hostname, an address and a MAC of its own. The answer comes once they run as themselves. When wait_timeout passes before that, it is 503 with code still_working; they go on being made, and GET /vms shows them.

With an Idempotency-Key the same request may be sent again: it returns the VM that the first one made.`

type createVMInput struct {
	WaitInput
	IdempotencyKey string `header:"Idempotency-Key" doc:"1 to 255 visible ASCII characters. The same key and body return the same VM; the same key with another body is refused."`
	Body           *api.CreateVM
}

type createVMOutput struct {
	Location     string `header:"Location" doc:"The path of the new object."`
	ServerTiming string `header:"Server-Timing" doc:"How long each step of the start took, in milliseconds."`
	Body         api.CreatedVM
}

func (d *door) createVM(ctx context.Context, in *createVMInput) (*createVMOutput, error) {
	body := api.CreateVM{}
	if in.Body != nil {
		body = *in.Body
	}
	if body.SnapshotID != "" {
		return d.createFrom(ctx, in)
	}
	if body.Count != nil {
		return nil, errs.InvalidField("count", "it goes with snapshot_id only").
			WithHint("POST /vms once for each VM, or take a snapshot of one and make the others from it")
	}
	req, err := createRequest(body)
	if err != nil {
		return nil, err
	}
	if req.Idempotency, err = idempotency(in.IdempotencyKey, body); err != nil {
		return nil, err
	}
	var took []vm.Step
	v, err := d.untilWaited(ctx, in.WaitInput, func(ctx context.Context) (vm.VM, error) {
		v, err := d.VMs.Create(ctx, owner(ctx), req)
		took = v.Took
		return v, err
	})
	if err != nil {
		return nil, err
	}
	return &createVMOutput{Location: "/vms/" + v.ID, ServerTiming: serverTiming(took), Body: api.CreatedVM{VM: wholeVM(v)}}, nil
}

// serverTiming says how long each step of a start took, as the Server-Timing
// header has it. The machine step is the VMM's own start; the others are ours.
func serverTiming(steps []vm.Step) string {
	parts := make([]string, 0, len(steps))
	for _, s := range steps {
		parts = append(parts, fmt.Sprintf("%s;dur=%.3f", s.Name, float64(s.Took.Microseconds())/1000))
	}
	return strings.Join(parts, ", ")
}

// createRequest decodes the formats that JSON has no words for. What the
// values mean is checked by the service.
func createRequest(body api.CreateVM) (vm.CreateRequest, error) {
	req := vm.CreateRequest{
		ImageID: body.ImageID, TemplateID: body.TemplateID,
		VCPUs: body.VCPUCount, MemMiB: body.MemMiB, DiskMiB: body.DiskMiB,
		BootArgs: body.BootArgs, EnableNetwork: body.EnableNetwork, UserData: body.UserData,
		Name: body.Name, Labels: body.Labels, SSHKeys: body.SSHAuthorizedKeys, Driver: body.VMM,
		RateLimits: rateLimits(body.RateLimits),
	}
	var err error
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

// idempotency ties key to the body as it was understood, so that the order of
// fields and white space do not count.
func idempotency(key string, body api.CreateVM) (vm.Idempotency, error) {
	if key == "" {
		return vm.Idempotency{}, nil
	}
	if len(key) > vm.MaxIdempotency || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return vm.Idempotency{}, errs.New(errs.Invalid, "invalid_idempotency_key",
			"Idempotency-Key: 1 to %d visible ASCII characters can be given", vm.MaxIdempotency).WithField("Idempotency-Key")
	}
	canonical, err := json.Marshal(body)
	if err != nil {
		return vm.Idempotency{}, err
	}
	hash := sha256.Sum256(canonical)
	return vm.Idempotency{Key: key, Hash: hex.EncodeToString(hash[:])}, nil
}

type listVMsInput struct {
	Limit int      `query:"limit" minimum:"1" maximum:"1000" default:"1000" doc:"VMs on a page."`
	State string   `query:"state" enum:"starting,running,stopping,stopped,snapshotted,error,paused" doc:"Only VMs in this state."`
	Name  string   `query:"name" maxLength:"63" doc:"Only the VM of this name."`
	Label []string `query:"label,explode" maxItems:"64" nullable:"false" doc:"KEY=VALUE; only VMs with this label. May be given several times."`
	After string   `query:"after" maxLength:"64" doc:"Only VMs after this one in the list; the Link header has it."`
}

type listVMsOutput struct {
	ContentType string `header:"Content-Type" hidden:"true"`
	Link        string `header:"Link" doc:"The next page, rel=\"next\"; absent on the last."`
	Body        []byte // an array of VMs
}

func (d *door) listVMs(ctx context.Context, in *listVMsInput) (*listVMsOutput, error) {
	labels, err := parseLabels(in.Label)
	if err != nil {
		return nil, err
	}
	page, next, err := d.VMs.List(ctx, owner(ctx), vm.Filter{
		State: vm.State(in.State), Name: in.Name, Labels: labels, Limit: in.Limit, After: in.After,
	})
	if err != nil {
		return nil, err
	}
	out := &listVMsOutput{ContentType: "application/json", Body: encodeList(page)}
	if next != "" {
		out.Link = in.nextPage(next)
	}
	return out, nil
}

func encodeList(page []vm.VM) []byte {
	const usual = 1024 // bytes of one VM
	b := append(make([]byte, 0, len(page)*usual+4), '[')
	for i := range page {
		if i > 0 {
			b = append(b, ',')
		}
		v := listedVM(page[i])
		b = appendVM(b, &v)
	}
	return append(b, "]\n"...)
}

func parseLabels(given []string) (map[string]string, error) {
	if len(given) == 0 {
		return nil, nil
	}
	labels := make(map[string]string, len(given))
	for _, s := range given {
		key, value, found := strings.Cut(s, "=")
		if !found || key == "" {
			return nil, errs.InvalidField("label", "%q is not KEY=VALUE", errs.Brief(s))
		}
		if earlier, twice := labels[key]; twice && earlier != value {
			return nil, errs.InvalidField("label", "%q is asked to have two values", errs.Brief(key))
		}
		labels[key] = value
	}
	return labels, nil
}

// nextPage returns the Link header that leads on from the page.
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

func (d *door) getVM(ctx context.Context, in *IDPath) (*answer[api.VM], error) {
	return shown(d.VMs.Get(ctx, owner(ctx), in.ID))
}

func (d *door) deleteVM(ctx context.Context, in *IDPath) (*answer[api.Deleted], error) {
	if err := d.VMs.Delete(ctx, owner(ctx), in.ID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

type powerInput struct {
	IDPath
	WaitInput
}

func (d *door) startVM(ctx context.Context, in *powerInput) (*answer[api.VM], error) {
	return shown(d.untilWaited(ctx, in.WaitInput, func(ctx context.Context) (vm.VM, error) {
		v, err := d.VMs.Start(ctx, owner(ctx), in.ID)
		v.ID = cmp.Or(v.ID, in.ID)
		return v, err
	}))
}

func (d *door) restartVM(ctx context.Context, in *powerInput) (*answer[api.VM], error) {
	return shown(d.untilWaited(ctx, in.WaitInput, func(ctx context.Context) (vm.VM, error) {
		v, err := d.VMs.Restart(ctx, owner(ctx), in.ID)
		v.ID = cmp.Or(v.ID, in.ID)
		return v, err
	}))
}

func (d *door) stopVM(ctx context.Context, in *IDPath) (*answer[api.VM], error) {
	return shown(d.VMs.Stop(ctx, owner(ctx), in.ID))
}

func (d *door) pauseVM(ctx context.Context, in *IDPath) (*answer[api.VM], error) {
	return shown(d.VMs.Pause(ctx, owner(ctx), in.ID))
}

func (d *door) resumeVM(ctx context.Context, in *IDPath) (*answer[api.VM], error) {
	return shown(d.VMs.Resume(ctx, owner(ctx), in.ID))
}

// shown makes the answer about one VM.
func shown(v vm.VM, err error) (*answer[api.VM], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.VM]{Body: wholeVM(v)}, nil
}
