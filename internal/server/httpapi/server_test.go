package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/fake/guest"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/server/httpapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is the door between fakes, over real HTTP. Every answer it gives is
// checked against its own OpenAPI document.
type server struct {
	*httptest.Server
	vms       *fakeVMs
	snapshots *fakeSnapshots
	images    *fakeImages
	warm      *fakeWarm
	templates *fakeTemplates
	events    *fakeEvents
	webhooks  *fakeWebhooks
	routes    *fakeRoutes
	guest     *fakeGuest
	processes *guest.ProcessTable
	health    *fakeHealth
	requests  *fakeRequests
	audit     *fakeAudit
	log       *lockedBuffer
	contract  *contract
}

func newServer(t testing.TB) *server {
	t.Helper()
	return newLimitedServer(t, httpapi.Limits{})
}

func newLimitedServer(t testing.TB, limits httpapi.Limits, origins ...string) *server {
	t.Helper()
	s := &server{
		vms: &fakeVMs{}, snapshots: &fakeSnapshots{}, images: &fakeImages{}, warm: &fakeWarm{}, templates: &fakeTemplates{}, events: &fakeEvents{}, webhooks: &fakeWebhooks{}, routes: &fakeRoutes{},
		guest: openGuest(t), processes: guest.NewProcessTable(), health: &fakeHealth{status: "ok"}, requests: &fakeRequests{}, audit: &fakeAudit{}, log: &lockedBuffer{},
	}
	s.Server = httptest.NewServer(httpapi.New(httpapi.Config{
		Counts: fakeCounts{}, Routes: s.routes, Quotas: fakeQuotas{}, Authority: newAuthority(t), Audit: s.audit,
		VMs: s.vms, Snapshots: s.snapshots, Images: s.images, Warm: s.warm, Templates: s.templates, Keys: fakeKeys{}, Users: fakeUsers{}, Access: fakeKeys{}, Events: s.events, Webhooks: s.webhooks,
		Files: file.New(s.guest), Processes: process.New(oneGuest{s.processes, &s.guest.uses}, s.requests), Requests: s.requests,
		Health: s.health.report, Version: "1.2.3", Log: slog.New(slog.NewJSONHandler(s.log, nil)), Limits: limits,
		Origins: origins, IdleDefaults: machine.IdlePolicy{CPUPercent: 7, NetworkBytes: 4096},
	}))
	s.vms.requests, s.templates.requests = s.requests, s.requests
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		s.Close()
		s.processes.Close()
		requireNoUse(t, &s.guest.uses)
	})
	contractOnce.Do(func() {
		resp := s.send(t, s.request(t, "GET", "/openapi.json", ""))
		contractOfAll, errContract = newContract(resp.body)
	})
	if errContract != nil {
		t.Fatal(errContract)
	}
	s.contract = contractOfAll
	return s
}

// All servers have the same document, and making it takes longer than most tests.
var (
	contractOnce  sync.Once
	contractOfAll *contract
	errContract   error
)

// reply is an answer, read to its end.
type reply struct {
	*http.Response
	body []byte
}

func (r reply) problem(t testing.TB) api.Problem {
	t.Helper()
	return decode[api.Problem](t, r)
}

func decode[T any](t testing.TB, r reply) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(r.body, &v); err != nil {
		t.Fatalf("%s: %v", r.body, err)
	}
	return v
}

func (s *server) request(t testing.TB, method, target, body string) *http.Request {
	t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(context.Background(), method, s.URL+target, reader)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+goodKey)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	return r
}

func (s *server) send(t testing.TB, r *http.Request) reply {
	t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if s.contract != nil && !strings.HasPrefix(r.URL.Path, "/docs") && !strings.HasPrefix(r.URL.Path, "/openapi") && r.Method != "HEAD" {
		if err := s.contract.check(r, resp.StatusCode, resp.Header, body); err != nil {
			t.Errorf("%s %s breaks the contract: %v\n%s", r.Method, r.URL.Path, err, body)
		}
	}
	return reply{resp, body}
}

// call sends a request with the good key.
func (s *server) call(t testing.TB, method, target, body string) reply {
	t.Helper()
	return s.send(t, s.request(t, method, target, body))
}

func wantStatus(t testing.TB, r reply, status int) {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("status %d, want %d: %s", r.StatusCode, status, r.body)
	}
}

// lockedBuffer collects the log of a server's goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
