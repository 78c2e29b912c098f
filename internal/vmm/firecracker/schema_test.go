//go:build linux && amd64

package firecracker

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/process"
)

// Firecracker's OpenAPI description defines each request. The files in testdata are
// extracts from the descriptions of two releases; the tests check all requests of the
// driver against them.

// schema is the description of a value.
type schema struct {
	Type       string             `json:"type"`
	Deprecated bool               `json:"deprecated"`
	Required   []string           `json:"required"`
	Enum       []string           `json:"enum"`
	Minimum    *float64           `json:"minimum"`
	Maximum    *float64           `json:"maximum"`
	Properties map[string]*schema `json:"properties"`
	Items      *schema            `json:"items"`
}

// apiSchema is the description of an API, by method and path.
type apiSchema map[string]struct{ Body, Answer *schema }

func readSchema(t *testing.T, v version) (d apiSchema) {
	t.Helper()
	text, err := os.ReadFile("testdata/api-" + v.String() + ".json")
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// find returns the key of the operation, "" if there is none. A path that ends in a
// slash stands for one with a name after it.
func (d apiSchema) find(method, path string) string {
	for key := range d {
		m, pattern, _ := strings.Cut(key, " ")
		brace := strings.IndexByte(pattern, '{')
		if m == method && (pattern == path || brace > 0 && strings.HasPrefix(path, pattern[:brace])) {
			return key
		}
	}
	return ""
}

// mismatches returns how a value differs from its description.
func (s *schema) mismatches(at string, v any) (all []string) {
	say := func(format string, args ...any) { all = append(all, at+" "+fmt.Sprintf(format, args...)) }
	if s.Deprecated {
		say("is deprecated")
	}
	switch v := v.(type) {
	case map[string]any:
		return append(all, s.objectMismatches(at, v)...)
	case []any:
		if s.Type != "array" {
			say("is a list, want %s", s.Type)
			return all
		}
		for i, item := range v {
			all = append(all, s.Items.mismatches(fmt.Sprintf("%s[%d]", at, i), item)...)
		}
	case string:
		if s.Type != "string" || s.Enum != nil && !slices.Contains(s.Enum, v) {
			say("is %q, want %s of %q", v, s.Type, s.Enum)
		}
	case bool:
		if s.Type != "boolean" {
			say("is %v, want %s", v, s.Type)
		}
	case float64:
		if s.Type != "integer" || v != float64(int64(v)) || s.Minimum != nil && v < *s.Minimum || s.Maximum != nil && v > *s.Maximum {
			say("is %v, want %s within its bounds", v, s.Type)
		}
	default:
		say("is %v", v)
	}
	return all
}

func (s *schema) objectMismatches(at string, v map[string]any) (all []string) {
	if s.Type != "object" {
		return []string{at + " is an object, want " + s.Type}
	}
	for _, name := range s.Required {
		if _, ok := v[name]; !ok {
			all = append(all, at+"."+name+" is missing")
		}
	}
	for name, value := range v {
		if known, ok := s.Properties[name]; ok {
			all = append(all, known.mismatches(at+"."+name, value)...)
		} else {
			all = append(all, at+"."+name+" is unknown")
		}
	}
	return all
}

// check compares a request with the description, and returns its operation.
func (d apiSchema) check(a request) (key string, mismatches []string) {
	key = d.find(a.method, a.path)
	if key == "" {
		return "", []string{"it is not in the API"}
	}
	want := d[key].Body
	if want == nil || a.body == "" {
		if (want == nil) != (a.body == "") {
			mismatches = append(mismatches, "it has a body where none is described, or none where one is")
		}
		return key, mismatches
	}
	var body any
	if err := json.Unmarshal([]byte(a.body), &body); err != nil {
		return key, []string{err.Error()}
	}
	return key, want.mismatches("the body", body)
}

// sendEverything makes the driver send every request that it can send to that version,
// and returns them.
func sendEverything(t *testing.T, v version) []request {
	t.Helper()
	p := newFakeAPI(t, map[string]answer{
		"GET /":                   {200, `{"id":"vm-1","state":"Paused","vmm_version":"` + v.String() + `","app_name":"Firecracker"}`},
		"GET /machine-config":     {200, `{"vcpu_count":1,"mem_size_mib":4096,"track_dirty_pages":true}`},
		"GET /balloon/statistics": {200, `{"total_memory":2,"available_memory":1}`},
	})
	m := newFakeMachine(t, p, v)
	spec := fullSpec(t)
	for name, err := range map[string]error{
		"configure":       configure(t.Context(), m.api, v, spec, "tap0"),
		"configure least": configure(t.Context(), m.api, v, vmm.Spec{ID: "vm_1", VCPUs: 1, MemMiB: 64}, ""),
		"start":           m.api.action(t.Context(), "InstanceStart"),
		"power button":    m.PowerButton(t.Context()),
		"load":            m.load(t.Context(), m.api, spec, "tap0"),
		"load least":      m.load(t.Context(), m.api, vmm.Spec{ID: "vm_1"}, ""),
		"resume":          m.Resume(t.Context()),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, mem := range []int{2048, 4096} { // small and large guests may have other types of snapshots
		spec.MemMiB = mem
		if err := m.save(t.Context(), spec, t.TempDir()); err != nil {
			t.Errorf("save: %v", err)
		}
	}
	if err := m.checkSavable(t.Context(), spec); err != nil && checkSave(v) == nil {
		t.Errorf("check before a save: %v", err)
	}
	if is, err := m.Paused(t.Context()); err != nil || !is {
		t.Errorf("paused: %v, %v", is, err)
	}
	if st, err := m.Stats(t.Context()); err != nil || st.GuestMemory != (vmm.GuestMemory{Total: 2, Available: 1}) {
		t.Errorf("stats: %+v, %v", st, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// fullSpec returns a spec with all kinds of devices and limits.
func fullSpec(t *testing.T) vmm.Spec {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return vmm.Spec{
		ID: "vm_1", Dir: "/d", VCPUs: 2, MemMiB: 256, Kernel: "/k", Initramfs: "/i", Cmdline: "quiet", Memory: "/m",
		Disks: []vmm.Disk{{Serial: "root", Path: disk, ReadOnly: true}, {Serial: "own", Path: disk}},
		NIC:   &vmm.NIC{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
		Limits: vmm.RateLimits{
			Disk:      vmm.DiskLimit{BytesPerSecond: 1 << 20, OpsPerSecond: 100},
			NetworkIn: vmm.NetworkLimit{BytesPerSecond: 1 << 20}, NetworkOut: vmm.NetworkLimit{BytesPerSecond: 1 << 21},
		},
	}
}

// newFakeMachine returns a machine whose process is this one, and whose metrics come on
// FlushMetrics.
func newFakeMachine(t *testing.T, p *fakeAPI, v version) *machine {
	t.Helper()
	dir := t.TempDir()
	if err := makePipe(filepath.Join(dir, metricsPipe+".pipe")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.root, stateFile), []byte("devices"), 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := jail.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	proc, err := jail.Open(id, "", "")
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := newCounters(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		blocks.close()
		if err := proc.Close(); err != nil {
			t.Error(err)
		}
	})
	p.flush = func() { _, _ = io.WriteString(blocks.pipe, `{"balloon":{"stats_updates_count":1}}`+"\n") }
	m := &machine{
		Process: process.New("Firecracker", vmm.Handle{}, proc, nil), api: newAPI(p.root), counters: blocks,
	}
	m.version.Store(&v)
	return m
}

func TestRequestsMatchTheAPIsDescriptions(t *testing.T) {
	for _, v := range []version{{1, 12, 1}, {1, 16, 1}} {
		t.Run(v.String(), func(t *testing.T) {
			api, seen := readSchema(t, v), map[string]bool{}
			for _, a := range sendEverything(t, v) {
				key, mismatches := api.check(a)
				for _, mismatch := range mismatches {
					t.Errorf("%s %s: %s (%s)", a.method, a.path, mismatch, a.body)
				}
				seen[key] = true
			}
			for _, call := range callsInSource(t) {
				if key := api.find(call.method, call.path); key == "" || !seen[key] {
					t.Errorf("%s %s is in the source, but sendEverything does not send it", call.method, call.path)
				}
			}
		})
	}
}

// Both versions describe all fields that the driver reads.
func TestAnswersMatchTheAPIsDescriptions(t *testing.T) {
	for _, v := range []version{{1, 12, 1}, {1, 16, 1}} {
		t.Run(fmt.Sprintf("%+v", v), func(t *testing.T) {
			api := readSchema(t, v)
			for key, read := range map[string]any{"GET /": instance{}, "GET /machine-config": machineConfig{}, "GET /balloon/statistics": balloonStats{}} {
				text, err := json.Marshal(read)
				if err != nil {
					t.Fatal(err)
				}
				var fields map[string]any
				if err := json.Unmarshal(text, &fields); err != nil {
					t.Fatal(err)
				}
				for name := range fields {
					if api[key].Answer.Properties[name] == nil {
						t.Errorf("the answer to %s has no field %s in %s", key, name, v)
					}
				}
			}
		})
	}
}

// It shows that check finds a violation of each rule of a description.
func TestRequestsThatViolateTheDescriptionAreFound(t *testing.T) {
	for says, a := range map[string]request{
		"it is not in the API":            {"PUT", "/vm", `{"state":"Paused"}`},
		"the body.extra is unknown":       {"PATCH", "/vm", `{"state":"Paused","extra":1}`},
		"the body.state is missing":       {"PATCH", "/vm", `{}`},
		`the body.state is "Running"`:     {"PATCH", "/vm", `{"state":"Running"}`},
		"the body.state is 1":             {"PATCH", "/vm", `{"state":1}`},
		"the body.state is an object":     {"PATCH", "/vm", `{"state":{}}`},
		"the body.guest_cid is 2":         {"PUT", "/vsock", `{"guest_cid":2,"uds_path":"x"}`},
		"the body.guest_cid is 3.5":       {"PUT", "/vsock", `{"guest_cid":3.5,"uds_path":"x"}`},
		"the body.vcpu_count is 33":       {"PUT", "/machine-config", `{"vcpu_count":33,"mem_size_mib":64}`},
		"rate_limiter.ops.size is false":  {"PATCH", "/drives/disk0", `{"drive_id":"disk0","rate_limiter":{"ops":{"size":false,"refill_time":1}}}`},
		"network_overrides[0].iface_id":   {"PUT", "/snapshot/load", `{"snapshot_path":"x","network_overrides":[{"host_dev_name":"x"}]}`},
		"enable_diff_snapshots is deprec": {"PUT", "/snapshot/load", `{"snapshot_path":"x","enable_diff_snapshots":true}`},
		"or none where one is":            {"PUT", "/vsock", ``},
	} {
		t.Run(says, func(t *testing.T) {
			_, mismatches := readSchema(t, version{1, 16, 1}).check(a)
			if len(mismatches) != 1 || !strings.Contains(mismatches[0], says) {
				t.Errorf("%v has the mismatches %q, want one with %q", a, mismatches, says)
			}
		})
	}
}

// callsInSource finds the requests in the driver's source: calls of put and call, and
// entries of a list of requests. A path that ends in a slash has a name after it.
func callsInSource(t *testing.T) []request {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[request]bool{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if a, ok := requestOf(n); ok {
				found[a] = true
			}
			return true
		})
	}
	if len(found) < 10 {
		t.Errorf("found only the requests %v in the source", found)
	}
	return slices.Collect(maps.Keys(found))
}

func requestOf(n ast.Node) (request, bool) {
	switch n := n.(type) {
	case *ast.CallExpr:
		name, ok := n.Fun.(*ast.SelectorExpr)
		switch {
		case ok && name.Sel.Name == "put" && len(n.Args) == 3:
			return methodAndPath(http.MethodPut, n.Args[1])
		case ok && name.Sel.Name == "call" && len(n.Args) == 5:
			method, isConst := n.Args[1].(*ast.SelectorExpr)
			return methodAndPath(strings.ToUpper(strings.TrimPrefix(nameOf(method, isConst), "Method")), n.Args[2])
		}
	case *ast.CompositeLit:
		if len(n.Elts) == 2 {
			return methodAndPath(http.MethodPut, n.Elts[0])
		}
	}
	return request{}, false
}

func nameOf(s *ast.SelectorExpr, ok bool) string {
	if !ok {
		return ""
	}
	return s.Sel.Name
}

// methodAndPath reads a path that is a string literal, or begins with one.
func methodAndPath(method string, path ast.Expr) (request, bool) {
	if sum, ok := path.(*ast.BinaryExpr); ok {
		path = sum.X
	}
	text, ok := path.(*ast.BasicLit)
	if !ok || text.Kind != token.STRING {
		return request{}, false
	}
	literal, err := strconv.Unquote(text.Value)
	return request{method: method, path: literal}, err == nil && strings.HasPrefix(literal, "/")
}
