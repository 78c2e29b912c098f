package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/api"
)

const testKey = "hatch_testkey"

var testNow = time.Date(2026, 3, 6, 12, 0, 0, 0, time.UTC)

// fakeServer answers as hatchd does, as far as the CLI can tell.
type fakeServer struct {
	*httptest.Server

	mu          sync.Mutex
	vms         []api.VM
	images      []api.Image
	warm        []api.WarmGuest // of any image: what each question is answered with, the last one on and on
	templates   []api.Template
	keys        []api.Key
	calls       []string // method and path with query
	bodies      []string
	console     chan string // what was typed, once per console
	health      api.Health
	answer      map[string]api.Problem // by "METHOD /path": fail so
	onCreate    func()                 // called once when a VM is made; the client is not answered
	keysSeen    []string               // idempotency keys
	files       fakeFiles
	execs       *fakeExecs
	events      []api.Event
	onMetrics   func() // called when metrics are asked for
	standsStill bool   // guests use no CPU time
	snapshots   []api.Snapshot
	copies      api.Copies // what forks are answered with
	webhook     api.Webhook
	leading     []api.Route
	delivery    api.Delivery
	onStream    func(w http.ResponseWriter, r *http.Request) // serves streams of events
}

func newFake(t *testing.T) *fakeServer {
	t.Helper()
	f := &fakeServer{
		console: make(chan string, 4), execs: newFakeExecs(),
		vms: []api.VM{
			{
				ID: "vm_web000000001", Name: "web", ImageID: "img_default", State: api.StateRunning, VCPUCount: 2, MemMiB: 1024, DiskMiB: 4096,
				GuestIP: "172.16.0.10", GuestMAC: "02:FC:00:00:00:0A", TapName: "tap0", SSHPort: 16001, EnableNetwork: true, VMM: "qemu",
				Labels: map[string]string{"team": "a", "hatch.ssh.user": "alice"}, CreatedAt: api.Time{Time: testNow.Add(-90 * time.Minute)}, UpdatedAt: api.Time{Time: testNow},
				Conditions: []api.Condition{{Type: api.ConditionAgentReady, Status: api.StatusTrue, ChangedAt: api.Time{Time: testNow}}},
			},
			{
				ID: "vm_db0000000002", Name: "db", ImageID: "img_minimal", State: api.StateStopped, VCPUCount: 1, MemMiB: 512, DiskMiB: 100,
				CreatedAt: api.Time{Time: testNow.Add(-72 * time.Hour)}, UpdatedAt: api.Time{Time: testNow},
			},
			{
				ID: "vm_db0000000003", ImageID: "img_default", State: api.StateError, StateReason: "the VMM\x1b[31m ended\nunasked", VCPUCount: 1, MemMiB: 512, DiskMiB: 100,
				CreatedAt: api.Time{Time: testNow.Add(-30 * time.Second)}, UpdatedAt: api.Time{Time: testNow},
			},
		},
		images: []api.Image{
			{ID: "img_default", Name: "debian", RootfsFormat: "ext4", RootfsBytes: 400 << 20, KernelVersion: "6.1.0-41", KernelDigest: "sha256:aa", RootfsDigest: "sha256:bb", DiskMode: "overlay", CloudInit: true, CreatedAt: api.Time{Time: testNow.Add(-time.Hour)}},
			{ID: "img_minimal", RootfsFormat: "ext4", RootfsBytes: 4 << 20, KernelDigest: "sha256:aa", RootfsDigest: "sha256:cc", DiskMode: "overlay", CreatedAt: api.Time{Time: testNow.Add(-time.Hour)}},
		},
		templates: []api.Template{{ID: "tpl_small0000001", CreateTemplate: api.CreateTemplate{Name: "small"}, CreatedAt: api.Time{Time: testNow.Add(-time.Hour)}, UpdatedAt: api.Time{Time: testNow}}},
		keys:      []api.Key{{ID: "key_admin0000001", Name: "admin", UserID: "acc_admin", Prefix: "hatch_abcdef", Scopes: []string{"admin"}, CreatedAt: api.Time{Time: testNow.Add(-time.Hour)}}},
		health:    api.Health{Status: "ok", Version: "v1.2.3", VMM: "qemu", Parts: []api.HealthPart{{Name: "database", Status: "ok"}}},
		answer:    map[string]api.Problem{},
	}
	f.Server = httptest.NewServer(f.routes())
	t.Cleanup(f.Close)
	return f
}

func (f *fakeServer) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.health) })
	mux.HandleFunc("GET /vms", f.listVMs)
	mux.HandleFunc("POST /vms", f.createVM)
	mux.HandleFunc("GET /vms/{id}", f.withVM(func(w http.ResponseWriter, _ *http.Request, v *api.VM) { reply(w, 200, v) }))
	mux.HandleFunc("DELETE /vms/{id}", f.withVM(func(w http.ResponseWriter, r *http.Request, v *api.VM) {
		id := v.ID
		f.vms = slices.DeleteFunc(f.vms, func(v api.VM) bool { return v.ID == id })
		reply(w, 200, api.Deleted{Status: "deleted"})
	}))
	for verb, state := range map[string]string{"start": api.StateRunning, "stop": api.StateStopped, "restart": api.StateRunning, "pause": api.StatePaused, "resume": api.StateRunning, "sleep": api.StateSnapshotted, "wake": api.StateRunning} {
		mux.HandleFunc("POST /vms/{id}/"+verb, f.withVM(func(w http.ResponseWriter, _ *http.Request, v *api.VM) {
			v.State = state
			reply(w, 200, v)
		}))
	}
	mux.HandleFunc("PATCH /vms/{id}", f.withVM(func(w http.ResponseWriter, _ *http.Request, v *api.VM) { reply(w, 200, v) }))
	mux.HandleFunc("POST /vms/{id}/connect", f.withVM(func(w http.ResponseWriter, _ *http.Request, v *api.VM) {
		reply(w, 200, api.Connection{Certificate: "ssh-ed25519-cert-v01@openssh.com AAAA", Host: "elsewhere", Port: v.SSHPort, HostKeys: []string{hostKey + " root@web"}})
	}))
	mux.HandleFunc("GET /vms/{id}/wait", f.withVM(func(w http.ResponseWriter, _ *http.Request, v *api.VM) { reply(w, 200, v) }))
	mux.HandleFunc("GET /vms/{id}/metrics", f.withVM(func(w http.ResponseWriter, _ *http.Request, v *api.VM) { reply(w, 200, f.metrics(v)) }))
	mux.HandleFunc("GET /vms/{id}/logs", f.withVM(func(w http.ResponseWriter, r *http.Request, _ *api.VM) {
		_, _ = io.WriteString(w, "boot \x1b[32mok\x1b[0m\r\nlogin:\n")
	}))
	mux.HandleFunc("GET /vms/{id}/console", f.consoleOf)
	f.webhookRoutes(mux)
	f.routeRoutes(mux)
	f.snapshotRoutes(mux)
	mux.HandleFunc("GET /events", f.listEvents)
	mux.HandleFunc("GET /vms/{id}/events", f.listEvents)
	mux.HandleFunc("GET /images", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.images) })
	mux.HandleFunc("POST /images", func(w http.ResponseWriter, r *http.Request) { reply(w, 201, api.Image{ID: "img_mine"}) })
	mux.HandleFunc("GET /images/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.warmImage()) })
	mux.HandleFunc("POST /images/{id}/warm", func(w http.ResponseWriter, _ *http.Request) { reply(w, 202, f.warmImage()) })
	mux.HandleFunc("DELETE /images/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, api.Deleted{Status: "deleted"}) })
	mux.HandleFunc("POST /images/builds", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 201, api.ImageBuild{ID: "bld_1", Recipe: "minimal", State: "running"})
	})
	mux.HandleFunc("GET /images/builds/{id}/log", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "unpacking\n") })
	mux.HandleFunc("GET /images/builds/{id}", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, api.ImageBuild{ID: "bld_1", Recipe: "minimal", State: "done", ImageID: "img_minimal"})
	})
	mux.HandleFunc("GET /templates", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.templates) })
	mux.HandleFunc("GET /templates/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.templates[0]) })
	mux.HandleFunc("POST /templates", func(w http.ResponseWriter, _ *http.Request) { reply(w, 201, api.Template{ID: "tpl_new"}) })
	mux.HandleFunc("DELETE /templates/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, api.Deleted{Status: "deleted"}) })
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.keys) })
	mux.HandleFunc("POST /keys", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 201, api.Key{ID: "key_new000000001", Name: "ci", Secret: "hatch_secret", CreatedAt: api.Time{Time: testNow}})
	})
	mux.HandleFunc("DELETE /keys/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, api.Deleted{Status: "deleted"}) })
	f.files.routes(mux)
	f.execs.routes(mux)
	return f.guard(mux)
}

// guard records the call and asks for the key.
func (f *fakeServer) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.calls = append(f.calls, r.Method+" "+r.URL.RequestURI())
		if p, ok := f.answer[r.Method+" "+r.URL.Path]; ok {
			reply(w, p.Status, p)
			return
		}
		if r.URL.Path != "/healthz" && r.Header.Get("Authorization") != "Bearer "+testKey {
			reply(w, 401, api.Problem{Status: 401, Title: "Unauthorized", Error: "the API key is not valid", Code: "invalid_api_key"})
			return
		}
		if r.Method == http.MethodPost || r.Method == http.MethodPatch {
			body, _ := io.ReadAll(r.Body)
			f.bodies = append(f.bodies, string(body))
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		if r.Header.Get("Upgrade") != "" && strings.Contains(r.URL.Path, "/exec") { // other calls come meanwhile
			f.mu.Unlock()
			defer f.mu.Lock()
		}
		next.ServeHTTP(w, r)
	})
}

func (f *fakeServer) withVM(do func(http.ResponseWriter, *http.Request, *api.VM)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for i := range f.vms {
			if f.vms[i].ID == r.PathValue("id") {
				do(w, r, &f.vms[i])
				return
			}
		}
		reply(w, 404, api.Problem{Status: 404, Error: fmt.Sprintf("there is no VM %q", r.PathValue("id")), Code: "not_found"})
	}
}

// listVMs gives one VM per page.
func (f *fakeServer) listVMs(w http.ResponseWriter, r *http.Request) {
	var found []api.VM
	for _, v := range f.vms {
		if state := r.URL.Query().Get("state"); state == "" || state == v.State {
			found = append(found, v)
		}
	}
	at := 0
	if after := r.URL.Query().Get("after"); after != "" {
		at = slices.IndexFunc(found, func(v api.VM) bool { return v.ID == after }) + 1
	}
	if at+1 < len(found) {
		w.Header().Set("Link", fmt.Sprintf(`</vms?after=%s>; rel="next"`, found[at].ID))
	}
	reply(w, 200, found[at:min(at+1, len(found))])
}

func (f *fakeServer) createVM(w http.ResponseWriter, r *http.Request) {
	var req api.CreateVM
	_ = json.NewDecoder(r.Body).Decode(&req)
	f.keysSeen = append(f.keysSeen, r.Header.Get("Idempotency-Key"))
	if leave := f.onCreate; leave != nil {
		f.onCreate = nil
		leave()
		<-r.Context().Done()
		return
	}
	if req.Count != nil {
		reply(w, 201, api.CreatedVM{VM: f.copies.VMs[0], VMs: f.copies.VMs, Failed: f.copies.Failed})
		return
	}
	v := api.VM{ID: "vm_new000000009", Name: req.Name, ImageID: "img_default", State: api.StateRunning, SSHPort: 16009, CreatedAt: api.Time{Time: testNow}}
	if req.EnableNetwork != nil && !*req.EnableNetwork {
		v.SSHPort = 0
	}
	f.vms = append(f.vms, v)
	reply(w, 201, v)
}

// listEvents gives one event per page, or a stream.
func (f *fakeServer) listEvents(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Accept") == "text/event-stream" {
		f.onStream(w, r)
		return
	}
	found := []api.Event{}
	after, _ := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
	for _, e := range f.events {
		id, kind := r.PathValue("id"), r.URL.Query().Get("type")
		if e.Seq > after && (id == "" || e.VMID == id) && (kind == "" || e.Type == kind) {
			found = append(found, e)
		}
	}
	if len(found) > 1 {
		found = found[:1]
		w.Header().Set("Link", fmt.Sprintf(`</events?after=%d>; rel="next"`, found[0].Seq))
	}
	reply(w, 200, found)
}

// consoleOf greets, reads one message and ends.
func (f *fakeServer) consoleOf(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = conn.CloseNow() }()
	_ = conn.Write(r.Context(), websocket.MessageBinary, []byte("login: "))
	_, typed, _ := conn.Read(r.Context())
	f.console <- string(typed)
	_ = conn.Close(websocket.StatusNormalClosure, "")
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func (f *fakeServer) called(call string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.calls, call)
}

func (f *fakeServer) lastBody(t *testing.T) string {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.bodies) == 0 {
		t.Fatal("nothing was posted")
	}
	return f.bodies[len(f.bodies)-1]
}

// session is the surroundings of one command line.
type session struct {
	ctx   context.Context // nil: none that ends
	env   map[string]string
	stdin io.Reader
	tty   bool

	width, height int // of the terminal; 0 means a large one
	signals       chan os.Signal
	resized       chan os.Signal // nil: it never changes

	out    io.Writer // instead of stdout
	stdout bytes.Buffer
	stderr bytes.Buffer
	browse func(ctx context.Context, url string)
	secret string // what is typed where the terminal shows nothing
}

func newSession(t *testing.T, f *fakeServer) *session {
	home := t.TempDir()
	return &session{env: map[string]string{"HOME": home, "HATCH_DATA_DIR": filepath.Join(home, "none"), "HATCH_URL": f.URL, "HATCH_API_KEY": testKey}, stdin: strings.NewReader("")}
}

// hatch runs a command line given as words.
func (s *session) hatch(args ...string) int {
	s.stdout.Reset()
	s.stderr.Reset()
	ctx := s.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	out := s.out
	if out == nil {
		out = &s.stdout
	}
	return run(ctx, args, streams{
		in: s.stdin, out: out, err: &s.stderr,
		inTTY: s.tty, outTTY: s.tty,
		env: func(name string) string { return s.env[name] },
		now: func() time.Time { return testNow },
		raw: func() (func(), error) { return func() {}, nil },

		secret: func(context.Context) ([]byte, error) { return []byte(s.secret), nil },

		size:    func() (int, int) { return cmp.Or(s.width, 200), cmp.Or(s.height, 50) },
		resized: func() (<-chan os.Signal, func()) { return s.resized, func() {} },
		signals: func() (<-chan os.Signal, func()) { return s.signals, func() {} },
		browse:  s.browse,
	})
}

// golden compares with a file of testdata; UPDATE_GOLDEN=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs:\ngot:\n%s\nwant:\n%s", name, got, want)
	}
}
