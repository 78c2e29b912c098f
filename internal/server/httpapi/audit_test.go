package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/audit"
)

// fakeAudit keeps records, and the last filter.
type fakeAudit struct {
	mu      sync.Mutex
	records []audit.Record
	bounded []audit.Record
	filter  audit.Filter
	pages   int
}

func (f *fakeAudit) Add(r audit.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records = append(f.records, r)
}

func (f *fakeAudit) AddBounded(r audit.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bounded = append(f.bounded, r)
}

// Records has 1,500 records.
func (f *fakeAudit) Records(_ context.Context, filter audit.Filter) (page []audit.Record, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.filter = filter
	f.pages++
	first := int64(1500)
	if filter.Before != 0 {
		first = filter.Before - 1
	}
	for seq := first; seq > 0 && len(page) < filter.Limit; seq-- {
		page = append(page, audit.Record{Seq: seq, At: began, Operation: "stop-vm", Outcome: audit.OK, Count: 1})
	}
	return page, nil
}

// last returns the records since the last call.
func (f *fakeAudit) last() []audit.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.records = nil }()
	return f.records
}

// Each operation that changes something leaves one record, by its id; others leave none,
// but for those that read files or open something.
func TestEachChangeIsRecorded(t *testing.T) {
	s := newServer(t)
	reading := map[string]bool{"read-file": true, "read-tree": true, "vm-console": true, "vm-tunnel": true, "stream-exec": true, "attach-exec": true}
	for _, pattern := range documented(s) {
		method, path, _ := strings.Cut(pattern, " ")
		id := s.contract.paths[path].(object)[strings.ToLower(method)].(object)["operationId"].(string)
		s.audit.last()
		s.call(t, method, strings.NewReplacer("{id}", knownVM, "{exec_id}", "exec_1", "{delivery_id}", "dlv_1").Replace(path), "")
		got := s.audit.last()
		if want := method != "GET" || reading[id]; want != (len(got) == 1) {
			t.Errorf("%s has left %d records", id, len(got))
		}
		if len(got) == 1 && (got[0].Operation != id || got[0].UserID != goodAcc || got[0].KeyID != "key_good" || got[0].Address != "127.0.0.1" || got[0].RequestID == "") {
			t.Errorf("%s: %+v", id, got[0])
		}
	}
}

// A record says what was asked for and how it has ended, and has nothing else of the
// request.
func TestARecordHasNoSecrets(t *testing.T) {
	const secret = "planted-s3cret"
	s := newServer(t)
	for _, c := range []struct {
		method, target, body, want string
	}{
		{"POST", "/webhooks", `{"url":"https://example.com/` + secret + `","events":["*"],"description":"` + secret + `"}`, "create-webhook webhook whk_1 ok "},
		{"POST", "/vms/" + knownVM + "/exec", `{"command":"echo ` + secret + `","env":{"A":"` + secret + `"}}`, "run-exec vm " + knownVM + " ok "},
		{"GET", "/vms/" + knownVM + "/files?path=/" + secret, "", "read-file vm " + knownVM + " refused file_not_found"},
		{"POST", "/vms/vm_none/stop", "", "stop-vm vm vm_none refused vm_not_found"},
		{"DELETE", "/keys/" + secret + "%2F..", "", "delete-key key  refused key_not_found"},
		{"DELETE", "/keys/hatch_" + strings.Repeat("a", 43), "", "delete-key key  refused key_not_found"},
		{"POST", "/vms", `{"user_data":"` + secret, "create-vm vm  refused invalid_body"},
		{"PATCH", "/vms/" + knownVM, `{"name":7}`, "update-vm vm " + knownVM + " refused invalid_name"},
	} {
		r := s.request(t, c.method, c.target, c.body)
		r.Header.Set("Cookie", secret)
		r.Header.Set("User-Agent", secret)
		s.send(t, r)
		got := s.audit.last()
		if len(got) != 1 {
			t.Fatalf("%s %s: %d records", c.method, c.target, len(got))
		}
		rec := got[0]
		if text := fmt.Sprintf("%s %s %s %s %s", rec.Operation, rec.Noun, rec.Object, rec.Outcome, rec.Code); text != c.want {
			t.Errorf("%s %s is recorded as %q, want %q", c.method, c.target, text, c.want)
		}
		if strings.Contains(fmt.Sprintf("%+v", rec), secret) {
			t.Errorf("the record has the secret: %+v", rec)
		}
	}
	wrong := s.request(t, "GET", "/vms", "")
	wrong.Header.Set("Authorization", "Bearer "+secret)
	s.send(t, wrong)
	if b := s.audit.bounded; len(b) != 1 || b[0].Operation != audit.Authenticate || b[0].Code != "key_unknown" || b[0].Address != "127.0.0.1" {
		t.Errorf("a wrong key: %+v", b)
	}
}

// A request about one object that makes another is found by both.
func TestARecordNamesWhatWasMade(t *testing.T) {
	s := newServer(t)
	for target, body := range map[string]string{
		"/vms/" + knownVM + "/routes": `{"target_port":80}`, "/vms/" + knownVM + "/snapshot": `{}`,
		"/vms/" + knownVM + "/exec": `{"command":"true","background":true}`,
	} {
		r := s.call(t, "POST", target, body)
		wantStatus(t, r, 201)
		location := r.Header.Get("Location")
		got := s.audit.last()
		if len(got) != 1 || got[0].Object != knownVM || got[0].Made == "" || !strings.HasSuffix(location, "/"+got[0].Made) {
			t.Errorf("%s has made %s: %+v", target, location, got)
		}
	}
	s.call(t, "POST", "/vms", "{}")
	if got := s.audit.last(); len(got) != 1 || got[0].Object == "" || got[0].Made != "" {
		t.Errorf("a new VM: %+v", got)
	}
}

// An admin sees all records, also with a key for these alone.
func TestAnAdminsAuditorSeesAllRecords(t *testing.T) {
	s := newServer(t)
	r := s.request(t, "GET", "/audit", "")
	r.Header.Set("Authorization", "Bearer "+auditorKey)
	wantStatus(t, s.send(t, r), 200)
	if f := s.audit.filter; f.Scope != access.Everyone {
		t.Errorf("filter %+v", f)
	}
}

func TestAuditPages(t *testing.T) {
	s := newServer(t)
	r := s.call(t, "GET", "/audit?user=alice&operation=stop-vm&outcome=ok&since=1h&limit=2", "")
	var page []api.AuditRecord
	if err := json.Unmarshal(r.body, &page); err != nil || len(page) != 2 || page[0].ID != "aud_1500" {
		t.Fatalf("%s, %v", r.body, err)
	}
	if link := r.Header.Get("Link"); !strings.Contains(link, "after=1499") || !strings.Contains(link, "user=alice") || !strings.Contains(link, "outcome=ok") {
		t.Errorf("Link: %s", link)
	}
	if f := s.audit.filter; f.Scope != access.Owner(goodAcc) || f.User != "alice" || f.Since.IsZero() || f.Limit != 2 {
		t.Errorf("filter %+v", f)
	}
	for _, query := range []string{"since=x", "until=x", "after=x", "after=-1", "outcome=x", "limit=0"} {
		wantStatus(t, s.call(t, "GET", "/audit?"+query, ""), 400)
	}
}

// An export has all records, of any number of pages, one per line.
func TestAuditExport(t *testing.T) {
	s := newServer(t)
	r := s.request(t, "GET", "/audit", "")
	r.Header.Set("Accept", "application/x-ndjson")
	reply := s.send(t, r)
	if lines := strings.Count(string(reply.body), "\n"); lines != 1500 || reply.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("%d lines of %s", lines, reply.Header.Get("Content-Type"))
	}
}
