package e2b

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/audit"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idempotency"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	owner  = "acc_a"
	key    = "e2b_0123456789012345678901234567890123456789"
	reader = "e2b_reader"
)

// vms are VMs in memory. A create gives ids vm_000000000001 and on.
type vms struct {
	mu    sync.Mutex
	all   map[string]vm.VM
	asked []vm.CreateRequest
	fails map[string]error // by method
	told  func(vm.VM)
}

func (s *vms) fail(method string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fails[method]
}

func (s *vms) Get(_ context.Context, scope access.Scope, id string) (vm.VM, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.all[id]
	if !ok || !scope.Sees(v.OwnerID) {
		return vm.VM{}, errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", id)
	}
	return v, nil
}

func (s *vms) List(_ context.Context, scope access.Scope, f vm.Filter) (page []vm.VM, next string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.all)) {
		if v := s.all[id]; scope.Sees(v.OwnerID) && v.Labels[f.HasLabels[0]] != "" {
			page = append(page, v)
		}
	}
	return page, "", nil
}

func (s *vms) put(v vm.VM) vm.VM {
	s.mu.Lock()
	s.all[v.ID] = v
	s.mu.Unlock()
	if s.told != nil {
		s.told(v)
	}
	return v
}

func (s *vms) Create(_ context.Context, owner string, req vm.CreateRequest) (vm.VM, error) {
	if err := s.fail("Create"); err != nil {
		return vm.VM{}, err
	}
	s.mu.Lock()
	s.asked = append(s.asked, req)
	now := vm.Now().Add(time.Duration(len(s.asked)) * time.Millisecond)
	v := vm.VM{ID: fmt.Sprintf("vm_%012d", len(s.asked)), OwnerID: owner, State: vm.Running, CreatedAt: now}
	s.mu.Unlock()
	v.Spec = machine.Merge(machine.Spec{VCPUs: 2, MemMiB: 512, DiskMiB: 1024}, req.Overrides)
	v.Expiry = v.Expiry.Begun(now)
	return s.put(v), v.Check(machine.Host{CPUs: 8, MemMiB: 8192})
}

func (s *vms) AwaitCreated(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.Get(ctx, scope, id)
}

func (s *vms) CreateFrom(ctx context.Context, owner, _ string, req vm.CloneRequest) (vm.Clones, error) {
	v, err := s.Create(ctx, owner, vm.CreateRequest{Overrides: req.Overrides})
	return vm.Clones{VMs: []vm.VM{v}}, err
}

func (s *vms) Fork(ctx context.Context, owner, id string, req vm.CloneRequest) (vm.Clones, error) {
	parent, err := s.Get(ctx, access.Owner(owner), id)
	var made vm.Clones
	for range req.Count - 1 {
		v, _ := s.Create(ctx, owner, vm.CreateRequest{Overrides: machine.Overrides{Labels: parent.Labels, Sandbox: parent.Sandbox, Expiry: req.Expiry}})
		made.VMs = append(made.VMs, v)
	}
	made.Failed = []error{errs.New(errs.Exhausted, "memory_exhausted", "no memory")}
	return made, err
}

func (s *vms) Snapshot(_ context.Context, _ access.Scope, id string, req vm.SnapshotRequest) (snapshot.Snapshot, error) {
	return snapshot.Snapshot{ID: "snap_1", VMID: id, Name: req.Name, Durable: true}, nil
}

func (s *vms) change(ctx context.Context, scope access.Scope, id string, change func(*vm.VM) error) (vm.VM, error) {
	v, err := s.Get(ctx, scope, id)
	if err == nil {
		err = change(&v)
	}
	if err != nil {
		return vm.VM{}, err
	}
	return s.put(v), nil
}

func (s *vms) Update(ctx context.Context, scope access.Scope, id string, change func(*vm.VM) error) (vm.VM, error) {
	return s.change(ctx, scope, id, change)
}

func (s *vms) DeleteIf(ctx context.Context, scope access.Scope, id string, check func(vm.VM) error) error {
	v, err := s.Get(ctx, scope, id)
	if err == nil {
		err = check(v)
	}
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, id)
	}
	return err
}

func (s *vms) Wait(ctx context.Context, scope access.Scope, id string, _ vm.WaitFor) (vm.VM, error) {
	if err := s.fail("Wait"); err != nil {
		return vm.VM{}, err
	}
	return s.Get(ctx, scope, id)
}

func (s *vms) Sleep(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	if err := s.fail("Sleep"); err != nil {
		return vm.VM{}, err
	}
	return s.change(ctx, scope, id, func(v *vm.VM) error {
		v.State, v.Sleep = vm.Snapshotted, &vm.Sleep{At: vm.Now()}
		return nil
	})
}

func (s *vms) Wake(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.change(ctx, scope, id, func(v *vm.VM) error {
		v.State, v.Sleep = vm.Running, nil
		return nil
	})
}

func (s *vms) Resume(context.Context, access.Scope, string) (vm.VM, error) {
	return vm.VM{}, errors.ErrUnsupported
}

func (s *vms) Metrics(ctx context.Context, scope access.Scope, id string) (vm.Metrics, error) {
	v, err := s.Get(ctx, scope, id)
	return vm.Metrics{VM: v, CollectedAt: time.Now()}, err
}

func (s *vms) Log(_ context.Context, _ access.Scope, _ string, _ vm.LogQuery, w io.Writer) error {
	_, err := io.WriteString(w, "2026-01-02T15:04:05.123Z one\n- two\n")
	return err
}

// keys know two keys.
type keys struct{}

func (k keys) Authenticate(_ context.Context, secret string, from netip.Addr) (access.Principal, error) {
	if p, ok := k.Known(secret, from); ok {
		return p, nil
	}
	return access.Principal{}, errs.New(errs.Unauthenticated, "invalid_api_key", "the API key is not valid")
}

func (keys) Known(secret string, _ netip.Addr) (access.Principal, bool) {
	switch secret {
	case key:
		return access.Principal{OwnerID: owner, UserName: "ada", KeyID: "key_a", Rights: access.AllRights}, true
	case reader:
		return access.Principal{OwnerID: owner, KeyID: "key_r", Rights: access.RightsOf(access.Read(access.VMs))}, true
	}
	return access.Principal{}, false
}

func (keys) Watch(ctx context.Context, _ access.Principal) (context.Context, func()) {
	return ctx, func() {}
}

// nouns find one template and one image.
type (
	templates struct{}
	images    struct{}
	snapshots struct{}
	requests  struct {
		made map[string]idempotency.Request
	}
)

func (templates) Get(_ context.Context, _ access.Scope, name string) (template.Template, error) {
	if name != "web" && name != "tpl_1" {
		return template.Template{}, errs.New(errs.NotFound, "template_not_found", "none")
	}
	return template.Template{ID: "tpl_1", Name: "web"}, nil
}

func (t templates) List(ctx context.Context, scope access.Scope) ([]template.Template, error) {
	one, err := t.Get(ctx, scope, "web")
	return []template.Template{one}, err
}

func (images) Get(_ context.Context, _ access.Scope, name string) (image.Image, error) {
	if name != image.DefaultID && name != "debian" {
		return image.Image{}, errs.New(errs.NotFound, "image_not_found", "none")
	}
	return image.Image{ID: image.DefaultID, Name: "debian"}, nil
}

func (i images) List(ctx context.Context, scope access.Scope) ([]image.Image, error) {
	one, err := i.Get(ctx, scope, "debian")
	return []image.Image{one}, err
}

func (snapshots) Get(_ context.Context, _ access.Scope, name string) (snapshot.Snapshot, error) {
	if name != "snap_1" {
		return snapshot.Snapshot{}, errs.New(errs.NotFound, "snapshot_not_found", "none")
	}
	return snapshot.Snapshot{ID: "snap_1", Durable: true, VM: snapshot.Origin{Spec: machine.Spec{Sandbox: &machine.Sandbox{}}}}, nil
}

func (s snapshots) List(ctx context.Context, scope access.Scope, _ snapshot.Filter) ([]snapshot.Snapshot, error) {
	one, err := s.Get(ctx, scope, "snap_1")
	return []snapshot.Snapshot{one}, err
}

func (s snapshots) Delete(ctx context.Context, scope access.Scope, name string) error {
	_, err := s.Get(ctx, scope, name)
	return err
}

func (r *requests) Made(_ context.Context, asked idempotency.Request) ([]string, error) {
	before, ok := r.made[asked.Key]
	switch {
	case !ok:
		r.made[asked.Key] = asked
		return nil, nil
	case before != asked:
		return nil, idempotency.Reused()
	}
	return []string{"vm_000000000001"}, nil
}

// records are of the audit log.
type records []audit.Record

func (r *records) Add(one audit.Record) { *r = append(*r, one) }

// world is a door with fakes behind it.
type world struct {
	*Door
	vms    *vms
	agents []Sandbox // that requests were led to
	ports  []int
	audit  records
}

func newWorld() *world {
	w := &world{vms: &vms{all: map[string]vm.VM{}, fails: map[string]error{}}}
	w.Door = New(Config{
		VMs: w.vms, Templates: templates{}, Images: images{}, Snapshots: snapshots{}, Access: keys{}, Requests: &requests{map[string]idempotency.Request{}}, Audit: &w.audit,
		Agent: func(rw http.ResponseWriter, _ *http.Request, s Sandbox) {
			w.agents = append(w.agents, s)
			rw.WriteHeader(http.StatusNoContent)
		},
		Ports: func(rw http.ResponseWriter, _ *http.Request, _ Sandbox, port int) {
			w.ports = append(w.ports, port)
			rw.WriteHeader(http.StatusOK)
		},
		APIHost: "api.box.example", Domain: "box.example:3443", Secret: []byte(strings.Repeat("s", 32)), Log: slog.New(slog.DiscardHandler),
	})
	return w
}

// send returns the status, the body and the headers of an answer. A path may begin with a
// host; headers are NAME: VALUE.
func (w *world) send(method, target, body string, headers ...string) (int, string, http.Header) {
	host, path, _ := strings.Cut(target, "/")
	r := httptest.NewRequest(method, "/"+path, strings.NewReader(body))
	r.Host, r.RemoteAddr = host, "127.0.0.1:1"
	r.Header.Set(keyHeader, key)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, r)
	return rec.Code, rec.Body.String(), rec.Header()
}

// must sends a request, and decodes the answer with this status.
func must[T any](t *testing.T, w *world, want int, method, target, body string, headers ...string) (out T) {
	t.Helper()
	status, text, _ := w.send(method, target, body, headers...)
	if status != want {
		t.Fatalf("%s %s: %d %s", method, target, status, text)
	}
	if text != "" {
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			t.Fatalf("%s %s: %q: %v", method, target, text, err)
		}
	}
	return out
}
