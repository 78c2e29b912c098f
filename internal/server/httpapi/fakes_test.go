package httpapi_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/server/httpapi"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/lifecycle"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/warm"
	"github.com/hatchvm/hatch/internal/webhook"
)

const (
	goodKey    = "hk_good"
	otherKey   = "hk_other"
	readerKey  = "hk_reader"  // of the good account
	creatorKey = "hk_creator" // of the good account, to create VMs and templates

	auditorKey = "hk_auditor" // of an admin, for the audit log only
	goodAcc    = "acc_good"
	knownVM    = "vm_known0000000"
)

var began = time.Date(2026, 3, 6, 12, 0, 0, 123456789, time.FixedZone("CET", 3600))

// sampleVM has every field set.
func sampleVM(id string) vm.VM {
	return vm.VM{
		ID: id, OwnerID: goodAcc, Name: "web",
		Spec: machine.Spec{
			ImageID: "img_default", TemplateID: "tpl_1", VCPUs: 2, MemMiB: 1024, DiskMiB: 2048, BootArgs: "quiet", EnableNetwork: true,
			UserData: "#!/bin/sh\necho <hidden>", SSHKeys: []string{"ssh-ed25519 AAAA me"}, Labels: map[string]string{"env": "test"}, Driver: "fake",
		},
		Intent: vm.IntentRunning, State: vm.Running, StateReason: "all well",
		Conditions: vm.Conditions{
			BootID: "b", Agent: vm.Condition{Status: vm.True, Reason: "Connected", ChangedAt: began},
			SSH: vm.SSHServer{Certificates: true, HostKeys: []string{someKey}},
		},
		Lease: network.Lease{
			Address: netip.MustParseAddr("172.16.0.10"), MAC: net.HardwareAddr{0x02, 0xfc, 0, 0, 0, 0x0a},
			Tap: "tap0", SSHPort: 16001, UID: 70001,
		},
		Machine: &vmm.Handle{Socket: "/run/secret.sock"}, SnapshotID: "snap_1",
		CreatedAt: began, UpdatedAt: began, StartedAt: new(began),
	}
}

// fakeVMs knows one VM of goodAcc's and notes what it was asked.
type fakeVMs struct {
	mu      sync.Mutex
	asked   []string
	idle    machine.IdlePolicy
	expiry  machine.Expiry
	change  func(*vm.VM) // unless nil, changes the VM that is shown
	updated vm.VM
	request vm.CreateRequest
	filter  vm.Filter
	taken   vm.SnapshotRequest
	cloned  vm.CloneRequest
	from    string // the snapshot that was asked for
	failed  []error
	unfit   error
	want    vm.WaitFor
	all     []vm.VM
	next    string

	requests *fakeRequests

	start   func(ctx context.Context) (vm.VM, error)
	create  func(ctx context.Context) (vm.VM, error)
	wait    func(ctx context.Context) (vm.VM, error)
	log     func(ctx context.Context, tail int, follow bool, w io.Writer) error
	query   vm.LogQuery // of the last console log
	console func(readOnly bool) (io.ReadWriteCloser, error)
	metrics func(vm.VM) vm.Metrics
}

func (f *fakeVMs) note(verb string, scope access.Scope, id string) (vm.VM, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, verb)
	if scope != access.Owner(goodAcc) || id != knownVM {
		return vm.VM{}, errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", id)
	}
	v := sampleVM(id)
	v.Idle, v.Expiry = f.idle, f.expiry
	if f.change != nil {
		f.change(&v)
	}
	return v, nil
}

func (f *fakeVMs) Create(ctx context.Context, owner string, req vm.CreateRequest) (vm.VM, error) {
	f.mu.Lock()
	f.request = req
	f.mu.Unlock()
	if f.create != nil {
		return f.create(ctx)
	}
	if err := f.requests.Remember(ctx, knownVM); err != nil {
		return vm.VM{}, err
	}
	return f.note("create", access.Owner(owner), knownVM)
}

func (f *fakeVMs) AwaitCreated(_ context.Context, scope access.Scope, id string) (vm.VM, error) {
	return f.note("await created", scope, id)
}

func (f *fakeVMs) List(_ context.Context, scope access.Scope, filter vm.Filter) ([]vm.VM, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.filter = filter
	if scope != access.Owner(goodAcc) {
		return nil, "", nil
	}
	return f.all, f.next, nil
}

func (f *fakeVMs) Get(_ context.Context, scope access.Scope, id string) (vm.VM, error) {
	return f.note("get", scope, id)
}

func (f *fakeVMs) Start(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	if f.start != nil {
		return f.start(ctx)
	}
	return f.note("start", scope, id)
}

func (f *fakeVMs) Stop(_ context.Context, scope access.Scope, id string, timeout *time.Duration) (vm.VM, error) {
	if timeout != nil {
		return f.note("stop within "+timeout.String(), scope, id)
	}
	return f.note("stop", scope, id)
}

func (f *fakeVMs) Restart(_ context.Context, scope access.Scope, id string) (vm.VM, error) {
	return f.note("restart", scope, id)
}

func (f *fakeVMs) AwaitDurable(_ context.Context, scope access.Scope, id string) (vm.VM, error) {
	return f.note("await durable", scope, id)
}

func (f *fakeVMs) Sleep(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return f.Pause(ctx, scope, id)
}

func (f *fakeVMs) Wake(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return f.Start(ctx, scope, id)
}

func (f *fakeVMs) Snapshot(_ context.Context, scope access.Scope, id string, req vm.SnapshotRequest) (snapshot.Snapshot, error) {
	f.taken = req
	_, err := f.note("snapshot", scope, id)
	return sampleSnapshot(), err
}

func (f *fakeVMs) Restore(ctx context.Context, scope access.Scope, id, snapshotID string) (vm.VM, error) {
	f.from = snapshotID
	return f.Start(ctx, scope, id)
}

func (f *fakeVMs) Fork(_ context.Context, owner, id string, req vm.CloneRequest) (vm.Clones, error) {
	f.cloned = req
	v, err := f.note("fork", access.Owner(owner), id)
	return vm.Clones{VMs: []vm.VM{v}, Failed: f.failed}, err
}

func (f *fakeVMs) CreateFrom(ctx context.Context, owner, snapshotID string, req vm.CloneRequest) (vm.Clones, error) {
	f.from = snapshotID
	return f.Fork(ctx, owner, knownVM, req)
}

func (f *fakeVMs) Fits(snapshot.Snapshot) error { return f.unfit }

func (f *fakeVMs) Pause(_ context.Context, scope access.Scope, id string) (vm.VM, error) {
	return f.note("pause", scope, id)
}

func (f *fakeVMs) Resume(_ context.Context, scope access.Scope, id string) (vm.VM, error) {
	return f.note("resume", scope, id)
}

func (f *fakeVMs) Update(_ context.Context, scope access.Scope, id string, change func(*vm.VM) error) (vm.VM, error) {
	v, err := f.note("update", scope, id)
	if err == nil {
		err = change(&v)
	}
	f.updated = v
	return v, err
}

func (f *fakeVMs) DeleteIf(_ context.Context, scope access.Scope, id string, check func(vm.VM) error) error {
	v, err := f.note("delete", scope, id)
	if err != nil {
		return err
	}
	return check(v)
}

func (f *fakeVMs) Wait(ctx context.Context, scope access.Scope, id string, want vm.WaitFor) (vm.VM, error) {
	f.mu.Lock()
	f.want = want
	f.mu.Unlock()
	if f.wait != nil {
		return f.wait(ctx)
	}
	return f.note("wait", scope, id)
}

func (f *fakeVMs) Metrics(_ context.Context, scope access.Scope, id string) (vm.Metrics, error) {
	v, err := f.note("metrics", scope, id)
	if f.metrics != nil && err == nil {
		return f.metrics(v), nil
	}
	return vm.Metrics{VM: v}, err
}

func (f *fakeVMs) Log(ctx context.Context, scope access.Scope, id string, q vm.LogQuery, w io.Writer) error {
	f.query = q
	if _, err := f.note("log", scope, id); err != nil {
		return err
	}
	if f.log != nil {
		return f.log(ctx, q.Tail, q.Follow, w)
	}
	_, err := io.WriteString(w, "Linux version\n")
	return err
}

func (f *fakeVMs) VMMLog(_ context.Context, scope access.Scope, id string, tail int, follow bool, w io.Writer) error {
	if _, err := f.note("vmm log", scope, id); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "qemu: %d lines, follow %v\n", tail, follow)
	return err
}

func (f *fakeVMs) Console(_ context.Context, scope access.Scope, id string, readOnly bool) (io.ReadWriteCloser, error) {
	if _, err := f.note("console", scope, id); err != nil {
		return nil, err
	}
	return f.console(readOnly)
}

func (f *fakeVMs) Tunnel(_ context.Context, scope access.Scope, id string, port int) (vm.PortConn, error) {
	if _, err := f.note("tunnel", scope, id); err != nil {
		return nil, err
	}
	return nil, errs.New(errs.Unavailable, "port_closed", "port %d accepts no connections", port)
}

func (f *fakeVMs) askedFor(verb string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.asked, verb)
}

func (f *fakeVMs) ShapeFor(_ context.Context, owner string, req vm.CreateRequest) (vm.Shape, error) {
	f.request = req
	_, err := f.note("shape", access.Owner(owner), knownVM)
	return vm.Shape{Shape: machine.Shape{ImageID: req.ImageID, VCPUs: 1, MemMiB: *first(req.MemMiB, new(512)), DiskMiB: 1024, EnableNetwork: true}}, err
}

func first[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// fakeWarm keeps every guest that a test asks for, and one that could not be booted.
type fakeWarm struct {
	kept      []warm.Entry
	forgotten []string
	err       error // of Keep
}

func (f *fakeWarm) Keep(_ context.Context, shape vm.Shape) error {
	f.kept = append(f.kept, warm.Entry{Shape: shape, State: warm.Building, At: began})
	return f.err
}

func (f *fakeWarm) List(_ context.Context, imageID string) ([]warm.Entry, error) {
	failed := warm.Entry{Shape: vm.Shape{Shape: machine.Shape{ImageID: imageID, MemMiB: 64}}, State: warm.Failed, Reason: "it has panicked", At: began}
	return append([]warm.Entry{failed}, f.kept...), nil
}

func (f *fakeWarm) Forget(_ context.Context, imageID string) error {
	f.forgotten = append(f.forgotten, imageID)
	return nil
}

// fakeImages knows img_default, and one build.
type fakeImages struct {
	registered image.Registration
	recipe     string
	force      bool
}

func sampleImage() image.Image {
	return image.Image{
		ID: "img_default", OwnerID: goodAcc, Name: "debian",
		Kernel:        image.File{Path: "/k/vmlinuz", Digest: "sha256:aa", Size: 1, ModTime: began},
		KernelVersion: "6.1.0", ModulesPath: "/k/modules",
		Rootfs:       image.File{Path: "/k/root", Digest: "sha256:bb", Size: 2, ModTime: began},
		RootfsFormat: "ext4", DiskMode: image.DiskOverlay, CloudInit: true, CreatedAt: began,
	}
}

func (f *fakeImages) Register(_ context.Context, _ string, r image.Registration) (image.Image, error) {
	f.registered = r
	return sampleImage(), nil
}

func (f *fakeImages) Get(_ context.Context, scope access.Scope, id string) (image.Image, error) {
	if !scope.Sees(goodAcc) || id != "img_default" {
		return image.Image{}, errs.New(errs.NotFound, "image_not_found", "there is no image %q", id)
	}
	return sampleImage(), nil
}

func (f *fakeImages) Share(ctx context.Context, scope access.Scope, id string, change func(*access.Sharing) error) (image.Image, error) {
	i, err := f.Get(ctx, scope, id)
	if err == nil {
		err = change(&i.Sharing)
	}
	return i, err
}

func (f *fakeImages) List(context.Context, access.Scope) ([]image.Image, error) {
	return []image.Image{sampleImage()}, nil
}

func (f *fakeImages) Delete(ctx context.Context, scope access.Scope, id string, forget func(context.Context, string) error) error {
	if _, err := f.Get(ctx, scope, id); err != nil {
		return err
	}
	return forget(ctx, id)
}

func (f *fakeImages) StartBuild(_ context.Context, _, recipe string, force bool) (image.Build, error) {
	f.recipe, f.force = recipe, force
	return image.Build{ID: "bld_1", Recipe: recipe, State: "running", StartedAt: began}, nil
}

func (f *fakeImages) Build(_ context.Context, scope access.Scope, id string) (image.Build, error) {
	if scope != access.Owner(goodAcc) || id != "bld_1" {
		return image.Build{}, errs.New(errs.NotFound, "build_not_found", "there is no build %q", id)
	}
	return image.Build{ID: id, Recipe: "debian", State: "done", ImageID: "img_default", StartedAt: began, FinishedAt: new(began)}, nil
}

func (f *fakeImages) BuildLog(_ context.Context, _ access.Scope, _ string, _ bool, w io.Writer) error {
	_, err := io.WriteString(w, "unpacking\n")
	return err
}

// fakeTemplates knows tpl_1.
type fakeTemplates struct {
	made     template.Template
	requests *fakeRequests
}

func sampleTemplate() template.Template {
	return template.Template{
		ID: "tpl_1", OwnerID: goodAcc, Name: "small",
		Overrides: machine.Overrides{Description: new("few"), MemMiB: new(256), UserData: new("hidden"), EnableNetwork: new(false)},
		CreatedAt: began, UpdatedAt: began,
	}
}

func (f *fakeTemplates) Create(ctx context.Context, _ string, t template.Template) (template.Template, error) {
	f.made = t
	return sampleTemplate(), f.requests.Remember(ctx, "tpl_1")
}

func (f *fakeTemplates) Template(_ context.Context, scope access.Scope, id string) (template.Template, error) {
	if !scope.Sees(goodAcc) || id != "tpl_1" {
		return template.Template{}, errs.New(errs.NotFound, "template_not_found", "there is no template %q", id)
	}
	return sampleTemplate(), nil
}

func (f *fakeTemplates) List(context.Context, access.Scope) ([]template.Template, error) {
	return []template.Template{sampleTemplate()}, nil
}

func (f *fakeTemplates) Update(ctx context.Context, scope access.Scope, id string, change func(*template.Template) error) (template.Template, error) {
	t, err := f.Template(ctx, scope, id)
	if err == nil {
		err = change(&t)
	}
	f.made = t
	return t, err
}

func (f *fakeTemplates) Delete(ctx context.Context, scope access.Scope, id string, check func(template.Template) error) error {
	t, err := f.Template(ctx, scope, id)
	if err != nil {
		return err
	}
	return check(t)
}

// fakeSnapshots knows snap_1, by the name golden too.
type fakeSnapshots struct {
	filter snapshot.Filter
	none   bool
}

func sampleSnapshot() snapshot.Snapshot {
	v := sampleVM(knownVM)
	v.Spec.Hostname = v.Hostname()
	return snapshot.Snapshot{
		ID: "snap_1", OwnerID: goodAcc, VMID: knownVM, Name: "golden", Kind: snapshot.Manual, ParentID: "snap_0", Durable: true, Bytes: 4096,
		VM: snapshot.Origin{
			Spec: v.Spec, MAC: v.Lease.MAC, Address: v.Lease.Address,
		},
		Machine:   snapshot.Machine{Driver: "qemu", Version: "7.2.9", Accel: "kvm", CPU: "Some CPU"},
		Sums:      snapshot.Sums{Devices: "sha256:d", Memory: "sha256:m", Disk: "sha256:k"},
		CreatedAt: began,
	}
}

func (f *fakeSnapshots) Get(_ context.Context, scope access.Scope, idOrName string) (snapshot.Snapshot, error) {
	if scope != access.Owner(goodAcc) || idOrName != "snap_1" && idOrName != "golden" {
		return snapshot.Snapshot{}, errs.New(errs.NotFound, "snapshot_not_found", "there is no snapshot %q", idOrName)
	}
	return sampleSnapshot(), nil
}

func (f *fakeSnapshots) List(_ context.Context, scope access.Scope, filter snapshot.Filter) ([]snapshot.Snapshot, error) {
	f.filter = filter
	if f.none || scope != access.Owner(goodAcc) || filter.VMID != "" && filter.VMID != knownVM {
		return nil, nil
	}
	return []snapshot.Snapshot{sampleSnapshot()}, nil
}

func (f *fakeSnapshots) Delete(ctx context.Context, scope access.Scope, idOrName string) error {
	_, err := f.Get(ctx, scope, idOrName)
	return err
}

// fakeEvents is a log of goodAcc's.
type fakeEvents struct {
	mu     sync.Mutex
	filter event.Filter
	log    []event.Event
	follow func(ctx context.Context, f event.Filter, send func([]event.Event, int64) error) error
}

func sampleEvent(seq int64, vmID string) event.Event {
	return event.Event{
		Seq: seq, ID: fmt.Sprintf("evt_%d", seq), OwnerID: goodAcc, VMID: vmID, VMName: "web", Type: event.VMStateChanged,
		Message: "stopped: <off>", Data: []byte(`{"from":"running","to":"stopped"}`), At: began,
		Cause: event.Cause{Actor: event.Actor{Kind: event.Key, ID: "key_good", Name: "admin"}, RequestID: "req_1"},
	}
}

func (f *fakeEvents) Page(_ context.Context, filter event.Filter) (page []event.Event, next int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.filter = filter
	for _, e := range f.log {
		if !filter.Scope.Sees(e.OwnerID) || filter.VMID != "" && e.VMID != filter.VMID || e.Seq <= filter.After {
			continue
		}
		if page = append(page, e); len(page) == filter.Limit {
			return page, e.Seq, nil
		}
	}
	return page, 0, nil
}

func (f *fakeEvents) Follow(ctx context.Context, filter event.Filter, send func([]event.Event, int64) error) error {
	return f.follow(ctx, filter, send)
}

// fakeWebhooks knows whk_1.
type fakeWebhooks struct {
	made   webhook.Webhook
	change webhook.Change
	filter webhook.Filter
}

func sampleWebhook() webhook.Webhook {
	return webhook.Webhook{
		ID: "whk_1", OwnerID: goodAcc, URL: "https://example.com", Events: []event.Pattern{"vm.*"}, Secret: "whsec_hidden",
		Description: "d", DisabledReason: "gone", CreatedAt: began, UpdatedAt: began,
	}
}

func sampleDelivery() webhook.Delivery {
	return webhook.Delivery{
		ID: "dlv_1", WebhookID: "whk_1", EventID: "evt_1", EventSeq: 1, EventType: event.VMCreated, Body: []byte("hidden"),
		State: webhook.Pending, Attempts: 2, StatusCode: 500, Error: "the receiver answered 500", NextTryAt: new(began), TriedAt: new(began), CreatedAt: began,
	}
}

func (f *fakeWebhooks) Create(_ context.Context, _ string, w webhook.Webhook) (webhook.Webhook, error) {
	f.made = w
	return sampleWebhook(), nil
}

func (f *fakeWebhooks) Get(_ context.Context, scope access.Scope, id string) (webhook.Webhook, error) {
	if scope != access.Owner(goodAcc) || id != "whk_1" {
		return webhook.Webhook{}, errs.New(errs.NotFound, "webhook_not_found", "there is no such webhook")
	}
	return sampleWebhook(), nil
}

func (f *fakeWebhooks) List(context.Context, access.Scope) ([]webhook.Webhook, error) {
	return []webhook.Webhook{sampleWebhook()}, nil
}

func (f *fakeWebhooks) Update(ctx context.Context, scope access.Scope, id string, change func(webhook.Webhook) (webhook.Change, error)) (webhook.Webhook, error) {
	w, err := f.Get(ctx, scope, id)
	if err == nil {
		f.change, err = change(w)
	}
	return w, err
}

func (f *fakeWebhooks) Delete(ctx context.Context, scope access.Scope, id string, check func(webhook.Webhook) error) error {
	w, err := f.Get(ctx, scope, id)
	if err != nil {
		return err
	}
	return check(w)
}

func (f *fakeWebhooks) Test(ctx context.Context, scope access.Scope, id string) (webhook.Delivery, error) {
	_, err := f.Get(ctx, scope, id)
	return sampleDelivery(), err
}

func (f *fakeWebhooks) Deliveries(ctx context.Context, scope access.Scope, id string, filter webhook.Filter) ([]webhook.Delivery, string, error) {
	f.filter = filter
	_, err := f.Get(ctx, scope, id)
	return []webhook.Delivery{sampleDelivery()}, "cursor", err
}

func (f *fakeWebhooks) Retry(ctx context.Context, scope access.Scope, id, deliveryID string) (webhook.Delivery, error) {
	if _, err := f.Get(ctx, scope, id); err != nil || deliveryID != "dlv_1" {
		return webhook.Delivery{}, errs.New(errs.NotFound, "delivery_not_found", "there is no such delivery")
	}
	return sampleDelivery(), nil
}

// readRights returns every right to read.
func readRights() access.Rights {
	return access.RightsOf(slices.DeleteFunc(access.EveryRight(), func(r access.Right) bool { return r.Write })...)
}

// fakeKeys is both keyring and authenticator.
type fakeKeys struct{}

// Known knows the good key; all others are looked up.
func (k fakeKeys) Known(secret string, _ netip.Addr) (access.Principal, bool) {
	if secret != goodKey {
		return access.Principal{}, false
	}
	caller, err := k.Authenticate(context.Background(), secret, netip.Addr{})
	return caller, err == nil
}

func (fakeKeys) Authenticate(_ context.Context, secret string, _ netip.Addr) (access.Principal, error) {
	switch secret {
	case goodKey:
		return access.Principal{OwnerID: goodAcc, KeyID: "key_good", KeyName: "admin", Rights: access.AllRights}, nil
	case otherKey:
		return access.Principal{OwnerID: "acc_other", KeyID: "key_other", Rights: access.AllRights}, nil
	case readerKey:
		return access.Principal{OwnerID: goodAcc, KeyID: "key_reader", Rights: readRights()}, nil
	case creatorKey:
		return access.Principal{OwnerID: goodAcc, KeyID: "key_creator", Rights: access.RightsOf(access.Write(access.VMs), access.Write(access.Templates))}, nil
	case auditorKey:
		return access.Principal{OwnerID: goodAcc, Role: access.RoleAdmin, KeyID: "key_auditor", Rights: access.RightsOf(access.Read(access.Audit))}, nil
	case "hk_broken":
		return access.Principal{}, fmt.Errorf("open /var/lib/hatch/hatch.db: no such file")
	}
	return access.Principal{}, errs.New(errs.Unauthenticated, "key_unknown", "this API key is not known")
}

func (fakeKeys) Local(uint32) access.Principal {
	return access.Principal{OwnerID: access.AdminID, KeyName: "local:uid 0", Rights: access.AllRights}
}

func (fakeKeys) Watch(ctx context.Context, _ access.Principal) (context.Context, func()) {
	return ctx, func() {}
}

func (fakeKeys) CreateKey(_ context.Context, caller access.Principal, r access.NewKey) (access.Key, string, error) {
	return access.Key{ID: "key_new", OwnerID: caller.OwnerID, Name: r.Name, Note: r.Note, Hash: []byte("hash"), Prefix: "hatch_abcdef", Rights: access.RightsOf(r.Rights...), Allowed: r.Allowed, ExpiresAt: r.ExpiresAt, CreatedAt: began}, "hk_new", nil
}

func (fakeKeys) Keys(_ context.Context, scope access.Scope) ([]access.Key, error) {
	owner, all := scope.Owner()
	if all {
		owner = goodAcc
	}
	return []access.Key{{ID: "key_good", OwnerID: owner, Name: "admin", Hash: []byte("hash"), Rights: access.AllRights, CreatedAt: began, LastUsedAt: new(began)}}, nil
}

func (fakeKeys) DeleteKey(_ context.Context, _ access.Principal, id string) error {
	if !strings.HasPrefix(id, "key_") {
		return errs.New(errs.NotFound, "key_not_found", "there is no key %q", id)
	}
	return nil
}

// fakeUsers knows the user usr_1, alice.
type fakeUsers struct{}

func (fakeUsers) User(_ context.Context, idOrName string) (access.User, error) {
	if idOrName != "usr_1" && idOrName != "alice" {
		return access.User{}, errs.New(errs.NotFound, "user_not_found", "there is no such user")
	}
	return access.User{ID: "usr_1", Name: "alice", Role: access.RoleMember, CreatedAt: began, UpdatedAt: began}, nil
}

func (f fakeUsers) Users(ctx context.Context) ([]access.User, error) {
	u, err := f.User(ctx, "alice")
	return []access.User{u}, err
}

func (f fakeUsers) CreateUser(ctx context.Context, _ string, _ access.Role) (access.User, error) {
	return f.User(ctx, "alice")
}

func (f fakeUsers) UpdateUser(ctx context.Context, idOrName string, change func(*access.User) error) (access.User, error) {
	u, err := f.User(ctx, idOrName)
	if err == nil {
		err = change(&u)
	}
	return u, err
}

func (f fakeUsers) AdmitUser(ctx context.Context, name, subject string) (access.User, error) {
	u, err := f.User(ctx, "usr_a")
	u.Name, u.Subject = name, subject
	return u, err
}

func (f fakeUsers) DeleteUser(ctx context.Context, idOrName string, cascade bool) error {
	if _, err := f.User(ctx, idOrName); err != nil || cascade {
		return err
	}
	return errs.New(errs.Conflict, "user_owns_objects", "it owns vms: 1")
}

// fakeHealth returns the set health.
type fakeHealth struct{ status string }

func (f *fakeHealth) report(context.Context) api.Health {
	return api.Health{
		Status: f.status, Version: "test", VMM: "fake",
		Parts: []api.HealthPart{{Name: "database", Status: f.status, Message: "the disk is full"}},
	}
}

// The services fit the door.
var (
	_ httpapi.Machines      = (*lifecycle.Service)(nil)
	_ httpapi.Files         = (*file.Service)(nil)
	_ httpapi.Processes     = (*process.Service)(nil)
	_ httpapi.Snapshots     = (*snapshot.Service)(nil)
	_ httpapi.Images        = (*image.Service)(nil)
	_ httpapi.Templates     = (*template.Service)(nil)
	_ httpapi.Keys          = (*access.Service)(nil)
	_ httpapi.Users         = (*access.Service)(nil)
	_ httpapi.Events        = (*event.Service)(nil)
	_ httpapi.Webhooks      = (*webhook.Service)(nil)
	_ httpapi.Authenticator = (*access.Service)(nil)
)
